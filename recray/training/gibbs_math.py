"""The mathematics of Gibbs sampling for a factorisation: exact draws from each conditional.

A user's random numbers follow from the seed, the epoch and the part of the data that has the user;
those of items and of what all share follow from seed and epoch. So the draws do not depend on the
number of workers, and a worker draws none for the users of others.
"""

# Shape letters: R = rows (users or items), N = ratings, D = row length, K = features of a row.

from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from recray.models.factorization import SIDE_POWER
from recray.models.objectives.normal_equations import Equations, GroupedRows
from recray.models.objectives.preference import Graded
from recray.training.own_users import OwnUsers
from recray.training.shard import Workers

SVD_ITERATIONS = 8
"""Passes of orthogonal iteration over the matrix of rated pairs."""
CONSTANT_PRIOR_ROWS = 2.0
"""Rows of zeros that the prior of the constant feature counts as."""


class Draws:
    """The random numbers of an epoch: those that all workers share, and those of own users.

    Args:
        seed: That of the training.
        epoch: Its number; -1 draws the first rows.
        users: The users of this worker.
    """

    def __init__(self, seed: int, epoch: int, users: OwnUsers) -> None:
        self.shared = _generator(seed, epoch + 1)
        self.of_parts = [_generator(seed, epoch + 1, part) for part in users.parts]
        self.sizes = [end - begin for begin, end in pairwise(users.begins)]

    def normal(self, columns: int) -> Tensor:
        """Draw (own users, columns) standard normal numbers, float64."""
        several = zip(self.of_parts, self.sizes, strict=True)
        return torch.cat(
            [torch.zeros(0, columns).double(), *(normal(g, n, columns) for g, n in several)]
        )

    def gamma(self, shape: Tensor) -> Tensor:
        """Draw (own users,) numbers from Gamma(shape, 1), float64."""
        several = zip(self.of_parts, shape.split(self.sizes), strict=True)
        drawn = [torch.from_numpy(g.gamma(own.numpy())) for g, own in several]
        return torch.cat([shape.new_zeros(0), *drawn])


def _generator(seed: int, *what: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=what))


def normal(rng: np.random.Generator, *shape: int) -> Tensor:
    """Draw standard normal numbers, float64."""
    return torch.from_numpy(rng.standard_normal(shape))


class RatedRows:
    """The ratings of the rows of one side, grouped once; each draw brings new targets and weights.

    Args:
        numbered: The rows; the places of their ratings are the numbers of these, and N pads.
        other: (N,) int64 row of the other side, of each rating.
        others: Number of rows of the other side.
    """

    def __init__(self, numbered: GroupedRows, other: Tensor, others: int) -> None:
        self.number = numbered.places
        self.grouped = replace(numbered, places=self._padded(other.int(), others))

    def drawn_with(self, target: Tensor, weight: Tensor | None = None) -> GroupedRows:
        """The same rows, with the (N,) products that a rating should have, and weights."""
        at = None if weight is None else self._padded(weight, 0)
        return replace(self.grouped, graded=Graded(self._padded(target, 0), at))

    def _padded(self, value: Tensor, pad: int) -> Tensor:
        return torch.cat([value, value.new_full((1,), pad)])[self.number]


def with_zeros(rows: Tensor) -> Tensor:
    """Add the row of zeros that pads a table."""
    return torch.cat([rows, rows.new_zeros(1, rows.shape[1])])


def draw_rows(given: Equations, mean: Tensor, precision: Tensor, noise: Tensor) -> Tensor:
    """Draw rows from their posterior, given the other side.

    Args:
        given: What the ratings of R rows add to the normal equations, in units of the rating noise.
        mean: (R, D) prior means.
        precision: (D, D) prior inverse covariance.
        noise: (R, D) standard normal numbers; zeros give the posterior means.

    Returns:
        (R, D) rows.
    """
    # With L L' = precision of the posterior, L'^-1 (L^-1 right + noise) has the posterior's mean
    # and covariance: one factorisation serves the solve and the draw.
    factor = torch.linalg.cholesky(given.matrix + precision)
    right = (given.right + mean @ precision)[:, :, None]
    middle = torch.linalg.solve_triangular(factor, right, upper=False) + noise[:, :, None]
    rows: Tensor = torch.linalg.solve_triangular(factor.mT, middle, upper=True)[:, :, 0]
    return rows


