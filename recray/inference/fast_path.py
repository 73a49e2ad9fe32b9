"""Lists of known users without any wish, which are asked for most, as JSON by a short way."""

# Shape letters: I = items, S = length of a user state, K = length of a list.

from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic_core import to_json
from torch import Tensor

from recray.inference.item_catalog import Items
from recray.inference.scorer import SOURCES, Ranker
from recray.models import LinearModel

QUICK_ITEMS = 60_000
"""Scoring so many items with a linear model takes under 1 ms."""
SCORES_AT_ONCE = 1 << 20
"""Of a block of users: some MB."""


class Quick:
    """Lists by score alone, the same as a Lister's up to scores that differ in the last digits.

    Args:
        ranker: Scores.
        items: What the lists are described with.
        version: The bundle's.
    """

    def __init__(self, ranker: Ranker, items: Items, version: str) -> None:
        self.ranker, self.items, self.version = ranker, items, version
        self.able = isinstance(ranker.model, LinearModel) and ranker.model.items <= QUICK_ITEMS
        self._end = f'"model_version":{to_json(version).decode()}}}'

    @cached_property
    def _described(self) -> list[str]:
        """Each item as JSON, but for the score and the closing bracket."""
        known = range(self.ranker.model.items)
        return [to_json(self.items.describe(i)).decode()[:-1] + ',"score":' for i in known]

    @cached_property
    def _scoring(self) -> tuple[Tensor, Tensor]:
        """(I, S) rows and (I,) offsets of all items."""
        model = self.ranker.model
        if not isinstance(model, LinearModel):
            raise ValueError("only a linear model is scored the short way")
        every = slice(0, model.items)
        return model.item_rows(every).detach(), model.item_offset(every).detach()

    def one(self, user: int, k: int, exclude_seen: bool) -> bytes:
        """The reply for one user that the model knows, as JSON.

        Args:
            user: Dense id, below the model's users.
            k: 1..I.
            exclude_seen: Leave out what the user has rated.
        """
        model, (rows, offset) = self.ranker.model, self._scoring
        with torch.inference_mode():
            state = model.user_state(torch.tensor([user]))[0]
            scores = model.activation(torch.addmv(offset, rows, state))
            score_I = scores.numpy()  # the same memory; numpy costs less for each small step
            if exclude_seen:
                score_I[self.ranker.history.items_of(user)] = -np.inf
            least = float(torch.topk(scores, k, sorted=False)[0].min())
        item = np.flatnonzero(score_I >= least)  # ascending, and all that tie with the last
        best = score_I[item]
        order = np.argsort(-best, kind="stable")[:k]
        entries = self._entries(item[order].tolist(), _digits(best[order]))
        return f'{{"items":{entries},"source":"model",{self._end}'.encode()

    def many(self, users: NDArray[np.int64], k: int, exclude_seen: bool) -> list[tuple[str, str]]:
        """The source and the entries, as JSON, of each of many users of the data set.

        Args:
            users: (U,) dense ids.
            k: 1..I.
            exclude_seen: Leave out what each has rated.
        """
        block, lists = max(1, SCORES_AT_ONCE // self.ranker.model.items), []
        for first in range(0, len(users), block):
            ranked = self.ranker.rank(users[first : first + block], k, exclude_seen)
            columns = ranked.source.tolist(), ranked.item.tolist(), _digits(ranked.score)
            for source, item, score in zip(*columns, strict=True):
                lists.append((SOURCES[source], self._entries(item, score)))
        return lists

    def _entries(self, item: list[int], score: list[float]) -> str:
        """A list as a JSON array; items at -inf are not there."""
        described, pairs = self._described, zip(item, score, strict=True)
        return f"[{','.join([f'{described[i]}{s!r}}}' for i, s in pairs if s != MISSING])}]"


MISSING = -float("inf")


def _digits(score: NDArray[np.float32]) -> list[Any]:
    return np.round(score.astype(np.float64), 6).tolist()
