"""Implicit ALS: squared error over all pairs, minimised by exact alternating solves."""

# Shape letters: R = rows of the side that is solved, N = rows of the other side, D = vector length.

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from recray.errors import RecrayError
from recray.models.base import Model
from recray.models.factorization import Dot, Hybrid
from recray.models.history import RatingsCSR
from recray.models.objectives.base import Contributions, Objective, as_linear
from recray.models.objectives.fold_in import FoldIn, FoldInConfig
from recray.models.objectives.normal_equations import GroupedRows
from recray.models.objectives.preference import BINARY, Graded, Preference
from recray.models.objectives.row_solver import Priors, Spectrum, solve_rows

ITEM_POWER = 1.3
"""A little above 1, often rated items are held shorter than by their number of ratings alone, which
shows more of the others at no loss (validation rows of ml-100k).
"""
FEW_ROWS = 8
"""Rows of which each is solved alone: to group so few takes longer than to solve them."""


@contextmanager
def one_solution_each(l2: float) -> Iterator[None]:
    """Raise in one line that some row has no single solution, as it may be where l2 is 0.

    Raises:
        RecrayError: In place of torch's own error.
    """
    try:
        yield
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]  # it is documented
        raise RecrayError(
            f"exact solves with an l2 of {l2:g}: the equations of a user or an item have no single "
            "solution; give a larger train.l2, or train.als_pretrain_l2 where solves come first"
        ) from error


class ImplicitALS(Objective):
    """Squared error over all pairs: a rated pair should score its target, any other pair 0.

    sum over rated w (p - s)^2 + a * sum over all pairs c_i s^2
        + l2 * (sum_u (n_u + a I) |w_u|^2 + sum_i r_i |h_i|^2), a = unobserved_weight

    The preference gives target p and weight w of a rating; both are 1 where it is binary. n_u and
    n_i count ratings. c_i, of mean 1, grows with n_i^unobserved_power: what many know and a user
    has not rated is a surer dislike, so lists show more of the rest. r_i is n_i + a U c_i, for a
    power above 0 raised to ITEM_POWER and scaled back to the same geometric mean. Where a hybrid
    model knows features of items, h_i in the l2 term is the item vector minus the vector of its
    features.

    Args:
        unobserved_weight: Weight a of every pair.
        l2: Weight of the squared vectors, scaled by how often each occurs.
        preference: What a rating says of liking.
        unobserved_power: How the weight grows with the popularity of the item; 0: not at all.
        half_life: Days after which the weight w of a rating is halved, counted back from the latest
            rating of the training; None: never. Fold-in takes ratings as given now: not decayed.

    Source: Hu, Koren and Volinsky (2008); scaling and ranges by Rendle, Krichene, Zhang and Koren
        (2022), RecSys, "Revisiting the performance of iALS"; weights by popularity by He, Zhang,
        Kan and Chua (2016), SIGIR, "Fast matrix factorization for online recommendation".
    """

    prior_strengths = (0.0, 0.25, 0.5, 0.75, 1.0)

    def __init__(
        self,
        unobserved_weight: float,
        l2: float,
        preference: Preference = BINARY,
        unobserved_power: float = 0.0,
        half_life: float | None = None,
    ) -> None:
        self.unobserved_weight, self.l2, self.preference = unobserved_weight, l2, preference
        self.unobserved_power, self.half_life = unobserved_power, half_life

    def check(self, model: Model) -> None:
        """Refuse all but the dot product, plain or with features of items."""
        if not isinstance(model, Dot | Hybrid):
            raise RecrayError(
                "objective.kind=ials solves for vectors alone: use model.kind=dot or hybrid"
            )

    def ridge(self, count: Tensor, others: int) -> Tensor:
        """(R,) ridge of each row, from its (R,) number of ratings."""
        return self.l2 * (count + self.unobserved_weight * others)

    def item_weights(self, popularity: Tensor | None) -> Tensor | None:
        """(items,) weights c of the pairs of each item, from its (items,) number of ratings.

        None stands for 1 each: the power is 0, or nobody knows the numbers.
        """
        if not self.unobserved_power or popularity is None:
            return None
        weight = (popularity + 1.0) ** self.unobserved_power
        return weight / weight.mean()

    def item_ridge(self, popularity: Tensor, users: int) -> Tensor:
        """(items,) ridge of each item vector, from its (items,) number of ratings."""
        weights = self.item_weights(popularity)
        if weights is None:
            return self.ridge(popularity, users)
        base = popularity + self.unobserved_weight * users * weights
        return self.l2 * base * (base / base.log().mean().exp()) ** (ITEM_POWER - 1)

    def gram(self, rows: Tensor, weights: Tensor | None = None) -> Tensor:
        """Turn (N, D) fixed vectors into unobserved_weight times their (D, D) Gram matrix.

        Args:
            rows: The vectors.
            weights: (N,) weights of their pairs; None means 1.
        """
        weighted = rows if weights is None else rows * weights[:, None]
        return self.unobserved_weight * (weighted.T @ rows)

    @staticmethod
    def rated_loss(score: Tensor, graded: Graded | None) -> Tensor:
        """(B,) part of the loss that the rated pairs have beside all pairs: w (p - s)^2."""
        if graded is None:
            return (1 - score).square()
        error = (graded.target - score).square()
        return error if graded.weight is None else error * graded.weight

    def solve(
        self,
        fixed: Tensor,
        indptr: Tensor,
        places: Tensor,
        gram: Tensor,
        others: int,
        prior_mean: Tensor | None = None,
        graded: Graded | None = None,
        spectrum: Spectrum | None = None,
    ) -> Tensor:
        """The (R, D) vectors of one side that are best while the other side is fixed, exactly.

        Args:
            fixed: (N, D) vectors of the other side.
            indptr: (R + 1,) int64; row r has the ratings indptr[r]..indptr[r + 1] - 1.
            places: (ratings,) int64 rows of `fixed`, one for each rating.
            gram: (D, D) unobserved_weight times the Gram matrix of the whole other side.
            others: Size of the other side, for the scaling of l2.
            prior_mean: (R, D) vectors that the ridge pulls to; None means zero.
            graded: Targets and weights of the ratings, in the order of `places`; None means 1.
            spectrum: Of `gram`, where it is known; None computes it.

        Raises:
            RecrayError: A row has no single solution, since l2 is too small.
        """
        with one_solution_each(self.l2):
            ridge = self.ridge(indptr.diff().to(fixed.dtype), others)
            if len(ridge) <= FEW_ROWS:
                given = fixed, indptr, places, gram, ridge, prior_mean, graded
                return torch.stack([_solve_one(row, *given) for row in range(len(ridge))])
            if len(places) < len(fixed):  # only what is rated is turned into the spectrum's basis
                fixed, places = fixed[places], torch.arange(len(places), device=places.device)
            spectrum = Spectrum.of(gram) if spectrum is None else spectrum
            known = GroupedRows.of(indptr, places, len(fixed), fixed.shape[1], graded)
            priors = Priors.of(spectrum, ridge, None, prior_mean)
            return solve_rows(known, fixed, spectrum, priors)

    def fold_in_solver(
        self, model: Model, config: FoldInConfig, popularity: Tensor | None
    ) -> FoldIn:
        """Solve as in training, but with a ridge that pulls to the prior's mean; the noise is not
        used.
        """
        vectors = as_linear(model).item_rows(slice(None)).detach()
        gram = self.gram(vectors, self.item_weights(popularity))
        spectrum, mean = Spectrum.of(gram), _prior_mean(model, config)
        items = model.items

        def fold_in(known: RatingsCSR) -> Tensor:
            means = mean.expand(len(known.indptr) - 1, -1)
            graded = self.preference.graded(known.rating)
            ratings, sizes = (known.indptr, known.item), (gram, items)
            return self.solve(vectors, *ratings, *sizes, means, graded, spectrum=spectrum)

        return fold_in

    def contributions(
        self, model: Model, config: FoldInConfig, popularity: Tensor | None
    ) -> Contributions:
        """The right side of the solve is the prior and a sum over ratings, so the solution is."""
        vectors = as_linear(model).item_rows(slice(None)).detach()
        gram = self.gram(vectors, self.item_weights(popularity))
        mean = _prior_mean(model, config)

        def parts_of(item: Tensor, rating: Tensor) -> tuple[Tensor, Tensor]:
            rows = vectors[item]
            weighted, right = _weighted(rows, self.preference.graded(rating))
            ridge = self.ridge(torch.tensor(len(item)), model.items)
            matrix = weighted.T @ rows + gram + ridge * torch.eye(rows.shape[1])
            solved = torch.linalg.solve(matrix, torch.cat([ridge * mean[None], right]).T).T
            return solved[0], solved[1:]

        return parts_of


