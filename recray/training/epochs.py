"""Epochs of gradient steps: over ratings, with or without negatives, or over users."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from recray.config import TrainSettings
from recray.data.negatives import NegativeSampler
from recray.models.base import Model
from recray.models.batches import Batch
from recray.models.objectives import PairLoss, SampledLoss
from recray.models.objectives.ranking import all_logits
from recray.training.optimizers import (
    DenseStep,
    OptimizerChoice,
    OptimizerStep,
    keep_freed_memory,
    precision_of,
)
from recray.training.shard import BatchPlan, Shard, Workers, epoch_generator
from recray.training.sparse import SparseStep
from recray.training.streaming import StreamedShard


class EpochRunner:
    """How one pass over the data changes the model; exact solves have no steps and no losses."""

    has_loss = True
    """Whether `run` returns the sum of a loss."""
    _losses = torch.zeros(0, dtype=torch.float64)
    _callback: Callable[[int], None] | None = None
    _resumed: Tensor | None = None

    def run(self, epoch: int) -> tuple[float, float]:
        """Train one epoch; return this worker's sum of losses and the ratings that it covers."""
        raise NotImplementedError

    def bad_step(self) -> int | None:
        """Find the first step of the last epoch whose loss was not finite, from 1."""
        bad = torch.nonzero(~torch.isfinite(self._losses))
        return int(bad[0]) + 1 if len(bad) else None

    def on_step(self, callback: Callable[[int], None]) -> None:
        """Call `callback` with the number of steps taken, after each step of an epoch."""
        self._callback = callback

    def continue_at(self, step: int, losses: Tensor) -> None:
        """Begin the next epoch after so many steps, with this worker's losses of them."""
        self._resumed = losses[:step]

    def losses_so_far(self) -> Tensor:
        """(steps,) float64 losses of this worker in the epoch that is going on."""
        return self._losses

    def finish_steps(self) -> None:
        """Make what workers share equal on all of them, between two steps."""

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold besides the weights, and is equal on all workers."""
        return {}

    def user_state(self) -> dict[str, Tensor]:
        """The same with a row for each of this worker's users, on the first axis."""
        return {}

    def load_state(self, shared: dict[str, Tensor], user_rows: dict[str, Tensor]) -> None:
        """Go on from what `state` and `user_state` returned."""


def zero_loss(model: Model) -> Tensor:
    """0, with gradients of 0: other workers sum them with those of a worker without rows."""
    return sum((p.sum() * 0 for p in model.parameters()), torch.zeros(()))


def _plan(own: int, batch_size: int | str, workers: Workers) -> BatchPlan:
    """Plan the steps of an epoch, from the number of rows that each worker has."""
    rows = torch.zeros(workers.size, dtype=torch.int64)
    rows[workers.rank] = own
    return BatchPlan.of(tuple(workers.sum(rows).tolist()), batch_size)


class SGDEpochs(EpochRunner, ABC):
    """Epochs of a fixed number of gradient steps; a subclass says what a step minimises.

    The ratings lie where the model is: on the CPU, or in the memory of a GPU.

    Args:
        model: The model; all but the rows of users is equal on every worker.
        shard: This worker's ratings.
        own: How many rows this worker has to cut into steps: ratings, or users.
        settings: Optimizer, rows of a step, and seed.
        workers: The group.
        pairs: Pairs of a row: the rating and its negatives; None where each row has all items.
    """

    def __init__(
        self,
        model: Model,
        shard: Shard | StreamedShard,
        own: int,
        settings: TrainSettings,
        workers: Workers,
        pairs: int | None,
    ) -> None:
        keep_freed_memory()
        self.device = next(model.parameters()).device
        self.shard, self.workers = shard.to(self.device), workers
        self.plan = _plan(own, settings.batch_size, workers)
        entries = self.shard.users.total + model.items
        choice = OptimizerChoice.of(settings, sum(self.plan.rows), pairs, entries)
        self.settings = settings.model_copy(update={"optimizer": choice.optimizer})
        given = (model, self.settings, workers)
        self.step: OptimizerStep = (
            SparseStep(*given, max_pairs=self.plan.batch * (pairs or 1))
            if choice.sparse
            else DenseStep(*given)
        )

    def finish_steps(self) -> None:
        """Make what workers share equal on all of them, between two steps."""
        self.step.finish_steps()

    def state(self) -> dict[str, Tensor]:
        """The optimizer's tensors by name, but for those of users."""
        return self.step.state()

    def user_state(self) -> dict[str, Tensor]:
        """The optimizer's tensors of this worker's users by name."""
        return self.step.user_state()

    def load_state(self, shared: dict[str, Tensor], user_rows: dict[str, Tensor]) -> None:
        """Go on from the tensors of `state` and `user_state`."""
        self.step.load_state(shared, user_rows)

    @abstractmethod
    def losses(self, generator: torch.Generator) -> Iterator[Tensor]:
        """Yield this worker's sum of losses of each step; the model changes in between."""

    def divisor(self, step: int) -> float:
        """What the losses of all workers in a step are divided by. Workers that take local steps
        divide by their share of it.
        """
        rows = self.plan.valid_rows(step)
        return rows / self.workers.size if self.step.is_local else rows

    def run(self, epoch: int) -> tuple[float, float]:
        """Train one epoch; return this worker's sum of losses and the ratings that it covers."""
        self.step.batch_model.train()
        generator = epoch_generator(self.settings.seed, epoch, self.workers.rank, self.device)
        torch.manual_seed(generator.initial_seed())  # dropout; a resumed run drops the same
        self._losses = torch.zeros(self.plan.steps, dtype=torch.float64, device=self.device)
        resumed, self._resumed = self._resumed, None
        with precision_of(self.settings, self.device):
            for step, loss in enumerate(self.losses(generator)):
                if resumed is not None and step < len(resumed):
                    # The checkpoint holds this step; its loss was computed to draw the same
                    # random numbers as then.
                    self._losses[step] = resumed[step]
                    continue
                self.step.take(loss / self.divisor(step), step)
                self._losses[step] = loss.detach()  # float() here would wait for the GPU
                if self._callback is not None:
                    self._callback(step + 1)
        self.finish_steps()
        return float(self._losses.sum()), float(self.shard.rows)


