"""Training on more ratings than a worker holds in memory: it reads them a window at a time."""

# Shape letters: R = ratings of this worker.

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Self

import torch

from recray.config import Settings
from recray.data.dataset import Prepared
from recray.errors import RecrayError
from recray.models.batches import Batch
from recray.models.objectives import Objective, PairLoss, SampledLoss
from recray.training.own_users import OwnUsers
from recray.training.shard import BatchPlan, Columns, shuffled_batches

ReadPart = Callable[[int], Columns]


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
        users: The users of this worker.
    """

    read: ReadPart
    rows_of: Mapping[int, int]
    max_rows: int
    users: OwnUsers

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


def fit_rows_of_parts(settings: Settings, prepared: Prepared) -> list[int]:
    """Rows of each part that the settings train on; at most so many, since some may be unknown."""
    splits = prepared.fit(settings.train.fit_on).splits
    counts = [prepared.rows_of_parts(split) for split in splits]
    return [sum(rows) for rows in zip(*counts, strict=True)]


def is_streamed(settings: Settings, prepared: Prepared, workers: int) -> bool:
    """Whether some worker has more ratings than it may hold in memory."""
    limit = settings.train.max_rows_in_memory
    rows = fit_rows_of_parts(settings, prepared)
    return max(sum(rows[rank::workers]) for rank in range(workers)) > (limit or math.inf)
