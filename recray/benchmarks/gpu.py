"""What `recray benchmark train --device cuda` times: an epoch of each family on one GPU.

One run takes less than ten minutes. What fails, or would begin too late, leaves a line and no
number, and the others are measured all the same.
"""

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch

from recray.benchmarks.harness import Figures, Measurement, Row, load_now
from recray.benchmarks.steps import SIZES
from recray.config import Settings, load_settings
from recray.models import build_model
from recray.models.objectives import build_objective
from recray.progress import Log
from recray.training.devices import device_of
from recray.training.optimizers import pairs_of
from recray.training.own_users import OwnUsers, first_model
from recray.training.runners import epoch_runner
from recray.training.shard import Shard, Workers

LAST_BEGIN_S = 480.0
"""Seconds after which nothing else is begun."""
EPOCHS = 1_000
"""Epochs that the settings speak of; few are run."""
NEUMF = ("model.kind=neumf", "model.dim=64", "model.mlp_dim=128", "model.layers=[256,128,64]")
"""NVIDIA's configuration of NeuMF: 64 factors, layers 256-256-128-64, the first its input."""
PAIRS = (*NEUMF, "objective.kind=logistic", "objective.negatives=4", "train.l2=0")


@dataclass(frozen=True)
class Task:
    """One thing to time.

    Args:
        name: That of its row and figure.
        preset: Whose settings are changed.
        changes: Settings beside train.device.
        tables: Whose users and items: one of SIZES.
        ratings: How many there are, which are generated.
        share: Of the users, those who are trained; the tables of items stay whole.
    """

    name: str
    preset: str
    changes: tuple[str, ...]
    tables: str
    ratings: int
    share: float = 1.0

    def settings(self, device: str) -> Settings:
        """What is trained."""
        given = [f"train.device={device}", f"train.epochs={EPOCHS}", "train.patience=null"]
        settings = load_settings(self.preset, None, [*given, *self.changes])
        return settings.sized(*SIZES[self.tables])


