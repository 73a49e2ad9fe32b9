"""Epochs of gradient steps: over ratings, with or without negatives, or over users."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Protocol, Self

import torch
from torch import Tensor

from recray.config import TrainSettings
from recray.data.negatives import NegativeSampler
from recray.models.base import Model
from recray.models.batch_embedding import Batch
from recray.models.objectives import PairLoss, SampledLoss
from recray.models.objectives.ranking import all_logits
from recray.training.batches import StepPlan, epoch_generator, shuffled_batches
from recray.training.collectives import Workers
from recray.training.optimizer_choice import Engine, keep_freed_memory, precision_of
from recray.training.optimizer_step import Gradient, RowGradient


@dataclass(frozen=True)
class Shard:
    """The training rows of one worker, which has every row of its users.

    Args:
        user: (R,) int64 ids, sorted.
        item: (R,) int64 ids.
        rating: (R,) float32 stars.
        owned: (users,) bool; whose rows this worker updates and saves. Each user has one owner.
    """

    user: Tensor
    item: Tensor
    rating: Tensor
    owned: Tensor

    @property
    def rows(self) -> int:
        """How many they are."""
        return len(self.user)

    def to(self, device: torch.device) -> Self:
        """The same rows in the memory of a device, where they stay."""
        return type(self)(*(getattr(self, field.name).to(device) for field in fields(self)))


class Epochs(Protocol):
    """How one pass over the data changes the model."""

    def run(self, epoch: int) -> tuple[float, float]:
        """Train one epoch; return this worker's sum of losses and the rows it covers."""

    def bad_step(self) -> int | None:
        """The first step of the last epoch whose loss was not finite, from 1; None if all were."""

    def on_step(self, notice: Callable[[int], None]) -> None:
        """Call `notice` with the steps taken after each step of an epoch that has steps."""

    def continue_at(self, step: int, losses: Tensor) -> None:
        """Begin the next epoch after so many steps, with this worker's losses of them."""

    def losses_so_far(self) -> Tensor:
        """(steps,) float64 this worker's losses of the epoch that is going on."""

    def gather(self) -> None:
        """Give every worker the rows of all users, between two steps."""

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold besides the weights."""

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from such a state."""


def _plan(own: int, batch_size: int | str, workers: Workers) -> StepPlan:
    """The steps of an epoch, from how many rows each worker has."""
    rows = torch.zeros(workers.size, dtype=torch.int64)
    rows[workers.rank] = own
    return StepPlan.of(tuple(workers.sum(rows).tolist()), batch_size)


class SteppedEpochs(ABC):
    """Epochs of a fixed number of gradient steps; what a step minimises is its subclass's.

    The rows are where the model is: on the CPU, or in the memory of a GPU.

    Args:
        model: The model, equal on every worker.
        shard: This worker's rows.
        own: How many rows of steps this worker has: ratings, or users.
        settings: Optimizer, rows of a step, and seed.
        workers: The group.
        pairs: Pairs of a row: the rating and its negatives; None where each row has all items.
    """

    def __init__(
        self,
        model: Model,
        shard: Shard,
        own: int,
        settings: TrainSettings,
        workers: Workers,
        pairs: int | None,
    ) -> None:
        keep_freed_memory()
        self.device = next(model.parameters()).device
        self.shard, self.workers = shard.to(self.device), workers
        self.plan = _plan(own, settings.batch_size, workers)
        engine = Engine.of(settings, sum(self.plan.rows), pairs, model.users + model.items)
        self.settings = settings.model_copy(update={"optimizer": engine.optimizer})
        given = (model, self.shard.owned, self.settings, workers)
        self.gradient = (
            RowGradient(*given, most=self.plan.batch * (pairs or 1))
            if engine.rowwise
            else Gradient(*given)
        )
        self.model = self.gradient.model
        self.state, self.load_state = self.gradient.state, self.gradient.load_state
        self.bad_step, self.gather = self.gradient.bad_step, self.gradient.gather
        self._notice: Callable[[int], None] | None = None
        self._before: Tensor | None = None

    def on_step(self, notice: Callable[[int], None]) -> None:
        """Call `notice` with the steps taken after each step."""
        self._notice = notice

    def continue_at(self, step: int, losses: Tensor) -> None:
        """Begin the next epoch after so many steps, with this worker's losses of them."""
        self._before = losses[:step]

    def losses_so_far(self) -> Tensor:
        """(steps,) float64 this worker's losses of the epoch that is going on."""
        return self.gradient.losses

    @abstractmethod
    def losses(self, generator: torch.Generator) -> Iterator[Tensor]:
        """Yield this worker's sum of losses of each step; the model changes in between."""

    def divisor(self, step: int) -> float:
        """What the losses of all workers in a step are divided by; workers that go their own way
        divide by their share of it.
        """
        rows = self.plan.real_rows(step)
        return rows / self.workers.size if self.gradient.averages else rows

    def run(self, epoch: int) -> tuple[float, float]:
        """Train one epoch; return this worker's sum of losses and the rows it covers."""
        self.model.train()
        generator = epoch_generator(self.settings.seed, epoch, self.workers.rank, self.device)
        torch.manual_seed(generator.initial_seed())  # dropout; a resumed run drops the same
        self.gradient.begin(self.plan.steps)
        before, self._before = self._before, None
        with precision_of(self.settings):
            for step, loss in enumerate(self.losses(generator)):
                if before is not None and step < len(before):
                    self.gradient.note(step, before[step])  # taken before, with the same numbers
                    continue
                self.gradient.step(loss / self.divisor(step))
                self.gradient.note(step, loss)
                if self._notice is not None:
                    self._notice(step + 1)
        self.gradient.gather()
        return float(self.gradient.losses.sum()), float(self.shard.rows)


