"""Prepare and train against the formulas of formulas.py: fitted on small sets, tried on large ones;
and what each worker of a group takes (shares.py).

What is compared first is CPU time: on a free core it is the time that passes, and the load of the
machine hardly touches it. The time that passed stands beside it.
"""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from pydantic import ConfigDict, Field

from recray.benchmarks import formulas, processes, shares
from recray.benchmarks.formulas import Size, Terms
from recray.benchmarks.harness import (
    Figures,
    Measurement,
    Row,
    peak_memory,
    ray_cpu_seconds,
    start_workers,
    timed,
)
from recray.benchmarks.ingest import generate
from recray.benchmarks.shares import Made
from recray.config import Settings, load_settings
from recray.data import ingest, source
from recray.data.dataset import Prepared
from recray.errors import unknown_name
from recray.progress import Log
from recray.runtime.session import session

EPOCHS = 2
WORKERS = (1, 2)
DIM = 64


@dataclass(frozen=True)
class Data:
    """A generated set: its rows, and how many of them each user has."""

    rows: int
    each: int = 154


@dataclass(frozen=True)
class Sizes:
    """How much is measured, in ratings.

    Args:
        small: The smaller set that constants are fitted to.
        middle: The larger one.
        large: The sets that are predicted.
        repetitions: How often each training is run that constants are fitted to.
        divided: The set that 1, 2 and 4 workers divide.
        largest: The set that two workers train once.
    """

    small: int
    middle: int
    large: tuple[int, ...]
    repetitions: int
    divided: Made
    largest: Made


FULL = Sizes(
    500_000, 2_000_000, (1_000_000, 4_000_000, 16_000_000), 2,
    Made(1_000_000, 60_000, 64, 10), Made(10_000_000, 1_000_000, 32, 10),
)  # fmt: skip
QUICK = Sizes(
    125_000, 500_000, (1_000_000,), 1, Made(40_000, 10_000, 64, 10), Made(400_000, 40_000, 32, 10)
)


@dataclass(frozen=True)
class Trial:
    """One training."""

    data: Data
    dim: int
    workers: int


@dataclass(frozen=True)
class Measured:
    """What one run took, beside the terms of the formula for it."""

    stage: str
    size: Size
    wall: float
    figures: dict[str, float]


class _Compared(Row):
    """What a stage took, beside the formula."""

    model_config = ConfigDict(serialize_by_alias=True)
    stage: str
    use: str
    ratings: int
    users: int
    items: int
    dim: int
    workers: int
    wall_s: float
    cpu_s: float
    cpu_s_formula: float = Field(serialization_alias="cpu_s formula")
    cpu_s_off: float = Field(serialization_alias="cpu_s off")
    memory_mb: float
    memory_formula: float = Field(serialization_alias="memory formula")
    memory_off: float = Field(serialization_alias="memory off")

    def off(self, figure: str) -> float:
        """How far the formula is off in a figure, as a part of what it says."""
        return abs(self.cpu_s_off if figure == "cpu_s" else self.memory_off)


class Preparation(_Compared):
    """A prepared set."""


class Training(_Compared):
    """A training."""

    sent_mb: float


FIGURES: dict[str, dict[str, Callable[[Size], Terms]]] = {
    "prepare": {"cpu_s": formulas.prepare_seconds, "memory_mb": formulas.prepare_bytes},
    "train": {"cpu_s": formulas.train_seconds, "memory_mb": formulas.train_bytes},
}


def run(sizes: Sizes, log: Log, only: str | None = None) -> Measurement:
    """Measure each row, or one.

    Args:
        sizes: How much is measured.
        log: Receives what happens, one line at a time.
        only: formulas, workers or largest; None for all.

    Raises:
        RecrayError: There is no such row.
    """
    ways: dict[str, Callable[[], Measurement]] = {
        "formulas": lambda: _compare(sizes, log),
        "workers": lambda: shares.divided(Made(*sizes.divided), log),
        "largest": lambda: shares.largest(Made(*sizes.largest), log),
    }
    if only is not None and only not in ways:
        raise unknown_name("row", only, ways)
    found = [measure() for row, measure in ways.items() if only in (None, row)]
    figures: Figures = {}
    for one in found:
        figures |= one.figures
    return Measurement(figures, [row for one in found for row in one.rows])


def _compare(sizes: Sizes, log: Log) -> Measurement:
    """Fit the constants on the small sets, then predict the large ones."""
    small, middle = Data(sizes.small), Data(sizes.middle)
    many = Data(small.rows, 20)  # the same ratings by more users
    large = tuple(map(Data, sizes.large))
    with tempfile.TemporaryDirectory(prefix="recray-benchmark-") as folder:
        stage = _Stage(Path(folder), log)
        fitted = [stage.prepare(d, w) for d, w in product((small, middle), WORKERS)]
        stage.prepare(many, 1)
        trials = _trials(small, middle, many)
        fitted += [stage.train(trial) for trial in trials for _ in range(sizes.repetitions)]
        constants = _fit(fitted)
        tried = [stage.prepare(data, workers) for data, workers in product(large, WORKERS)]
        tried += [stage.train(Trial(data, DIM, w)) for data, w in product(large, WORKERS)]
    rows = [_row(one, constants, "fit") for one in fitted]
    rows += [_row(one, constants, "compared") for one in tried]
    return Measurement(_figures(rows, constants), rows)