def _neumf(precision: str, batch: int, compiled: bool = False) -> Task:
    name = f"neumf_{precision}_{batch}{'_compiled' if compiled else ''}"
    how = (f"train.precision={precision}", f"train.compile={str(compiled).lower()}")
    rows = f"train.batch_size={batch // 5}"  # each rating has four negatives
    changes = (*PAIRS, *how, rows, "train.optimizer=adam", "train.lr=0.0045")
    return Task(name, "dot-mse", changes, "ml-20m", batch // 5 * (20 if batch > 8192 else 300))


ALL_ITEMS = (
    "objective.kind=item-softmax",
    "objective.negatives=all",
    "train.optimizer=adam",
    "train.l2=0",
    "train.precision=tf32",
    "train.batch_size=1024",
)
TASKS = (
    Task("exact_solves_64", "ranking", ("model.dim=64",), "ml-25m", 25_000_000),
    Task("exact_solves_128", "ranking", ("model.dim=128",), "ml-25m", 25_000_000),
    _neumf("float32", 1 << 20),
    _neumf("tf32", 1 << 20),
    _neumf("bf16", 1 << 20),
    _neumf("tf32", 8192),
    Task("softmax_dot", "dot-mse", (*ALL_ITEMS, "model.dim=64"), "ml-20m", 20_000_000),
    Task(
        "softmax_neumf",
        "neumf-ranking",
        ("train.als_pretrain_epochs=0", "train.batch_size=128", "train.precision=tf32"),
        "ml-20m",
        20_000_000,
        share=0.05,
    ),
    Task(
        "sequence",
        "sequence",
        ("train.batch_size=256", "train.precision=bf16"),
        "ml-20m",
        20_000_000,
        share=0.25,
    ),
    _neumf("tf32", 8192, compiled=True),
)


class EpochRow(Row):
    """An epoch of a task: seconds of it, the median, the least and the most."""

    task: str
    tables: str
    ratings: int
    seconds: float | None = None
    low: float | None = None
    high: float | None = None
    per_s: int | None = None
    of: str
    gpu_mb: int | None = None
    error: str | None = None
    load: float


def run(tasks: tuple[Task, ...], repetitions: int, log: Log, device: str = "cuda") -> Measurement:
    """Time each task, after one epoch that is not counted.

    Args:
        tasks: What is timed.
        repetitions: Epochs of each.
        log: Receives what happens, one line at a time.
        device: cuda; cpu to try the code.
    """
    rows, begin = list[EpochRow](), time.perf_counter()
    for task in tasks:
        late = time.perf_counter() - begin > LAST_BEGIN_S
        row = _failed(task, "there was no time left") if late else _timed(task, repetitions, device)
        words = row.error or f"{row.seconds:.3f} s an epoch, {row.per_s:,} {row.of}/s"
        log(f"{task.name}, {task.tables}, {row.ratings:,} ratings: {words}")
        rows.append(row)
    figures: Figures = {f"gpu_{row.task}_s": row.seconds for row in rows}
    figures |= {f"gpu_{row.task}_per_s": row.per_s for row in rows}
    name = torch.cuda.get_device_name() if device == "cuda" else None
    return Measurement(figures, rows, name)


def _failed(task: Task, error: str) -> EpochRow:
    facts = {"task": task.name, "tables": task.tables, "ratings": task.ratings}
    return EpochRow(**facts, of="ratings", error=error, load=load_now())


def _timed(task: Task, repetitions: int, device: str) -> EpochRow:
    """Time a task; whatever goes wrong becomes its row."""
    try:
        return _measure(task, repetitions, device)
    except Exception as error:  # out of memory, no compiler: the others can be measured still
        first = next(iter(str(error).splitlines()), "")
        return _failed(task, f"{type(error).__name__}: {first}")


def _measure(task: Task, repetitions: int, device: str) -> EpochRow:
    settings = task.settings(device)
    on_gpu = device == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    shard = _ratings(task)
    epoch = _epochs(task, settings, shard)
    next(epoch)
    seconds, covered = [], 0.0
    for _ in range(repetitions):
        begin = time.perf_counter()
        covered = next(epoch)
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    middle = statistics.median(seconds)
    pairs = pairs_of(settings) if settings.objective.kind == "logistic" else None
    return EpochRow(
        task=task.name,
        tables=task.tables,
        ratings=shard.rows,
        seconds=round(middle, 4),
        low=round(min(seconds), 4),
        high=round(max(seconds), 4),
        per_s=round(covered * (pairs or 1) / middle),
        of="samples" if pairs else "ratings",
        gpu_mb=torch.cuda.max_memory_allocated() >> 20 if on_gpu else None,
        load=load_now(),
    )


def _ratings(task: Task) -> Shard:
    """Ratings whose items are as unevenly liked as those of MovieLens, in 5 grades."""
    users, items = SIZES[task.tables]
    users = max(1, int(users * task.share))
    generator = torch.Generator().manual_seed(0)
    count = max(users, int(task.ratings * task.share))
    # Everybody has a rating; how many the others are is exponential, so some have very many.
    weight = torch.empty(users).exponential_(generator=generator)
    more = torch.multinomial(weight, count - users, replacement=True, generator=generator)
    user = torch.cat([torch.arange(users), more]).sort().values
    place = items ** torch.rand(count, generator=generator, dtype=torch.float64) - 1
    stars = torch.randint(1, 6, (count,), generator=generator).float()
    time_s = torch.arange(count) * 60
    return Shard(user, place.long(), stars, OwnUsers.everyone(users), time_s)


def _epochs(task: Task, settings: Settings, shard: Shard) -> Iterator[float]:
    """Train one epoch after another; gives what each covers."""
    build = partial(build_model, settings)
    items = SIZES[task.tables][1]
    model = first_model(build, shard.users, items, settings.train.seed)
    model = model.to(device_of(settings.train))
    objective = build_objective(settings, 1.0, 5.0)
    runner = epoch_runner(model, objective, shard, settings, Workers())
    number = 0
    while True:
        yield runner.run(number)[1]
        number += 1
