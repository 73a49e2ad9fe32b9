"""Fold-in: the states of users who were not in training, from their ratings, with fixed items.

Objectives with a closed form solve for each user alone (`fold_in_each`). The others minimise the
losses of many users together by a batched L-BFGS (`fold_in_by_lbfgs`).
"""

# Shape letters: U = users, N = ratings of one user, S = length of a state.

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from recray.models.base import Model
from recray.models.history import RatingsCSR

MAX_STEPS = 40
MEMORY_STEPS = 8  # pairs of steps and gradient changes that L-BFGS keeps
MAX_HALVINGS = 12  # of one step in the line search
SUFFICIENT_DECREASE = 1e-4
"""Fraction of the decrease predicted by the gradient that a step must reach (Armijo's rule; c1 in
Nocedal and Wright).
"""
TOLERANCE = 1e-7
"""A user has converged when a step lowers the loss by no more than this fraction of it."""
MAX_CELLS = 1 << 22
"""Scores (ratings times items) that are held at once while users are folded in together."""


FoldIn = Callable[[RatingsCSR], Tensor]
"""From the ratings of U users to their (U, S) states."""


@dataclass(frozen=True)
class FoldInConfig:
    """What folding in needs beside the model; config.json of a bundle keeps it under `fold_in`.

    Args:
        noise: Variance of a rating around its prediction.
        prior_strength: Where the ridge of a new user pulls to: 0, to zero, 1, to the mean of the
            trained users' vectors, or between. Used by the objectives that have prior_strengths.
    """

    noise: float = 1.0
    prior_strength: float = 0.0


@dataclass(frozen=True)
class FoldInPrior:
    """The prior of a new user: the mean and the variance of the trained users' states.

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
        """Measure mean and variance of the trained users' states."""
        mean, variance = model.user_moments()
        return cls(mean, 1 / variance.clamp(min=1e-6), max(noise, 1e-6))


def fold_in_each(fold_in: Callable[[Tensor, Tensor], Tensor]) -> FoldIn:
    """Fold in each user alone, by a function from (N,) items and (N,) ratings to (S,)."""
    return lambda known: torch.stack([fold_in(item, rating) for item, rating in known.each()])


def fold_in_by_lbfgs(
    model: Model, prior: FoldInPrior, loss: Callable[[Tensor, RatingsCSR], Tensor]
) -> FoldIn:
    """Fold in users together: minimise loss + |state - mean|^2 / (2 variance) for each.

    Args:
        model: Its number of items decides how many users are folded in at once.
        prior: Mean and variance of a state.
        loss: From (U, S) states and the ratings to (U,) negative log-likelihoods, items fixed.
    """
    mean, precision = prior.mean.float(), prior.precision.float()

    def fold_in(known: RatingsCSR) -> Tensor:
        def with_prior(state: Tensor) -> Tensor:
            return loss(state, known) + 0.5 * (precision * (state - mean).square()).sum(dim=1)

        return lbfgs_rows(with_prior, mean.repeat(len(known.indptr) - 1, 1))

    most = max(MAX_CELLS // model.items, 1)
    return lambda known: torch.cat([fold_in(block) for block in known.blocks(most)])


def lbfgs_rows(loss: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """Minimise one function for each row by L-BFGS with a halving line search.

    Every row has its own memory, step length and convergence. torch.optim.LBFGS would treat all
    rows as one vector, and the result of a user would depend on the other users in the batch.

    Args:
        loss: From (U, S) to (U,); value u depends on row u alone.
        start: (U, S).

    Source: Nocedal and Wright (2006), "Numerical optimization", algorithms 7.4 and 3.1.
    """
    point, (value, gradient) = start, _value_and_gradient(loss, start)
    memory: list[tuple[Tensor, Tensor, Tensor]] = []
    active = torch.ones(len(start), dtype=torch.bool)
    for _ in range(MAX_STEPS):
        direction = _direction(gradient, memory)
        new_point, new_value, new_gradient, found = _line_search(
            loss, point, value, gradient, direction, active
        )
        # A row that has converged, or finds no lower loss, stays exactly where it is.
        step, change = (
            torch.where(found[:, None], after - before, 0)
            for after, before in ((new_point, point), (new_gradient, gradient))
        )
        active = found & (value - new_value > TOLERANCE * value.abs().clamp(min=1))
        value, point = torch.where(found, new_value, value), point + step
        gradient = gradient + change
        if not active.any():
            break
        # L-BFGS needs positive curvature. A step without it gets the weight 0 in the memory, which
        # leaves it out for this row alone.
        curvature = (step * change).sum(dim=1)
        memory = [
            *memory[1 - MEMORY_STEPS :],
            (step, change, torch.where(curvature > 0, 1 / curvature, 0)),
        ]
    return point


def _value_and_gradient(loss: Callable[[Tensor], Tensor], point: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        leaf = point.detach().requires_grad_()
        value = loss(leaf)
        # grad() of the states alone: backward() would leave gradients in the model's parameters.
        (gradient,) = torch.autograd.grad(value.sum(), [leaf])
    return value.detach(), gradient


def _direction(gradient: Tensor, memory: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """(U, S) search directions by the two loops of algorithm 7.4; downhill for every row."""
    if not memory:  # nothing is known of the curvature yet, so the first step is at most 1 long
        length: Tensor = gradient.norm(dim=1, keepdim=True)
        return -gradient / length.clamp(min=1)
    direction, alphas = -gradient, []
    for step, change, rho in reversed(memory):
        alpha = rho * (step * direction).sum(dim=1)
        direction = direction - alpha[:, None] * change
        alphas.append(alpha)
    step, change, rho = memory[-1]
    scale = 1 / (rho * change.square().sum(dim=1))  # the inverse of the last step's curvature
    direction = direction * torch.where(rho > 0, scale, 1.0)[:, None]
    for (step, change, rho), alpha in zip(memory, reversed(alphas), strict=True):
        direction = direction + (alpha - rho * (change * direction).sum(dim=1))[:, None] * step
    downhill = (direction * gradient).sum(dim=1) < 0
    return torch.where(downhill[:, None], direction, -gradient)


def _line_search(
    loss: Callable[[Tensor], Tensor],
    point: Tensor,
    value: Tensor,
    gradient: Tensor,
    direction: Tensor,
    active: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Try a whole step, then half of it, and so on, until the loss of every row is low enough.

    Returns:
        (U, S) points, (U,) losses and (U, S) gradients there, and (U,) bool: whether the loss of a
        row has fallen enough.
    """
    predicted, length = (direction * gradient).sum(dim=1), active.float()
    for _ in range(MAX_HALVINGS):
        new_point = point + length[:, None] * direction
        new_value, new_gradient = _value_and_gradient(loss, new_point)
        found = active & (new_value <= value + SUFFICIENT_DECREASE * length * predicted)
        if torch.equal(found, active):
            break
        length = torch.where(found, length, length / 2)
    return new_point, new_value, new_gradient, found
