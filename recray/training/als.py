"""Alternating least squares: exact solves of all users, then of all items, the others fixed."""

import torch
from torch import Tensor

from recray.models.base import LinearModel
from recray.models.factorization import Hybrid
from recray.models.objectives import ImplicitALS
from recray.training.collectives import Workers
from recray.training.epochs import EpochRunner
from recray.training.shard import Shard


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
        self.item_counts = workers.sum(self.item_begins.diff().float())

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
        )
        if hybrid is None:
            self.model.get_parameter("item_vectors.weight").copy_(solved)
        else:
            hybrid.set_item_rows(solved, self.objective.ridge(self.item_counts, self.model.users))

    def _solve_users(self, user_table: Tensor) -> None:
        item_table = self.model.item_rows(slice(None))
        gram = self.objective.gram(item_table)
        solved = self.objective.solve(
            item_table, self.user_begins, self.shard.item, gram, self.model.items
        )
        # A sum hands out every user's row: each is nonzero on its owner alone.
        user_table.zero_()
        user_table[self.own] = solved
        self.workers.sum(user_table)

    def _loss(self, user_table: Tensor) -> float:
        """This worker's part of the objective, over its own users and without the penalty."""
        item_table = self.model.item_rows(slice(None))
        seen, error = self.shard, torch.zeros((), dtype=torch.float64)
        for user, item in zip(seen.user.split(1 << 16), seen.item.split(1 << 16), strict=True):
            score = (user_table[user] * item_table[item]).sum(dim=-1)
            error += (1 - score).square().sum()
        own = user_table[self.own]
        gram = self.objective.gram(item_table)
        return float(error) + float(((own @ gram) * own).sum())
