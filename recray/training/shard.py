"""The training ratings of one worker, and how an epoch cuts them into batches.

The number of steps is fixed before the loop, from row counts, and is the same on every worker. A
worker with fewer ratings pads its batches with rows of weight 0. So no worker waits for a batch
that another one does not have, and the gradient of many workers is that of one with all ratings.
"""

# Shape letters: R = ratings of this worker, B = ratings of its batch.

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

from recray.config import Settings
from recray.errors import RecrayError
from recray.models.base import Batch, Statistics
from recray.models.objectives import Objective, PairLoss, SampledLoss
from recray.training.collectives import Workers

Columns = tuple[Tensor, Tensor, Tensor]
"""(R,) int64 users, (R,) int64 items and (R,) float32 ratings."""
ReadPart = Callable[[int], Columns]
LOWEST = -1e30
"""Stands for minus infinity in a sum over workers, where infinity times 0 would be no number."""


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
        columns: Users, items and ratings of this worker.
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
        user: (R,) int64 ids, sorted.
        item: (R,) int64 ids.
        rating: (R,) float32 ratings.
        owned: (users,) bool; the users whose rows this worker updates and saves. Each user has
            one owner.
    """

    user: Tensor
    item: Tensor
    rating: Tensor
    owned: Tensor

    @property
    def rows(self) -> int:
        """Number of ratings."""
        return len(self.user)

    def to(self, device: torch.device) -> Self:
        """Copy the ratings to the memory of a device, where they stay."""
        return type(self)(*(getattr(self, field.name).to(device) for field in fields(self)))

    def chunks(self) -> Iterator[Columns]:
        """Yield all ratings, in one chunk."""
        yield self.user, self.item, self.rating

    def batches(self, plan: BatchPlan, generator: torch.Generator) -> Iterator[Batch]:
        """Yield the batches of an epoch; see shuffled_batches."""
        return shuffled_batches((self.user, self.item, self.rating), plan, generator)


@dataclass(frozen=True)
class StreamedShard:
    """The training ratings of one worker, in parts of which only a few are in memory at a time.

    Each epoch puts the parts into a new random order and reads as many at a time as stay within
    `max_rows`: a window. The ratings of a window are shuffled together with those that the window
    before had left over after its last full batch. Users are spread over parts by a hash, so every
    window is a fair sample of them. The order is a function of (seed, epoch, rank), as it is with
    ratings in memory, and the plan of the steps is the same.

    Args:
        read: Reads a part by its number; every rating of a user is in one part.
        rows_of: Ratings of each part.
        max_rows: Most ratings in memory at once; no part is larger.
        owned: (users,) bool; the users whose rows this worker updates and saves.
    """

    read: ReadPart
    rows_of: Mapping[int, int]
    max_rows: int
    owned: Tensor

    @property
    def rows(self) -> int:
        """Number of ratings in all parts."""
        return sum(self.rows_of.values())

    def to(self, device: torch.device) -> Self:
        """Stay as it is: check_streaming refuses every device but the CPU."""
        return self

    def chunks(self) -> Iterator[Columns]:
        """Yield every part once, in order."""
        for part in self.rows_of:
            yield self.read(part)

    def windows(self, generator: torch.Generator) -> list[list[int]]:
        """Put the parts in a random order, as many together as max_rows allows; one at least."""
        parts = list(self.rows_of)
        windows: list[list[int]] = [[]]
        held = 0
        for place in torch.randperm(len(parts), generator=generator).tolist():
            rows = self.rows_of[parts[place]]
            if held + rows > self.max_rows:
                windows.append([])
                held = 0
            windows[-1].append(parts[place])
            held += rows
        return windows

    def batches(self, plan: BatchPlan, generator: torch.Generator) -> Iterator[Batch]:
        """Yield plan.steps batches of plan.batch rows; every rating occurs once."""
        left: Columns = (torch.zeros(0, dtype=torch.int64),) * 2 + (torch.zeros(0),)
        windows, done = self.windows(generator), 0
        for number, window in enumerate(windows):
            columns = _join(left, [self.read(part) for part in window])
            steps = len(columns[0]) // plan.batch
            rows = steps * plan.batch
            if number == len(windows) - 1:  # the last window also pads up to the plan
                steps, rows = plan.steps - done, len(columns[0])
            of_window = BatchPlan((rows,), plan.batch, steps)
            yield from shuffled_batches(_rows(columns, slice(rows)), of_window, generator)
            user, item, rating = _rows(columns, slice(rows, None))
            # Clones: a slice would keep the whole window in memory while the next one is read.
            left = user.clone(), item.clone(), rating.clone()
            del columns, user, item, rating
            done += steps


def _join(left: Columns, parts: list[Columns]) -> Columns:
    user, item, rating = (torch.cat(column) for column in zip(left, *parts, strict=True))
    return user, item, rating


def _rows(columns: Columns, rows: slice) -> Columns:
    user, item, rating = columns
    return user[rows], item[rows], rating[rows]


def rating_statistics(shard: Shard | StreamedShard, items: int, workers: Workers) -> Statistics:
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


def check_streaming(settings: Settings, objective: Objective, largest: int, workers: int) -> None:
    """Refuse to stream what needs all ratings of a worker at once.

    Args:
        settings: With train.max_rows_in_memory.
        objective: What is minimised.
        largest: Ratings of the largest part.
        workers: Number of workers.

    Raises:
        RecrayError: The recipe needs them, or the limit is too low for it.
    """
    train, limit = settings.train, settings.train.max_rows_in_memory
    setting = f"train.max_rows_in_memory={limit}"
    whole = None
    if not isinstance(objective, PairLoss):
        whole = f"objective.kind={settings.objective.kind}"
    elif isinstance(objective, SampledLoss) and objective.negatives is None:
        whole = "objective.negatives=all"
    elif settings.ranks and settings.objective.reject_seen:
        whole = "objective.reject_seen=true"
    elif train.als_pretrain_epochs:
        whole = f"train.als_pretrain_epochs={train.als_pretrain_epochs}"
    elif train.batch_size == "all":
        whole = "train.batch_size=all"
    elif train.device != "cpu":
        whole = f"train.device={train.device}"
    if whole is not None:
        raise RecrayError(
            f"{setting}: {whole} needs all ratings of a worker in memory; leave one of the two out"
        )
    needed = max(largest, -(-int(train.batch_size) // workers))
    if limit is not None and limit < needed:
        raise RecrayError(
            f"{setting} is too few: the largest part, or a worker's batch, has {needed:,} ratings"
        )
