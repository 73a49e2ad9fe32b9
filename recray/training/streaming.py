"""Training on more rows than fit in memory: parts are read, shuffled together, trained, let go.

The scheme: each epoch puts a worker's parts into a new random order and reads as many at a time as
stay within `train.max_rows_in_memory`, a window. The rows of a window are shuffled together, with
what the window before left over when no full batch remained. Users are spread over parts by a
hash, so every window is a fair sample of them; all rows of a user lie in one window of an epoch,
whose neighbours are others each time. The order is a function of (seed, epoch, rank), like that of
resident rows, and the step plan is the same.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from recray.config import Settings, TrainSettings
from recray.data.negatives import NegativeSampler
from recray.errors import RecrayError
from recray.models.base import Model
from recray.models.batch_embedding import Batch
from recray.models.objectives import Objective, PairLoss, SampledLoss
from recray.training.batches import StepPlan, shuffled_batches
from recray.training.collectives import Workers
from recray.training.epochs import GradientEpochs, Shard, SteppedEpochs

Columns = tuple[Tensor, Tensor, Tensor]
"""(R,) int64 users, (R,) int64 items and (R,) float32 stars."""
ReadPart = Callable[[int], Columns]


@dataclass(frozen=True)
class StreamedShard:
    """The training rows of one worker, in parts of which a few are in memory at a time.

    Args:
        read: Reads a part by its number; every row of a user is in one part.
        rows_of: Rows of each part.
        max_rows: Most rows in memory at once; no part is larger.
        owned: (users,) bool; whose rows this worker updates and saves.
    """

    read: ReadPart
    rows_of: Mapping[int, int]
    max_rows: int
    owned: Tensor

    @property
    def rows(self) -> int:
        """All rows."""
        return sum(self.rows_of.values())

    def chunks(self) -> Iterator[Columns]:
        """Every part once, in order."""
        for part in self.rows_of:
            yield self.read(part)

    def windows(self, generator: torch.Generator) -> list[list[int]]:
        """The parts in a random order, as many together as may be in memory; one at least."""
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

    def batches(self, plan: StepPlan, generator: torch.Generator) -> Iterator[Batch]:
        """Yield plan.steps batches of plan.batch rows; every row occurs once."""
        left: Columns = (torch.zeros(0, dtype=torch.int64),) * 2 + (torch.zeros(0),)
        windows, done = self.windows(generator), 0
        for number, window in enumerate(windows):
            user, item, rating = _join(left, [self.read(part) for part in window])
            steps, rows = len(user) // plan.batch, len(user) // plan.batch * plan.batch
            if number == len(windows) - 1:
                steps, rows = plan.steps - done, len(user)
            now = StepPlan((rows,), plan.batch, steps)
            yield from shuffled_batches(user[:rows], item[:rows], rating[:rows], now, generator)
            left = (user[rows:].clone(), item[rows:].clone(), rating[rows:].clone())
            done += steps


def _join(left: Columns, parts: list[Columns]) -> Columns:
    user, item, rating = (torch.cat(column) for column in zip(left, *parts, strict=True))
    return user, item, rating


def columns_of(shard: Shard | StreamedShard) -> Iterator[Columns]:
    """All rows of a shard, in pieces that are in memory one after another."""
    if isinstance(shard, StreamedShard):
        yield from shard.chunks()
    else:
        yield shard.user, shard.item, shard.rating


class StreamedEpochs(GradientEpochs):
    """Mini-batch steps over ratings that are read while they are needed.

    Args:
        model: The model, equal on every worker.
        objective: Loss of each row.
        shard: This worker's rows.
        settings: Optimizer, batch size and seed.
        workers: The group.
        sampler: Draws the negatives of each row; None where the objective has none.
    """

    def __init__(
        self,
        model: Model,
        objective: PairLoss,
        shard: StreamedShard,
        settings: TrainSettings,
        workers: Workers,
        sampler: NegativeSampler | None = None,
    ) -> None:
        none = torch.zeros(0, dtype=torch.int64)
        nothing = Shard(none, none, torch.zeros(0), shard.owned)
        pairs = 1 + (sampler.count if sampler else 0)
        SteppedEpochs.__init__(self, model, nothing, shard.rows, settings, workers, pairs)
        self.objective, self.sampler, self.streamed = objective, sampler, shard

    def batches(self, generator: torch.Generator) -> Iterator[Batch]:
        """This worker's rows in the steps of an epoch."""
        return self.streamed.batches(self.plan, generator)

    def run(self, epoch: int) -> tuple[float, float]:
        """Train one epoch; return this worker's sum of losses and the rows it covers."""
        loss, _ = super().run(epoch)
        return loss, float(self.streamed.rows)


def check_streaming(settings: Settings, objective: Objective, largest: int, workers: int) -> None:
    """Refuse to stream what needs all rows of a worker at once.

    Args:
        settings: With train.max_rows_in_memory.
        objective: What is minimised.
        largest: Rows of the largest part.
        workers: Number of workers.

    Raises:
        RecrayError: The recipe needs them, or the limit is too low for it.
    """
    train, limit = settings.train, settings.train.max_rows_in_memory
    words = f"train.max_rows_in_memory={limit}"
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
            f"{words}: {whole} needs all ratings of a worker in memory; leave one of the two out"
        )
    needed = max(largest, -(-int(train.batch_size) // workers))
    if limit is not None and limit < needed:
        raise RecrayError(
            f"{words} is too few: the largest part, or a worker's batch, has {needed:,} ratings"
        )