class GradientEpochs(SteppedEpochs):
    """Mini-batch steps over ratings.

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
        shard: Shard,
        settings: TrainSettings,
        workers: Workers,
        sampler: NegativeSampler | None = None,
    ) -> None:
        pairs = 1 + (sampler.count if sampler else 0)
        super().__init__(model, shard, shard.rows, settings, workers, pairs)
        self.objective = objective
        self.sampler = sampler.to(self.device) if sampler else None
        if settings.compile:
            mode = "reduce-overhead" if self.device.type == "cuda" else "default"
            self._loss = torch.compile(self._loss, mode=mode)  # type: ignore[method-assign]

    def losses(self, generator: torch.Generator) -> Iterator[Tensor]:
        """Yield this worker's sum of losses of each step."""
        for batch in self.batches(generator):
            if self.sampler is not None:
                batch = replace(batch, negatives=self.sampler.draw(batch.user, generator))
            yield self._loss(self.gradient.touch(batch))

    def _loss(self, batch: Batch) -> Tensor:
        return (self.objective.loss(self.model, batch) * batch.weight).sum()

    def batches(self, generator: torch.Generator) -> Iterator[Batch]:
        """This worker's rows in the steps of an epoch."""
        shard = self.shard
        return shuffled_batches(shard.user, shard.item, shard.rating, self.plan, generator)


class UserEpochs(SteppedEpochs):
    """Mini-batch steps over users, each with all of their ratings against all items.

    Args:
        model: The model, equal on every worker.
        objective: Loss of each user.
        shard: This worker's rows.
        settings: Optimizer, users of a step, and seed.
        workers: The group.
    """

    def __init__(
        self,
        model: Model,
        objective: SampledLoss,
        shard: Shard,
        settings: TrainSettings,
        workers: Workers,
    ) -> None:
        users, counts = torch.unique_consecutive(shard.user, return_counts=True)
        super().__init__(model, shard, len(users), settings, workers, pairs=None)
        self.users, self.counts = users.to(self.device), counts.to(self.device)
        self.objective = objective
        self.begins = self.counts.cumsum(dim=0) - self.counts
        ratings, users = workers.sum_floats(float(len(shard.user)), float(len(self.users)))
        self.each = ratings / users  # so that lr means the same as where a row is a rating
        self.share = torch.full((model.items,), 1.0 / model.items, device=self.device)

    def divisor(self, step: int) -> float:
        """Users of the step, times the ratings that a user has."""
        return super().divisor(step) * self.each

    def losses(self, generator: torch.Generator) -> Iterator[Tensor]:
        """Yield this worker's sum of losses of each step."""
        order = torch.randperm(len(self.users), generator=generator, device=self.device)
        for step in range(self.plan.steps):
            yield self._loss(order[step * self.plan.batch : (step + 1) * self.plan.batch])

    def _loss(self, chosen: Tensor) -> Tensor:
        """The sum of losses of these users; 0 for none, who still takes part in the step."""
        count = self.counts[chosen]
        row = torch.repeat_interleave(torch.arange(len(chosen), device=self.device), count)
        first = torch.repeat_interleave(self.begins[chosen] - (count.cumsum(dim=0) - count), count)
        rating = first + torch.arange(len(row), device=self.device)
        item = self.shard.item[rating]
        if not len(chosen):
            return sum((p.sum() * 0 for p in self.model.parameters()), torch.zeros(()))
        scores = all_logits(self.model, self.model.user_state(self.users[chosen]))
        losses = self.objective.full_loss(scores, row, item, self.share).sum()
        if self.objective.l2:
            user = self.shard.user[rating]
            losses = losses + self.objective.l2 * self.model.l2_penalty(user, item).sum()
        return losses
