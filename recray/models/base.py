"""What every model offers, and the family whose score is linear in what it knows of a user."""

# Shape letters: B = pairs in the batch, K = items of a row, U = users, I = items,
# S = length of a user state.

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from recray.models.batch_embedding import BatchIds, grouped_dot

ITEM_BLOCK = 8192
ScoreType = Literal["rating", "logit"]


@dataclass(frozen=True)
class Statistics:
    """Sums over the training ratings of all workers; what a model may know before it trains.

    Args:
        item_sum: (items,) float64 sum of each item's stars.
        item_count: (items,) float64 number of each item's ratings.
        low: Lowest rating, in stars.
        high: Highest rating, in stars.
    """

    item_sum: Tensor
    item_count: Tensor
    low: float
    high: float

    @property
    def mean(self) -> float:
        """Mean rating in stars, 0 without ratings."""
        return float(self.item_sum.sum() / self.item_count.sum().clamp(min=1))


class Model(nn.Module, ABC):
    """Scores pairs of a user and an item; knows nothing of losses, files or Ray.

    Args:
        users: Number of users; ids run from 0 to users - 1.
        items: Number of items; ids run from 0 to items - 1.
        score_type: What a score is: predicted stars, or a logit that only orders items.
    """

    item_buffers: tuple[str, ...] = ()
    """Names of the buffers with a row for each item."""

    def __init__(self, users: int, items: int, score_type: ScoreType) -> None:
        super().__init__()
        self.users = users
        self.items = items
        self.score_type: ScoreType = score_type

    def init_from_statistics(self, statistics: Statistics) -> None:
        """Take what must be known before training, such as the mean rating."""

    @abstractmethod
    def user_state(self, user: Tensor) -> Tensor:
        """What scoring needs to know of users: (U,) int64 ids to (U, S)."""

    @abstractmethod
    def logits(self, state: Tensor, item: Tensor) -> Tensor:
        """Scores of pairs before the link: (B, S) states and (B,) int64 ids to (B,)."""

    @abstractmethod
    def logits_block(self, state: Tensor, first: int, last: int) -> Tensor:
        """Scores before the link for the items first..last-1: (U, S) to (U, last - first)."""

    def logits_grouped(self, user: Tensor, item: Tensor, ids: BatchIds | None = None) -> Tensor:
        """Scores before the link of a user with several items: (B,) and (B, K) ids to (B, K).

        Args:
            user: (B,) int64 ids.
            item: (B, K) int64 ids.
            ids: The same ids once each, where the tables hold the rows of this batch alone.
        """
        state, count = self.user_state(user), item.shape[1]
        each = state if count == 1 else state.repeat_interleave(count, dim=0)
        return self.logits(each, item.reshape(-1)).view(item.shape)

    def activation(self, raw: Tensor) -> Tensor:
        """From the raw score to what the model returns; strictly increasing."""
        return raw

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        """Score B pairs: (B,) int64 ids and (B,) int64 ids to (B,) scores."""
        return self.activation(self.logits_grouped(user, item[:, None])[:, 0])

    def score_items(self, state: Tensor, first: int, last: int) -> Tensor:
        """Scores of users for the items first..last-1: (U, S) to (U, last - first)."""
        return self.activation(self.logits_block(state, first, last))

    def embeddings(self) -> dict[str, nn.Embedding]:
        """The embedding tables by name; the last part begins with user_ or item_."""
        named = self.named_modules()
        return {name: table for name, table in named if isinstance(table, nn.Embedding)}

    def l2_penalty(self, user: Tensor, item: Tensor, ids: BatchIds | None = None) -> Tensor:
        """(B,) squared length of the embedding rows that each pair touches."""
        total = torch.zeros((), device=user.device)
        for name, table in self.embeddings().items():
            row = user if is_user_table(name) else item
            if ids is None:
                total = total + table(row).square().sum(dim=-1)
            else:  # each row of these small tables is in the batch: square it once
                total = total + table.weight.square().sum(dim=-1)[row]
        return total

    def score(self, state: Tensor) -> Tensor:
        """Scores of users for all items: (U, S) to (U, items), by blocks of items."""
        out = state.new_empty(len(state), self.items)
        for first in range(0, self.items, ITEM_BLOCK):
            last = min(first + ITEM_BLOCK, self.items)
            out[:, first:last] = self.score_items(state, first, last)
        return out

    def item_vectors_for_similarity(self) -> Tensor | None:
        """(items, D) vectors whose angle means likeness; None if the model has none."""
        return None


def rows_of(table: nn.Embedding, ids: Tensor | slice) -> Tensor:
    """Rows of a table; those of a slice are no copy."""
    if isinstance(ids, slice):
        return table.weight[ids]
    return functional.embedding(ids, table.weight)


def is_user_table(name: str) -> bool:
    """Whether the table of that name has a row for each user; otherwise for each item."""
    return name.rsplit(".", 1)[-1].startswith("user_")


class LinearModel(Model):
    """A model whose score is link(<user state, item row> + item offset).

    Everything else follows from the three: scoring pairs and blocks, and folding in somebody new
    as a (generalised) ridge regression on the fixed item rows.
    """

    @abstractmethod
    def user_state(self, user: Tensor | slice) -> Tensor:
        """What scoring needs to know of users: (U,) int64 ids to (U, S)."""

    @abstractmethod
    def item_rows(self, item: Tensor | slice) -> Tensor:
        """(I, S) rows that user states are multiplied with."""

    @abstractmethod
    def item_offset(self, item: Tensor | slice) -> Tensor:
        """(I,) part of the score that does not depend on the user."""

    def logits(self, state: Tensor, item: Tensor) -> Tensor:
        """Scores of pairs before the link: (B, S) states and (B,) int64 ids to (B,)."""
        return (state * self.item_rows(item)).sum(dim=-1) + self.item_offset(item)

    def logits_grouped(self, user: Tensor, item: Tensor, ids: BatchIds | None = None) -> Tensor:
        """Scores before the link of a user with several items: (B,) and (B, K) ids to (B, K)."""
        if ids is None:
            return super().logits_grouped(user, item)
        every = slice(None)  # of the batch
        product = grouped_dot(self.user_state(every), self.item_rows(every), *ids)
        offset = self.item_offset(every).index_select(0, item.reshape(-1))
        return product + offset.view(item.shape)

    def logits_block(self, state: Tensor, first: int, last: int) -> Tensor:
        """Scores before the link for the items first..last-1: (U, S) to (U, last - first)."""
        block = slice(first, last)
        return torch.addmm(self.item_offset(block)[None, :], state, self.item_rows(block).T)