class RowPrior:
    """The prior of the rows of one side: normal around features_r @ weights.

    Precision and weights have the conjugate normal-Wishart prior with identity scale. The first
    feature, the constant, counts as two rows of zeros; the others share a learned shrinkage.

    Args:
        features: (R, K) float64 of this worker's rows; the first column is 1.
        dim: Row length D.
        workers: Those that the rows are divided among; None where each has all rows.

    Source: Salakhutdinov and Mnih (2008), ICML, section 3; features as in Simm et al. (2017),
        MLSP, "Macau", section 2.
    """

    def __init__(self, features: Tensor, dim: int, workers: Workers | None = None) -> None:
        self.features, self.workers = features, workers or Workers()
        self.gram = self.workers.sum(features.T @ features)
        (self.rows,) = self.workers.sum_floats(float(len(features)))
        self.shrink = torch.ones((), dtype=torch.float64)
        self.precision = torch.eye(dim, dtype=torch.float64)
        self.weights = torch.zeros(features.shape[1], dim, dtype=torch.float64)

    def draw(self, table: Tensor, rng: np.random.Generator) -> None:
        """Draw precision, weights and shrinkage, given (R, D) rows of this worker."""
        rows, (count, dim) = table.double(), self.weights.shape
        products = self.workers.sum(torch.cat([self.features, rows], dim=1).T @ rows)
        ridge = torch.full((count,), float(self.shrink), dtype=torch.float64)
        ridge[0] = CONSTANT_PRIOR_ROWS
        matrix = self.gram + torch.diag(ridge)
        factor = torch.linalg.cholesky(matrix)
        mean = torch.cholesky_solve(products[:count], factor)
        # What the regression leaves unexplained; rounding makes it slightly asymmetric.
        scatter = products[count:] - mean.T @ matrix @ mean
        identity = torch.eye(dim, dtype=torch.float64)
        self.precision = draw_wishart(identity + (scatter + scatter.T) / 2, dim + self.rows, rng)
        spread = torch.linalg.inv(torch.linalg.cholesky(self.precision))
        noise = torch.linalg.solve_triangular(factor.T, normal(rng, count, dim), upper=True)
        self.weights = mean + noise @ spread
        if count > 1:
            tastes = self.weights[1:]
            size = float(((tastes @ self.precision) * tastes).sum())
            shape = 1 + (count - 1) * dim / 2
            self.shrink = torch.tensor(rng.gamma(shape) / (1 + size / 2), dtype=torch.float64)


def draw_wishart(inverse_scale: Tensor, freedom: float, rng: np.random.Generator) -> Tensor:
    """Draw a (D, D) float64 Wishart matrix whose mean is freedom * inverse_scale^-1.

    Source: Bartlett's decomposition.
    """
    dim = len(inverse_scale)
    triangle = normal(rng, dim, dim).tril(-1)
    squares = rng.chisquare(freedom - np.arange(dim))
    triangle += torch.diag(torch.from_numpy(squares).sqrt())
    spread = torch.linalg.cholesky(torch.linalg.inv(inverse_scale)) @ triangle
    drawn: Tensor = spread @ spread.T
    return drawn


def draw_noise(
    squares: Tensor, counts: Tensor, typical: float, draws: Draws, workers: Workers
) -> tuple[Tensor, float]:
    """Draw the inverse variance of each own user's ratings around their predictions.

    Args:
        squares: (R,) float64 sum of a user's squared errors.
        counts: (R,) float64 ratings of a user.
        typical: Variance of a typical user.
        draws: The random numbers.
        workers: The group.

    Returns:
        (R,) float64 inverse variances, Gamma(5/2, 5/2 typical) before any rating, and the next
        draw of the typical variance.
    """
    shape = 5 / 2
    weight = draws.gamma(shape + counts / 2) / (shape * typical + squares / 2)
    total, users = workers.sum_floats(float(weight.sum()), float(len(weight)))
    return weight, float(draws.shared.gamma(1 + users * shape) / (shape * total))


