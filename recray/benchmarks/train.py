"""Training speed: recray's core, alone and under Ray Train, beside usual loops; Ray's own price."""

import os
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from recray.benchmarks import gpu, implicit_als, stage
from recray.benchmarks.harness import Figures, Measurement, Row, timed
from recray.benchmarks.steps import (
    LOOP_BATCH,
    Case,
    loop_pass,
    pass_of,
    rate,
    recray_pass,
)
from recray.config import Settings, load_settings
from recray.data import ingest
from recray.data.dataset import Prepared
from recray.data.source import detect_source
from recray.errors import unknown_name
from recray.progress import Log
from recray.runtime.session import session
from recray.training import trainer
from recray.training.checkpoint import Checkpoint, RunFolder, TrainState
from recray.training.devices import device_of
from recray.training.loop import build_run
from recray.training.shard import Workers

BATCH = 8192
"""The one that figures are taken at."""
AVERAGED = ("train.local_sgd_steps=8",)
TINY_EPOCHS, TINY_SECONDS = 10, 0.1
CHECKPOINT_BYTES, EPOCH_SECONDS = 50_000_000, 10.0


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Args:
        batches: Pairs of a step; BATCH is among them.
        large: Pairs of a step where two workers are compared with one: the more there are, the
            fewer exchanges.
        repetitions: How often each way is timed.
        tiny_runs: Short trainings of one worker, by which the price of Ray is measured.
        tiny_runs_of_two: The same with two workers.
        naive: Time two workers of Ray Train as it comes, too.
        tables: Whose tables the models have: smaller ones, and larger ones.
        solves: Sets on which exact solves are compared, the first one by quality too.
    """

    batches: tuple[int, ...]
    large: int
    repetitions: int
    tiny_runs: int
    tiny_runs_of_two: int
    naive: bool
    tables: tuple[str, str] = ("ml-1m", "ml-25m")
    solves: tuple[implicit_als.Size, ...] = (implicit_als.ML_1M, implicit_als.ML_25M)


FULL = Sizes((1024, BATCH, 32768), 1 << 20, 5, 3, 3, naive=True)
QUICK = Sizes((BATCH,), 1 << 20, 3, 3, 1, naive=False, solves=(implicit_als.ML_1M,))


class Speed(Row):
    """Samples a second of one way of training: the median, the least and the most."""

    way: str
    model: str
    tables: str
    batch: int
    samples_per_s: int
    low: int
    high: int
    mb_per_step: float
    load: float

    @property
    def key(self) -> tuple[str, str, int]:
        """What was trained."""
        return self.model, self.tables, self.batch


def run(
    sizes: Sizes, log: Log, device: str = "cpu", only: str | None = None, data: str | None = None
) -> Measurement:
    """Time every way in turn.

    Args:
        sizes: How much is measured.
        log: Receives what happens, one line at a time.
        device: cpu, or cuda, which has a table of its own: see recray.benchmarks.gpu.
        only: implicit: exact solves beside those of the package implicit, and nothing else.
        data: Folder of ml-1m.zip, for those; None generates ratings of its size.

    Raises:
        RecrayError: There is no such device, package or archive.
    """
    if only is not None:
        if only != "implicit":
            raise unknown_name("row", only, ("implicit",))
        return implicit_als.run(sizes.solves, sizes.repetitions, log, data)
    settings = load_settings("dot-mse", None, [f"train.device={device}"])
    device_of(settings.train)
    if device == "cuda":
        return gpu.run(gpu.TASKS, sizes.repetitions, log)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory(prefix="recray-benchmark-") as folder, session():
            rows = _speed(Path(folder), sizes, log)
            price = _price_of_ray(folder, sizes, log)
            price["checkpoint_share"] = _checkpoint_share(f"{folder}/saved", sizes.repetitions)
    finally:
        torch.set_num_threads(threads)
    log(f"threads of each process: 1; checkpoint of 50 MB: {price['checkpoint_share']:.2%}")
    return Measurement({**_figures(rows, sizes), **price}, rows)


# ------------------------------------------------------------------------------- samples/s


def _cases(sizes: Sizes) -> list[Case]:
    steps = {1024: 128, 8192: 64, 32768: 16}
    cases = [
        Case(model, size, batch, steps[batch] // parts)
        for model, parts in (("dot", 1), ("neumf", 4))
        for size in sizes.tables
        for batch in sizes.batches
    ]
    return [*cases, Case("dot", sizes.tables[1], sizes.large, 12)]


def _speed(folder: Path, sizes: Sizes, log: Log) -> list[Speed]:
    with stage.group(folder / "one", 1) as one, stage.group(folder / "two", 2) as two:
        rows = _loops(sizes, log)
        for case in _cases(sizes):
            rows += _one_case(case, one, two, sizes, log)
            for group in (one, two):
                group.ask("forget", None)
    return rows


def _loops(sizes: Sizes, log: Log) -> list[Speed]:
    """The usual loop at its own batch; few steps, for it is slow."""
    rows = []
    for model in ("dot", "neumf"):
        case = Case(model, sizes.tables[0], LOOP_BATCH, 20)
        run = loop_pass(case)
        run()
        rates = [rate(run) for _ in range(sizes.repetitions)]
        rows.append(_row("a loop", case, rates, 0.0, log))
    return rows


def _one_case(
    case: Case, one: stage.Group, two: stage.Group, sizes: Sizes, log: Log
) -> list[Speed]:
    """Every way of a case, in turn."""
    # Dense Adam on large tables takes a tenth of a second a step: a few tell enough.
    steps = min(case.steps, 16) if case.size == sizes.tables[0] else 3
    few = Case(case.model, case.size, case.batch, steps)
    averaged = Case(case.model, case.size, case.batch, case.steps, case.changes + AVERAGED)
    alone = {
        "b plain": pass_of("plain", few, Workers())[0],
        "c core": recray_pass(case, Workers())[0],
    }
    ways: dict[str, Callable[[], stage.Answer]] = {
        **{way: partial(_alone, run) for way, run in alone.items()},
        "d ray, 1 worker": partial(one.ask, "core", case),
        "e ray, 2 workers": partial(two.ask, "core", case),
        "f plain DDP, 2 workers": partial(two.ask, "ddp", few),
    }
    if case.batch == sizes.large:
        ways["e averaged every 8"] = partial(two.ask, "core", averaged)
        ways["g each alone, 2 workers"] = partial(two.ask, "alone", case)
    for run in alone.values():
        run()
    found: dict[str, list[stage.Answer]] = {way: [] for way in ways}
    for _ in range(sizes.repetitions):
        for way, measure in ways.items():
            found[way].append(measure())
    return [
        _row(way, case, [one.rate for one in several], several[0].bytes, log)
        for way, several in found.items()
    ]


def _alone(run: Callable[[], int]) -> stage.Answer:
    return stage.Answer(rate(run))


def _row(way: str, case: Case, rates: list[float], moved: float, log: Log) -> Speed:
    speed = statistics.median(rates)
    log(f"{case.model}, {case.size}, batch {case.batch:,}, {way}: {speed:,.0f} samples/s")
    return Speed(
        way=way,
        model=case.model,
        tables=case.size,
        batch=case.batch,
        samples_per_s=round(speed),
        low=round(min(rates)),
        high=round(max(rates)),
        mb_per_step=round(moved / 1e6, 2),
        load=round(os.getloadavg()[0], 1),
    )


def _figures(rows: list[Speed], sizes: Sizes) -> Figures:
    smaller, larger = sizes.tables
    speed = {(row.way[0], *row.key): row.samples_per_s for row in reversed(rows)}
    named = {(row.way, row.batch): row.samples_per_s for row in rows if row.tables == larger}
    large, small = ("dot", larger, BATCH), ("dot", smaller, BATCH)
    both = [row for row in rows if row.way == "c core"]
    over = [speed["d", *row.key] / speed["c", *row.key] for row in both]
    fastest = {
        model: max(row.samples_per_s for row in both if row.key[:2] == (model, smaller))
        for model in ("dot", "neumf")
    }
    one = speed["d", "dot", larger, sizes.large]
    return {
        "dot_over_loop": fastest["dot"] / speed["a", "dot", smaller, LOOP_BATCH],
        "neumf_over_loop": fastest["neumf"] / speed["a", "neumf", smaller, LOOP_BATCH],
        "dot_25m_samples_per_s": speed["c", *large],
        "dot_25m_over_dense_adam": speed["c", *large] / speed["b", *large],
        "cost_25m_over_1m": speed["c", *small] / speed["c", *large],
        "ray_over_core": statistics.median(over),
        "two_over_one_25m": speed["e", "dot", larger, sizes.large] / one,
        "two_over_one_25m_averaged": named["e averaged every 8", sizes.large] / one,
        "ddp_over_one_25m": speed["f", "dot", larger, sizes.large] / one,
        # What two processes reach here that exchange nothing: the most that the machine gives.
        "two_alone_over_one_25m": speed["g", "dot", larger, sizes.large] / one,
    }


# ------------------------------------------------------------------------ the price of Ray


def _price_of_ray(folder: str, sizes: Sizes, log: Log) -> dict[str, float]:
    """10 epochs of 0.1 s: the bare loop, through Ray in this process, and with 2 workers."""
    prepared, settings = _tiny(folder, log)
    number = iter(range(1 << 30))

    def bare() -> None:
        data = Prepared.open(prepared, verify=True)
        fixed = trainer.adapt_to_dataset(settings, data)
        path = f"{folder}/bare-{next(number)}"
        build_run(fixed, data, RunFolder(path), Workers(), lambda _metrics: None).fit()

    def through_ray(workers: int) -> None:
        trainer.run(settings, prepared, f"{folder}/run-{next(number)}", workers)

    ways: dict[str, Callable[[], None]] = {
        "bare": bare,
        "local": lambda: through_ray(1),
        "two": lambda: through_ray(2),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(sizes.tiny_runs):
        for way, function in ways.items():
            if way != "two" or turn < sizes.tiny_runs_of_two:
                seconds[way].append(timed(function))
    middle = {way: statistics.median(found) for way, found in seconds.items()}
    for way, value in middle.items():
        log(f"{TINY_EPOCHS} epochs of about {TINY_SECONDS} s, {way}: {value:.2f} s")
    found = {
        "tiny_local_over_bare": middle["local"] / middle["bare"],
        "tiny_two_extra_s": middle["two"] - middle["bare"],
    }
    if sizes.naive:
        naive = timed(lambda: stage.naive(f"{folder}/naive", TINY_EPOCHS, TINY_SECONDS, 2))
        log(f"the same with Ray Train as it comes, 2 workers: {naive:.2f} s")
        found["tiny_two_naive_extra_s"] = naive - TINY_EPOCHS * TINY_SECONDS
    return found


def _tiny(folder: str, log: Log) -> tuple[str, Settings]:
    """A small data set, and settings with which an epoch of it takes about 0.1 s."""
    changes = ["split.valid=0", f"train.epochs={TINY_EPOCHS}", "train.patience=null"]
    settings = load_settings("dot-mse", None, [*changes, "train.batch_size=512"])
    prepared = f"{folder}/tiny"
    ingest.prepare(detect_source("sample", settings), prepared, settings)
    data = Prepared.open(prepared)
    fixed = trainer.adapt_to_dataset(settings, data)
    run = build_run(fixed, data, RunFolder(f"{folder}/calibrate"), Workers(), lambda _metrics: None)
    seconds = statistics.median(entry["seconds"] for entry in run.fit().history)
    batch = max(16, int(512 * seconds / TINY_SECONDS))
    log(f"an epoch of the sample takes {seconds:.3f} s in steps of 512; taken: {batch}")
    values = settings.plain()
    return prepared, settings.changed(train=values["train"] | {"batch_size": batch})


def _checkpoint_share(folder: str, repetitions: int) -> float:
    """Seconds to save a checkpoint of 50 MB, over an epoch of 10 s."""
    numbers = CHECKPOINT_BYTES // 4
    weights = {"table": torch.zeros(numbers // 2)}
    known = {"table": torch.zeros(numbers - numbers // 2)}
    run, seconds = RunFolder(folder), []
    for epoch in range(1, repetitions + 1):
        history = [{"epoch": e, "loss": 1.0} for e in range(1, epoch + 1)]
        checkpoint = Checkpoint(weights, known, TrainState(epoch, epoch, 1.0, history))
        seconds.append(timed(partial(run.save, checkpoint)))
    return statistics.median(seconds) / EPOCH_SECONDS
