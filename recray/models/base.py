"""The interface of a model, and the models that are linear in the user state."""

# Shape letters: B = pairs in the batch, K = items of a row, U = users, I = items,
# S = length of a user state.

import inspect
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from recray.config import Settings
from recray.errors import RecrayError, unknown_name
from recray.models.batches import BatchIds, grouped_dot

ITEM_BLOCK = 8192
"""Items that are scored at once, so that memory does not grow with the catalogue."""
USER_BLOCK = 65_536
"""Users whose states are summed at once, in float64."""
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


class UserMoments(NamedTuple):
    """(S,) float64 mean and (S,) float64 variance of the states of users."""

    mean: Tensor
    variance: Tensor


class Model(nn.Module, ABC):
    """Score pairs of a user and an item; a model does not know its loss, files or Ray.

    Args:
        users: Number of users; ids run from 0 to users - 1.
        items: Number of items; ids run from 0 to items - 1.
        score_type: rating, a predicted rating, or logit, which only orders items.
    """

    item_buffers: tuple[str, ...] = ()
    """Names of the buffers that have a row for each item."""
    moments: UserMoments | None = None
    """Those of all users, where the tables have the rows of some."""
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

    def no_states(self, users: int) -> Tensor:
        """(U, S) zeros: states of users of whom nothing is known, whose lists are the popular."""
        nobody = self.user_state(torch.zeros(0, dtype=torch.int64))
        return nobody.new_zeros(users, nobody.shape[1])

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

    def user_moments(self) -> UserMoments:
        """Mean and variance of the states of all trained users, which fold-in starts from."""
        if self.moments is not None:
            return self.moments
        sums: list[Tensor] = []
        for ids in torch.arange(self.users).split(USER_BLOCK):
            state = self.user_state(ids).detach().double()
            sums.append(torch.stack([state.sum(dim=0), state.square().sum(dim=0)]))
        mean, square = torch.stack(sums).sum(dim=0) / self.users
        return UserMoments(mean, (square - mean.square()).clamp(min=0))

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

    def check_weights(self) -> None:
        """Compare loaded weights with each other, where their shapes alone do not say enough.

        Raises:
            ValueError: They contradict each other.
        """


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


class WithoutDraws(TorchFunctionMode):
    """Inside the block tables are not filled: their weights come at once.

    A gigabyte of random numbers takes seconds. On the meta device, which fills nothing, the first
    of these calls would load torch's compiler, which takes seconds as well.
    """

    _DRAWS = frozenset(
        (nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_, nn.init.xavier_uniform_)
    )

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Leave tensors as they are where they would be filled."""
        given = kwargs or {}
        if func in self._DRAWS:
            return args[0] if args else given["tensor"]
        if func is torch.eye:
            return torch.empty(args[0], args[0], **given)
        return func(*args, **given)


def refuse_outside(name: str, values: Tensor | NDArray[np.integer], below: int) -> None:
    """Refuse whole numbers that are not all in 0..below-1.

    Raises:
        ValueError: One is not.
    """
    if len(values) and (int(values.min()) < 0 or int(values.max()) >= below):
        raise ValueError(f"{name} has values outside 0 to {below - 1}")


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
