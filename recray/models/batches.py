"""Batches of ratings, and dot products whose gradients reach each row of a batch once.

A gradient for whole tables would touch every row in every step. So a step copies the rows of its
batch into small tables, and the gradient of a row is one sum over the places where its id occurs.
"""

# Shape letters: B = pairs in the batch, K = items of a row, N = unique ids, U = users, I = items,
# D = vector length.

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from recray.data.negatives import Negatives

PAIRS = 4096
"""Pairs whose vectors are held at once; their rows stay in the cache of one core."""


@dataclass(frozen=True)
class UniqueIds:
    """The unique ids of a batch, and where each occurs.

    Args:
        ids: (N,) int64 ids, ascending.
        local: The ids of the batch as positions in `ids`, in the shape of the batch.
        order: Positions of the flattened ids of the batch, sorted by id; the sort is stable.
        offsets: (N,) position in `order` where each id starts.
    """

    ids: Tensor
    local: Tensor
    order: Tensor
    offsets: Tensor

    @classmethod
    def of(cls, batch_ids: Tensor) -> "UniqueIds":
        """Find the unique ids of a tensor of non-negative int64 ids of any shape."""
        ordered, order = _sort(batch_ids.reshape(-1))
        ids, place, counts = torch.unique_consecutive(
            ordered, return_inverse=True, return_counts=True
        )
        local = torch.empty_like(place).scatter_(0, order, place)
        return cls(ids, local.view(batch_ids.shape), order, counts.cumsum(dim=0) - counts)

    def combine(self, rows: Tensor) -> Tensor:
        """Sum the rows of each id: a row for each flattened id of the batch to (N, D)."""
        if not len(self.ids):
            return rows.new_zeros(0, rows.shape[1])
        return functional.embedding_bag(self.order, rows, self.offsets, mode="sum")


def _sort(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Sort ids stably; return them and their positions. On a CPU faster than torch.sort."""
    if ids.device.type != "cpu":
        found = torch.sort(ids, stable=True)
        return found.values, found.indices
    width = max(len(ids), 1)
    # numpy sorts plain int64 numbers with vector instructions, which argsort cannot use. So id and
    # position are packed into one number, and unpacked after the sort; the position makes all
    # numbers different, which makes the sort stable.
    keys = ids.numpy() * width + np.arange(len(ids))
    keys.sort()
    sorted_ids = keys // width
    return torch.from_numpy(sorted_ids), torch.from_numpy(keys - sorted_ids * width)


class BatchIds(NamedTuple):
    """The unique ids of a batch, where the tables of the model hold the rows of these ids only.

    Args:
        users: Users of the B ratings.
        items: Items of the ratings and their negatives, (B, 1 + K).
    """

    users: UniqueIds
    items: UniqueIds


@dataclass(frozen=True)
class Batch:
    """The ratings of one step; padding is at the end.

    Args:
        user: (B,) int64 ids.
        item: (B,) int64 ids.
        rating: (B,) ratings.
        weight: (B,) 1, or 0 for padding.
        num_valid: Ratings that are not padding.
        negatives: Items drawn for each rating; None where the loss needs none.
        ids: The unique ids where the model's tables hold the rows of this batch only; `user`,
            `item` and the negatives are then row numbers in these tables. None where the tables
            hold every row.
    """

    user: Tensor
    item: Tensor
    rating: Tensor
    weight: Tensor
    num_valid: int
    negatives: Negatives | None = None
    ids: BatchIds | None = None


class _GroupedDot(torch.autograd.Function):
    """Dot products of rows of two tables, whose gradients are sums over the pairs of each row.

    The gradient of a user row is the sum of slope * item row over its pairs, and the other way
    round. An embedding bag with weights computes such a sum without a row for each pair; autograd
    would hold two vectors for each pair and add them one by one.
    """

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, rows: Tensor, users: UniqueIds, items: UniqueIds
    ) -> Tensor:
        ctx.save_for_backward(states, rows)
        ctx.users, ctx.items = users, items
        step = max(1, PAIRS // items.local.shape[1])
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
        # The pairs sorted by user: K consecutive pairs for each row of the batch.
        by_user = (users.order[:, None] * count + torch.arange(count, device=slope.device)).view(-1)

        def sums(table: Tensor, row: Tensor, pair: Tensor, offsets: Tensor) -> Tensor:
            weight = slope.index_select(0, pair)
            return functional.embedding_bag(
                row, table, offsets, mode="sum", per_sample_weights=weight
            )

        item = items.local.view(-1).index_select(0, by_user)
        of_states = sums(rows, item, by_user, users.offsets * count)
        user = users.local.index_select(0, items.order // count)
        of_rows = sums(states, user, items.order, items.offsets)
        return of_states, of_rows, None, None


def grouped_dot(states: Tensor, rows: Tensor, users: UniqueIds, items: UniqueIds) -> Tensor:
    """(B, K) dot products of the pairs of a batch, whose gradients reach both tables.

    Args:
        states: (U, D) states of the unique users, `users`, of the B rows.
        rows: (I, D) rows of the unique items, `items`, of the (B, K) pairs.
    """
    if not len(users.local):  # an embedding bag refuses an empty batch; the graph must stay whole
        return states.sum() * 0 + rows.sum() * 0 + states.new_zeros(items.local.shape)
    # bf16 would lose digits in the sums of gradients, so the rows keep their own type here.
    with torch.autocast(states.device.type, enabled=False):
        out: Tensor = _GroupedDot.apply(states, rows, users, items)  # type: ignore[no-untyped-call]
    return out
