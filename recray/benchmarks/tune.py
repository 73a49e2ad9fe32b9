"""What a trial costs beside its training: recray, Tuner's defaults, a TorchTrainer in each."""

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

from recray.benchmarks.experiments import archive
from recray.benchmarks.harness import Figures, Measurement, Row, start_workers, timed
from recray.config import Settings, load_settings
from recray.data import ingest
from recray.data.source import detect_source
from recray.progress import Log
from recray.runtime.session import session
from recray.tuning import request, tuner
from recray.tuning.driver import SearchDriver
from recray.tuning.request import TuneRequest, ValidatedSearch
from recray.tuning.space import parse_space
from recray.tuning.store import Metric, SweepFolder, TrialSpec
from recray.tuning.trial import TrialDataset, TrialRun, load, open_without_test


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Args:
        trials: Trials of each way but the slowest.
        inside_train: Trials of the slowest way, a TorchTrainer in each; 0 leaves it out.
    """

    trials: int
    inside_train: int


FULL, QUICK = Sizes(20, 2), Sizes(20, 0)


class Cost(Row):
    """Seconds of a trial, and how many of them are not its training."""

    way: str
    trials: int
    s_per_trial: float
    overhead_s: float


def run(sizes: Sizes, log: Log, data: str | None = None) -> Measurement:
    """Run trials of one epoch, one at a time, each way on the same data.

    Args:
        sizes: How much is measured.
        log: Receives what happens, one line at a time.
        data: Folder with ml-100k.zip; None takes the generated sample.
    """
    settings = load_settings("ranking", None, ["train.epochs=1", "model.dim=16"])
    source = "sample" if data is None else archive("ml-100k", data)
    with tempfile.TemporaryDirectory(prefix="recray-benchmark-") as folder, session():
        prepared = f"{folder}/prepared"
        ingest.prepare(detect_source(source, settings), prepared, settings)
        start_workers()
        search = _search(settings, prepared, f"{folder}/sweep", sizes.trials)
        rows = _measure(search, sizes.inside_train, log)
    return Measurement(_figures(rows), rows)


def _search(settings: Settings, prepared: str, out: str, trials: int) -> ValidatedSearch:
    # The first trial is that of the settings as they are; the grid has the others.
    space = parse_space({"train.l2": {"uniform": [0.02, 0.1], "points": trials - 1}}, settings)
    asked = TuneRequest(prepared, out, trials, 1, searcher="grid", scheduler="none")
    return request.check(asked, settings, space)


def _measure(search: ValidatedSearch, inside_train: int, log: Log) -> list[Cost]:
    """Every way: seconds a trial, and what of it is not the training."""
    specs = list(_specs(search))
    bare = _Bare(search.request.prepared, f"{search.request.out}-bare", search.metric, specs)
    data = load(search.data)
    bare(0)  # what is loaded at the first use is no trial's
    alone = timed(lambda: [bare.train(data, spec) for spec in specs]) / len(specs)
    rows = [_row("alone, in this process", len(specs), alone, alone, log)]
    seconds = timed(lambda: tuner.run(search)) / len(specs)
    rows.append(_row("recray", len(specs), seconds, alone, log))
    from recray.benchmarks import textbook

    with _quiet():
        seconds = timed(lambda: textbook.tune_defaults(bare, len(specs))) / len(specs)
        rows.append(_row("default", len(specs), seconds, alone, log))
        if inside_train:
            seconds = timed(lambda: textbook.tune_train(bare, inside_train)) / inside_train
            rows.append(_row("train inside", inside_train, seconds, alone, log))
    return rows


def _specs(search: ValidatedSearch) -> Iterator[TrialSpec]:
    driver = SearchDriver(search)
    while (spec := driver.next("")) is not None:
        yield spec


class _Bare:
    """One trial, start to end, by what any function would do: it reads its data and trains.

    Args:
        prepared: Folder of the data set.
        out: Where trials leave their files.
        metric: What trials are compared by.
        specs: The trials.
    """

    def __init__(self, prepared: str, out: str, metric: Metric, specs: list[TrialSpec]) -> None:
        self.prepared, self.out, self.metric, self.specs = prepared, out, metric, specs

    def __call__(self, number: int) -> float:
        return self.train(load(open_without_test(self.prepared)), self.specs[number])

    def train(self, data: TrialDataset, spec: TrialSpec) -> float:
        """Train one trial on data that have been read."""
        return TrialRun(data, SweepFolder(self.out), spec, self.metric).step().value


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Leave Ray's own tables and notes out."""
    names = ("ray.tune", "ray.train")
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(None):
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _row(way: str, trials: int, seconds: float, alone: float, log: Log) -> Cost:
    overhead = seconds - alone
    log(f"{way}: {trials} trials, {seconds:.3f} s each, {overhead:.3f} s of it overhead")
    per_trial, over = round(seconds, 4), round(overhead, 4)
    return Cost(way=way, trials=trials, s_per_trial=per_trial, overhead_s=over)


def _figures(rows: list[Cost]) -> Figures:
    overhead = {row.way: row.overhead_s for row in rows}
    own, inside = overhead["recray"], overhead.get("train inside")
    return {
        "overhead_s_per_trial": own,
        "over_default": overhead["default"] / own if own > 0 else None,
        "over_train_inside": inside / own if inside is not None and own > 0 else None,
    }
