"""The interface of a model, the models that are linear in the user state, and batches of ratings.

A gradient for whole tables would touch every row in every step. So a step copies the rows of its
batch into small tables, and the gradient of a row is one sum over the places where its id occurs.
"""

# Shape letters: B = pairs in the batch, K = items of a row, N = unique ids, U = users, I = items,
# S = length of a user state, D = vector length.

import inspect
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from recray.config import Settings
from recray.data.negatives import Negatives
from recray.errors import RecrayError, unknown_name

ITEM_BLOCK = 8192
"""Items that are scored at once, so that memory does not grow with the catalogue."""
PAIRS = 4096
"""Pairs whose vectors are held at once; their rows stay in the cache of one core."""
BASELINES = ("popularity", "bias-only")
ScoreType = Literal["rating", "logit"]
Output = Literal["raw", "sigmoid"]


@dataclass(frozen=True)
class Statistics:
    """Sums over the training ratings of all workers, from which a model is initialised.

    Args:
        item_sum: (items,) float64 sum of each item's ratings.
        item_count: (items,) float64 number of each item's ratings.
        low: Lowest rating.
        high: Highest rating.
    """

    item_sum: Tensor
    item_count: Tensor
    low: float
    high: float

    @property
    def mean(self) -> float:
        """Mean rating; 0 without ratings."""
        return float(self.item_sum.sum() / self.item_count.sum().clamp(min=1))


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


class Model(nn.Module, ABC):
    """Score pairs of a user and an item; a model does not know its loss, files or Ray.

    Args:
        users: Number of users; ids run from 0 to users - 1.
        items: Number of items; ids run from 0 to items - 1.
        score_type: rating, a predicted rating, or logit, which only orders items.
    """

    item_buffers: tuple[str, ...] = ()
    """Names of the buffers that have a row for each item."""
    output: Output = "raw"  # with raw the scores are the logits themselves

    def __init__(self, users: int, items: int, score_type: ScoreType) -> None:
        super().__init__()
        self.users, self.items = users, items
        self.score_type: ScoreType = score_type

    def init_from_statistics(self, statistics: Statistics) -> None:
        """Set what must be known before training, such as the mean rating."""

    @abstractmethod
    def user_state(self, user: Tensor) -> Tensor:
        """What scores depend on of each user: (U,) int64 ids to (U, S)."""

    @abstractmethod
    def logits(self, state: Tensor, item: Tensor) -> Tensor:
        """Scores of pairs before the activation: (B, S) states and (B,) int64 ids to (B,)."""

    @abstractmethod
    def logits_block(self, state: Tensor, first: int, last: int) -> Tensor:
        """Scores before the activation of items first..last-1: (U, S) to (U, last - first)."""

    def logits_grouped(self, user: Tensor, item: Tensor, ids: BatchIds | None = None) -> Tensor:
        """Scores before the activation of users with K items each: (B,) and (B, K) ids to (B, K).

        `ids` are the unique ids of the batch, where the tables hold the rows of this batch only.
        """
        state, count = self.user_state(user), item.shape[1]
        each = state if count == 1 else state.repeat_interleave(count, dim=0)
        return self.logits(each, item.reshape(-1)).view(item.shape)

    def activation(self, logits: Tensor) -> Tensor:
        """Turn logits into scores by a strictly increasing function."""
        return logits

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        """Score B pairs: (B,) int64 ids and (B,) int64 ids to (B,) scores."""
        return self.activation(self.logits_grouped(user, item[:, None])[:, 0])

    def score_items(self, state: Tensor, first: int, last: int) -> Tensor:
        """Scores of users for items first..last-1: (U, S) to (U, last - first)."""
        return self.activation(self.logits_block(state, first, last))

    def embeddings(self) -> dict[str, nn.Embedding]:
        """The embedding tables by name; the last part of a name starts with user_ or item_."""
        named = self.named_modules()
        return {name: table for name, table in named if isinstance(table, nn.Embedding)}

    def l2_penalty(self, user: Tensor, item: Tensor, ids: BatchIds | None = None) -> Tensor:
        """(B,) sum of the squares of the embedding rows of each pair."""
        total = torch.zeros((), device=user.device)
        for name, table in self.embeddings().items():
            row = user if is_user_table(name) else item
            # Each row of small tables is in the batch, so it is squared once.
            rows, place = (table(row), ...) if ids is None else (table.weight, row)
            total = total + rows.square().sum(dim=-1)[place]
        return total

    def score(self, state: Tensor) -> Tensor:
        """Scores of users for all items, computed by blocks of items: (U, S) to (U, items)."""
        out = state.new_empty(len(state), self.items)
        for first in range(0, self.items, ITEM_BLOCK):
            last = min(first + ITEM_BLOCK, self.items)
            out[:, first:last] = self.score_items(state, first, last)
        return out

    def item_vectors_for_similarity(self) -> Tensor | None:
        """(items, D) vectors whose cosine is the similarity of items; None if there are none."""
        return None


