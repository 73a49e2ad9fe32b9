"""Epochs: gradient steps over ratings, with or without negatives, or over users; exact solves."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from recray.config import TrainSettings
from recray.data.negatives import NegativeSampler
from recray.models.base import Batch, LinearModel, Model
from recray.models.factorization import Hybrid
from recray.models.objectives import ImplicitALS, PairLoss, SampledLoss
from recray.models.objectives.preference import Graded
from recray.models.objectives.ranking import all_logits
from recray.training.optimizers import (
    DenseStep,
    OptimizerChoice,
    OptimizerStep,
    keep_freed_memory,
    precision_of,
)
from recray.training.shard import BatchPlan, Shard, Workers, epoch_generator, time_decay
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

    def sync_user_rows(self) -> None:
        """Give every worker the rows of all users, between two steps."""

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold besides the weights."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state` returned."""


def _plan(own: int, batch_size: int | str, workers: Workers) -> BatchPlan:
    """Plan the steps of an epoch, from the number of rows that each worker has."""
    rows = torch.zeros(workers.size, dtype=torch.int64)
    rows[workers.rank] = own
    return BatchPlan.of(tuple(workers.sum(rows).tolist()), batch_size)


class SGDEpochs(EpochRunner, ABC):
    """Epochs of a fixed number of gradient steps; a subclass says what a step minimises.

    The ratings lie where the model is: on the CPU, or in the memory of a GPU.

    Args:
        model: The model, equal on every worker.
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
        choice = OptimizerChoice.of(settings, sum(self.plan.rows), pairs, model.users + model.items)
        self.settings = settings.model_copy(update={"optimizer": choice.optimizer})
        given = (model, self.shard.owned, self.settings, workers)
        self.step: OptimizerStep = (
            SparseStep(*given, max_pairs=self.plan.batch * (pairs or 1))
            if choice.sparse
            else DenseStep(*given)
        )

    def sync_user_rows(self) -> None:
        """Give every worker the rows of all users, between two steps."""
        self.step.sync_user_rows()

    def state(self) -> dict[str, Tensor]:
        """The optimizer's tensors by name."""
        return self.step.state()

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from the tensors of `state`."""
        self.step.load_state(state)

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
        with precision_of(self.settings):
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
        self.sync_user_rows()
        return float(self._losses.sum()), float(self.shard.rows)


class PairEpochs(SGDEpochs):
    """Mini-batch steps over ratings, each with its negatives if the objective has any.

    Args:
        model: The model, equal on every worker.
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
            if self.sampler is not None:
                batch = replace(batch, negatives=self.sampler.draw(batch.user, generator))
            yield self._compute(self.step.prepare(batch))

    def _loss(self, batch: Batch) -> Tensor:
        return (self.objective.loss(self.step.batch_model, batch) * batch.weight).sum()


class AllItemsEpochs(SGDEpochs):
    """Mini-batch steps over users, each with all of their ratings against all items.

    Args:
        model: The model, equal on every worker.
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
        if not len(chosen):  # other workers sum gradients with this one all the same
            return sum((p.sum() * 0 for p in model.parameters()), torch.zeros(()))
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


class ALSEpochs(EpochRunner):
    """Epochs that solve all items, then all users for these items; the first solves users before.

    Users are solved where their ratings are. For items the normal equations are summed over
    workers, in blocks of items. There are no steps, and the weights are all the state there is.

    Args:
        model: A dot product, plain or hybrid, equal on every worker.
        objective: The ials loss.
        shard: This worker's rows.
        workers: The group.
    """

    def __init__(
        self, model: LinearModel, objective: ImplicitALS, shard: Shard, workers: Workers
    ) -> None:
        self.model, self.objective, self.shard, self.workers = model, objective, shard, workers
        items = model.items
        self.own = torch.nonzero(shard.owned)[:, 0]
        own_begins = torch.searchsorted(shard.user, self.own)
        self.user_begins = torch.cat([own_begins, torch.tensor([len(shard.user)])])
        order = torch.argsort(shard.item, stable=True)
        self.item_begins = torch.searchsorted(shard.item[order], torch.arange(items + 1))
        self.item_users = shard.user[order]
        self.graded = self._graded()
        self.item_graded = None if self.graded is None else self.graded.at(order)
        item_counts = workers.sum(self.item_begins.diff().float())
        self.item_weights = objective.item_weights(item_counts)
        self.item_ridge = objective.item_ridge(item_counts, model.users)

    def _graded(self) -> Graded | None:
        """Targets and weights of this worker's ratings; old ratings weigh less with a half-life."""
        graded = self.objective.preference.graded(self.shard.rating)
        if self.objective.half_life is None:
            return graded
        every = graded or Graded(torch.ones_like(self.shard.rating), None)
        return every.times(time_decay(self.shard, self.objective.half_life, self.workers))

    @torch.no_grad()
    def run(self, epoch: int) -> tuple[float, float]:
        """Train one epoch; return this worker's part of the loss and the ratings that it covers."""
        self.model.eval()
        user_table = self.model.get_parameter("user_vectors.weight")
        if epoch == 0:
            self._solve_users(user_table)
        self._solve_items(user_table)
        self._solve_users(user_table)
        return self._loss(user_table), float(len(self.shard.user))

    def _solve_items(self, user_table: Tensor) -> None:
        gram = self.workers.sum(self.objective.gram(user_table[self.own]))
        summed = self.workers.sum if self.workers.size > 1 else None
        hybrid = self.model if isinstance(self.model, Hybrid) else None
        solved = self.objective.solve(
            user_table,
            self.item_begins,
            self.item_users,
            gram,
            self.model.users,
            summed,
            None if hybrid is None else hybrid.prior_rows(),
            self.item_graded,
            self.item_weights,
            self.item_ridge,
        )
        if hybrid is None:
            self.model.get_parameter("item_vectors.weight").copy_(solved)
        else:
            hybrid.set_item_rows(solved, self.item_ridge)

    def _solve_users(self, user_table: Tensor) -> None:
        item_table = self.model.item_rows(slice(None))
        gram = self.objective.gram(item_table, self.item_weights)
        sizes, ratings = (gram, self.model.items), (self.user_begins, self.shard.item)
        solved = self.objective.solve(item_table, *ratings, *sizes, graded=self.graded)
        # A sum hands out every user's row: each is nonzero on its owner alone.
        user_table.zero_()
        user_table[self.own] = solved
        self.workers.sum(user_table)

    def _loss(self, user_table: Tensor) -> float:
        """This worker's part of the objective, over its own users and without the penalty."""
        item_table = self.model.item_rows(slice(None))
        seen, error = self.shard, torch.zeros((), dtype=torch.float64)
        for first in range(0, seen.rows, 1 << 16):
            rows = slice(first, first + (1 << 16))
            score = (user_table[seen.user[rows]] * item_table[seen.item[rows]]).sum(dim=-1)
            graded = None if self.graded is None else self.graded.rows(rows.start, rows.stop)
            error += self.objective.rated_loss(score, graded).sum()
        own = user_table[self.own]
        gram = self.objective.gram(item_table, self.item_weights)
        return float(error) + float(((own @ gram) * own).sum())
