"""Objectives that predict the stars people gave: squared error, cross-entropy, and classes."""

# Shape letters: B = pairs in the batch, N = ratings of one user, S = length of a user state.

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from recray.errors import RecrayError
from recray.models.base import LinearModel, Model
from recray.models.batch_embedding import Batch
from recray.models.objectives.base import Contributions, PairLoss, as_linear, require_raw_output
from recray.models.objectives.fold_in import (
    FoldIn,
    FoldInPrior,
    RatingsCSR,
    fold_in_by_lbfgs,
    fold_in_each,
)
from recray.models.softmax import SoftmaxDnn


class Mse(PairLoss):
    """Squared error of the predicted stars: (rating - prediction)^2."""

    def row_loss(self, model: Model, batch: Batch) -> Tensor:
        """(B,) squared errors, in stars squared."""
        raw = model.logits_grouped(batch.user, batch.item[:, None], batch.ids)[:, 0]
        return (batch.rating - model.activation(raw)).square()

    def check(self, model: Model) -> None:
        """Refuse a squeezed output, for which fold-in is no ridge regression."""
        require_raw_output(model, "mse")

    def fold_in_solver(
        self, model: Model, noise: float, popularity: Tensor | None = None
    ) -> FoldIn:
        """Ridge regression towards the trained users' mean state; steps where none is exact."""
        prior = FoldInPrior.of(model, noise)
        if not isinstance(model, LinearModel):
            return fold_in_by_lbfgs(model, prior, _error_of(model, prior))
        linear = model

        def fold_in(item: Tensor, rating: Tensor) -> Tensor:
            matrix, base, parts = _ridge(linear, prior, item, rating)
            return torch.linalg.solve(matrix, base + parts.sum(dim=0)).float()

        return fold_in_each(fold_in)

    def contributions(self, model: Model, noise: float) -> Contributions | None:
        """The right side of the regression is a sum over the ratings, and so is what it gives."""
        if not isinstance(model, LinearModel):
            return None
        linear, prior = model, FoldInPrior.of(model, noise)

        def shares(item: Tensor, rating: Tensor) -> tuple[Tensor, Tensor]:
            matrix, base, parts = _ridge(linear, prior, item, rating)
            return torch.linalg.solve(matrix, base), torch.linalg.solve(matrix, parts.T).T

        return shares


def _error_of(model: Model, prior: FoldInPrior) -> Callable[[Tensor, RatingsCSR], Tensor]:
    def loss(state: Tensor, known: RatingsCSR) -> Tensor:
        error = known.rating - model.logits(state[known.row], known.item)
        return known.sums(error.square() / (2 * prior.noise))

    return loss


def _ridge(
    model: LinearModel, prior: FoldInPrior, item: Tensor, rating: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The regression of one user: (S, S) matrix, (S,) right side of the prior, (N, S) of each."""
    rows = model.item_rows(item).detach().double()
    left = rating.double() - model.item_offset(item).detach().double()
    matrix = rows.T @ rows / prior.noise + torch.diag(prior.precision)
    return matrix, prior.precision * prior.mean, rows * left[:, None] / prior.noise


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
        if getattr(model, "output", "raw") != "sigmoid":
            raise RecrayError(
                "objective.kind=bce needs a probability: "
                "use model.kind=dot-bias with model.output=sigmoid"
            )

    def _target(self, rating: Tensor) -> Tensor:
        return (rating - self.low) / (self.high - self.low)

    def row_loss(self, model: Model, batch: Batch) -> Tensor:
        """(B,) cross-entropies in nats."""
        logit = model.logits_grouped(batch.user, batch.item[:, None], batch.ids)[:, 0]
        return functional.binary_cross_entropy_with_logits(
            logit, self._target(batch.rating), reduction="none"
        )

    def fold_in_solver(
        self, model: Model, noise: float, popularity: Tensor | None = None
    ) -> FoldIn:
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
            return state.float()

        return fold_in_each(fold_in)


def as_classifier(model: Model) -> SoftmaxDnn:
    """The model as one that gives classes.

    Raises:
        RecrayError: It gives none.
    """
    if not isinstance(model, SoftmaxDnn):
        raise RecrayError(
            f"objective.kind=classes needs rating levels: use model.kind=softmax-dnn, "
            f"not {type(model).__name__}"
        )
    return model


class RatingClassification(PairLoss):
    """Cross-entropy of the class of the rating, one class for each level: -log p(rating)."""

    def check(self, model: Model) -> None:
        """Refuse a model without classes."""
        as_classifier(model)

    def row_loss(self, model: Model, batch: Batch) -> Tensor:
        """(B,) cross-entropies in nats."""
        network = as_classifier(model)
        classes = network.classes(network.user_state(batch.user), batch.item)
        return functional.cross_entropy(classes, network.class_of(batch.rating), reduction="none")

    def fold_in_solver(
        self, model: Model, noise: float, popularity: Tensor | None = None
    ) -> FoldIn:
        """Steps on the cross-entropy with the trained users' spread as prior."""
        network, prior = as_classifier(model), FoldInPrior.of(model, noise)

        def loss(state: Tensor, known: RatingsCSR) -> Tensor:
            classes = network.classes(state[known.row], known.item)
            target = network.class_of(known.rating)
            return known.sums(functional.cross_entropy(classes, target, reduction="none"))

        return fold_in_by_lbfgs(network, prior, loss)
