"""Folding in: the states of people who were not in training, from their ratings, items fixed."""

# Shape letters: U = people, R = their ratings together, N = ratings of one, S = length of a state.

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, Self

import torch
from torch import Tensor

from recray.models.base import Model

STEPS = 40
MEMORY = 8
HALVINGS = 12
ENOUGH = 1e-4
"""Of what the slope promises a step must give so much, Nocedal and Wright's c1."""
GAIN = 1e-7
"""Whose loss falls by no more than this part of it has arrived."""
CELLS = 1 << 22
"""So many scores, of ratings by items, are held at once while people are folded in together."""


class RatingsCSR(NamedTuple):
    """What people have rated whom no model knows, as rows of a sparse matrix.

    Args:
        begins: (U + 1,) int64; person p has the ratings begins[p]..begins[p + 1] - 1.
        item: (R,) int64 ids, each once a person.
        rating: (R,) float32 stars.
    """

    begins: Tensor
    item: Tensor
    rating: Tensor

    @classmethod
    def one(cls, item: Tensor, rating: Tensor) -> Self:
        """A single person with (N,) items and (N,) stars."""
        return cls.of([(item, rating)])

    @classmethod
    def of(cls, rated: Sequence[tuple[Tensor, Tensor]]) -> Self:
        """Several people, each with (N,) items and (N,) stars; one at least."""
        counts = torch.tensor([0, *(len(item) for item, _ in rated)])
        items, stars = zip(*rated, strict=True)
        return cls(counts.cumsum(dim=0), torch.cat(items), torch.cat(stars))

    @property
    def row(self) -> Tensor:
        """(R,) whose rating each is."""
        return torch.repeat_interleave(torch.arange(len(self.begins) - 1), self.begins.diff())

    def sums(self, value: Tensor) -> Tensor:
        """(R,) a value of each rating to (U,) their sums."""
        return value.new_zeros(len(self.begins) - 1).index_add(0, self.row, value)

    def each(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The items and stars of each."""
        for begin, end in pairwise(self.begins.tolist()):
            yield self.item[begin:end], self.rating[begin:end]

    def blocks(self, ratings: int) -> Iterator["RatingsCSR"]:
        """The same people in turn, as many at once as have so many ratings, but at least one."""
        begins, first = self.begins.tolist(), 0
        while first < len(begins) - 1:
            last = first + 1
            while last < len(begins) - 1 and begins[last + 1] - begins[first] <= ratings:
                last += 1
            rows = slice(begins[first], begins[last])
            own = self.begins[first : last + 1] - begins[first]
            yield RatingsCSR(own, self.item[rows], self.rating[rows])
            first = last


FoldIn = Callable[[RatingsCSR], Tensor]
"""From people's ratings to their (U, S) states."""


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


def fold_in_each(fold_in: Callable[[Tensor, Tensor], Tensor]) -> FoldIn:
    """Fold people in each alone: from (N,) items and (N,) stars to an (S,) state."""
    return lambda known: torch.stack([fold_in(item, rating) for item, rating in known.each()])


def fold_in_by_lbfgs(
    model: Model, prior: FoldInPrior, loss: Callable[[Tensor, RatingsCSR], Tensor]
) -> FoldIn:
    """Fold people in together: the states that minimise loss + |state - mean|^2 / (2 variance).

    Args:
        model: Its number of items says how many people are taken at once.
        prior: What is believed before any rating.
        loss: From (U, S) states and the ratings to (U,) negative log-likelihoods, items fixed.
    """
    mean, precision = prior.mean.float(), prior.precision.float()

    def fold_in(known: RatingsCSR) -> Tensor:
        def held(state: Tensor) -> Tensor:
            return loss(state, known) + 0.5 * (precision * (state - mean).square()).sum(dim=1)

        return lbfgs_rows(held, mean.repeat(len(known.begins) - 1, 1))

    most = max(CELLS // model.items, 1)
    return lambda known: torch.cat([fold_in(block) for block in known.blocks(most)])


def lbfgs_rows(loss: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """Minimise many functions at once, a row each, by L-BFGS with a halving line search.

    Every row has a memory, a step and an end of its own, so that nobody's result depends on who
    else is in the batch.

    Args:
        loss: From (U, S) to (U,); row u of the result depends on row u alone.
        start: (U, S).

    Source: Nocedal and Wright (2006), "Numerical optimization", algorithms 7.4 and 3.1.
    """
    at, (value, slope) = start, _value_and_slope(loss, start)
    memory: list[tuple[Tensor, Tensor, Tensor]] = []
    moving = torch.ones(len(start), dtype=torch.bool)
    for _ in range(STEPS):
        way = _way(slope, memory)
        there, new_value, new_slope, found = _search(loss, at, value, slope, way, moving)
        moved, turned = (
            torch.where(found[:, None], after - before, 0)
            for after, before in ((there, at), (new_slope, slope))
        )
        moving = found & (value - new_value > GAIN * value.abs().clamp(min=1))
        value, at, slope = torch.where(found, new_value, value), at + moved, slope + turned
        if not moving.any():
            break
        bend = (moved * turned).sum(dim=1)
        inverse = torch.where(bend > 0, 1 / bend, 0)  # a pair that bends the wrong way is left out
        memory = [*memory[1 - MEMORY :], (moved, turned, inverse)]
    return at


def _value_and_slope(loss: Callable[[Tensor], Tensor], at: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        point = at.detach().requires_grad_()
        value = loss(point)
        (slope,) = torch.autograd.grad(value.sum(), [point])  # of the states, and nothing else
    return value.detach(), slope


def _way(slope: Tensor, memory: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """(U, S) directions to go, by the two loops of algorithm 7.4; downhill for every row."""
    if not memory:
        return -slope / slope.norm(dim=1, keepdim=True).clamp(min=1)
    way, shares = -slope, []
    for moved, turned, inverse in reversed(memory):
        share = inverse * (moved * way).sum(dim=1)
        way = way - share[:, None] * turned
        shares.append(share)
    moved, turned, inverse = memory[-1]
    scale = 1 / (inverse * turned.square().sum(dim=1))
    way = way * torch.where(inverse > 0, scale, 1.0)[:, None]
    for (moved, turned, inverse), share in zip(memory, reversed(shares), strict=True):
        way = way + (share - inverse * (turned * way).sum(dim=1))[:, None] * moved
    downhill = (way * slope).sum(dim=1) < 0
    return torch.where(downhill[:, None], way, -slope)


def _search(
    loss: Callable[[Tensor], Tensor],
    at: Tensor,
    value: Tensor,
    slope: Tensor,
    way: Tensor,
    moving: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Go a whole step, or half of it, or half of that, until the loss has fallen enough.

    Returns:
        (U, S) points, (U,) losses and (U, S) slopes there, and (U,) bool, whether it has fallen.
    """
    down, length = (way * slope).sum(dim=1), moving.float()
    for _ in range(HALVINGS):
        there = at + length[:, None] * way
        new_value, new_slope = _value_and_slope(loss, there)
        found = moving & (new_value <= value + ENOUGH * length * down)
        if torch.equal(found, moving):
            break
        length = torch.where(found, length, length / 2)
    return there, new_value, new_slope, found
