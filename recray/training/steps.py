"""Epochs of gradient steps: over ratings, with or without negatives, or over users."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from recray.config import TrainSettings
from recray.data.negatives import NegativeSampler
from recray.models.base import Model, is_user_table
from recray.objectives import Contrast, PairLoss
from recray.objectives.ranking import raw_scores
from recray.training.batches import Batch, StepPlan, epoch_generator, shuffled_batches
from recray.training.sync import Workers


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


class Gradient:
    """A torch optimizer on tables and layers, of which every worker has a copy.

    Only what workers share is summed in a step: items and layers. The rows of a user change where
    the user's ratings are, and nowhere else; they are gathered once an epoch.

    Args:
        model: The model, equal on every worker.
        owned: (users,) bool; whose rows this worker changes. Each user has one owner.
        settings: Optimizer, lr and weight decay.
        workers: The group.
    """

    def __init__(
        self, model: Model, owned: Tensor, settings: TrainSettings, workers: Workers
    ) -> None:
        self.workers, self.parameters = workers, list[Tensor](model.parameters())
        self.owned = owned
        named = model.tables().items()
        self.of_users: list[Tensor] = [t.weight for name, t in named if is_user_table(name)]
        if settings.optimizer == "sgd":
            self.optimizer: torch.optim.Optimizer = torch.optim.SGD(self.parameters, lr=settings.lr)
            return
        # Vectors decay, layers do not: those of a rare user or item have little else to hold them.
        tables: list[Tensor] = [table.weight for table in model.tables().values()]
        rest = [p for p in self.parameters if not any(p is table for table in tables)]
        self.parameters = [*tables, *rest]
        groups: list[dict[str, Any]] = [{"params": tables, "weight_decay": settings.weight_decay}]
        groups += [{"params": rest}] if rest else []
        self.optimizer = torch.optim.AdamW(groups, lr=settings.lr, weight_decay=0.0, fused=True)

    def begin(self, steps: int) -> None:
        """Forget the losses of the epoch before."""
        self.losses = torch.zeros(steps, dtype=torch.float64)

    def note(self, step: int, loss: Tensor) -> None:
        """Remember this worker's sum of losses of a step, without waiting for the device."""
        self.losses[step] = loss.detach()

    def bad_step(self) -> int | None:
        """The first step of the epoch whose loss was not finite, from 1; None if all were."""
        bad = torch.nonzero(~torch.isfinite(self.losses))
        return int(bad[0]) + 1 if len(bad) else None

    def step(self, loss: Tensor) -> None:
        """Take one step down a loss that is this worker's part of the whole."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._sum_gradients()
        self.optimizer.step()

    def gather(self) -> None:
        """Give every worker the rows of all users, and what the optimizer knows of them."""
        if self.workers.size == 1:
            return
        for table in self.of_users:
            # By name: a resumed worker may have read them from the file in another order.
            slots = [slot for _, slot in sorted(self.optimizer.state.get(table, {}).items())]
            rows = [s for s in slots if isinstance(s, Tensor) and s.shape == table.shape]
            for values in [table.data, *rows]:
                values.mul_(self.owned[:, None])  # each row is nonzero on its owner alone
                self.workers.sum(values)

    def _sum_gradients(self) -> None:
        """One message for all that workers share."""
        if self.workers.size == 1:
            return
        shared = [p for p in self.parameters if not any(p is own for own in self.of_users)]
        gradients = [p.grad for p in shared if p.grad is not None]
        flat = self.workers.sum(torch.cat([g.reshape(-1) for g in gradients]))
        for gradient, part in zip(
            gradients, flat.split([g.numel() for g in gradients]), strict=True
        ):
            gradient.copy_(part.view_as(gradient))

    def state(self) -> dict[str, Tensor]:
        """The optimizer's tensors by parameter and name."""
        slots = self.optimizer.state_dict()["state"]
        return {
            f"{index}.{name}": torch.as_tensor(value)
            for index, values in slots.items()
            for name, value in values.items()
            if value is not None
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from the tensors of `state`."""
        slots: dict[int, dict[str, Tensor]] = {}
        for key, value in state.items():
            index, name = key.split(".")
            slots.setdefault(int(index), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": slots, "param_groups": groups})


def _plan(own: int, batch_size: int | str, workers: Workers) -> StepPlan:
    """The steps of an epoch, from how many rows each worker has."""
    rows = torch.zeros(workers.size, dtype=torch.int64)
    rows[workers.rank] = own
    return StepPlan.of(tuple(workers.sum(rows).tolist()), batch_size)


class SteppedEpochs(ABC):
    """Epochs of a fixed number of gradient steps; what a step minimises is its subclass's.

    Args:
        model: The model, equal on every worker.
        shard: This worker's rows.
        own: How many rows of steps this worker has: ratings, or users.
        settings: Optimizer, rows of a step, and seed.
        workers: The group.
    """

    def __init__(
        self, model: Model, shard: Shard, own: int, settings: TrainSettings, workers: Workers
    ) -> None:
        self.model, self.shard, self.settings, self.workers = model, shard, settings, workers
        self.plan = _plan(own, settings.batch_size, workers)
        self.gradient = Gradient(model, shard.owned, settings, workers)
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
        """What the losses of all workers in a step are divided by."""
        return self.plan.real_rows(step)

    def run(self, epoch: int) -> tuple[float, float]:
        """Train one epoch; return this worker's sum of losses and the rows it covers."""
        self.model.train()
        generator = epoch_generator(self.settings.seed, epoch, self.workers.rank)
        torch.manual_seed(generator.initial_seed())  # dropout; a resumed run drops the same
        self.gradient.begin(self.plan.steps)
        before, self._before = self._before, None
        for step, loss in enumerate(self.losses(generator)):
            if before is not None and step < len(before):
                self.gradient.note(step, before[step])  # taken before; this drew the same numbers
                continue
            self.gradient.step(loss / self.divisor(step))
            self.gradient.note(step, loss)
            if self._notice is not None:
                self._notice(step + 1)
        self.gradient.gather()
        return float(self.gradient.losses.sum()), float(len(self.shard.user))


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
        super().__init__(model, shard, len(shard.user), settings, workers)
        self.objective, self.sampler = objective, sampler

    def losses(self, generator: torch.Generator) -> Iterator[Tensor]:
        """Yield this worker's sum of losses of each step."""
        for batch in self.batches(generator):
            drawn = self.sampler.draw(batch.user, generator) if self.sampler else None
            loss_B = self.objective.loss(self.model, batch.user, batch.item, batch.rating, drawn)
            yield (loss_B * batch.weight).sum()

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
        objective: Contrast,
        shard: Shard,
        settings: TrainSettings,
        workers: Workers,
    ) -> None:
        self.users, self.counts = torch.unique_consecutive(shard.user, return_counts=True)
        super().__init__(model, shard, len(self.users), settings, workers)
        self.objective = objective
        self.begins = self.counts.cumsum(dim=0) - self.counts
        ratings, users = workers.sum_floats(float(len(shard.user)), float(len(self.users)))
        self.each = ratings / users  # so that lr means the same as where a row is a rating
        self.share = torch.full((model.items,), 1.0 / model.items)

    def divisor(self, step: int) -> float:
        """Users of the step, times the ratings that a user has."""
        return self.plan.real_rows(step) * self.each

    def losses(self, generator: torch.Generator) -> Iterator[Tensor]:
        """Yield this worker's sum of losses of each step."""
        order = torch.randperm(len(self.users), generator=generator)
        for step in range(self.plan.steps):
            yield self._loss(order[step * self.plan.batch : (step + 1) * self.plan.batch])

    def _loss(self, chosen: Tensor) -> Tensor:
        """The sum of losses of these users; 0 for none, who still takes part in the step."""
        count = self.counts[chosen]
        row = torch.repeat_interleave(torch.arange(len(chosen)), count)
        first = torch.repeat_interleave(self.begins[chosen] - (count.cumsum(dim=0) - count), count)
        rating = first + torch.arange(len(row))
        item = self.shard.item[rating]
        if not len(chosen):
            return sum((p.sum() * 0 for p in self.model.parameters()), torch.zeros(()))
        scores = raw_scores(self.model, self.model.user_state(self.users[chosen]))
        losses = self.objective.against_all(scores, row, item, self.share).sum()
        if self.objective.l2:
            user = self.shard.user[rating]
            losses = losses + self.objective.l2 * self.model.penalty(user, item).sum()
        return losses
