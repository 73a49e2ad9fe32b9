"""What training minimises, and the same minimum for one user who was not in training.

A model does not know its loss. An objective gives the loss of each row of a batch, or, for the
whole-data loss, exact solves of all rows of one side; and `fold_in`, the user state that minimises
the objective for a handful of ratings while the items stay as they are.
"""

# Shape letters: B = pairs in the batch, N = ratings of one user, I = items, U = users,
# S = length of a user state, D = vector length.

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from recray.config import Settings
from recray.errors import RecrayError
from recray.models.base import LinearModel, Model
from recray.models.posterior import PosteriorDot

AllReduce = Callable[[Tensor], Tensor]
FoldIn = Callable[[Tensor, Tensor], Tensor]
"""From (N,) item ids and (N,) stars of one user to their (1, S) state."""
ROW_BLOCK = 512


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

    def check(self, model: Model) -> None:
        """Refuse a model that the objective cannot train.

        Raises:
            RecrayError: They do not go together.
        """
        if not isinstance(model, LinearModel):
            raise RecrayError(
                f"objective {type(self).__name__} cannot train {type(model).__name__}"
            )

    @abstractmethod
    def folding(self, model: Model, noise: float) -> FoldIn:
        """Prepare to fold somebody in: everything that does not depend on their ratings.

        Args:
            model: A trained model.
            noise: Variance of a rating around its prediction; what the bundle carries.

        Returns:
            From (N,) int64 ids of rated items, each once, and (N,) stars to the (1, S) user state
            that is best for them, the items fixed.
        """

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
    def row_loss(self, model: LinearModel, user: Tensor, item: Tensor, rating: Tensor) -> Tensor:
        """(B,) loss of each rating, without the penalty."""

    def loss(self, model: LinearModel, user: Tensor, item: Tensor, rating: Tensor) -> Tensor:
        """(B,) loss of each rating."""
        value = self.row_loss(model, user, item, rating)
        return value + self.l2 * model.penalty(user, item) if self.l2 else value


class Mse(PairLoss):
    """Squared error of the predicted stars: (rating - prediction)^2."""

    def row_loss(self, model: LinearModel, user: Tensor, item: Tensor, rating: Tensor) -> Tensor:
        """(B,) squared errors, in stars squared."""
        return (rating - model(user, item)).square()

    def check(self, model: Model) -> None:
        """Refuse a squeezed output, for which fold-in is no ridge regression."""
        super().check(model)
        if getattr(model, "output", "raw") != "raw":
            raise RecrayError("objective.kind=mse needs model.output=raw; for sigmoid use bce")

    def folding(self, model: Model, noise: float) -> FoldIn:
        """Ridge regression towards the trained users' mean state."""
        linear, prior = as_linear(model), FoldInPrior.of(model, noise)

        def fold_in(item: Tensor, rating: Tensor) -> Tensor:
            rows = linear.item_rows(item).detach().double()
            left = rating.double() - linear.item_offset(item).detach().double()
            matrix = rows.T @ rows / prior.noise + torch.diag(prior.precision)
            right = rows.T @ left / prior.noise + prior.precision * prior.mean
            return torch.linalg.solve(matrix, right)[None].float()

        return fold_in


