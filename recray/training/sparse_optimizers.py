"""Optimizers that change only the rows of a table that a batch touches."""

# Shape letters: N = rows touched, D = vector length, R = rows of the table.

from abc import ABC, abstractmethod

import torch
from torch import Tensor

Slots = dict[str, Tensor]
BETAS = (0.9, 0.999)
EPSILON = 1e-8
BREAK_EVEN = 0.39
"""A batch of more pairs than this share of the users and items moves fewer bytes when every row
is updated: 28 bytes a number of the tables, against 72 a number of the two rows of a pair.
"""
IN_CACHE = 1 << 14
"""Users and items below which the tables stay in a core's cache: there a step over all rows costs
less than finding those that a batch touches.
"""


class RowOptimizer(ABC):
    """An optimizer of rows. A row that no batch touches keeps its values and what is known of it.

    Args:
        lr: Learning rate.
        decay: Share of a touched row that a step takes away, times lr.
    """

    def __init__(self, lr: float, decay: float) -> None:
        self.lr, self.decay = lr, decay

    @abstractmethod
    def slots(self, table: Tensor) -> Slots:
        """What is known at the start of the rows of an (R, D) table, by name; first axis R."""

    @abstractmethod
    def change(self, slots: Slots, ids: Tensor, gradient: Tensor, step: int) -> Tensor:
        """Note the gradient; return what is added to the rows, in the gradient's own memory.

        Args:
            slots: What is known of the table.
            ids: (N,) rows, each once.
            gradient: (N, D), which is overwritten.
            step: Number of the step, from 1.
        """

    @torch.no_grad()
    def update(self, table: Tensor, slots: Slots, ids: Tensor, gradient: Tensor, step: int) -> None:
        """Take one step with the (N, D) gradient of the (N,) rows, each of which occurs once."""
        change = self.change(slots, ids, gradient, step)
        if self.decay:
            change.add_(table.index_select(0, ids), alpha=-self.lr * self.decay)
        table.index_add_(0, ids, change)


class RowSgd(RowOptimizer):
    """Plain descent: the same as the dense one, since a row without a gradient stays."""

    def slots(self, table: Tensor) -> Slots:
        """Nothing."""
        return {}

    def change(self, slots: Slots, ids: Tensor, gradient: Tensor, step: int) -> Tensor:
        """-lr times the gradient."""
        return gradient.mul_(-self.lr)


class RowAdagrad(RowOptimizer):
    """Adagrad with one number a row: the sum over steps of the row's mean squared gradient.

    Source: Duchi, Hazan and Singer (2011), JMLR 12; by rows as in Naumov et al. (2019),
        "Deep learning recommendation model", arXiv:1906.00091.
    """

    def slots(self, table: Tensor) -> Slots:
        """The (R,) sums."""
        return {"sum": table.new_zeros(len(table))}

    def change(self, slots: Slots, ids: Tensor, gradient: Tensor, step: int) -> Tensor:
        """-lr times the gradient over the root of the row's sum."""
        norm = torch.linalg.vector_norm(gradient, dim=-1)
        total = slots["sum"].index_select(0, ids)
        total.addcmul_(norm, norm, value=1 / gradient.shape[1])
        slots["sum"].index_copy_(0, ids, total)
        return gradient.mul_((-self.lr / total.sqrt_().add_(EPSILON))[:, None])


class LazyAdam(RowOptimizer):
    """Adam whose moments of a row stand still while no batch touches it, as in torch's SparseAdam.

    Source: Kingma and Ba (2015), ICLR; the correction of the moments counts all steps.
    """

    def slots(self, table: Tensor) -> Slots:
        """The (R, D) moments."""
        return {name: torch.zeros_like(table) for name in ("exp_avg", "exp_avg_sq")}

    def change(self, slots: Slots, ids: Tensor, gradient: Tensor, step: int) -> Tensor:
        """-lr times the corrected first moment over the root of the second."""
        first, second = (
            slots[name].index_select(0, ids).mul_(beta)
            for name, beta in zip(("exp_avg", "exp_avg_sq"), BETAS, strict=True)
        )
        first.add_(gradient, alpha=1 - BETAS[0])
        second.addcmul_(gradient, gradient, value=1 - BETAS[1])
        slots["exp_avg"].index_copy_(0, ids, first)
        slots["exp_avg_sq"].index_copy_(0, ids, second)
        root = second.sqrt_().mul_((1 - BETAS[1] ** step) ** -0.5).add_(EPSILON)
        scale = -self.lr / (1 - BETAS[0] ** step)
        return torch.div(first, root, out=gradient).mul_(scale)


ROW_OPTIMIZERS: dict[str, type[RowOptimizer]] = {
    "sgd": RowSgd,
    "adagrad": RowAdagrad,
    "lazy-adam": LazyAdam,
}
