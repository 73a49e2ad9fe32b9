"""What every objective offers: a loss for rows, and its own optimum for one user.

A model does not know its loss. An objective gives the loss of each row of a batch, or, for the
whole-data loss, exact solves of all rows of one side; and `folding`, the user state that minimises
the objective for a handful of ratings while the items stay as they are.
"""

# Shape letters: B = pairs in the batch, N = ratings of one user, K = negatives of a pair,
# S = length of a user state.

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from recray.data.negatives import Drawn
from recray.errors import RecrayError
from recray.models.base import LinearModel, Model

FoldIn = Callable[[Tensor, Tensor], Tensor]
"""From (N,) item ids and (N,) stars of one user to their (1, S) state."""
Shares = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From the same to the state's parts: (S,) without any rating, and (N, S) what each rating adds."""
FOLD_IN_STEPS = 30


@dataclass(frozen=True)
class FoldInPrior:
    """What is believed of somebody new before any rating: the trained users' spread.

    Args:
        mean: (S,) mean user state.
        precision: (S,) inverse variance of the user states.
        noise: Variance of a rating around its prediction, in the objective's own unit.
    """

    mean: Tensor
    precision: Tensor
    noise: float

    @classmethod
    def of(cls, model: Model, noise: float) -> "FoldInPrior":
        """Measure the spread of the trained users' states."""
        state = model.user_state(torch.arange(model.users)).detach().double()
        variance = state.var(dim=0, correction=0).clamp(min=1e-6)
        return cls(state.mean(dim=0), 1 / variance, max(noise, 1e-6))


class Objective(ABC):
    """A loss with its parameters."""

    @abstractmethod
    def check(self, model: Model) -> None:
        """Refuse a model that the objective cannot train.

        Raises:
            RecrayError: They do not go together.
        """

    @abstractmethod
    def folding(self, model: Model, noise: float, popularity: Tensor | None = None) -> FoldIn:
        """Prepare to fold somebody in: everything that does not depend on their ratings.

        Args:
            model: A trained model.
            noise: Variance of a rating around its prediction; what the bundle carries.
            popularity: (items,) ratings of each item; only what draws negatives by popularity
                needs it.

        Returns:
            From (N,) int64 ids of rated items, each once, and (N,) stars to the (1, S) user state
            that is best for them, the items fixed.
        """

    def shares(self, model: Model, noise: float) -> Shares | None:
        """What `folding` finds, as a sum over the ratings; None where it is no such sum."""
        return None

    def fold_in(self, model: Model, item: Tensor, rating: Tensor, noise: float) -> Tensor:
        """Fold one user in; see folding, which is better for several."""
        return self.folding(model, noise)(item, rating)


class PairLoss(Objective):
    """An objective that is a mean over observed ratings, minimised in batches.

    Args:
        l2: Weight of the squared rows that a rating touches.
    """

    def __init__(self, l2: float) -> None:
        self.l2 = l2

    @abstractmethod
    def row_loss(
        self, model: Model, user: Tensor, item: Tensor, rating: Tensor, drawn: Drawn | None = None
    ) -> Tensor:
        """(B,) loss of each rating, without the penalty; drawn are its (B, K) negatives."""

    def loss(
        self, model: Model, user: Tensor, item: Tensor, rating: Tensor, drawn: Drawn | None = None
    ) -> Tensor:
        """(B,) loss of each rating."""
        value = self.row_loss(model, user, item, rating, drawn)
        return value + self.l2 * model.penalty(user, item) if self.l2 else value


def refuse_squeezed(model: Model, objective: str) -> None:
    """Refuse a model whose output is squeezed between the lowest and highest rating.

    Raises:
        RecrayError: It is.
    """
    if getattr(model, "output", "raw") != "raw":
        raise RecrayError(f"objective.kind={objective} needs model.output=raw; for sigmoid use bce")


def fold_in_by_steps(prior: FoldInPrior, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """The state that minimises loss + |state - mean|^2 / (2 variance), by L-BFGS.

    Args:
        prior: What is believed before any rating.
        loss: From a (1, S) state to a negative log-likelihood, the items fixed.

    Returns:
        (1, S) state.
    """
    mean, precision = prior.mean.float()[None], prior.precision.float()[None]
    state = mean.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([state], max_iter=FOLD_IN_STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(state) + 0.5 * (precision * (state - mean).square()).sum()
        (state.grad,) = torch.autograd.grad(value, [state])  # the items' gradients are not wanted
        return value

    with torch.enable_grad():
        optimizer.step(closure)
    return state.detach()


def as_linear(model: Model) -> LinearModel:
    """The model as one that is linear in the user's state.

    Raises:
        ValueError: A caller's mistake; Objective.check refuses such pairs before training.
    """
    if not isinstance(model, LinearModel):
        raise ValueError(f"{type(model).__name__} is not linear in the user's state")
    return model
