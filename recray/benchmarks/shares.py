"""What each worker of a group holds, solves and sums: exact solves of generated sets.

These sets are written as `recray prepare` would write them, since what is measured is training.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from recray.benchmarks import formulas, processes
from recray.benchmarks.formulas import Size
from recray.benchmarks.harness import Figures, Measurement, Row, peak_memory
from recray.benchmarks.synthetic import make_prepared
from recray.config import Settings, load_settings
from recray.data.split import partitions_for
from recray.progress import Log

GROUPS = (1, 2, 4)
"""Workers of the groups that are compared."""
FEW = 100
"""Divides the users of the set that tells what a worker holds beside its users."""


class Made(NamedTuple):
    """A generated set and the length of the vectors that are trained on it.

    Args:
        users: Number of users.
        items: Number of items.
        dim: Length of a vector.
        each: Ratings of a user.
    """

    users: int
    items: int
    dim: int
    each: int

    def size(self, workers: int, epochs: int = 1) -> Size:
        """What the formulas want to know."""
        ratings = self.users * self.each
        return Size(ratings, self.users, self.items, self.dim, workers, epochs)


class Share(Row):
    """What a worker of a group takes: the most of any, in a training of one epoch."""

    row: str = "workers"
    users: int
    items: int
    dim: int
    ratings: int
    workers: int
    memory_mb: float
    memory_formula: float
    memory_off: float
    solve_s: float
    solve_share: float
    items_s: float
    items_share: float
    cpu_s: float
    wall_s: float
    summed_mb: float
    of_whole_systems: float


class Largest(Row):
    """A training of one epoch that needs the memory of its users divided."""

    row: str = "largest"
    users: int
    items: int
    dim: int
    ratings: int
    workers: int
    all_memory_gb: float | None
    memory_mb: float
    cpu_s: float
    wall_s: float


def divided(made: Made, log: Log) -> Measurement:
    """Train the same set with 1, 2 and 4 workers.

    The memory of a worker should be what it holds in such a group with few users, and a share of
    the rest: few + (that of one worker - its few) / workers.
    """
    with tempfile.TemporaryDirectory(prefix="recray-benchmark-") as name:
        folder = Path(name)
        less = made._replace(users=made.users // FEW)
        few = {workers: _train(less, workers, folder, log) for workers in GROUPS}
        found = {workers: _train(made, workers, folder, log) for workers in GROUPS}
    rest = found[1]["memory_bytes"] - few[1]["memory_bytes"]
    expected = {workers: few[workers]["memory_bytes"] + rest / workers for workers in GROUPS}
    rows = [_share(made, w, found[w], found[1], expected[w]) for w in GROUPS]
    return Measurement(_figures(rows), rows)


def largest(made: Made, log: Log) -> Measurement:
    """Train a large set with two workers, and watch the memory of all processes."""
    with tempfile.TemporaryDirectory(prefix="recray-benchmark-") as name:
        folder = Path(name)
        _prepared(made, folder, log)
        with peak_memory() as peak:
            took = _train(made, 2, folder, log)
    row = Largest(
        **made._asdict(),
        ratings=made.users * made.each,
        workers=2,
        all_memory_gb=None if peak.mb is None else round(peak.mb / 1e3, 2),
        memory_mb=round(took["memory_bytes"] / 1e6, 1),
        cpu_s=round(took["cpu_seconds"], 1),
        wall_s=round(took["wall_seconds"], 1),
    )
    figures: Figures = {"largest_memory_gb": row.all_memory_gb, "largest_wall_s": row.wall_s}
    return Measurement(figures, [row])


def _train(made: Made, workers: int, folder: Path, log: Log) -> dict[str, float]:
    prepared = _prepared(made, folder, log)
    took = processes.train(_settings(made.dim), str(prepared), folder, workers)
    log(
        f"{made.users:,} users x {made.items:,} items, dim {made.dim}, {workers} workers: "
        f"{took['cpu_seconds']:.1f} s of CPU in {took['wall_seconds']:.1f} s, "
        f"{took['memory_bytes'] / 1e6:,.0f} MB"
    )
    return took


def _prepared(made: Made, folder: Path, log: Log) -> Path:
    ratings = made.users * made.each
    out = folder / f"prepared-{made.users}-{made.items}-{made.each}"
    if not out.exists():
        log(f"write {ratings:,} ratings")
        make_prepared(out, made.users, made.items, made.each, partitions_for(ratings))
    return out


def _settings(dim: int) -> Settings:
    """One epoch of exact solves without validation."""
    wanted = ("split.valid=0", f"model.dim={dim}", "train.l2=0.013", "train.epochs=1")
    return load_settings("ranking", overrides=[*wanted, "train.patience=null"])


def _share(
    made: Made, workers: int, took: dict[str, float], one: dict[str, float], expected: float
) -> Share:
    pairs = formulas.FLOAT32 * made.items * made.dim * (made.dim + 2)
    return Share(
        users=made.users,
        items=made.items,
        dim=made.dim,
        ratings=made.users * made.each,
        workers=workers,
        memory_mb=round(took["memory_bytes"] / 1e6, 1),
        memory_formula=round(expected / 1e6, 1),
        memory_off=round(took["memory_bytes"] / expected - 1, 3),
        solve_s=round(took["solve_seconds"], 3),
        solve_share=round(took["solve_seconds"] / one["solve_seconds"], 3),
        items_s=round(took["item_seconds"], 2),
        items_share=round(took["item_seconds"] / one["item_seconds"], 3),
        cpu_s=round(took["cpu_seconds"], 1),
        wall_s=round(took["wall_seconds"], 1),
        summed_mb=round(took["summed_bytes"] / 1e6, 1),
        of_whole_systems=round(took["summed_bytes"] / pairs, 3),
    )


def _figures(rows: Sequence[Share]) -> Figures:
    figures: Figures = {}
    for row in rows[1:]:
        figures[f"memory_of_worker_off_{row.workers}"] = row.memory_off
        figures[f"item_solves_{row.workers}_over_1"] = row.solve_share
        figures[f"items_with_exchange_{row.workers}_over_1"] = row.items_share
        figures[f"summed_bytes_over_4ID(D+2)_{row.workers}"] = row.of_whole_systems
    return figures