class PairEpochs(SGDEpochs):
    """Mini-batch steps over ratings, each with its negatives if the objective has any.

    Args:
        model: The model; all but the rows of users is equal on every worker.
        objective: Loss of each rating.
        shard: This worker's ratings.
        settings: Optimizer, batch size and seed.
        workers: The group.
        sampler: Draws the negatives of each rating; None where the objective has none.
    """

    def __init__(
        self,
        model: Model,
        objective: PairLoss,
        shard: Shard | StreamedShard,
        settings: TrainSettings,
        workers: Workers,
        sampler: NegativeSampler | None = None,
    ) -> None:
        pairs = 1 + (sampler.count if sampler else 0)
        super().__init__(model, shard, shard.rows, settings, workers, pairs)
        self.objective = objective
        self.sampler = sampler.to(self.device) if sampler else None
        self._compute: Callable[[Batch], Tensor] = self._loss
        if settings.compile:
            mode = "reduce-overhead" if self.device.type == "cuda" else "default"
            self._compute = torch.compile(self._loss, mode=mode)

    def losses(self, generator: torch.Generator) -> Iterator[Tensor]:
        """Yield this worker's sum of losses of each step."""
        for batch in self.shard.batches(self.plan, generator):
            if not batch.num_valid:  # and perhaps there are no users at all, whose rows it reads
                self.step.prepare(batch)
                yield zero_loss(self.step.batch_model)
                continue
            if self.sampler is not None:
                batch = replace(batch, negatives=self.sampler.draw(batch.user, generator))
            yield self._compute(self.step.prepare(batch))

    def _loss(self, batch: Batch) -> Tensor:
        return (self.objective.loss(self.step.batch_model, batch) * batch.weight).sum()


class AllItemsEpochs(SGDEpochs):
    """Mini-batch steps over users, each with all of their ratings against all items.

    Args:
        model: The model; all but the rows of users is equal on every worker.
        objective: Loss of each user.
        shard: This worker's ratings.
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
        shard = shard.to(next(model.parameters()).device)
        self.user, self.item, self.objective = shard.user, shard.item, objective
        self.graded = objective.preference.graded(shard.rating)
        self.users, self.counts = torch.unique_consecutive(shard.user, return_counts=True)
        super().__init__(model, shard, len(self.users), settings, workers, pairs=None)
        self.offsets = self.counts.cumsum(dim=0) - self.counts
        ratings, users = workers.sum_floats(float(shard.rows), float(len(self.users)))
        self.ratings_per_user = ratings / users
        self.uniform = torch.full((model.items,), 1.0 / model.items, device=self.device)

    def divisor(self, step: int) -> float:
        """Users of the step, times the ratings that a user has on average: so lr means the same as
        where a row is a rating.
        """
        return super().divisor(step) * self.ratings_per_user

    def losses(self, generator: torch.Generator) -> Iterator[Tensor]:
        """Yield this worker's sum of losses of each step."""
        order = torch.randperm(len(self.users), generator=generator, device=self.device)
        for step in range(self.plan.steps):
            yield self._loss(order[step * self.plan.batch : (step + 1) * self.plan.batch])

    def _loss(self, chosen: Tensor) -> Tensor:
        """Sum the losses of these users; without users it is 0, and still has a gradient."""
        model = self.step.batch_model
        if not len(chosen):
            return zero_loss(model)
        count = self.counts[chosen]
        row = torch.repeat_interleave(torch.arange(len(chosen), device=self.device), count)
        # Place of each rating: where its user's ratings begin in the shard, plus its number there.
        first = torch.repeat_interleave(self.offsets[chosen] - (count.cumsum(dim=0) - count), count)
        rating = first + torch.arange(len(row), device=self.device)
        item = self.item[rating]
        scores = all_logits(model, model.user_state(self.users[chosen]))
        graded = None if self.graded is None else self.graded.at(rating)
        losses = self.objective.full_loss(scores, row, item, self.uniform, graded).sum()
        if self.objective.l2:
            losses = losses + self.objective.l2 * model.l2_penalty(self.user[rating], item).sum()
        return losses
