"""One worker of a training: its place in the group, its ratings, and the batches of an epoch.

The number of steps is fixed before the loop, from row counts, and is the same on every worker. A
worker with fewer ratings pads its batches with rows of weight 0. So no worker waits for a batch
that another one does not have, and the gradient of many workers is that of one with all ratings.
"""

# Shape letters: R = ratings of this worker, B = ratings of its batch.

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self

import torch
import torch.distributed as dist
from torch import Tensor

from recray.errors import WorkerLost
from recray.models.base import Statistics
from recray.models.batches import Batch
from recray.models.history import RatingsCSR
from recray.schema import UNKNOWN_TIME
from recray.training.failures import lost_peer
from recray.training.own_users import OwnUsers

if TYPE_CHECKING:
    from recray.training.streaming import StreamedShard

Columns = tuple[Tensor, Tensor, Tensor]
"""(R,) int64 local ids of users, (R,) int64 items and (R,) float32 ratings."""
TIMEOUT_S = 60.0
"""How long a worker waits for the others in a step before it says that one is lost."""
LONG_TIMEOUT_S = 1800.0
"""The same after work that may take one worker longer than another: reading, validation, saving."""
DAY_S = 86_400
LOWEST = -1e30
"""Stands for minus infinity in a sum over workers, where infinity times 0 would be no number."""


@dataclass(frozen=True)
class Workers:
    """One worker's view of the group; a group of one needs no process group.

    Args:
        rank: This worker's number, 0..size-1.
        size: Number of workers.
        timeout: Seconds to wait for the others; the process group's own timeout is no shorter.
    """

    rank: int = 0
    size: int = 1
    timeout: float = TIMEOUT_S

    def with_long_timeout(self) -> Self:
        """The same group, waiting longer: for what follows work of unequal length."""
        return replace(self, timeout=max(self.timeout, LONG_TIMEOUT_S))

    def sum(self, value: Tensor) -> Tensor:
        """Sum the tensor over all workers, in place; the result is the same on each.

        Raises:
            WorkerLost: Another worker has gone, or has not answered in time.
        """
        if self.size > 1:
            self._wait(lambda: dist.all_reduce(value, async_op=True))
        return value

    def begin_sum(self, value: Tensor) -> Callable[[], object]:
        """Start to sum the tensor over all workers, in place; what is returned waits for it."""
        with self._loss_told():
            work = dist.all_reduce(value, async_op=True)
        return lambda: self._wait(lambda: work)

    def begin_gather(self, value: Tensor) -> tuple[Callable[[], object], Tensor]:
        """Start to collect a tensor of every worker, all of one shape; the function that is
        returned waits for them, and the tensor beside it then has one row for each worker.
        """
        gathered = value.new_empty(self.size, *value.shape)
        with self._loss_told():
            work = dist.all_gather(list(gathered.unbind(dim=0)), value, async_op=True)
        return (lambda: self._wait(lambda: work)), gathered

    def begin_exchange(self, parts: Tensor) -> tuple[Callable[[], object], Tensor]:
        """Start to send row w of a tensor with a row for each worker to worker w; the function that
        is returned waits for them, and the tensor beside it then has a row from each worker.
        """
        received = torch.empty_like(parts)
        with self._loss_told():
            work = dist.all_to_all_single(received, parts, async_op=True)
        return (lambda: self._wait(lambda: work)), received

    def sum_floats(self, *values: float) -> list[float]:
        """Sum a few numbers over all workers, in float64."""
        total: list[float] = self.sum(torch.tensor(values, dtype=torch.float64)).tolist()
        return total

    def exchange(self, text: str) -> list[str]:
        """Give a text to all workers; returns that of each, by rank."""
        if self.size == 1:
            return [text]
        own = torch.tensor(list(text.encode()), dtype=torch.uint8)
        wait, lengths = self.begin_gather(torch.tensor([len(own)]))
        wait()
        longest = own.new_zeros(int(lengths.max()))
        longest[: len(own)] = own
        wait, texts = self.begin_gather(longest)
        wait()
        pairs = zip(texts, lengths[:, 0].tolist(), strict=True)
        return [one[:length].numpy().tobytes().decode() for one, length in pairs]

    def barrier(self) -> None:
        """Wait until every worker is here; raises WorkerLost as `sum` does."""
        if self.size > 1:
            self._wait(lambda: dist.barrier(async_op=True))

    def _wait(self, begin: Callable[[], "dist.Work | None"]) -> None:
        with self._loss_told():
            work = begin()
            if work is not None:
                work.wait(timedelta(seconds=self.timeout))

    @contextmanager
    def _loss_told(self) -> Iterator[None]:
        """Raise WorkerLost for an error that says that another worker is lost, and no other."""
        begin = time.monotonic()
        try:
            yield
        except RuntimeError as error:
            words = lost_peer(error, time.monotonic() - begin)
            if words is None:
                raise
            raise WorkerLost(
                f"worker {self.rank} of {self.size} (from 0) waited for another, which {words}"
            ) from error