def _prior_mean(model: Model, config: FoldInConfig) -> Tensor:
    """(D,) vector that the ridge of a new user pulls to."""
    vectors = as_linear(model).item_rows(slice(0))
    if not config.prior_strength:
        return vectors.new_zeros(vectors.shape[1])
    return config.prior_strength * model.user_moments().mean.to(vectors.dtype)


def _solve_one(
    row: int,
    fixed: Tensor,
    indptr: Tensor,
    places: Tensor,
    gram: Tensor,
    ridge: Tensor,
    mean: Tensor | None,
    graded: Graded | None,
) -> Tensor:
    """The (D,) vector of one of R rows, which have (R,) ridges; the rest is what `solve` takes."""
    begin, end = indptr[row : row + 2].tolist()
    vectors = fixed[places[begin:end]]
    weighted, right = _weighted(vectors, None if graded is None else graded.rows(begin, end))
    matrix, sums = torch.addmm(gram, weighted.T, vectors), right.sum(dim=0)
    matrix.diagonal().add_(ridge[row])
    if mean is not None:
        sums = sums + ridge[row] * mean[row]
    return torch.cholesky_solve(sums[:, None], torch.linalg.cholesky(matrix))[:, 0]


def _weighted(vectors: Tensor, graded: Graded | None) -> tuple[Tensor, Tensor]:
    """(N, D) vectors times the weights of their ratings, and the same times the targets too."""
    if graded is None:
        return vectors, vectors
    weight = graded.weight
    weighted = vectors if weight is None else vectors * weight[:, None]
    return weighted, weighted * graded.target[:, None]
