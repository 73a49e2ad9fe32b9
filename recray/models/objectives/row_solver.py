"""Solves the normal equations of many rows: exactly, or by a few steps of conjugate gradients.

An exact solve in float32 is within 1e-6 of the one in float64, in the length of a vector.
"""

# Shape letters: R = rows that are solved, N = rows of the other side, D = vector length, B = rows
# of a block or group, L = ratings of its longest row.

from typing import NamedTuple

import torch
from torch import Tensor

from recray.models.objectives.normal_equations import Equations, GroupedRows, RowGroup

SMALLEST_HALF = 16
"""Unknowns of which half are not worth an elimination of their own."""
MOST_STEPS, STEPS_BETWEEN = 32, 4
"""Steps of conjugate gradients that an exact solve takes at most, and between two looks whether it
is there. Rows that are not are solved by elimination.
"""
TOLERANCE = 2.0
"""An exact solve is there when no residual is longer than so many roundings of the right side."""


class Spectrum(NamedTuple):
    """A Gram matrix as basis diag(values) basis^T.

    In this basis the pairs that nobody rated add a diagonal to the matrix of a row, whatever their
    weight.

    Args:
        values: (D,) not negative.
        basis: (D, D) orthogonal.
    """

    values: Tensor
    basis: Tensor

    @classmethod
    def of(cls, gram: Tensor) -> "Spectrum":
        """The eigenvalues and vectors of a (D, D) symmetric matrix."""
        values, basis = torch.linalg.eigh(gram.double())
        return cls(values.clamp(min=0).to(gram.dtype), basis.to(gram.dtype))

    def table(self, rows: Tensor) -> Tensor:
        """(N + 1, D) rows in this basis, and a row of zeros, which pads."""
        turned = rows.new_empty(len(rows) + 1, rows.shape[1])
        torch.mm(rows, self.basis, out=turned[:-1])
        turned[-1] = 0
        return turned


class Priors(NamedTuple):
    """What R rows are solved with beside their ratings.

    Args:
        diagonal: (R, D) what the ridge and the pairs that nobody rated add to each matrix.
        pull: (R, D) what the ridge adds to the right side; None means zero.
    """

    diagonal: Tensor
    pull: Tensor | None

    @classmethod
    def of(
        cls, spectrum: Spectrum, ridge: Tensor, weights: Tensor | None, mean: Tensor | None
    ) -> "Priors":
        """Build them.

        Args:
            spectrum: Of the whole other side.
            ridge: (R,) ridge of each row.
            weights: (R,) weights of the pairs that nobody rated; None means 1.
            mean: (R, D) vectors that the ridge pulls to; None means zero.
        """
        every = spectrum.values if weights is None else weights[:, None] * spectrum.values
        pull = None if mean is None else ridge[:, None] * (mean @ spectrum.basis)
        return cls(every + ridge[:, None], pull)

    def at(self, rows: Tensor) -> "Priors":
        """Those of (B,) rows."""
        return Priors(self.diagonal[rows], None if self.pull is None else self.pull[rows])


def solve_rows(
    known: GroupedRows,
    fixed: Tensor,
    spectrum: Spectrum,
    priors: Priors,
    start: Tensor | None = None,
    steps: int | None = None,
) -> Tensor:
    """The (R, D) vectors of one side that are best while the other side is fixed.

    Args:
        known: The ratings of the rows.
        fixed: (N, D) vectors of the other side.
        spectrum: Of the Gram matrix of the whole other side.
        priors: What the rows are solved with beside their ratings.
        start: (R, D) vectors that conjugate gradients begin with, if their steps are counted.
        steps: How many steps; None solves exactly.
    """
    table, out = spectrum.table(fixed), fixed.new_empty(len(known.rows), fixed.shape[1])
    by_ratings = steps is None and bool((priors.diagonal > 0).all())
    for group in known.groups:
        members = known.members(group)
        own = priors.at(members)
        if by_ratings and group.longest <= known.short:
            solved = solve_by_ratings(known, group, table, own)
        else:
            begun = None if start is None else start[members] @ spectrum.basis
            solved = solve_equations(known.equations(group, table), own, begun, steps)
        out.index_copy_(0, members, solved @ spectrum.basis.T)
    return out


def solve_equations(
    given: Equations, priors: Priors, start: Tensor | None = None, steps: int | None = None
) -> Tensor:
    """The (B, D) vectors of normal equations, to whose matrices the priors are added in place.

    Args:
        given: What the ratings add.
        priors: What else is added.
        start: (B, D) vectors that conjugate gradients begin with; None: zeros.
        steps: How many steps; None: exactly. In the basis of the Gram matrix about ten reach what
            float32 can tell, in a fraction of the time of an elimination; if so many do not, the
            latter is taken.
    """
    matrix, right = given
    matrix.diagonal(dim1=1, dim2=2).add_(priors.diagonal)
    if priors.pull is not None:
        right = right + priors.pull
    if steps is not None:
        return ConjugateGradients(matrix, right, start).take(steps)
    search = ConjugateGradients(matrix, right)
    for _ in range(0, MOST_STEPS, STEPS_BETWEEN):
        solved = search.take(STEPS_BETWEEN)
        if search.is_exact():
            return solved
    return solve_positive(matrix, right[:, :, None])[:, :, 0]