class Bce(PairLoss):
    """Binary cross-entropy of the rating scaled to 0..1: -(t log p + (1 - t) log(1 - p)).

    Args:
        l2: Weight of the squared rows that a rating touches.
        low: Rating that becomes 0, in stars.
        high: Rating that becomes 1, in stars.
    """

    def __init__(self, l2: float, low: float, high: float) -> None:
        super().__init__(l2)
        self.low, self.high = low, high

    def check(self, model: Model) -> None:
        """Refuse a model that gives no probability."""
        super().check(model)
        if getattr(model, "output", "raw") != "sigmoid":
            raise RecrayError(
                "objective.kind=bce needs a probability: "
                "use model.kind=dot-bias with model.output=sigmoid"
            )

    def _target(self, rating: Tensor) -> Tensor:
        return (rating - self.low) / (self.high - self.low)

    def row_loss(self, model: LinearModel, user: Tensor, item: Tensor, rating: Tensor) -> Tensor:
        """(B,) cross-entropies in nats."""
        return functional.binary_cross_entropy_with_logits(
            model.linear(user, item), self._target(rating), reduction="none"
        )

    def folding(self, model: Model, noise: float) -> FoldIn:
        """Logistic regression with the trained users' spread as prior, by Newton's method."""
        linear, prior = as_linear(model), FoldInPrior.of(model, noise)

        def fold_in(item: Tensor, rating: Tensor) -> Tensor:
            rows = linear.item_rows(item).detach().double()
            offset = linear.item_offset(item).detach().double()
            target, state = self._target(rating.double()), prior.mean.clone()
            for _ in range(20):
                chance = torch.sigmoid(rows @ state + offset)
                slope = rows.T @ (chance - target) + prior.precision * (state - prior.mean)
                curve = (rows.T * (chance * (1 - chance))) @ rows + torch.diag(prior.precision)
                step = torch.linalg.solve(curve, slope)
                state = state - step
                if step.abs().max() < 1e-9:
                    break
            return state[None].float()

        return fold_in


class WholeData(Objective):
    """Squared error over all pairs, rated or not; what was rated should score 1, the rest 0.

    sum over rated (1 - s)^2 + alpha0 * sum over all pairs s^2
        + l2 * (sum_u (n_u + alpha0 I) |w_u|^2 + sum_i (n_i + alpha0 U) |h_i|^2)

    Stars are not used: that somebody chose a film is the signal.

    Args:
        alpha0: Weight of all pairs.
        l2: Weight of the squared vectors, scaled by how often each occurs.

    Source: Hu, Koren and Volinsky (2008); scaling and ranges by Rendle, Krichene, Zhang and Koren
        (2022), RecSys, "Revisiting the performance of iALS".
    """

    def __init__(self, alpha0: float, l2: float) -> None:
        self.alpha0, self.l2 = alpha0, l2

    def check(self, model: Model) -> None:
        """Refuse all but the plain dot product."""
        if type(model).__name__ != "Dot":
            raise RecrayError(
                "objective.kind=whole-data solves for vectors alone: use model.kind=dot"
            )

    def gram(self, rows: Tensor) -> Tensor:
        """(N, D) fixed vectors to alpha0 times their (D, D) Gram matrix."""
        return self.alpha0 * (rows.T @ rows)

    def solve(
        self,
        fixed: Tensor,
        begins: Tensor,
        places: Tensor,
        gram: Tensor,
        others: int,
        all_reduce: AllReduce | None = None,
    ) -> Tensor:
        """The best vectors of one side, the other side fixed; exact, row by row.

        Args:
            fixed: (N, D) vectors of the other side.
            begins: (R + 1,) int64; row r has the ratings begins[r]..begins[r + 1] - 1.
            places: (ratings,) int64 rows of `fixed`, one for each rating.
            gram: (D, D) alpha0 times the Gram matrix of the whole other side.
            others: Size of the other side, for the scaling of l2.
            all_reduce: Sums a tensor over workers, where each has a part of the ratings.

        Returns:
            (R, D) vectors.
        """
        rows, dim = len(begins) - 1, fixed.shape[1]
        out = fixed.new_empty(rows, dim)
        for first in range(0, rows, ROW_BLOCK):
            last = min(first + ROW_BLOCK, rows)
            system = self._normal_equations(fixed, begins[first : last + 1], places)
            if all_reduce is not None:
                system = all_reduce(system)
            matrix, right = system[:, :, :dim], system[:, :, dim]
            count = system[:, 0, dim + 1]
            ridge = self.l2 * (count + self.alpha0 * others)
            matrix = matrix + gram + torch.diag_embed(ridge[:, None].expand(-1, dim))
            factor = torch.linalg.cholesky(matrix)
            out[first:last] = torch.cholesky_solve(right[:, :, None], factor)[:, :, 0]
        return out

    def _normal_equations(self, fixed: Tensor, begins: Tensor, places: Tensor) -> Tensor:
        """(R, D, D + 2): each row's matrix, right side and count, ready to be summed."""
        dim = fixed.shape[1]
        system = fixed.new_zeros(len(begins) - 1, dim, dim + 2)
        edges = begins.tolist()
        for row, (begin, end) in enumerate(pairwise(edges)):
            if end > begin:
                vectors = fixed[places[begin:end]]
                torch.mm(vectors.T, vectors, out=system[row, :, :dim])
                system[row, :, dim] = vectors.sum(dim=0)
                system[row, :, dim + 1] = end - begin
        return system

    def folding(self, model: Model, noise: float) -> FoldIn:
        """The same exact solve for one row; stars are not used, nor is the noise."""
        vectors = as_linear(model).item_rows(slice(None)).detach()
        gram = self.gram(vectors)

        def fold_in(item: Tensor, rating: Tensor) -> Tensor:
            begins = torch.tensor([0, len(item)])
            return self.solve(vectors, begins, item, gram, model.items)

        return fold_in


