"""Objectives that predict ratings: squared error, cross-entropy, classes, and BPMF."""

# Shape letters: B = pairs in the batch, N = ratings of one user, S = length of a user state.

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from recray.errors import RecrayError
from recray.models.base import LinearModel, Model
from recray.models.batches import Batch
from recray.models.factorization import BPMFMean
from recray.models.history import RatingsCSR
from recray.models.neural import SoftmaxDnn
from recray.models.objectives.base import (
    Contributions,
    Objective,
    PairLoss,
    as_linear,
    require_raw_output,
)
from recray.models.objectives.fold_in import (
    FoldIn,
    FoldInConfig,
    FoldInPrior,
    fold_in_by_lbfgs,
    fold_in_each,
)

NEWTON_STEPS = 20
NEWTON_TOLERANCE = 1e-9  # largest change of a number in the state


class Mse(PairLoss):
    """Squared error of the predicted rating: (rating - prediction)^2."""

    def row_loss(self, model: Model, batch: Batch) -> Tensor:
        """(B,) squared errors."""
        raw = model.logits_grouped(batch.user, batch.item[:, None], batch.ids)[:, 0]
        return (batch.rating - model.activation(raw)).square()

    def check(self, model: Model) -> None:
        """Refuse a sigmoid output, for which fold-in is no ridge regression."""
        require_raw_output(model, "mse")

    def fold_in_solver(
        self, model: Model, config: FoldInConfig, popularity: Tensor | None
    ) -> FoldIn:
        """Ridge regression towards the trained users' mean state; L-BFGS if not linear."""
        prior = FoldInPrior.of(model, config.noise)
        if not isinstance(model, LinearModel):
            return fold_in_by_lbfgs(model, prior, _error_of(model, prior))
        linear = model

        def fold_in(item: Tensor, rating: Tensor) -> Tensor:
            matrix, base, parts = _ridge(linear, prior, item, rating)
            state: Tensor = torch.linalg.solve(matrix, base + parts.sum(dim=0))
            return state.float()

        return fold_in_each(fold_in)

    def contributions(
        self, model: Model, config: FoldInConfig, popularity: Tensor | None
    ) -> Contributions | None:
        """The right side of the regression is a sum over ratings, so its solution is one too."""
        if not isinstance(model, LinearModel):
            return None
        linear, prior = model, FoldInPrior.of(model, config.noise)

        def parts_of(item: Tensor, rating: Tensor) -> tuple[Tensor, Tensor]:
            matrix, base, parts = _ridge(linear, prior, item, rating)
            return torch.linalg.solve(matrix, base), torch.linalg.solve(matrix, parts.T).T

        return parts_of


def _error_of(model: Model, prior: FoldInPrior) -> Callable[[Tensor, RatingsCSR], Tensor]:
    def loss(state: Tensor, known: RatingsCSR) -> Tensor:
        error = known.rating - model.logits(state[known.row], known.item)
        return known.sums(error.square() / (2 * prior.noise))

    return loss


def _items_in_double(model: LinearModel, item: Tensor) -> tuple[Tensor, Tensor]:
    """(N, S) rows and (N,) offsets of items in float64, without gradients."""
    return model.item_rows(item).detach().double(), model.item_offset(item).detach().double()