def _trials(small: Data, middle: Data, many: Data) -> list[Trial]:
    """Runs that tell the constants apart: other ratings, users, dims and workers."""
    alone = [Trial(small, dim, 1) for dim in (32, 64, 96)]
    alone += [Trial(middle, dim, 1) for dim in (32, 64)]
    return [*alone, Trial(many, 64, 1), Trial(small, 64, 2), Trial(middle, 64, 2)]


@dataclass(frozen=True)
class _Stage:
    """Runs the stages in a folder, and tells what they took."""

    folder: Path
    log: Log

    def prepare(self, data: Data, workers: int) -> Measured:
        """Prepare a set with so many CPUs; the prepared one stays for `train`."""
        path = str(generate(self.folder, data.rows, "csv", data.each))
        out, settings = self._prepared(data), _settings(DIM)
        shutil.rmtree(out, ignore_errors=True)
        with peak_memory() as peak, session(cpus=workers):
            start_workers()
            before = ray_cpu_seconds()
            given = source.detect_source(path, settings)
            wall = timed(lambda: ingest.prepare(given, str(out), settings))
            cpu = ray_cpu_seconds() - before
        return self._told("prepare", data, DIM, workers, wall, cpu, (peak.mb or 0.0) * 1e6)

    def train(self, trial: Trial) -> Measured:
        """Train on a prepared set."""
        prepared = str(self._prepared(trial.data))
        settings = _settings(trial.dim)
        found = processes.train(settings, prepared, self.folder, trial.workers)
        told = self._told(
            "train",
            trial.data,
            trial.dim,
            trial.workers,
            found["wall_seconds"],
            found["cpu_seconds"],
            found["memory_bytes"],
        )
        if found["summed_bytes"] != formulas.summed_bytes(told.size):
            raise ValueError(
                f"{found['summed_bytes']:,.0f} bytes were summed, "
                f"not the {formulas.summed_bytes(told.size):,} of the formula"
            )
        return told

    def _prepared(self, data: Data) -> Path:
        return self.folder / f"prepared-{data.rows}-{data.each}"

    def _told(
        self, stage: str, data: Data, dim: int, workers: int, wall: float, cpu: float, memory: float
    ) -> Measured:
        manifest = Prepared.open(str(self._prepared(data))).manifest
        counts = manifest["counts"]
        rows = manifest["rows_read" if stage == "prepare" else "splits"]
        ratings = rows if stage == "prepare" else rows["train"]["rows"]
        size = Size(ratings, counts["users"], counts["items"], dim, workers, EPOCHS)
        self.log(
            f"{stage} {data.rows:,} ratings, dim {dim}, {workers} workers: "
            f"{cpu:.1f} s of CPU in {wall:.1f} s, {memory / 1e6:,.0f} MB"
        )
        return Measured(stage, size, wall, {"cpu_s": cpu, "memory_mb": memory / 1e6})


def _settings(dim: int) -> Settings:
    """Exact solves without validation, whose cost is another stage's."""
    sizes = (f"model.dim={dim}", "train.l2=0.013")
    wanted = ("split.valid=0", *sizes, f"train.epochs={EPOCHS}", "train.patience=null")
    return load_settings("ranking", overrides=wanted)


def _fit(runs: list[Measured]) -> dict[tuple[str, str], Terms]:
    """The constants of each stage and figure."""
    constants = {}
    for stage, figures in FIGURES.items():
        own = [one for one in runs if one.stage == stage]
        for name, terms in figures.items():
            values = [one.figures[name] for one in own]
            constants[stage, name] = formulas.fit([terms(one.size) for one in own], values)
    return constants


def _row(one: Measured, constants: dict[tuple[str, str], Terms], use: str) -> _Compared:
    size = one.size
    took: dict[str, float] = {}
    for name, terms in FIGURES[one.stage].items():
        expected = formulas.predict(constants[one.stage, name], terms(size))
        took[name] = round(one.figures[name], 2)
        short = name.removesuffix("_mb")
        took[f"{short}_formula"] = round(expected, 2)
        took[f"{short}_off"] = round(one.figures[name] / expected - 1, 3)
    if one.stage == "train":
        took["sent_mb"] = round(formulas.sent_bytes(size) / 1e6, 1)
    kind = Training if one.stage == "train" else Preparation
    sizes = {name: getattr(size, name) for name in ("ratings", "users", "items", "dim", "workers")}
    facts = {"stage": one.stage, "use": use, "wall_s": round(one.wall, 2)}
    return kind.model_validate({**facts, **sizes, **took})


def _figures(rows: list[_Compared], constants: dict[tuple[str, str], Terms]) -> Figures:
    """The largest errors of what was compared, and the constants."""
    compared = [row for row in rows if row.use == "compared"]
    figures: Figures = {}
    for stage, name in constants:
        off = [row.off(name) for row in compared if row.stage == stage]
        figures[f"{stage}_{name}_largest_error"] = max(off)
    for (stage, name), found in constants.items():
        figures |= {f"{stage} {name} per {term}": value for term, value in found.items() if value}
    return figures
