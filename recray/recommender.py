"""Answers about one bundle, in raw ids and with titles."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recray.bundle import Bundle
from recray.data.ids import RawId
from recray.errors import RecrayError
from recray.ranking import NONE, SOURCES, History, Ranker, top_k


@dataclass(frozen=True)
class Recommendations:
    """One list with raw ids and titles.

    Args:
        items: {"item", "title", "year", "genres", "score"} each, best first.
        source: model, fold_in or popular.
        model_version: The bundle's version.
    """

    items: list[dict[str, Any]]
    source: str
    model_version: str

    def plain(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "items": self.items,
            "source": self.source,
            "model_version": self.model_version,
        }


class Recommender:
    """Answers about one bundle, in raw ids.

    Args:
        bundle: An opened bundle.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.users, self.items = bundle.user_ids, bundle.item_ids
        history = History.of(bundle.history, len(self.users), self.items.known)
        self.ranker = Ranker(bundle.model, bundle.objective, history, bundle.noise)
        table = bundle.item_table
        self._raw_items: list[RawId] = self.items.raw.tolist()
        self._titles = table["title"].to_pylist()
        self._years = table["year"].to_pylist()
        self._genres = table["genres"].to_pylist()

    @classmethod
    def open(cls, path: str) -> Self:
        """Open a bundle by path or URI, checking every file.

        Raises:
            RecrayError: It is missing, damaged or not a bundle.
        """
        return cls(Bundle.open(path))

    @property
    def version(self) -> str:
        """The bundle's version."""
        return self.bundle.version

    def describe(self, item: int) -> dict[str, Any]:
        """Raw id, title, year and genres of a dense item id; year is None where unknown."""
        return {
            "item": self._raw_items[item],
            "title": self._titles[item],
            "year": self._years[item] or None,
            "genres": self._genres[item],
        }

    def recommend(self, user: RawId, k: int = 10, exclude_seen: bool = True) -> Recommendations:
        """The k best items for a user of the data set.

        Args:
            user: Raw user id.
            k: 1..number of items.
            exclude_seen: Leave out what the user has rated.

        Raises:
            KeyError: No split has this user.
            RecrayError: k is out of range.
        """
        self.check_k(k)
        dense = self.users.encode_one(user)
        if dense == NONE:
            raise KeyError(user)
        ranked = self.ranker.rank(np.array([dense]), k, exclude_seen)
        return self._answer(ranked.item[0], ranked.score[0], int(ranked.source[0]))

    def recommend_from(
        self, ratings: list[tuple[RawId, float]], k: int = 10, exclude_seen: bool = True
    ) -> Recommendations:
        """The k best items for somebody who was not in training.

        Args:
            ratings: Raw item ids and stars; of several for one item the last counts.
            k: 1..number of items.
            exclude_seen: Leave out the rated items.

        Raises:
            RecrayError: An item is unknown, a rating is off the scale, or k is out of range.
        """
        self.check_k(k)
        item, rating = self._dense_ratings(ratings)
        source = np.array([1 if len(item) else 2], np.int8)
        state = (
            self.ranker.fold_in(item, rating) if len(item) else self.ranker.states(np.array([0]))[0]
        )
        scores = self.ranker.scores(state, source)
        if exclude_seen:
            scores[0, item] = -torch.inf
        best_items, best = top_k(scores, k)
        return self._answer(best_items[0].numpy(), best[0].numpy(), int(source[0]))

    def _dense_ratings(self, ratings: list[tuple[RawId, float]]) -> tuple[Tensor, Tensor]:
        dense = [self.items.encode_one(item) for item, _ in ratings]
        for (item, _), place in zip(ratings, dense, strict=True):
            if not 0 <= place < self.items.known:
                raise RecrayError(
                    f"unknown item {item!r}: rate items that the model was trained on"
                )
        low, high = self.bundle.rating_range
        last = dict(zip(dense, (stars for _, stars in ratings), strict=True))
        for stars in last.values():
            if not low <= stars <= high:
                raise RecrayError(f"rating {stars:g} is off the scale of {low:g} to {high:g}")
        keys = sorted(last)
        return torch.tensor(keys, dtype=torch.int64), torch.tensor([last[key] for key in keys])

    def similar(self, item: RawId, k: int = 10) -> Recommendations:
        """The k items whose vectors point most nearly the same way (cosine).

        Raises:
            KeyError: The model was not trained on this item.
            RecrayError: The model has no item vectors, or k is out of range.
        """
        self.check_k(k)
        dense = self.items.encode_one(item)
        vectors = self.bundle.model.item_vectors_for_similarity()
        if vectors is None:
            raise RecrayError(f"a {self.bundle.settings.model.kind} model has no item vectors")
        if dense == NONE or dense >= self.items.known:
            raise KeyError(item)
        unit = torch.nn.functional.normalize(vectors.detach(), dim=-1)
        scores = (unit @ unit[dense])[None, :]
        scores[0, dense] = -torch.inf
        best_items, best = top_k(scores, k)
        return self._answer(best_items[0].numpy(), best[0].numpy(), 0)

    def check_k(self, k: int) -> None:
        """Refuse a list longer than the catalogue.

        Raises:
            RecrayError: k is out of range.
        """
        if not 1 <= k <= self.items.known:
            raise RecrayError(
                f"k={k} is out of range: 1 to {self.items.known}, the catalogue's size"
            )

    def _answer(
        self, items: NDArray[np.int64], scores: NDArray[np.float32], source: int
    ) -> Recommendations:
        rows = [
            self.describe(int(item)) | {"score": round(float(score), 6)}
            for item, score in zip(items, scores, strict=True)
            if item != NONE
        ]
        return Recommendations(rows, SOURCES[source], self.version)
