"""Ranks items for users: the one scorer and filter behind evaluation, batch and HTTP."""

# Shape letters: U = users, I = items, K = length of a list, S = length of a user state.

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recray.data.dataset import Ratings
from recray.errors import RecrayError
from recray.inference.topk import NONE, best_of, top_k
from recray.models.base import ITEM_BLOCK, Model, Statistics
from recray.models.baselines import BiasOnly
from recray.models.objectives import FoldIn, Objective, RatingsCSR

__all__ = ["NONE", "SOURCES", "History", "Ranked", "Ranker", "top_k"]

SOURCES = ("model", "fold_in", "popular")


@dataclass(frozen=True)
class History:
    """What each user has rated among the items that training knows, as rows of a sparse matrix.

    Args:
        begins: (users + 1,) int64; user u has the ratings begins[u]..begins[u + 1] - 1.
        item: (R,) ids, int32 as bundles have them.
        rating: (R,) float32 stars.
    """

    begins: NDArray[np.int64]
    item: NDArray[np.int32]
    rating: NDArray[np.float32]

    @classmethod
    def of(cls, ratings: Ratings, users: int, items: int) -> Self:
        """Keep the ratings of items below `items`; ratings are sorted by user."""
        inside = ratings.item < items
        known = ratings if inside.all() else ratings.where(inside)
        begins = np.searchsorted(known.user, np.arange(users + 1, dtype=known.user.dtype))
        return cls(begins, known.item, known.rating)

    def of_user(self, user: int) -> tuple[Tensor, Tensor]:
        """(N,) items and (N,) stars of one user."""
        rows = slice(self.begins[user], self.begins[user + 1])
        item, rating = self.item[rows].astype(np.int64), self.rating[rows].copy()
        return torch.from_numpy(item), torch.from_numpy(rating)

    def items_of(self, user: int) -> NDArray[np.int32]:
        """(N,) items of one user, in the history's own memory."""
        return self.item[self.begins[user] : self.begins[user + 1]]

    def of_users(self, users: NDArray[np.int64]) -> RatingsCSR:
        """What (U,) users have rated, in their order."""
        counts = self.begins[users + 1] - self.begins[users]
        begins = np.concatenate([[0], counts.cumsum()])
        rows = np.arange(begins[-1]) + np.repeat(self.begins[users] - begins[:-1], counts)
        item = torch.from_numpy(self.item[rows].astype(np.int64))
        return RatingsCSR(torch.from_numpy(begins), item, torch.from_numpy(self.rating[rows]))

    def cells(self, users: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Rows (in `users`) and columns of all that these users have rated."""
        rated = self.of_users(users)
        return rated.row, rated.item


def statistics_of_history(history: History, users: int, items: int) -> Statistics:
    """Sums and counts of the ratings of the first `users` users."""
    end = int(history.begins[users])
    item, stars = history.item[:end], history.rating[:end].astype(np.float64)

    def sums(weights: NDArray[Any] | None) -> Tensor:
        return torch.from_numpy(np.bincount(item, weights, items).astype(np.float64))

    low, high = (float(stars.min()), float(stars.max())) if end else (0.0, 0.0)
    return Statistics(sums(stars), sums(None), low, high)


@dataclass(frozen=True)
class Ranked:
    """Lists of several users.

    Args:
        item: (U, K) int64 dense ids, best first; NONE where too few items remain.
        score: (U, K) float32; stars or logits, as the model says.
        source: (U,) int8 index into SOURCES.
    """

    item: NDArray[np.int64]
    score: NDArray[np.float32]
    source: NDArray[np.int8]


class Ranker:
    """Ranks all items for users: known ones, folded-in ones, and those nobody knows.

    Args:
        model: A trained model.
        objective: Folds in; None for baselines, which rank the unknown by popularity.
        history: What users have rated; those from model.users on were not in training.
        noise: Variance of a rating around its prediction, for folding in.
        bias_only: Predicts where the model cannot; fitted on the history by default. A worker that
            holds a part of the history gives the one of the whole.
        popularity: (items,) how often each item was rated; from the history by default.
    """

    def __init__(
        self,
        model: Model,
        objective: Objective | None,
        history: History,
        noise: float = 1.0,
        bias_only: BiasOnly | None = None,
        popularity: Tensor | None = None,
    ) -> None:
        self.model = model.eval()
        self.objective, self.history, self.noise = objective, history, noise
        if bias_only is not None:
            self.bias_only = bias_only
        if popularity is not None:
            self.popularity = popularity

    @cached_property
    def popularity(self) -> Tensor:
        """(items,) float32 ratings of each item by the users that training knows."""
        users = min(self.model.users, len(self.history.begins) - 1)
        statistics = statistics_of_history(self.history, users, self.model.items)
        return statistics.item_count.float()

    @cached_property
    def bias_only(self) -> BiasOnly:
        """Predicts where the model cannot: a pair with an unknown side."""
        return fit_bias_only(self.history, self.model.users, self.model.items)

    @cached_property
    def _folding(self) -> FoldIn:
        if self.objective is None:
            raise ValueError("a ranker without an objective cannot fold in")
        return self.objective.fold_in_solver(self.model, self.noise, self.popularity)

    @torch.no_grad()
    def states(self, users: NDArray[np.int64]) -> tuple[Tensor, NDArray[np.int8]]:
        """(U, S) states of users, and where each comes from."""
        known = users < self.model.users
        state = self.model.user_state(torch.from_numpy(np.where(known, users, 0)))
        source = np.where(known, 0, 2).astype(np.int8)
        if self.objective is not None and not known.all():
            rated = self.history.begins[users] < self.history.begins[users + 1]
            new = np.flatnonzero(~known & rated)
            if len(new):
                state[torch.from_numpy(new)] = self._folding(self.history.of_users(users[new]))
                source[new] = 1
        return state, source

    @torch.no_grad()
    def states_of(self, rated: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, NDArray[np.int8]]:
        """The same of people from their ratings: (N,) items, each once, and (N,) stars of each."""
        state = self.model.user_state(torch.zeros(len(rated), dtype=torch.int64))
        source = np.full(len(rated), 2, np.int8)
        new = [row for row, (item, _) in enumerate(rated) if len(item)]
        if new:
            state[new] = self._folding(RatingsCSR.of([rated[row] for row in new]))
            source[new] = 1
        return state, source

    def fold_in(self, item: Tensor, rating: Tensor) -> Tensor:
        """(1, S) state of somebody with these ratings: (N,) items, each once, and (N,) stars."""
        return self.states_of([(item, rating)])[0]

    @torch.no_grad()
    def scores(self, state: Tensor, source: NDArray[np.int8]) -> Tensor:
        """(U, I) scores; popularity where nothing is known of a user."""
        scores = self.model.score(state)
        if (source == 2).any():
            scores[torch.from_numpy(source == 2)] = self.popularity
        return scores

    @torch.no_grad()
    def rank(self, users: NDArray[np.int64], k: int, exclude_seen: bool = True) -> Ranked:
        """The k best items of each user, by blocks of items, whose lists are merged.

        Args:
            users: (U,) int64 dense ids.
            k: Length of the lists; cut to the number of items.
            exclude_seen: Leave out what the user has rated.
        """
        state, source = self.states(users)
        seen = self.history.cells(users) if exclude_seen else None
        items = self.model.items
        blocks = [
            self._rank_block(state, source, seen, first, min(first + ITEM_BLOCK, items), k)
            for first in range(0, items, ITEM_BLOCK)
        ]
        item, best = (torch.cat(parts, dim=1) for parts in zip(*blocks, strict=True))
        if len(blocks) > 1:
            item, best = best_of(best, min(k, items), item)
        item = item.masked_fill(torch.isneginf(best), NONE)
        return Ranked(item.numpy(), best.numpy(), source)

    def _rank_block(
        self,
        state: Tensor,
        source: NDArray[np.int8],
        seen: tuple[Tensor, Tensor] | None,
        first: int,
        last: int,
        k: int,
    ) -> tuple[Tensor, Tensor]:
        """The k best of the items first..last-1: (U, K) ids and (U, K) scores."""
        scores = self.model.score_items(state, first, last)
        if (source == 2).any():
            scores[torch.from_numpy(source == 2)] = self.popularity[first:last]
        if seen is not None:
            row, item = seen
            if last - first < self.model.items:
                own = (item >= first) & (item < last)
                row, item = row[own], item[own] - first
            scores[row, item] = -torch.inf
        item, best = best_of(scores, min(k, last - first))
        return item + first, best

    def rank_among(self, users: NDArray[np.int64], row: Tensor, item: Tensor, k: int) -> Ranked:
        """The k best of chosen items for each user, rated or not.

        Args:
            users: (U,) int64 dense ids.
            row: (C,) place in `users` of each candidate.
            item: (C,) dense ids; those that training does not know are left out.
            k: Length of the lists; cut to the number of items.
        """
        state, source = self.states(users)
        scores = self.scores(state, source)
        known = item < self.model.items
        cells = row[known], item[known]
        among = torch.full_like(scores, -torch.inf)
        among[cells] = scores[cells]
        best_items, best = top_k(among, min(k, self.model.items))
        return Ranked(best_items.numpy(), best.numpy(), source)

    @torch.no_grad()
    def predict(self, user: NDArray[np.int64], item: NDArray[np.int64]) -> NDArray[np.float32]:
        """Predicted stars of pairs; a pair with an unknown side gets mean and known biases.

        Raises:
            RecrayError: The model ranks and does not predict stars.
        """
        if self.model.score_type != "rating":
            raise RecrayError(
                "this model ranks and does not predict stars; rmse and mae need a rating model"
            )
        stars = np.full(len(user), np.nan, np.float32)
        known_item = item < self.model.items
        warm = known_item & (user < self.model.users)
        u, i = (torch.from_numpy(ids[warm].astype(np.int64)) for ids in (user, item))
        stars[warm] = self.model(u, i).numpy()
        cold = np.flatnonzero(known_item & ~warm)
        new, place = np.unique(user[cold], return_inverse=True)
        state, source = self.states(new)
        cold, place = cold[source[place] == 1], place[source[place] == 1]
        raw = self.model.logits(state[torch.from_numpy(place)], torch.from_numpy(item[cold]).long())
        stars[cold] = self.model.activation(raw).numpy()
        rest = np.isnan(stars)
        if rest.any():
            stars[rest] = self.baseline_stars(user[rest], item[rest])
        return stars

    def baseline_stars(
        self, user: NDArray[np.int64], item: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Mean and known biases of pairs: (B,) and (B,) dense ids to (B,) stars."""
        base = self.bias_only
        user_bias = np.append(base.user_bias.numpy(), 0.0)[np.minimum(user, base.users)]
        item_bias = np.append(base.item_bias.numpy(), 0.0)[np.minimum(item, base.items)]
        return (float(base.mean) + user_bias + item_bias).astype(np.float32)


def fit_bias_only(history: History, users: int, items: int) -> BiasOnly:
    """The bias-only baseline on all ratings of users that training knows."""
    model = BiasOnly(users, items)
    users = min(users, len(history.begins) - 1)
    model.init_from_statistics(statistics_of_history(history, users, items))
    end = int(history.begins[users])
    user = np.repeat(np.arange(users), np.diff(history.begins[: users + 1]))
    columns = (user, history.item[:end].astype(np.int64), history.rating[:end].copy())
    model.fit_users(*(torch.from_numpy(column) for column in columns))
    return model
