"""The mathematics of Gibbs sampling for a factorisation: exact draws from each conditional.

Every worker draws the random numbers of all rows from one numpy generator, and uses those of its
own rows. So the draws do not depend on the number of workers.
"""

# Shape letters: R = rows (users or items), N = ratings, D = row length, K = features of a row.

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from recray.models.factorization import SIDE_POWER
from recray.training.own_users import OwnUsers
from recray.training.shard import Workers

SVD_ITERATIONS = 8
"""Passes of orthogonal iteration over the matrix of rated pairs."""
CONSTANT_PRIOR_ROWS = 2.0
"""Rows of zeros that the prior of the constant feature counts as."""


def normal(rng: np.random.Generator, *shape: int) -> Tensor:
    """Draw standard normal numbers, float64."""
    return torch.from_numpy(rng.standard_normal(shape))


def normal_equations(vectors: Tensor, target: Tensor, begins: Tensor) -> Tensor:
    """Sum vector vector' over each row's ratings and, in the last column, vector * target.

    Args:
        vectors: (N, D) of the other side, one for each rating.
        target: (N,) product that row and vector should have.
        begins: (R + 1,) int64; row r has the ratings begins[r]..begins[r + 1] - 1.

    Returns:
        (R, D, D + 1), ready to be summed over workers.
    """
    joined = torch.cat([vectors, target[:, None]], dim=1)
    system = vectors.new_zeros(len(begins) - 1, vectors.shape[1], joined.shape[1])
    for row, (begin, end) in enumerate(pairwise(begins.tolist())):
        if end > begin:
            torch.mm(vectors[begin:end].T, joined[begin:end], out=system[row])
    return system


def draw_rows(system: Tensor, mean: Tensor, precision: Tensor, noise: Tensor) -> Tensor:
    """Draw rows from their posterior, given the other side.

    Args:
        system: (R, D, D + 1) normal equations, in units of the rating noise.
        mean: (R, D) prior means.
        precision: (D, D) prior inverse covariance.
        noise: (R, D) standard normal numbers; zeros give the posterior means.

    Returns:
        (R, D) rows.
    """
    dim = system.shape[1]
    # With L L' = precision of the posterior, L'^-1 (L^-1 right + noise) has the posterior's mean
    # and covariance: one factorisation serves the solve and the draw.
    factor = torch.linalg.cholesky(system[:, :, :dim] + precision)
    right = (system[:, :, dim] + mean @ precision)[:, :, None]
    middle = torch.linalg.solve_triangular(factor, right, upper=False) + noise[:, :, None]
    rows: Tensor = torch.linalg.solve_triangular(factor.mT, middle, upper=True)[:, :, 0]
    return rows


