"""One epoch of an objective: gradient steps in batches, or alternating exact solves."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from recray.config import TrainSettings
from recray.models.base import LinearModel
from recray.objectives import PairLoss, WholeData
from recray.training.batches import StepPlan, epoch_generator, shuffled_batches
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

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold besides the weights."""

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from such a state."""


class GradientEpochs:
    """Mini-batch steps of a torch optimizer; gradients are summed over workers.

    Args:
        model: The model, equal on every worker.
        objective: Loss of each row.
        shard: This worker's rows.
        plan: Steps of an epoch.
        settings: Optimizer, lr and seed.
        workers: The group.
    """

    def __init__(
        self,
        model: LinearModel,
        objective: PairLoss,
        shard: Shard,
        plan: StepPlan,
        settings: TrainSettings,
        workers: Workers,
    ) -> None:
        self.model, self.objective, self.shard, self.plan = model, objective, shard, plan
        self.settings, self.workers = settings, workers
        self.parameters = list(model.parameters())
        if settings.optimizer == "adam":
            self.optimizer: torch.optim.Optimizer = torch.optim.Adam(
                self.parameters, lr=settings.lr, fused=True
            )
        else:
            self.optimizer = torch.optim.SGD(self.parameters, lr=settings.lr)

    def run(self, epoch: int) -> tuple[float, float]:
        """Train one epoch; return this worker's sum of losses and the rows it covers."""
        self.model.train()
        generator = epoch_generator(self.settings.seed, epoch, self.workers.rank)
        shard, total = self.shard, torch.zeros((), dtype=torch.float64)
        batches = shuffled_batches(shard.user, shard.item, shard.rating, self.plan, generator)
        for step, batch in enumerate(batches):
            loss_B = self.objective.loss(self.model, batch.user, batch.item, batch.rating)
            loss = (loss_B * batch.weight).sum()
            self.optimizer.zero_grad(set_to_none=True)
            (loss / self.plan.real_rows(step)).backward()
            self._sum_gradients()
            self.optimizer.step()
            total += loss.detach()
        return float(total), float(len(shard.user))  # float() waits for the GPU: once an epoch

    def _sum_gradients(self) -> None:
        """One message for all tables. User rows have one owner each, so summing them only copies;
        sending item rows alone is the engine's next step.
        """
        if self.workers.size == 1:
            return
        gradients = [p.grad for p in self.parameters if p.grad is not None]
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


class AlternatingEpochs:
    """Exact solves of all users, then all items, then the users again for these items.

    Users are solved where their ratings are; for items the normal equations are summed over
    workers in blocks of items.

    Args:
        model: A plain dot product, equal on every worker.
        objective: The whole-data loss.
        shard: This worker's rows.
        workers: The group.
    """

    def __init__(
        self, model: LinearModel, objective: WholeData, shard: Shard, workers: Workers
    ) -> None:
        self.model, self.objective, self.shard, self.workers = model, objective, shard, workers
        users, items = model.users, model.items
        self.user_begins = torch.searchsorted(shard.user, torch.arange(users + 1))
        order = torch.argsort(shard.item, stable=True)
        self.item_begins = torch.searchsorted(shard.item[order], torch.arange(items + 1))
        self.item_users = shard.user[order]

    @torch.no_grad()
    def run(self, epoch: int) -> tuple[float, float]:
        """Train one epoch; return this worker's part of the loss and the rows it covers."""
        self.model.eval()
        user_table = self.model.get_parameter("user_vectors.weight")
        item_table = self.model.get_parameter("item_vectors.weight")
        if epoch == 0:
            self._solve_users(user_table, item_table)
        own = user_table * self.shard.owned[:, None]
        gram = self.workers.sum(self.objective.gram(own))
        summed = self.workers.sum if self.workers.size > 1 else None
        item_table.copy_(
            self.objective.solve(
                user_table, self.item_begins, self.item_users, gram, self.model.users, summed
            )
        )
        self._solve_users(user_table, item_table)
        return self._loss(user_table, item_table), float(len(self.shard.user))

    def _solve_users(self, user_table: Tensor, item_table: Tensor) -> None:
        gram = self.objective.gram(item_table)
        solved = self.objective.solve(
            item_table, self.user_begins, self.shard.item, gram, self.model.items
        )
        # Everybody gets every user's row: each is nonzero on its owner alone.
        user_table.copy_(self.workers.sum(solved * self.shard.owned[:, None]))

    def _loss(self, user_table: Tensor, item_table: Tensor) -> float:
        """This worker's users' part of the objective, without the penalty, over its ratings."""
        seen, error = self.shard, torch.zeros((), dtype=torch.float64)
        for user, item in zip(seen.user.split(1 << 16), seen.item.split(1 << 16), strict=True):
            score = (user_table[user] * item_table[item]).sum(dim=-1)
            error += (1 - score).square().sum()
        own = user_table * seen.owned[:, None]
        gram = self.objective.gram(item_table)
        return float(error) + float(((own @ gram) * own).sum())

    def state(self) -> dict[str, Tensor]:
        """Nothing: the weights are all there is."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Nothing to load."""
