"""Epochs of the next-item objective: each cuts the histories anew and predicts every item.

An epoch covers all items of a history but the first, in pieces of at most model.length items. Where
they are cut is drawn anew each epoch, so an item is not always seen with the same past.
"""

# Shape letters: U = users of this worker, R = their ratings, W = windows of a step,
# L = longest of them.

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from recray.config import TrainSettings
from recray.errors import RecrayError
from recray.models.objectives.next_item import NO_TARGET, Candidates, NextItem
from recray.models.sequence import Sequence, Windows
from recray.schema import UNKNOWN_TIME
from recray.training.epochs import SGDEpochs, zero_loss
from recray.training.shard import Shard, Workers, rating_statistics

WARM_UP = 0.05
"""Share of all steps in which the learning rate rises to train.lr; then it falls, as a half cosine,
to LAST_RATE of it.
"""
LAST_RATE = 0.01
BETAS = (0.9, 0.98)
"""Those of Adam, as in the paper of SASRec."""
ASKED_LATER = 0.5
"""Share of the windows where the time of what comes next is known: elsewhere the list is asked for
right after the last item, as it is where nobody says when.
"""
TIMELESS = 0.1
"""Share of the windows without times, so that lists can be asked for without them."""
LENGTH_JITTER = 8
"""Windows are sorted by length, give or take so many items: steps then need little padding."""


class NextItemEpochs(SGDEpochs):
    """Mini-batch steps over windows, which are pieces of histories; a loss for each item in them.

    Args:
        model: The model, equal on every worker.
        objective: Loss of the windows.
        shard: This worker's ratings, those of a user in order.
        settings: Optimizer, windows of a step, epochs and seed.
        workers: The group.

    Raises:
        RecrayError: No item follows another one, on any worker.
    """

    def __init__(
        self,
        model: Sequence,
        objective: NextItem,
        shard: Shard,
        settings: TrainSettings,
        workers: Workers,
    ) -> None:
        self.model, self.objective, self.length = model, objective, model.length
        indptr = shard.histories.indptr
        # The last rating of a user is a target only.
        self.begins, self.inputs = indptr[:-1], indptr.diff() - 1
        cuts = (self.inputs + model.length - 1) // model.length + (
            self.inputs > model.length
        ).long()
        super().__init__(model, shard, int(cuts.sum()), settings, workers, pairs=None)
        if not self.plan.steps:
            raise RecrayError("objective.kind=next-item: no user has two ratings to train on")
        for group in self.step.optimizer.param_groups:
            group["betas"] = BETAS
        self.item = shard.item.to(self.device)
        self.times = None if shard.time is None else shard.time.to(self.device)
        self.popularity = torch.zeros(0)
        if objective.negatives is not None:
            counts = rating_statistics(shard, model.items, workers).item_count
            self.popularity = counts.to(self.device)
        self.epoch, self.targets = 0, torch.zeros(0)

    def run(self, epoch: int) -> tuple[float, float]:
        """Train one epoch; return this worker's sum of losses and the targets that it covers."""
        self.epoch = epoch
        total, _ = super().run(epoch)
        return total, float(self.inputs.sum())

    def divisor(self, step: int) -> float:
        """What the losses of all workers in a step are divided by: their targets."""
        targets = max(float(self.targets[step]), 1.0)
        return targets / self.workers.size if self.step.is_local else targets

    def losses(self, generator: torch.Generator) -> Iterator[Tensor]:
        """Yield this worker's sum of losses of each step."""
        begin, count = self.windows(generator)
        steps = self._steps(count, generator)
        own = torch.tensor([float(count[chosen].sum()) for chosen in steps], dtype=torch.float64)
        self.targets = self.workers.sum(own)
        for number, chosen in enumerate(steps):
            self._set_rate(number)
            yield self._loss(begin[chosen], count[chosen], generator)

    def windows(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Cut the histories: the row where each window begins, and its number of items."""
        drawn = torch.rand(len(self.inputs), generator=generator, device=self.device).cpu()
        # How many items the last window of a long history has.
        last = torch.where(self.inputs > self.length, 1 + (drawn * self.length).long(), self.inputs)
        before = self.inputs - last
        pieces = 1 + (before + self.length - 1) // self.length
        user = torch.repeat_interleave(torch.arange(len(pieces)), pieces)
        number = torch.arange(len(user)) - (pieces.cumsum(dim=0) - pieces)[user]
        end = before[user] - self.length * (number - 1)  # number 0 is the last window
        end = torch.where(number == 0, self.inputs[user], end)
        size = torch.where(number == 0, last[user], end.clamp(max=self.length))
        begin = self.begins[user] + end - size
        return begin[size > 0], size[size > 0]

    def _steps(self, count: Tensor, generator: torch.Generator) -> list[Tensor]:
        """Divide windows of like length among the steps, whose order is the same on all workers."""
        jitter = torch.rand(len(count), generator=generator, device=self.device).cpu()
        order = torch.argsort(count + 2 * LENGTH_JITTER * jitter, stable=True)
        parts = torch.tensor_split(order, self.plan.steps)
        mixed = self.settings.seed * 1_000_003 + self.epoch
        shared = torch.Generator().manual_seed(mixed % (1 << 63))
        return [parts[n] for n in torch.randperm(len(parts), generator=shared).tolist()]

    def _set_rate(self, step: int) -> None:
        """Set the learning rate of a step."""
        done = (self.epoch * self.plan.steps + step) / (self.settings.epochs * self.plan.steps)
        rising = min(done / WARM_UP + 1 / (WARM_UP * self.settings.epochs * self.plan.steps), 1.0)
        falling = max(0.5 * (1 + math.cos(math.pi * min(done, 1.0))), LAST_RATE)
        for group in self.step.optimizer.param_groups:
            group["lr"] = self.settings.lr * rising * falling

    def _loss(self, begin: Tensor, count: Tensor, generator: torch.Generator) -> Tensor:
        """Sum the losses of windows; without any it is 0, and still has a gradient."""
        candidates = None
        if self.objective.negatives is not None:
            candidates = Candidates.draw(self.popularity, self.objective.negatives, generator)
        if not len(begin):
            return zero_loss(self.model)
        place = torch.arange(int(count.max()))
        inside = place < count[:, None]
        row = torch.where(inside, begin[:, None] + place, begin[:, None]).to(self.device)
        inside, count = inside.to(self.device), count.to(self.device)
        target = torch.where(inside, self.item[row + 1], NO_TARGET)
        windows = Windows(torch.where(inside, self.item[row], 0), count)
        if self.model.time and self.times is not None:
            windows = self._with_times(windows, self.times, row, generator)
        return self.objective.loss(self.model, windows, target, candidates)

    def _with_times(
        self, windows: Windows, times: Tensor, row: Tensor, generator: torch.Generator
    ) -> Windows:
        """Add times, and when each next item is asked for: at once, or when it came."""
        time, draws = times[row], (2, len(row), 1)
        timeless, later = torch.rand(draws, generator=generator, device=self.device)
        time = time.masked_fill(timeless < TIMELESS, UNKNOWN_TIME)
        now = torch.where((later < ASKED_LATER) & (time != UNKNOWN_TIME), times[row + 1], time)
        return windows._replace(time=time, now=now)
