"""What a search finds: 40 trials from poor values, beside the preset that people tuned; with trials
in full, and with ASHA, which stops most of them.
"""

import math
import tempfile
from dataclasses import dataclass

from recray.benchmarks.experiments import archive
from recray.benchmarks.harness import Figures, Measurement, Row, timed
from recray.benchmarks.quality import PER_ITEM, SMALL
from recray.config import Settings, load_settings
from recray.data import ingest
from recray.data.source import detect_source
from recray.progress import Log
from recray.runtime.session import session
from recray.tuning import request, tuner
from recray.tuning.request import TuneRequest
from recray.tuning.space import parse_space
from recray.tuning.store import TrialResult

POOR = ("model.dim=8", "objective.unobserved_weight=1.0", "train.l2=0.5")
"""Where the search starts: short vectors that shrink to nothing."""
SPACE = {
    "model.dim": {"int": [16, 64], "log": True},
    "objective.unobserved_weight": {"loguniform": [0.01, 1.0]},
    "train.l2": {"loguniform": [0.001, 0.1]},
}
"""That of the preset, with vectors no longer than the preset's."""


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Args:
        trials: Trials of each search.
        source: `ml-100k`, or the generated `sample`.
    """

    trials: int
    source: str


FULL, QUICK = Sizes(40, "ml-100k"), Sizes(12, "sample")


class Found(Row):
    """One search: its first value, its best, and that beside the preset that people tuned."""

    search: str
    trials: int
    epochs: int
    first: float
    best: float
    seconds: float
    of_tuned: float = math.nan


def run(sizes: Sizes, log: Log, data: str | None = None) -> Measurement:
    """Search the default preset from poor values, 75/25 per item.

    Args:
        sizes: How much is measured.
        log: Receives what happens, one line at a time.
        data: Folder with ml-100k.zip; None downloads it.
    """
    tuned = load_settings("ranking", None, (*PER_ITEM, *SMALL))
    poor = load_settings("ranking", None, (*PER_ITEM, *POOR))
    source = "sample" if sizes.source == "sample" else archive(sizes.source, data)
    with tempfile.TemporaryDirectory(prefix="recray-benchmark-") as folder, session():
        ingest.prepare(detect_source(source, tuned), f"{folder}/prepared", tuned)
        aim = _search(tuned, folder, "none", 1, log)
        rows = [aim, *(_search(poor, folder, way, sizes.trials, log) for way in ("none", "asha"))]
    for row in rows:
        row.of_tuned = row.best / aim.best
    return Measurement(_figures(*rows), rows)


def _search(settings: Settings, folder: str, scheduler: str, trials: int, log: Log) -> Found:
    """The trials of one search, and the best of them on the validation split."""
    name = "tuned preset" if trials == 1 else f"from poor values, scheduler {scheduler}"
    out = f"{folder}/{scheduler}-{trials}"
    asked = TuneRequest(f"{folder}/prepared", out, trials, searcher="tpe", scheduler=scheduler)
    search = request.check(asked, settings, parse_space(SPACE, settings))
    results: list[TrialResult] = []
    seconds = timed(lambda: results.extend(tuner.run(search)))
    metric = search.metric
    values = {r.number: best[1] for r in results if (best := metric.best(r.history))}
    winner = metric.winner(results)
    row = Found(
        search=name,
        trials=len(results),
        epochs=sum(len(result.history) for result in results),
        first=values.get(0, math.nan),
        best=values[winner.number] if winner else math.nan,
        seconds=round(seconds, 1),
    )
    values_seen = f"{metric.name} from {row.first:.4f} to {row.best:.4f}"
    log(f"{name}: {row.trials} trials, {row.epochs} epochs, {values_seen}")
    return row


def _figures(tuned: Found, full: Found, asha: Found) -> Figures:
    return {
        "start_of_tuned": asha.first / tuned.best,
        "full_of_tuned": full.best / tuned.best,
        "asha_of_tuned": asha.best / tuned.best,
        "asha_epochs_of_full": asha.epochs / full.epochs,
    }