def _ridge(
    model: LinearModel, prior: FoldInPrior, item: Tensor, rating: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One user's regression: (S, S) matrix, (S,) right side of the prior, (N, S) of each rating."""
    rows, offset = _items_in_double(model, item)
    residual = rating.double() - offset
    matrix = rows.T @ rows / prior.noise + torch.diag(prior.precision)
    return matrix, prior.precision * prior.mean, rows * residual[:, None] / prior.noise


class Bce(PairLoss):
    """Binary cross-entropy of the rating scaled to 0..1: -(t log p + (1 - t) log(1 - p)).

    Args:
        l2: Weight of the squared rows of each pair.
        low: Rating that becomes 0.
        high: Rating that becomes 1.
    """

    def __init__(self, l2: float, low: float, high: float) -> None:
        super().__init__(l2)
        self.low, self.high = low, high

    def check(self, model: Model) -> None:
        """Refuse a model without a sigmoid output."""
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
        self, model: Model, config: FoldInConfig, popularity: Tensor | None
    ) -> FoldIn:
        """Logistic regression with the trained users' states as prior, by Newton's method."""
        linear, prior = as_linear(model), FoldInPrior.of(model, config.noise)

        def fold_in(item: Tensor, rating: Tensor) -> Tensor:
            rows, offset = _items_in_double(linear, item)
            target, state = self._target(rating.double()), prior.mean.clone()
            for _ in range(NEWTON_STEPS):
                chance = torch.sigmoid(rows @ state + offset)
                slope = rows.T @ (chance - target) + prior.precision * (state - prior.mean)
                curve = (rows.T * (chance * (1 - chance))) @ rows + torch.diag(prior.precision)
                step = torch.linalg.solve(curve, slope)
                state = state - step
                if step.abs().max() < NEWTON_TOLERANCE:
                    break
            return state.float()

        return fold_in_each(fold_in)


def as_classifier(model: Model) -> SoftmaxDnn:
    """Narrow the type of a model to one with classes.

    Raises:
        RecrayError: It has none.
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
        classes = network.class_logits(network.user_state(batch.user), batch.item)
        return functional.cross_entropy(classes, network.class_of(batch.rating), reduction="none")

    def fold_in_solver(
        self, model: Model, config: FoldInConfig, popularity: Tensor | None
    ) -> FoldIn:
        """L-BFGS on the cross-entropy with the trained users' states as prior."""
        network, prior = as_classifier(model), FoldInPrior.of(model, config.noise)

        def loss(state: Tensor, known: RatingsCSR) -> Tensor:
            classes = network.class_logits(state[known.row], known.item)
            target = network.class_of(known.rating)
            return known.sums(functional.cross_entropy(classes, target, reduction="none"))

        return fold_in_by_lbfgs(network, prior, loss)


class BPMF(Objective):
    """The posterior of a factorisation with normal noise; its mean is the prediction.

    rating ~ N(mean + b_u + b_i + <w_u, v_i>, noise of u). The row of a user is normal around a
    linear function of which items the user rated, the row of an item around one of which users
    rated it; the values of the ratings do not enter. These functions and all variances are sampled
    too.

    Args:
        factors: Length of the vectors in one sample.
        side_rank: Rank of the SVD of who rated what.
        samples_per_epoch: Gibbs samples in an epoch.
        burn_in: Number of first epochs whose samples are not used.
    """

    def __init__(self, factors: int, side_rank: int, samples_per_epoch: int, burn_in: int) -> None:
        self.factors, self.side_rank = factors, side_rank
        self.samples_per_epoch, self.burn_in = samples_per_epoch, burn_in

    def check(self, model: Model) -> None:
        """Refuse another model, and one whose vectors are shorter than those of a sample."""
        if not isinstance(model, BPMFMean):
            raise RecrayError("objective.kind=bpmf averages samples: use model.kind=bpmf")
        dim = model.user_vectors.embedding_dim
        if dim < self.factors:
            raise RecrayError(
                f"model.dim={dim} cannot hold a sample: use objective.factors={dim} or less"
            )

    def fold_in_solver(
        self, model: Model, config: FoldInConfig, popularity: Tensor | None
    ) -> FoldIn:
        """Ridge regression towards the prior that the rated items give; prior and noise are the
        model's.
        """
        if not isinstance(model, BPMFMean):
            raise ValueError(f"{type(model).__name__} holds no prior")
        precision, error = model.prior_precision.double(), float(model.noise)

        def fold_in(item: Tensor, rating: Tensor) -> Tensor:
            rows, offset = _items_in_double(model, item)
            residual = rating.double() - offset
            matrix = rows.T @ rows / error + precision
            right = rows.T @ residual / error + precision @ model.prior_state(item).double()
            state: Tensor = torch.linalg.solve(matrix, right)
            return state.to(model.mean.dtype)

        return fold_in_each(fold_in)
