"""Epochs of exact solves."""

# Shape letters: I = items, D = vector length.

import torch
from torch import Tensor

from recray.models.base import LinearModel
from recray.models.factorization import Hybrid
from recray.models.objectives import ImplicitALS
from recray.models.objectives.ials import one_solution_each
from recray.models.objectives.normal_equations import GroupedRows
from recray.models.objectives.preference import Graded
from recray.models.objectives.row_solver import Priors, Spectrum, solve_rows
from recray.training.divided_items import DividedItems
from recray.training.epochs import EpochRunner
from recray.training.optimizers import keep_freed_memory
from recray.training.shard import Shard, Workers, time_decay

CG_STEPS = 2
"""Steps of train.solver=cg: with 2 and 3 validation follows that of exact solves, epoch by epoch;
hardly worse with 1 (ml-1m, D = 64, three pairs of l2 and unobserved_weight).
"""


class ALSEpochs(EpochRunner):
    """Epochs that solve all items, then all users for these items; the first solves users before.

    Users are solved where their ratings are. Items are divided: the normal equations of each are
    summed on the worker that solves it. There are no steps, but a checkpoint may be taken between
    the phases, and the weights are all the state there is.

    Args:
        model: A dot product, plain or hybrid, with items that are equal on every worker.
        objective: The ials loss.
        shard: This worker's rows.
        workers: The group.
        steps: Steps of conjugate gradients of each row after the first epoch; None solves exactly.
    """

    def __init__(
        self,
        model: LinearModel,
        objective: ImplicitALS,
        shard: Shard,
        workers: Workers,
        steps: int | None = None,
    ) -> None:
        keep_freed_memory()
        self.user_table = model.get_parameter("user_vectors.weight")
        device, dim = self.user_table.device, self.user_table.shape[1]
        self.model, self.objective, self.workers = model, objective, workers
        self.shard, self.steps = shard.to(device), steps
        self.graded = self._graded()
        begins = _begins(self.shard.user, model.users)
        self.user_ridge = objective.ridge(begins.diff().to(self.user_table.dtype), model.items)
        self.users = GroupedRows.of(begins, self.shard.item, model.items, dim, self.graded)
        order = torch.argsort(self.shard.item, stable=True)
        begins = _begins(self.shard.item[order], model.items)
        graded = None if self.graded is None else self.graded.at(order)
        counts = workers.sum(begins.diff().to(self.user_table.dtype))
        self.item_weights = objective.item_weights(counts)
        self.item_ridge = objective.item_ridge(counts, shard.users.total)
        ratings, table = (begins, self.shard.user[order]), (model.users, dim)
        self.items: GroupedRows | DividedItems = (
            GroupedRows.of(*ratings, *table, graded)
            if workers.size == 1
            else DividedItems.of(*ratings, table, graded, counts, workers)
        )

    def _graded(self) -> Graded | None:
        """Targets and weights of this worker's ratings; old ratings weigh less with a half-life."""
        graded = self.objective.preference.graded(self.shard.rating)
        if self.objective.half_life is None:
            return graded
        every = graded or Graded(torch.ones_like(self.shard.rating), None)
        return every.times(time_decay(self.shard, self.objective.half_life, self.workers))

    @torch.no_grad()
    def run(self, epoch: int) -> tuple[float, float]:
        """Train one epoch; return this worker's part of the loss and the ratings that it covers.

        Raises:
            RecrayError: A row has no single solution, since l2 is too small.
        """
        self.model.eval()
        phases = [self._solve_items, self._solve_users]
        if epoch == 0:
            phases.insert(0, self._solve_users)
        steps = None if epoch == 0 else self.steps
        done, self._resumed = 0 if self._resumed is None else len(self._resumed), None
        self._losses = torch.zeros(len(phases), dtype=torch.float64)
        for number, phase in enumerate(phases[done:], done + 1):
            with one_solution_each(self.objective.l2):
                phase(steps)
            if self._callback is not None and number < len(phases):
                self._callback(number)
        return self._loss(), float(len(self.shard.user))

    def _solve_items(self, steps: int | None = None) -> None:
        gram = self.workers.sum(self.objective.gram(self.user_table).double())
        spectrum = self._shared(Spectrum.of(gram.to(self.user_table.dtype)))
        hybrid = self.model if isinstance(self.model, Hybrid) else None
        mean = None if hybrid is None else hybrid.prior_rows()
        priors = Priors.of(spectrum, self.item_ridge, self.item_weights, mean)
        old = self.model.item_rows(slice(None))
        if isinstance(self.items, DividedItems):
            solved = self.items.solve(self.user_table, spectrum, priors, old, steps)
        else:
            solved = solve_rows(self.items, self.user_table, spectrum, priors, old, steps)
        if hybrid is None:
            self.model.get_parameter("item_vectors.weight").copy_(solved)
        else:
            hybrid.set_item_rows(solved, self.item_ridge)

    def _shared(self, spectrum: Spectrum) -> Spectrum:
        """That of the first worker: on another kind of CPU a vector may have another sign."""
        if self.workers.size == 1:
            return spectrum
        told = torch.cat([spectrum.values[None], spectrum.basis])
        values, basis = self.workers.sum(told * (self.workers.rank == 0)).split([1, len(told) - 1])
        return Spectrum(values[0], basis)

    def _solve_users(self, steps: int | None = None) -> None:
        item_table = self.model.item_rows(slice(None))
        spectrum = Spectrum.of(self.objective.gram(item_table, self.item_weights))
        priors = Priors.of(spectrum, self.user_ridge, None, None)
        given = self.users, item_table, spectrum, priors
        self.user_table.copy_(solve_rows(*given, self.user_table, steps))

    def _loss(self) -> float:
        """This worker's part of the objective, over its own users and without the penalty."""
        item_table, user_table = self.model.item_rows(slice(None)), self.user_table
        seen, error = self.shard, torch.zeros((), dtype=torch.float64, device=user_table.device)
        for first in range(0, seen.rows, 1 << 16):
            rows = slice(first, first + (1 << 16))
            score = (user_table[seen.user[rows]] * item_table[seen.item[rows]]).sum(dim=-1)
            graded = None if self.graded is None else self.graded.rows(rows.start, rows.stop)
            error += self.objective.rated_loss(score, graded).sum()
        gram = self.objective.gram(item_table, self.item_weights)
        return float(error) + float(((user_table @ gram) * user_table).sum())


def _begins(ids: Tensor, rows: int) -> Tensor:
    """(rows + 1,) where the ratings of each row begin; ids are sorted."""
    return torch.searchsorted(ids, torch.arange(rows + 1, device=ids.device))
