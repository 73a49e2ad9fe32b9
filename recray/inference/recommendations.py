"""Makes lists: scores, filters, the best k, variety, reasons; for one user or many at once."""

# Shape letters: U = users, I = items, S = length of a user state, N = ratings of one user.

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recray.errors import RecrayError
from recray.inference.attribution import Why
from recray.inference.filters import Wish, diversify, pool_of
from recray.inference.item_catalog import Items
from recray.inference.scorer import NONE, SOURCES, Ranker, top_k
from recray.inference.similarity import Directions

SCORES_AT_ONCE = 1 << 24
MODEL, FOLD_IN, POPULAR = range(len(SOURCES))

Rated = tuple[Tensor, Tensor]
"""(N,) int64 item ids, each once, and (N,) stars."""


@dataclass(frozen=True)
class Recommendations:
    """One list with raw ids and titles.

    Args:
        items: {"item", "title", "year", "genres", "score"} each, best first; with explain also
            "why": {"kind": exact or approximate, "items": [{"item", "title", "rating", "share"}]}.
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


@dataclass(frozen=True)
class Askers:
    """Several who want a list.

    Args:
        state: (U, S) states.
        source: (U,) int8 index into SOURCES.
        rated: What each has rated.
    """

    state: Tensor
    source: NDArray[np.int8]
    rated: list[Rated]

    def __getitem__(self, rows: slice) -> "Askers":
        return Askers(self.state[rows], self.source[rows], self.rated[rows])


def join(groups: Sequence[Askers]) -> Askers:
    """All askers of several groups, in order."""
    return Askers(
        torch.cat([group.state for group in groups]),
        np.concatenate([group.source for group in groups]),
        [rated for group in groups for rated in group.rated],
    )


def cells_of(rated: Sequence[Rated]) -> tuple[Tensor, Tensor]:
    """Rows and columns of all that has been rated."""
    counts = torch.tensor([len(item) for item, _ in rated])
    return torch.arange(len(rated)).repeat_interleave(counts), torch.cat([i for i, _ in rated])


class Lister:
    """Makes lists from states.

    Args:
        ranker: Scores.
        items: What they are filtered by and described with.
        version: The bundle's.
    """

    def __init__(self, ranker: Ranker, items: Items, version: str) -> None:
        self.ranker, self.items, self.version = ranker, items, version

    @cached_property
    def _directions(self) -> Directions | None:
        return Directions.of(self.ranker.model)

    def directions(self) -> Directions:
        """Which way the items' vectors point.

        Raises:
            RecrayError: The model has none.
        """
        if self._directions is None:
            raise RecrayError(f"a {type(self.ranker.model).__name__} model has no item vectors")
        return self._directions

    @cached_property
    def _why(self) -> Why:
        return Why(self.ranker, self._directions)

    @torch.no_grad()
    def lists(
        self, askers: Askers, k: int, exclude_seen: bool, wish: Wish
    ) -> list[Recommendations]:
        """The list of each.

        Args:
            askers: Who they are to the model.
            k: Length of the lists, at most the number of items; fewer come where fewer remain.
            exclude_seen: Leave out what each has rated.
            wish: What may be in the lists, and how they are arranged.

        Raises:
            RecrayError: There is no such genre, or variety is wanted and there are no vectors.
        """
        allowed = self.items.allowed(wish)
        block = max(1, SCORES_AT_ONCE // self.items.known)
        lists: list[Recommendations] = []
        for first in range(0, len(askers.source), block):
            part = askers[first : first + block]
            scores = self.ranker.scores(part.state, part.source)
            if exclude_seen:
                scores[cells_of(part.rated)] = -torch.inf
            if allowed is not None:
                scores.masked_fill_(~allowed, -torch.inf)
            item, best = top_k(scores, pool_of(k, self.items.known, wish.diversity))
            lists += self._answers(part, item.numpy(), best.numpy(), k, wish)
        return lists

    def _answers(
        self,
        askers: Askers,
        item: NDArray[np.int64],
        score: NDArray[np.float32],
        k: int,
        wish: Wish,
    ) -> list[Recommendations]:
        answers = []
        for row, source in enumerate(askers.source.tolist()):
            there = item[row] != NONE
            chosen, value = item[row][there], score[row][there]
            if wish.diversity:
                unit = self.directions().unit(torch.from_numpy(chosen))
                order = diversify(unit, value, k, wish.diversity)
                chosen, value = chosen[order], value[order]
            answer = self.answer(chosen, value, source)
            if wish.explain:
                state = askers.state[row : row + 1]
                self._explain(answer.items, state, askers.rated[row], chosen, source)
            answers.append(answer)
        return answers

    def _explain(
        self,
        listed: list[dict[str, Any]],
        state: Tensor,
        rated: Rated,
        chosen: NDArray[np.int64],
        source: int,
    ) -> None:
        item, rating = rated
        if source == POPULAR:
            item, rating = item[:0], rating[:0]
        reasons = self._why.reasons(state, item, rating, torch.from_numpy(chosen))
        for place, entry in enumerate(listed):
            entry["why"] = {
                "kind": "exact" if reasons.exact else "approximate",
                "items": [
                    {
                        "item": self.items.raw[int(item[n])],
                        "title": self.items.titles[int(item[n])],
                        "rating": float(rating[n]),
                        "share": round(share, 6),
                    }
                    for n, share in reasons.best(place)
                ],
            }

    def answer(
        self, items: NDArray[np.int64], scores: NDArray[np.float32], source: int
    ) -> Recommendations:
        """A list of dense ids and scores, described."""
        digits = np.round(scores.astype(np.float64), 6).tolist()
        rows = [
            self.items.describe(item) | {"score": score}
            for item, score in zip(items.tolist(), digits, strict=True)
        ]
        return Recommendations(rows, SOURCES[source], self.version)
