"""Epochs of exact solves."""

import torch
from torch import Tensor

from recray.models.base import LinearModel
from recray.models.factorization import Hybrid
from recray.models.objectives import ImplicitALS
from recray.models.objectives.preference import Graded
from recray.training.epochs import EpochRunner
from recray.training.shard import Shard, Workers, time_decay


class ALSEpochs(EpochRunner):
    """Epochs that solve all items, then all users for these items; the first solves users before.

    Users are solved where their ratings are. For items the normal equations are summed over
    workers, in blocks of items. There are no steps, and the weights are all the state there is.

    Args:
        model: A dot product, plain or hybrid, with items that are equal on every worker.
        objective: The ials loss.
        shard: This worker's rows.
        workers: The group.
    """

    def __init__(
        self, model: LinearModel, objective: ImplicitALS, shard: Shard, workers: Workers
    ) -> None:
        self.model, self.objective, self.shard, self.workers = model, objective, shard, workers
        items = model.items
        self.user_begins = torch.searchsorted(shard.user, torch.arange(model.users + 1))
        order = torch.argsort(shard.item, stable=True)
        self.item_begins = torch.searchsorted(shard.item[order], torch.arange(items + 1))
        self.item_users = shard.user[order]
        self.graded = self._graded()
        self.item_graded = None if self.graded is None else self.graded.at(order)
        item_counts = workers.sum(self.item_begins.diff().float())
        self.item_weights = objective.item_weights(item_counts)
        self.item_ridge = objective.item_ridge(item_counts, shard.users.total)

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
        gram = self.workers.sum(self.objective.gram(user_table))
        summed = self.workers.sum if self.workers.size > 1 else None
        hybrid = self.model if isinstance(self.model, Hybrid) else None
        solved = self.objective.solve(
            user_table,
            self.item_begins,
            self.item_users,
            gram,
            self.shard.users.total,
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
        user_table.copy_(solved)

    def _loss(self, user_table: Tensor) -> float:
        """This worker's part of the objective, over its own users and without the penalty."""
        item_table = self.model.item_rows(slice(None))
        seen, error = self.shard, torch.zeros((), dtype=torch.float64)
        for first in range(0, seen.rows, 1 << 16):
            rows = slice(first, first + (1 << 16))
            score = (user_table[seen.user[rows]] * item_table[seen.item[rows]]).sum(dim=-1)
            graded = None if self.graded is None else self.graded.rows(rows.start, rows.stop)
            error += self.objective.rated_loss(score, graded).sum()
        gram = self.objective.gram(item_table, self.item_weights)
        return float(error) + float(((user_table @ gram) * user_table).sum())
