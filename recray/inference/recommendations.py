"""A list of recommendations and its JSON, re-ranking for diversity, and reasons for its items."""

# Shape letters: N = ratings of one user, K = length of a list, S = length of a user embedding,
# I = items, D = vector length, P = items to choose from.

from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import JsonValue
from pydantic_core import to_json
from torch import Tensor

from recray.data.ids import RawId
from recray.inference.catalog import ItemCatalog, ItemSummary
from recray.inference.history import History, UserRatings
from recray.inference.queries import Queries
from recray.inference.scorer import Scorer
from recray.models.base import LinearModel, Model
from recray.models.history import HistoryModel
from recray.models.objectives import Contributions, Preference

REASONS_PER_ITEM = 3
EXACT_TOLERANCE = 1e-3
"""Contributions that miss the score by more, relatively or absolutely, are called approximate."""

SHORTEST_VECTOR = 1e-12
"""Least length to divide by, so that a vector of zeros stays one."""
MMR_POOL_ITEMS = 300
"""Re-ranking chooses among this many of the best items, or four times the list if that is more."""


@dataclass(frozen=True)
class ScoredItem(ItemSummary):
    """An item of a list, with its score: a rating, a logit, or a cosine if it is a similar item."""

    score: float


@dataclass(frozen=True)
class Reason:
    """A rated item, and what its rating adds to the score of a recommended one."""

    item: RawId
    title: str
    rating: float
    share: float


@dataclass(frozen=True)
class Explanation:
    """The rated items that speak most for a recommended one.

    Args:
        kind: exact if the shares of all ratings add up to the score, or if each is what the score
            would lose without that item in the history; otherwise approximate.
        items: Those with the largest shares, which are above 0.
    """

    kind: Literal["exact", "approximate"]
    items: list[Reason]


@dataclass(frozen=True)
class ExplainedItem(ScoredItem):
    """An item of a list, with its score and the reasons for it."""

    why: Explanation


@dataclass(frozen=True)
class Recommendations:
    """One list, best item first.

    Args:
        item: Dense item ids.
        score: Score of each, rounded to 6 digits.
        source: model, fold_in or popular.
        model_version: The bundle's version.
        catalog: Describes the items.
        why: The reasons for each item; None if nobody asked for them.
        skipped: How many of the ratings that the list was asked for with are of items that
            training does not know; None for a user of the data.
    """

    item: list[int]
    score: list[float]
    source: str
    model_version: str
    catalog: ItemCatalog = field(repr=False, compare=False)
    why: list[Explanation] | None = None
    skipped: int | None = None

    @cached_property
    def items(self) -> list[ScoredItem]:
        """The items with raw ids and titles; ExplainedItem where reasons were asked for."""
        listed = [(*self.catalog.fields(i), s) for i, s in zip(self.item, self.score, strict=True)]
        if self.why is None:
            return [ScoredItem(*fields) for fields in listed]
        return [ExplainedItem(*f, why) for f, why in zip(listed, self.why, strict=True)]

    def plain(self) -> dict[str, JsonValue]:
        """The list as JSON-ready values."""
        skipped: dict[str, JsonValue] = {} if self.skipped is None else {"skipped": self.skipped}
        return {
            "items": [asdict(item) for item in self.items],
            "source": self.source,
            **skipped,
            "model_version": self.model_version,
        }

    def items_json(self) -> str:
        """The items as a JSON array."""
        if self.why is not None:
            return to_json(self.items).decode()
        prefix, pairs = self.catalog.json_prefix, zip(self.item, self.score, strict=True)
        return f"[{','.join([f'{prefix(item)}{score!r}}}' for item, score in pairs])}]"

    def entry_json(self) -> str:
        """The items and where they come from, as the inside of a JSON object."""
        skipped = "" if self.skipped is None else f',"skipped":{self.skipped}'
        return f'"items":{self.items_json()},"source":"{self.source}"{skipped}'

    def to_json(self) -> bytes:
        """The list as JSON: what plain gives."""
        version = to_json(self.model_version).decode()
        return f'{{{self.entry_json()},"model_version":{version}}}'.encode()


class ItemSimilarity:
    """Cosines of item vectors; the vectors stay the model's and are not copied.

    Args:
        vectors: (I, D).
    """

    def __init__(self, vectors: Tensor) -> None:
        self.vectors = vectors
        length: Tensor = torch.linalg.vector_norm(vectors, dim=-1)
        self._length = length.clamp(min=SHORTEST_VECTOR)

    @classmethod
    def of(cls, model: Model) -> "ItemSimilarity | None":
        """Take the item vectors of a model; None if it has none."""
        vectors = model.item_vectors_for_similarity()
        return None if vectors is None else cls(vectors.detach())

    def all_unit_vectors(self) -> Tensor:
        """(I, D) vectors of length 1."""
        return self.vectors / self._length[:, None]

    def unit_vectors(self, item: Tensor) -> Tensor:
        """(P,) items to their (P, D) vectors of length 1."""
        return self.vectors[item] / self._length[item, None]

    def cosines(self, item: int) -> Tensor:
        """(I,) cosines of all items with one."""
        unit_D = self.vectors[item] / self._length[item]
        return (self.vectors @ unit_D).div_(self._length)


