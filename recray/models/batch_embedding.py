"""A batch of pairs, the ids that occur in it, and products of their rows, with gradients."""

# Shape letters: B = rows in the batch, K = items of a row, N = ids that differ, U = users that
# differ, I = items that differ, D = vector length.

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from recray.data.negatives import Negatives

PAIRS = 4096
"""Pairs whose vectors are held at once: few enough to stay in a core's cache."""


@dataclass(frozen=True)
class UniqueIds:
    """The ids that occur in a batch, each once, and where.

    Args:
        ids: (N,) int64 ids, ascending.
        local: The given ids as places in `ids`, in their own shape.
        order: Places of the flattened given ids, by id; equal ones in their own order.
        begins: (N,) where each id begins in `order`.
    """

    ids: Tensor
    local: Tensor
    order: Tensor
    begins: Tensor

    @classmethod
    def of(cls, given: Tensor) -> "UniqueIds":
        """Find the ids of a tensor of non-negative int64 ids of any shape."""
        ordered, order = _sort(given.reshape(-1))
        ids, place, counts = torch.unique_consecutive(
            ordered, return_inverse=True, return_counts=True
        )
        local = torch.empty_like(place).scatter_(0, order, place)
        return cls(ids, local.view(given.shape), order, counts.cumsum(dim=0) - counts)

    def combine(self, rows: Tensor) -> Tensor:
        """Add up what belongs to one id: a row for each flattened given id to (N, D)."""
        if not len(self.ids):
            return rows.new_zeros(0, rows.shape[1])
        return functional.embedding_bag(self.order, rows, self.begins, mode="sum")


def _sort(given: Tensor) -> tuple[Tensor, Tensor]:
    """The ids in order, and where each was; like torch.sort, several times faster on a CPU."""
    if given.device.type != "cpu":
        found = torch.sort(given, stable=True)
        return found.values, found.indices
    width = max(len(given), 1)
    # One number for id and place, which numpy sorts with vector instructions.
    keys = given.numpy() * width + np.arange(len(given))
    keys.sort()
    ids = keys // width
    return torch.from_numpy(ids), torch.from_numpy(keys - ids * width)


class BatchIds(NamedTuple):
    """The ids of a batch, while the tables of a model hold the rows of these ids alone.

    Args:
        users: Users of the B pairs.
        items: Items of the pairs and of their negatives, (B, 1 + K).
    """

    users: UniqueIds
    items: UniqueIds


@dataclass(frozen=True)
class Batch:
    """Ratings of one step, padding last.

    Args:
        user: (B,) int64 ids.
        item: (B,) int64 ids.
        rating: (B,) ratings.
        weight: (B,) 1, or 0 for padding.
        num_valid: Ratings that are not padding.
        negatives: Items that were drawn against each rating; None where the loss needs none.
        ids: Given where the model's tables hold the rows of this batch alone; `user`, `item` and
            the negatives are then row numbers in these tables. None where they hold every row.
    """

    user: Tensor
    item: Tensor
    rating: Tensor
    weight: Tensor
    num_valid: int
    negatives: Negatives | None = None
    ids: BatchIds | None = None


class _GroupedDot(torch.autograd.Function):
    """The product of rows of two tables; its gradients are sums over the pairs of each row.

    d/d(user row) = sum over its pairs of slope * item row, and the other way round: an embedding
    bag with weights, which holds no row for each pair.
    """

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, rows: Tensor, users: UniqueIds, items: UniqueIds
    ) -> Tensor:
        ctx.save_for_backward(states, rows)
        ctx.users, ctx.items = users, items
        count = items.local.shape[1]
        step = max(1, PAIRS // count)
        scores = [
            torch.bmm(
                functional.embedding(item, rows), functional.embedding(user, states)[..., None]
            )
            for user, item in zip(users.local.split(step), items.local.split(step), strict=True)
        ]
        return torch.cat(scores).squeeze(-1)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, Tensor, None, None]:
        states, rows = ctx.saved_tensors
        users, items = ctx.users, ctx.items
        slope, count = slopes[0].reshape(-1), items.local.shape[1]
        by_user = (users.order[:, None] * count + torch.arange(count, device=slope.device)).view(-1)
        of_states = functional.embedding_bag(
            items.local.view(-1).index_select(0, by_user),
            rows,
            users.begins * count,
            mode="sum",
            per_sample_weights=slope.index_select(0, by_user),
        )
        of_rows = functional.embedding_bag(
            users.local.index_select(0, items.order // count),
            states,
            items.begins,
            mode="sum",
            per_sample_weights=slope.index_select(0, items.order),
        )
        return of_states, of_rows, None, None


def grouped_dot(states: Tensor, rows: Tensor, users: UniqueIds, items: UniqueIds) -> Tensor:
    """Products of the pairs of a batch.

    Args:
        states: (U, D) states of the users in the batch.
        rows: (I, D) rows of its items.
        users: The users of B rows.
        items: The (B, K) items of these rows.

    Returns:
        (B, K) products; their gradients flow to both tables.
    """
    if not len(users.local):
        return states.sum() * 0 + rows.sum() * 0 + states.new_zeros(items.local.shape)
    # Half of the digits would not do: the sums of gradients are taken in the rows' own.
    with torch.autocast(states.device.type, enabled=False):
        products: Tensor = _GroupedDot.apply(states, rows, users, items)
    return products