@dataclass(frozen=True)
class BatchPlan:
    """How an epoch is cut into steps.

    Args:
        rows: Training ratings of each worker.
        batch: Ratings of one worker in one step, padding included.
        steps: Steps of every worker.
    """

    rows: tuple[int, ...]
    batch: int
    steps: int

    @classmethod
    def of(cls, rows: tuple[int, ...], batch_size: int | str) -> Self:
        """Cut an epoch.

        Args:
            rows: Training ratings of each worker.
            batch_size: Ratings per step over all workers; "all" for one step with every rating.
        """
        largest = max(rows)
        batch = largest if batch_size == "all" else -(-int(batch_size) // len(rows))
        batch = max(1, min(batch, largest))
        return cls(rows, batch, -(-largest // batch))

    def valid_rows(self, step: int) -> int:
        """Count the ratings of weight 1 that all workers have together in a step."""
        first = step * self.batch
        return sum(min(max(rows - first, 0), self.batch) for rows in self.rows)


def epoch_generator(
    seed: int, epoch: int, rank: int, device: torch.device | str = "cpu"
) -> torch.Generator:
    """Randomness of one worker in one epoch. It is a function of nothing else, so a resumed run
    draws the same numbers as an unbroken one although no state of a generator is kept.
    """
    mixed = (seed * 1_000_003 + epoch) * 1_000_003 + rank
    return torch.Generator(device).manual_seed(mixed % (1 << 63))


def shuffled_batches(
    columns: Columns, plan: BatchPlan, generator: torch.Generator
) -> Iterator[Batch]:
    """Yield plan.steps batches of plan.batch rows; every rating occurs once.

    Args:
        columns: Local ids of users, items and ratings of this worker.
        plan: The steps.
        generator: Decides the order.
    """
    user, item, rating = columns
    rows = len(user)
    order = torch.randperm(rows, generator=generator, device=user.device)
    ones = torch.ones(plan.batch, dtype=rating.dtype, device=user.device)
    for step in range(plan.steps):
        chosen = order[step * plan.batch : (step + 1) * plan.batch]
        valid = len(chosen)
        if valid < plan.batch:
            chosen = torch.cat([chosen, chosen.new_zeros(plan.batch - valid)])
        if rows == 0:  # there is no row 0 that could stand for padding
            empty = torch.zeros_like(ones, dtype=torch.int64)
            yield Batch(empty, empty, 0 * ones, 0 * ones, 0)
            continue
        weight = ones
        if valid < plan.batch:
            weight = ones.clone()
            weight[valid:] = 0
        ids = user.index_select(0, chosen), item.index_select(0, chosen)
        yield Batch(*ids, rating.index_select(0, chosen), weight, valid)


@dataclass(frozen=True)
class Shard:
    """The training ratings of one worker, in memory. A worker has every rating of its users.

    Args:
        user: (R,) int64 local ids, sorted.
        item: (R,) int64 ids.
        rating: (R,) float32 ratings.
        users: The users of this worker, each of whom has a rating.
        time: (R,) int64 seconds, where the model reads times. Where it reads order, the rows of a
            user are in order.
    """

    user: Tensor
    item: Tensor
    rating: Tensor
    users: OwnUsers
    time: Tensor | None = None

    @property
    def rows(self) -> int:
        """Number of ratings."""
        return len(self.user)

    def to(self, device: torch.device) -> Self:
        """Copy the ratings to the memory of a device, where they stay."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        columns: dict[str, Any] = {
            name: c.to(device) for name, c in values.items() if isinstance(c, Tensor)
        }
        return replace(self, **columns)

    @property
    def histories(self) -> RatingsCSR:
        """The ratings by user."""
        _, counts = torch.unique_consecutive(self.user, return_counts=True)
        indptr = torch.cat([counts.new_zeros(1), counts.cumsum(dim=0)])
        return RatingsCSR(indptr, self.item, self.rating, self.time)

    def chunks(self) -> Iterator[Columns]:
        """Yield all ratings, in one chunk."""
        yield self.user, self.item, self.rating

    def batches(self, plan: BatchPlan, generator: torch.Generator) -> Iterator[Batch]:
        """Yield the batches of an epoch; see shuffled_batches."""
        return shuffled_batches((self.user, self.item, self.rating), plan, generator)


def time_decay(shard: Shard, half_life: float, workers: Workers) -> Tensor:
    """(R,) float32 weights of this worker's ratings: 0.5^(age / half-life).

    The age is counted back from the latest training rating of all workers, so that a weight does
    not depend on how many they are. A rating of unknown time is as old as the oldest.

    Args:
        shard: Ratings with times.
        half_life: Days.
        workers: The group.

    Raises:
        ValueError: The ratings were read without times.
    """
    if shard.time is None:
        raise ValueError("a half-life needs the times of ratings")
    unknown = shard.time == UNKNOWN_TIME
    known = shard.time[~unknown]
    # Each worker writes a row of its own, so that the sum is the table of all.
    table = torch.zeros(workers.size, 2, dtype=torch.int64)
    table[workers.rank] = torch.stack([known.min(), known.max()]) if len(known) else UNKNOWN_TIME
    workers.sum(table)
    table = table[table[:, 0] != UNKNOWN_TIME]
    if not len(table):
        return torch.ones_like(shard.rating)
    first, latest = table[:, 0].min(), table[:, 1].max()
    age_R = latest - torch.where(unknown, first, shard.time)
    return (0.5 ** (age_R.double() / (half_life * DAY_S))).float()


def rating_statistics(shard: "Shard | StreamedShard", items: int, workers: Workers) -> Statistics:
    """Sum and count each item's ratings over all workers; find the lowest and highest rating."""
    sums = torch.zeros(2, items, dtype=torch.float64)
    own = torch.full((2,), LOWEST, dtype=torch.float64)  # of -lowest and highest
    for _, item, rating in shard.chunks():
        values = rating.double()
        sums[0].index_add_(0, item, values)
        sums[1].index_add_(0, item, torch.ones_like(values))
        if len(values):
            own = torch.maximum(own, torch.stack([-values.min(), values.max()]))
    workers.sum(sums)
    # A maximum through sums: each worker writes a row of its own, so that the sum is the table.
    table = torch.zeros(workers.size, 2, dtype=torch.float64)
    table[workers.rank] = own
    workers.sum(table)
    return Statistics(sums[0], sums[1], -float(table[:, 0].max()), float(table[:, 1].max()))