def mmr_pool(k: int, items: int, diversity: float) -> int:
    """How many of the best items a list of k is chosen from."""
    return min(items, max(MMR_POOL_ITEMS, 4 * k)) if diversity else k


def mmr_rerank(
    unit: Tensor, score: NDArray[np.float32], k: int, diversity: float
) -> NDArray[np.int64]:
    """Choose k of P items, each the best balance of its score and its unlikeness to those before.

    Maximal marginal relevance: of the rest the item with the largest
    (1 - diversity) * score - diversity * likeness is next. Scores are scaled to 0..1 among the P;
    the likeness is the largest cosine with a chosen item.

    Args:
        unit: (P, D) item vectors of length 1, best score first.
        score: (P,) descending.
        k: Length of the list; all of them if fewer.
        diversity: 0..1.

    Returns:
        (K,) int64 places among the P.

    Source: Carbonell and Goldstein (1998), SIGIR, "The use of MMR".
    """
    vectors = unit.numpy()
    spread = float(score[0] - score[-1]) if len(score) else 0.0
    gain = (1 - diversity) * (score - score[-1:]) / max(spread, 1e-12)
    likeness = np.full(len(score), -1.0, np.float32)
    chosen: list[int] = []
    for _ in range(min(k, len(score))):
        value = gain - diversity * likeness
        value[chosen] = -np.inf
        chosen.append(int(value.argmax()))
        np.maximum(likeness, vectors @ vectors[chosen[-1]], out=likeness)
    return np.array(chosen, np.int64)


class Explainer:
    """Takes scores apart over the ratings behind them.

    Where the state is a function of the history, the share of an item is what the score would lose
    without it. Where folding in is a linear solve, a score is a sum over the ratings, and the
    shares are exact for a user who was folded in, or trained to the same optimum. Elsewhere they
    are the cosines of the item vectors, of the ratings that are not below the user's mean. An item
    that the user disliked is no reason, whatever its share, unless the model reads the order.

    Args:
        scorer: The model, its objective and its history.
        similarity: Of the items; None if the model has no item vectors.
        catalog: Names the rated items.
        preference: Tells which ratings are dislikes.
    """

    def __init__(
        self,
        scorer: Scorer,
        similarity: ItemSimilarity | None,
        catalog: ItemCatalog,
        preference: Preference,
    ) -> None:
        self.scorer, self.similarity, self.catalog = scorer, similarity, catalog
        self.preference = preference
        model = scorer.model
        self.reads_order = isinstance(model, HistoryModel) and model.reads_order

    @cached_property
    def _shares(self) -> Contributions | None:
        return self.scorer.contributions()

    @torch.no_grad()
    def explain(self, query: Queries, rated: UserRatings, listed: list[int]) -> list[Explanation]:
        """Find what speaks for each item of a list.

        Args:
            query: The one user whose list it is.
            rated: N ratings of the user.
            listed: K dense items.
        """
        share, exact = self.shares(query, rated, torch.tensor(listed, dtype=torch.int64))
        kind: Literal["exact", "approximate"] = "exact" if exact else "approximate"
        return [
            Explanation(kind, self._largest(share[:, place], rated)) for place in range(len(listed))
        ]

    def shares(self, query: Queries, rated: UserRatings, listed: Tensor) -> tuple[Tensor, bool]:
        """(N, K) what each rating adds to each listed item's score, and whether that is exact."""
        item, rating = rated.item, rated.rating
        model = self.scorer.model
        if not len(item):
            return torch.zeros(0, len(listed)), False
        if isinstance(model, HistoryModel):
            return model.share_of(History.join([rated]).as_csr(query.now), listed), True
        if self._shares is None or not isinstance(model, LinearModel):
            return self._likeness(item, rating, listed), False
        base, parts = self._shares(item, rating)
        rows = model.item_rows(listed).to(parts.dtype)
        share = parts @ rows.T
        rest = rows @ base + model.item_offset(listed)
        score = model.logits(query.embedding.expand(len(listed), -1), listed).to(parts.dtype)
        exact = torch.allclose(share.sum(dim=0) + rest, score, EXACT_TOLERANCE, EXACT_TOLERANCE)
        return share, bool(exact)

    def _likeness(self, item: Tensor, rating: Tensor, listed: Tensor) -> Tensor:
        if self.similarity is None:
            return torch.zeros(len(item), len(listed))
        liked = (rating >= rating.mean())[:, None]
        unit = self.similarity.unit_vectors
        return (unit(item) @ unit(listed).T) * liked

    def _largest(self, share_N: Tensor, rated: UserRatings) -> list[Reason]:
        if not self.reads_order:  # what comes next may follow from a film that was not liked
            share_N = share_N * self.preference.speaks_for(rated.rating)
        share, place = torch.sort(share_N, descending=True, stable=True)
        item, rating = rated.item[place].tolist(), rated.rating[place].tolist()
        return [
            Reason(*self.catalog.fields(item[n])[:2], rating[n], round(value, 6))
            for n, value in enumerate(share[:REASONS_PER_ITEM].tolist())
            if value > 0
        ]