class RowPrior:
    """The prior of the rows of one side: normal around features_r @ weights.

    Precision and weights have the conjugate normal-Wishart prior with identity scale. The first
    feature, the constant, counts as two rows of zeros; the others share a learned shrinkage.

    Args:
        features: (R, K) float64; the first column is 1.
        dim: Row length D.
        total: Rows of all workers.
        workers: Those who have the other rows; a group of one where each has all.

    Source: Salakhutdinov and Mnih (2008), ICML, section 3; features as in Simm et al. (2017),
        MLSP, "Macau", section 2.
    """

    def __init__(self, features: Tensor, dim: int, total: int, workers: Workers) -> None:
        self.features, self.total, self.workers = features, total, workers
        self.gram = workers.sum(features.T @ features)
        self.shrink = torch.ones((), dtype=torch.float64)
        self.precision = torch.eye(dim, dtype=torch.float64)
        self.weights = torch.zeros(features.shape[1], dim, dtype=torch.float64)

    def draw(self, table: Tensor, rng: np.random.Generator) -> None:
        """Draw precision, weights and shrinkage, given (R, D) rows."""
        rows, (count, dim) = table.double(), self.weights.shape
        ridge = torch.full((count,), float(self.shrink), dtype=torch.float64)
        ridge[0] = CONSTANT_PRIOR_ROWS
        matrix = self.gram + torch.diag(ridge)
        factor = torch.linalg.cholesky(matrix)
        mean = torch.cholesky_solve(self.workers.sum(self.features.T @ rows), factor)
        # What the regression leaves unexplained; rounding makes it slightly asymmetric.
        scatter = self.workers.sum(rows.T @ rows) - mean.T @ matrix @ mean
        identity = torch.eye(dim, dtype=torch.float64)
        self.precision = draw_wishart(identity + (scatter + scatter.T) / 2, dim + self.total, rng)
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
    squares: Tensor, counts: Tensor, typical: float, rng: np.random.Generator
) -> tuple[Tensor, float]:
    """Draw each user's inverse variance of ratings around their predictions.

    Args:
        squares: (R,) float64 sum of a user's squared errors.
        counts: (R,) float64 ratings of a user.
        typical: Variance of a typical user.

    Returns:
        (R,) float64 inverse variances, Gamma(5/2, 5/2 typical) before any rating, and the next
        draw of the typical variance.
    """
    shape = 5 / 2
    gammas = torch.from_numpy(rng.gamma((shape + counts / 2).numpy()))
    weight = gammas / (shape * typical + squares / 2)
    return weight, float(rng.gamma(1 + len(counts) * shape) / (shape * weight.sum()))


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
        (N, K) and (items, K) features of this worker's users and of all items, and (items, K) rows
        whose sum over a user's items, times the number of them to the power -1/4, is the user's
        feature. All float64.
    """
    ones = torch.ones(len(user), dtype=torch.float64)
    of_user = torch.zeros(len(users), dtype=torch.float64).index_add_(0, user, ones)
    of_item = workers.sum(torch.zeros(items, dtype=torch.float64).index_add_(0, item, ones))
    scale = of_item.clamp(min=1) ** -SIDE_POWER
    value = of_user[user] ** -SIDE_POWER * scale[item]
    matrix = torch.sparse_coo_tensor(
        torch.stack([user, item]), value, (len(users), items), check_invariants=False
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
    unit = users.total**0.5 / length.max()
    return sums * unit, basis * length * (items**0.5 / length.max()), scale[:, None] * basis * unit


def shared_qr(rows: Tensor, workers: Workers) -> tuple[Tensor, Tensor]:
    """QR of a table whose rows are divided among workers: (R, D) own rows of Q, and (D, D) R."""
    own, triangle = torch.linalg.qr(rows)
    if workers.size == 1:
        return own, triangle
    width = rows.shape[1]
    triangles = rows.new_zeros(workers.size, width, width)
    triangles[workers.rank, : len(triangle)] = triangle
    turn, whole = torch.linalg.qr(workers.sum(triangles).view(-1, width))
    mine = turn.view(workers.size, width, width)[workers.rank, : len(triangle)]
    return own @ mine, whole


def truncated_svd(left: Tensor, right: Tensor, dim: int, workers: Workers) -> tuple[Tensor, Tensor]:
    """Find the tables of `dim` columns whose product is nearest to left right'.

    Args:
        left: (R, D) own rows of a table that is divided among workers, any D.
        right: (R', D) table.
        dim: Columns to keep; filled with zeros where the product has fewer.
        workers: The group.

    Returns:
        (R, dim) and (R', dim), each with orthogonal columns.
    """
    # QR first: the SVD is then of a small matrix, and the long product is never formed.
    left_q, left_r = shared_qr(left, workers)
    right_q, right_r = torch.linalg.qr(right)
    u, size, v = torch.linalg.svd(left_r @ right_r.T, full_matrices=False)
    kept = size[:dim].sqrt()
    tables = left_q @ (u[:, :dim] * kept), right_q @ (v[:dim].T * kept)
    lacking = dim - len(kept)
    left, right = (torch.nn.functional.pad(table, (0, lacking)) for table in tables)
    return left, right