def solve_by_ratings(known: GroupedRows, group: RowGroup, table: Tensor, priors: Priors) -> Tensor:
    """The (B, D) exact vectors of a group, by one unknown for each rating instead of D.

    With S the ratings' vectors over the root of the diagonal, times the root of their weights, a
    vector is that without ratings plus S^T (1 + S S^T)^-1 times the weighted errors of the latter.

    Args:
        known: The ratings.
        group: The rows; each block of it is solved at once.
        table: (N + 1, D) rows of the other side, the last one zeros.
        priors: Those of the group; the diagonal is above 0.

    Source: Hastie, Tibshirani and Friedman (2009), "The elements of statistical learning",
        section 18.3.5 (the kernel form of ridge regression); Woodbury's identity.
    """
    pull = priors.pull
    out = torch.zeros_like(priors.diagonal) if pull is None else pull / priors.diagonal
    for block in group.blocks:
        rows = slice(block.first, block.first + block.rows)
        vectors, graded = known.gathered(block, table)
        root = priors.diagonal[rows].rsqrt()[:, None]
        error = (
            vectors.new_ones(1, 1).expand(vectors.shape[:2]) if graded is None else graded.target
        )
        if pull is not None:
            error = error - torch.bmm(vectors, out[rows][:, :, None])[:, :, 0]
        scaled = vectors * root
        if graded is not None and graded.weight is not None:
            sure = graded.weight.sqrt()
            scaled, error = scaled * sure[:, :, None], error * sure
        matrix = torch.bmm(scaled, scaled.mT)
        matrix.diagonal(dim1=1, dim2=2).add_(1)
        solved = solve_positive(matrix, error[:, :, None])
        out[rows] += (torch.bmm(solved.mT, scaled) * root)[:, 0]
    return out


class ConjugateGradients:
    """Improves the solutions of B symmetric positive definite systems, all at once.

    The preconditioner is the diagonal, which in the basis of the Gram matrix is close to the whole:
    what is missing of it are the ratings of one row alone.

    Args:
        matrix: (B, D, D).
        right: (B, D) right sides.
        start: (B, D) first solutions; None: zeros.

    Source: Golub and Van Loan (2013), "Matrix computations", algorithm 11.5.1; for ALS Takacs,
        Pilaszy and Tikk (2011), RecSys, "Applications of the conjugate gradient method for
        implicit feedback collaborative filtering".
    """

    def __init__(self, matrix: Tensor, right: Tensor, start: Tensor | None = None) -> None:
        self.matrix, self.right = matrix, right
        self.inverse = matrix.diagonal(dim1=1, dim2=2).reciprocal()
        self.solution = torch.zeros_like(right) if start is None else start.clone()
        self.residual = right.clone() if start is None else right - self._image(start)
        self.direction = self.residual * self.inverse
        self.slope = (self.residual * self.direction).sum(dim=1, keepdim=True)
        self.least = torch.finfo(matrix.dtype).tiny  # where a row is solved, 0 is divided by it

    def take(self, steps: int) -> Tensor:
        """The (B, D) solutions after so many steps more."""
        for _ in range(steps):
            image = self._image(self.direction)
            curve = (self.direction * image).sum(dim=1, keepdim=True).clamp(min=self.least)
            length = self.slope / curve
            self.solution.addcmul_(length, self.direction)
            self.residual.addcmul_(length, image, value=-1)
            scaled = self.residual * self.inverse
            before, self.slope = self.slope, (self.residual * scaled).sum(dim=1, keepdim=True)
            turn = self.slope / before.clamp(min=self.least)
            self.direction = torch.addcmul(scaled, turn, self.direction)
        return self.solution

    def is_exact(self) -> bool:
        """Whether no residual tells of more than rounding."""
        rounding = TOLERANCE * torch.finfo(self.right.dtype).eps
        return bool((self.residual.norm(dim=1) <= rounding * self.right.norm(dim=1)).all())

    def _image(self, vectors: Tensor) -> Tensor:
        return torch.bmm(vectors[:, None], self.matrix)[:, 0]


def solve_positive(matrix: Tensor, right: Tensor) -> Tensor:
    """Solve (R, D, D) symmetric positive definite systems for (R, D, 1) right sides.

    The first half of the unknowns is eliminated, then the second is solved for. Cholesky's own
    batches take one matrix after another, number by number; here half of the work is one matrix
    product for all, which takes half the time at D = 128.

    Source: Golub and Van Loan (2013), "Matrix computations", section 4.2 (block Cholesky).
    """
    half = matrix.shape[1] // 2
    if half < SMALLEST_HALF:
        return torch.cholesky_solve(right, torch.linalg.cholesky(matrix))
    root = torch.linalg.cholesky(matrix[:, :half, :half])
    known = torch.cat([matrix[:, :half, half:], right[:, :half]], dim=2)
    known = torch.linalg.solve_triangular(root, known, upper=False)
    cross, first = known[:, :, :-1], known[:, :, -1:]
    rest = torch.baddbmm(matrix[:, half:, half:], cross.mT, cross, alpha=-1)
    rest_right = torch.baddbmm(right[:, half:], cross.mT, first, alpha=-1)
    below = torch.cholesky_solve(rest_right, torch.linalg.cholesky(rest))
    above = torch.linalg.solve_triangular(root.mT, first - cross @ below, upper=True)
    return torch.cat([above, below], dim=1)