class Bayes(Objective):
    """The posterior of a factorisation with normal noise, whose mean prediction is wanted.

    stars ~ N(mean + b_u + b_i + <w_u, v_i>, noise of u); rows of users and of items are normal
    around a linear function of which items, or whose ratings, they have, stars aside; everything
    that says how much is learned beside them.

    Args:
        factors: Length of the vectors in one sample.
        tastes: Directions of who rated what.
        sweeps: Samples in an epoch.
        burn_in: First epochs, whose samples are forgotten.
    """

    def __init__(self, factors: int, tastes: int, sweeps: int, burn_in: int) -> None:
        self.factors, self.tastes = factors, tastes
        self.sweeps, self.burn_in = sweeps, burn_in

    def check(self, model: Model) -> None:
        """Refuse all but a mean of samples that has room for one."""
        if not isinstance(model, PosteriorDot):
            raise RecrayError("objective.kind=bayes averages samples: use model.kind=posterior-dot")
        dim = model.user_vectors.embedding_dim
        if dim < self.factors:
            raise RecrayError(
                f"model.dim={dim} cannot hold a sample: use objective.factors={dim} or less"
            )

    def folding(self, model: Model, noise: float) -> FoldIn:
        """Ridge regression towards what the rated items say; prior and noise are the model's."""
        if not isinstance(model, PosteriorDot):
            raise ValueError(f"{type(model).__name__} holds no prior")
        precision, error = model.prior_precision.double(), float(model.noise)

        def fold_in(item: Tensor, rating: Tensor) -> Tensor:
            rows = model.item_rows(item).detach().double()
            left = rating.double() - model.item_offset(item).detach().double()
            matrix = rows.T @ rows / error + precision
            right = rows.T @ left / error + precision @ model.expected_state(item).double()
            return torch.linalg.solve(matrix, right)[None].to(model.mean.dtype)

        return fold_in


def as_linear(model: Model) -> LinearModel:
    """The model as one that is linear in the user's state.

    Raises:
        ValueError: A caller's mistake; Objective.check refuses such pairs before training.
    """
    if not isinstance(model, LinearModel):
        raise ValueError(f"{type(model).__name__} is not linear in the user's state")
    return model


def build_objective(settings: Settings, low: float, high: float) -> Objective:
    """The objective of the settings.

    Args:
        settings: Its `objective` group and `train.l2` are used.
        low: Lowest training rating, in stars.
        high: Highest training rating, in stars.
    """
    match settings.objective.kind:
        case "mse":
            return Mse(settings.train.l2)
        case "bce":
            return Bce(settings.train.l2, low, high)
        case "whole-data":
            return WholeData(settings.objective.alpha0, settings.train.l2)
        case "bayes":
            group = settings.objective
            return Bayes(group.factors, group.tastes, group.sweeps, group.burn_in)
