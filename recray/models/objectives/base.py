"""What every objective offers: a loss for rows, and its own optimum for one user.

A model does not know its loss. An objective gives the loss of each row of a batch or, for implicit
ALS, exact solves of all rows of one side. Its `fold_in_solver` finds the user state that minimises
the objective for a user's ratings while the items stay as they are.
"""

# Shape letters: B = pairs in the batch, N = ratings of one user, K = negatives of a pair,
# S = length of a user state.

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor

from recray.errors import RecrayError
from recray.models.base import LinearModel, Model
from recray.models.batch_embedding import Batch
from recray.models.objectives.fold_in import FoldIn, RatingsCSR

Contributions = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From (N,) items and (N,) stars of one user to (S,), their state without any rating, and (N, S),
what each rating adds."""


class Objective(ABC):
    """A loss with its parameters."""

    @abstractmethod
    def check(self, model: Model) -> None:
        """Refuse a model that the objective cannot train.

        Raises:
            RecrayError: They do not go together.
        """

    @abstractmethod
    def fold_in_solver(
        self, model: Model, noise: float, popularity: Tensor | None = None
    ) -> FoldIn:
        """Prepare to fold somebody in: everything that does not depend on their ratings.

        Args:
            model: A trained model.
            noise: Variance of a rating around its prediction; what the bundle carries.
            popularity: (items,) ratings of each item; only what draws negatives by popularity
                needs it.

        Returns:
            From the ratings of U people to the (U, S) user states that are best for them, the
            items fixed; nobody's state depends on who else is there.
        """

    def contributions(self, model: Model, noise: float) -> Contributions | None:
        """What `fold_in_solver` finds, as a sum over the ratings; None where it is no such sum."""
        return None

    def fold_in(self, model: Model, item: Tensor, rating: Tensor, noise: float) -> Tensor:
        """(1, S) state of one user; see fold_in_solver, which is better for several."""
        return self.fold_in_solver(model, noise)(RatingsCSR.one(item, rating))


class PairLoss(Objective):
    """An objective that is a mean over observed ratings, minimised in batches.

    Args:
        l2: Weight of the squared rows that a rating touches.
    """

    def __init__(self, l2: float) -> None:
        self.l2 = l2

    @abstractmethod
    def row_loss(self, model: Model, batch: Batch) -> Tensor:
        """(B,) loss of each rating, without the penalty."""

    def loss(self, model: Model, batch: Batch) -> Tensor:
        """(B,) loss of each rating."""
        value = self.row_loss(model, batch)
        if not self.l2:
            return value
        return value + self.l2 * model.l2_penalty(batch.user, batch.item, batch.ids)


def require_raw_output(model: Model, objective: str) -> None:
    """Refuse a model whose output is squeezed between the lowest and highest rating.

    Raises:
        RecrayError: It is.
    """
    if getattr(model, "output", "raw") != "raw":
        raise RecrayError(f"objective.kind={objective} needs model.output=raw; for sigmoid use bce")


def as_linear(model: Model) -> LinearModel:
    """The model as one that is linear in the user's state.

    Raises:
        ValueError: A caller's mistake; Objective.check refuses such pairs before training.
    """
    if not isinstance(model, LinearModel):
        raise ValueError(f"{type(model).__name__} is not linear in the user's state")
    return model