def is_user_table(name: str) -> bool:
    """Whether a table has a row for each user; otherwise it has one for each item."""
    return name.rsplit(".", 1)[-1].startswith("user_")


class LinearModel(Model):
    """A model whose score is activation(<user state, item row> + item offset).

    Scoring of pairs and blocks follows from these three. So does folding in a new user: it is a
    (generalised) ridge regression on the fixed item rows.
    """

    @abstractmethod
    def user_state(self, user: Tensor | slice) -> Tensor:
        """What scores depend on of each user: (U,) int64 ids to (U, S)."""

    @abstractmethod
    def item_rows(self, item: Tensor | slice) -> Tensor:
        """(I, S) rows that user states are multiplied by."""

    @abstractmethod
    def item_offset(self, item: Tensor | slice) -> Tensor:
        """(I,) part of the score that does not depend on the user."""

    def logits(self, state: Tensor, item: Tensor) -> Tensor:
        """Scores of pairs before the activation: (B, S) states and (B,) int64 ids to (B,)."""
        return (state * self.item_rows(item)).sum(dim=-1) + self.item_offset(item)

    def logits_grouped(self, user: Tensor, item: Tensor, ids: BatchIds | None = None) -> Tensor:
        """Scores before the activation, of K items for each user: ids to (B, K)."""
        if ids is None:
            return super().logits_grouped(user, item)
        every = slice(None)  # the tables hold exactly the rows of the batch
        product = grouped_dot(self.user_state(every), self.item_rows(every), *ids)
        offset = self.item_offset(every).index_select(0, item.reshape(-1))
        return product + offset.view(item.shape)

    def logits_block(self, state: Tensor, first: int, last: int) -> Tensor:
        """Scores before the activation of items first..last-1: (U, S) to (U, last - first)."""
        block = slice(first, last)
        return torch.addmm(self.item_offset(block)[None, :], state, self.item_rows(block).T)


def model_class(kind: str) -> type[Model]:
    """The class of a registered model.

    Raises:
        RecrayError: There is no model of that name.
    """
    from recray.models import MODELS  # not at the top: these classes import this module

    if kind not in MODELS:
        raise unknown_name("model", kind, MODELS)
    return MODELS[kind]


def build_model(settings: Settings, users: int, items: int) -> Model:
    """The untrained network of the settings, with its sizes.

    Raises:
        RecrayError: No such model, a baseline, or settings that lack something that it needs.
    """
    model, kind = model_class(settings.model.kind), settings.model.kind
    if kind in BASELINES:
        raise RecrayError(f"model.kind={kind} is a baseline; it stands beside every evaluation")
    if settings.model.dim == "auto":
        raise ValueError("model.dim=auto has no number yet: see Settings.sized")
    values = {**settings.model.model_dump(), "score_type": "logit" if settings.ranks else "rating"}
    takes = inspect.signature(model).parameters
    return model(users, items, **{name: values[name] for name in takes if name in values})