def implicit_svd_features(
    user: Tensor, item: Tensor, users: OwnUsers, items: int, count: int, workers: Workers
) -> tuple[Tensor, Tensor, Tensor]:
    """Reduce who rated what, whatever the ratings, to its main directions.

    The matrix of 1s at rated pairs, each over (ratings of the user * ratings of the item)^1/4,
    is reduced by orthogonal iteration; the feature of a user is a sum over their items.

    Args:
        user: (N,) int64 local ids of this worker's ratings.
        item: (N,) int64 ids.
        users: The users of this worker.
        items: Number of items.
        count: Number of directions K; fewer where there are fewer users or items.
        workers: The group.

    Returns:
        (own users, K) and (items, K) features, and (items, K) rows whose sum over a user's items,
        times the number of them to the power -1/4, is the user's feature. All float64.
    """
    ones, own = torch.ones(len(user), dtype=torch.float64), len(users)
    of_user = torch.zeros(own, dtype=torch.float64).index_add_(0, user, ones)
    of_item = workers.sum(torch.zeros(items, dtype=torch.float64).index_add_(0, item, ones))
    scale = of_item.clamp(min=1) ** -SIDE_POWER
    value = of_user[user] ** -SIDE_POWER * scale[item]
    matrix = torch.sparse_coo_tensor(
        torch.stack([user, item]), value, (own, items), check_invariants=False
    ).coalesce()
    flipped = matrix.T.coalesce()
    rng = np.random.default_rng(0)
    basis = torch.linalg.qr(normal(rng, items, min(count, users.total, items))).Q
    for _ in range(SVD_ITERATIONS):
        # Each worker has the rows of its own users, so their products add up over workers.
        turned = torch.sparse.mm(flipped, torch.sparse.mm(matrix, basis))
        basis = torch.linalg.qr(workers.sum(turned)).Q
    sums = torch.sparse.mm(matrix, basis)
    length = workers.sum(sums.square().sum(dim=0)).sqrt()
    unit, size = users.total**0.5 / length.max(), items**0.5 / length.max()
    return sums * unit, basis * length * size, scale[:, None] * basis * unit


def truncated_svd(left: Tensor, right: Tensor, dim: int, workers: Workers) -> tuple[Tensor, Tensor]:
    """Find the tables of `dim` columns whose product is nearest to left right'.

    Args:
        left: (R, D) own rows of a table that is divided among the workers, any D.
        right: (R', D) table, whole and equal on each worker.
        dim: Columns to keep; filled with zeros where the product has fewer.
        workers: The group.

    Returns:
        Own rows, (R, dim), and (R', dim); each whole table has orthogonal columns.
    """
    # QR first: the SVD is then of a small matrix, and the long product is never formed.
    left_q, left_r = divided_qr(left, workers)
    right_q, right_r = torch.linalg.qr(right)
    u, size, v = torch.linalg.svd(left_r @ right_r.T, full_matrices=False)
    kept = size[:dim].sqrt()
    tables = left_q @ (u[:, :dim] * kept), right_q @ (v[:dim].T * kept)
    lacking = dim - len(kept)
    left, right = (torch.nn.functional.pad(table, (0, lacking)) for table in tables)
    return left, right


def divided_qr(rows: Tensor, workers: Workers) -> tuple[Tensor, Tensor]:
    """QR of a table whose rows are divided among the workers.

    Each worker reduces its own rows to a triangle, and all reduce the stack of these. Unlike a root
    of the Gram matrix it squares nothing, and columns that are zero or depend on others do no harm.

    Args:
        rows: (R, D) of this worker; R may be less than D, or 0.
        workers: The group.

    Returns:
        (R, D) own rows of Q, and (D, D) R, which is the same on each worker.

    Source: Demmel, Grigori, Hoemmen and Langou (2012), SIAM J. Sci. Comput. 34(1), "TSQR".
    """
    columns = rows.shape[1]
    own_q, own_r = torch.linalg.qr(rows)
    # Each worker writes a block of its own, so that the sum is the stack of all.
    stack = rows.new_zeros(workers.size, columns, columns)
    stack[workers.rank, : len(own_r)] = own_r
    q, r = torch.linalg.qr(workers.sum(stack).flatten(0, 1))
    return own_q @ q.view_as(stack)[workers.rank, : len(own_r)], r
