"""Scores all items for users and keeps the best ones, for lists and for evaluation alike."""

# Shape letters: U = users, I = items, K = length of a list, S = length of a user embedding,
# C = candidates, G = groups of items.

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recray.errors import RecrayError
from recray.inference.history import History, UserRatings
from recray.models.base import ITEM_BLOCK, LinearModel, Model
from recray.models.baselines import BiasOnly
from recray.models.objectives import FoldIn, Objective, RatingsCSR

SOURCES = ("model", "fold_in", "popular")
MODEL, FOLD_IN, POPULAR = range(len(SOURCES))
NONE = -1
"""Item id of an empty place in a list."""
ONE_USER_ITEM_BLOCK = 1 << 16
"""Items that are scored at once for a single user; ITEM_BLOCK of them for several."""
GROUP_ITEMS = 32
ID_BITS = 32
LAST_ID = (1 << 31) - 1


@dataclass(frozen=True)
class Queries:
    """Users who want a list, as the model sees them.

    Args:
        embedding: (U, S) user embeddings.
        source: (U,) int8 index into SOURCES: where each embedding comes from.
        rated: What each user has rated, in the same order.
    """

    embedding: Tensor
    source: NDArray[np.int8]
    rated: RatingsCSR

    def __len__(self) -> int:
        return len(self.source)

    def seen_cells(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Row and item of each rating; in numpy, whose small steps are faster than torch's."""
        item = self.rated.item.numpy()
        if len(self) == 1:
            return np.zeros(len(item), np.int64), item
        return np.repeat(np.arange(len(self)), np.diff(self.rated.indptr.numpy())), item

    def __getitem__(self, rows: slice) -> "Queries":
        first, last, _ = rows.indices(len(self))
        indptr = self.rated.indptr[first : last + 1]
        cells = slice(int(indptr[0]), int(indptr[-1]))
        rated = RatingsCSR(indptr - indptr[0], self.rated.item[cells], self.rated.rating[cells])
        return Queries(self.embedding[rows], self.source[rows], rated)


@dataclass(frozen=True)
class TopK:
    """Lists of several users.

    Args:
        item: (U, K) int64 dense ids, best first; NONE where too few items remain.
        score: (U, K) float32; ratings or logits, as the model says.
        source: (U,) int8 index into SOURCES.
    """

    item: NDArray[np.int64]
    score: NDArray[np.float32]
    source: NDArray[np.int8]


class Scorer:
    """Scores all items for users: trained ones, folded-in ones, and those without any rating.

    Args:
        model: A trained model.
        objective: Folds users in; None for baselines, which give the others popular items.
        history: What users have rated; users from model.users on were not in training.
        noise: Variance of a rating around its prediction, for folding in.
        bias_only: Predicts where the model cannot; fitted on the history by default. A worker
            that holds a part of the history passes the one of the whole.
        popularity: (I,) number of ratings of each item; from the history by default.
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
        """(I,) float32 ratings of each item by the users that training knows."""
        return self.history.statistics(self.model.users, self.model.items).item_count.float()

    @cached_property
    def bias_only(self) -> BiasOnly:
        """The baseline that predicts a pair with a side that training does not know."""
        return self.history.bias_only(self.model.users, self.model.items)

    @cached_property
    def _item_matrix(self) -> tuple[Tensor, Tensor] | None:
        """(I, S) rows and (I,) offsets of a linear model, kept since single users come often."""
        if not isinstance(self.model, LinearModel):
            return None
        every = slice(0, self.model.items)
        return self.model.item_rows(every).detach(), self.model.item_offset(every).detach()

    @cached_property
    def _fold_in(self) -> FoldIn:
        if self.objective is None:
            raise ValueError("a scorer without an objective cannot fold in")
        return self.objective.fold_in_solver(self.model, self.noise, self.popularity)

    @torch.no_grad()
    def user_embeddings(self, users: NDArray[np.int64]) -> tuple[Tensor, NDArray[np.int8]]:
        """(U, S) embeddings of users of the data set, and (U,) where each comes from."""
        trained = users < self.model.users
        if trained.all():
            return self.model.user_state(torch.from_numpy(users)), np.zeros(len(users), np.int8)
        embedding = self.model.user_state(torch.from_numpy(np.where(trained, users, 0)))
        source = np.where(trained, MODEL, POPULAR).astype(np.int8)
        indptr = self.history.indptr
        new = np.flatnonzero(~trained & (indptr[users] < indptr[users + 1]))
        if self.objective is not None and len(new):
            embedding[torch.from_numpy(new)] = self._fold_in(self.history.of_users(users[new]))
            source[new] = FOLD_IN
        return embedding, source

    def queries(self, users: NDArray[np.int64]) -> Queries:
        """Make queries of (U,) dense ids of the data set."""
        return Queries(*self.user_embeddings(users), self.history.of_users(users))

    @torch.no_grad()
    def queries_of_ratings(self, rated: Sequence[UserRatings]) -> Queries:
        """Make queries of the ratings of users, one at least, who were not in training."""
        embedding = self.model.user_state(torch.zeros(len(rated), dtype=torch.int64))
        source = np.full(len(rated), POPULAR, np.int8)
        new = [row for row, (item, _) in enumerate(rated) if len(item)]
        if new:
            embedding[new] = self._fold_in(RatingsCSR.of([rated[row] for row in new]))
            source[new] = FOLD_IN
        return Queries(embedding, source, RatingsCSR.of(rated))

    @torch.no_grad()
    def top_k(
        self,
        queries: Queries,
        k: int,
        exclude_seen: bool = True,
        candidates: Tensor | None = None,
    ) -> TopK:
        """The k best items of each user, by score, then by ascending item id.

        Args:
            queries: U users.
            k: Length of the lists; cut to the number of items.
            exclude_seen: Leave out what the user has rated.
            candidates: (I,) or (U, I) bool; only these items may be listed. None allows all.
        """
        seen = queries.seen_cells() if exclude_seen else None
        # All scores of a large catalogue would not fit the cache, nor perhaps the memory; so
        # blocks of items are cut to their best one by one, and those lists are merged.
        blocks = [
            self._best_of_block(queries, seen, candidates, first, last, k)
            for first, last in self._blocks(len(queries))
        ]
        item, best = blocks[0]
        if len(blocks) > 1:
            item, best = (torch.cat(parts, dim=1) for parts in zip(*blocks, strict=True))
            item, best = best_of(best, min(k, self.model.items), item)
        return TopK(*_without_masked(item, best), queries.source)

    def _blocks(self, users: int) -> list[tuple[int, int]]:
        items, size = self.model.items, ITEM_BLOCK if users > 1 else ONE_USER_ITEM_BLOCK
        return [(n, min(n + size, items)) for n in range(0, items, size)]

    def _best_of_block(
        self,
        queries: Queries,
        seen: tuple[NDArray[np.int64], NDArray[np.int64]] | None,
        candidates: Tensor | None,
        first: int,
        last: int,
        k: int,
    ) -> tuple[Tensor, Tensor]:
        """The k best of the items first..last-1: (U, K) ids and (U, K) scores."""
        scores = self._score_block(queries, first, last)
        if seen is not None:
            row, item = seen
            if last - first < self.model.items:
                inside = (item >= first) & (item < last)
                row, item = row[inside], item[inside] - first
            scores.numpy()[row, item] = -np.inf
        if candidates is not None:
            scores.masked_fill_(~candidates[..., first:last], -torch.inf)
        chosen, best = best_of(scores, min(k, last - first))
        return chosen + first if first else chosen, best

    def _score_block(self, queries: Queries, first: int, last: int) -> Tensor:
        if len(queries) == 1 and last - first == self.model.items and self._item_matrix:
            rows, offset = self._item_matrix
            raw = torch.addmv(offset, rows, queries.embedding[0])
            scores = self.model.activation(raw)[None, :]
        else:
            scores = self.model.score_items(queries.embedding, first, last)
        popular = queries.source == POPULAR
        if popular.any():
            scores[torch.from_numpy(popular)] = self.popularity[first:last]
        return scores

    @torch.no_grad()
    def scores(self, queries: Queries) -> Tensor:
        """(U, I) scores of all items; popularity where nothing is known of a user."""
        blocks = self._blocks(len(queries))
        return torch.cat([self._score_block(queries, *block) for block in blocks], dim=1)

    def rank(self, users: NDArray[np.int64], k: int, exclude_seen: bool = True) -> TopK:
        """The k best items of (U,) users of the data set; see top_k."""
        return self.top_k(self.queries(users), k, exclude_seen)

    def rank_candidates(self, users: NDArray[np.int64], row: Tensor, item: Tensor, k: int) -> TopK:
        """The k best of chosen items for each user, rated or not.

        Args:
            users: (U,) int64 dense ids.
            row: (C,) place in `users` of each candidate.
            item: (C,) dense ids; those that training does not know are left out.
            k: Length of the lists; cut to the number of items.
        """
        known = item < self.model.items
        candidates = torch.zeros(len(users), self.model.items, dtype=torch.bool)
        candidates[row[known], item[known]] = True
        return self.top_k(self.queries(users), k, False, candidates)

    @torch.no_grad()
    def predict(self, user: NDArray[np.int64], item: NDArray[np.int64]) -> NDArray[np.float32]:
        """Predict the ratings of pairs; a pair with an unknown side gets mean and known biases.

        Raises:
            RecrayError: The model ranks and does not predict ratings.
        """
        if self.model.score_type != "rating":
            raise RecrayError(
                "this model ranks and does not predict stars; rmse and mae need a rating model"
            )
        rating = np.full(len(user), np.nan, np.float32)
        known_item = item < self.model.items
        warm = known_item & (user < self.model.users)
        u, i = (torch.from_numpy(ids[warm].astype(np.int64)) for ids in (user, item))
        rating[warm] = self.model(u, i).numpy()
        cold = np.flatnonzero(known_item & ~warm)
        new, place = np.unique(user[cold], return_inverse=True)
        embedding, source = self.user_embeddings(new)
        folded = source[place] == FOLD_IN
        cold, place = cold[folded], place[folded]
        chosen = embedding[torch.from_numpy(place)], torch.from_numpy(item[cold]).long()
        rating[cold] = self.model.activation(self.model.logits(*chosen)).numpy()
        rest = np.isnan(rating)
        if rest.any():
            rating[rest] = self.bias_prediction(user[rest], item[rest])
        return rating

    def bias_prediction(
        self, user: NDArray[np.int64], item: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Mean and known biases of pairs: (B,) and (B,) dense ids to (B,) ratings."""
        base = self.bias_only
        user_bias = np.append(base.user_bias.numpy(), 0.0)[np.minimum(user, base.users)]
        item_bias = np.append(base.item_bias.numpy(), 0.0)[np.minimum(item, base.items)]
        return (float(base.mean) + user_bias + item_bias).astype(np.float32)


def top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best items of each user, by score, then by ascending item id.

    Args:
        scores: (U, I) float32 scores; -inf marks items that must not appear.
        k: Length of the lists, 1 <= k <= I.

    Returns:
        (U, K) int64 items, NONE where too few remain, and (U, K) their scores.
    """
    item, best = _without_masked(*best_of(scores, k))
    return torch.from_numpy(item), torch.from_numpy(best)


def _without_masked(item: Tensor, best: Tensor) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    items, scores = item.numpy(), best.numpy()
    items[scores == -np.inf] = NONE
    return items, scores


def best_of(scores: Tensor, k: int, item: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """top_k whose lists keep the ids of items at -inf, so that lists can be merged.

    Args:
        scores: (U, I) float32 scores.
        k: Length of the lists, 1 <= k <= I.
        item: (U, I) or (I,) int64 ids of the columns, distinct in a row; 0..I-1 by default.

    Returns:
        (U, K) int64 items and (U, K) scores.
    """
    if item is None:
        if len(scores) == 1:
            return _best_of_one(scores, k)
        if scores.shape[1] >= 4 * GROUP_ITEMS * k:
            return _best_of_groups(scores, k)
        item = torch.arange(scores.shape[1])
    place = torch.topk(_sort_keys(scores, item), k, dim=1)[1]
    return item.expand(scores.shape).gather(1, place), scores.gather(1, place)


def _sort_keys(scores: Tensor, item: Tensor) -> Tensor:
    """int64 numbers whose order is that of scores, and where they are equal of descending ids."""
    bits = (scores + 0.0).view(torch.int32)  # + 0.0, since -0.0 equals 0.0 but has other bits
    ordered = bits ^ ((bits >> 31) & LAST_ID)  # floats below 0 have their bits the other way round
    return (ordered.long() << ID_BITS) | (LAST_ID - item)


def _best_of_one(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Cut one row at its k-th best score; in numpy, as in seen_cells."""
    score_I = scores.numpy()[0]
    ordered = score_I.copy()
    ordered.partition(-k)
    item = (score_I >= ordered[-k]).nonzero()[0]  # ascending, with all that tie with the k-th
    place = (-score_I[item]).argsort(kind="stable")[:k]
    chosen = item[place][None, :]
    return torch.from_numpy(chosen), torch.from_numpy(score_I[chosen])


def _best_of_groups(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Look only into the k groups of neighbouring items that have the highest maxima.

    Each of them has an item that is no worse than all that is in other groups; where maxima are
    equal the earlier groups are taken, whose ids are lower. So no other group can be needed.
    """
    users, items = scores.shape
    groups = items // GROUP_ITEMS
    whole = groups * GROUP_ITEMS
    highest = scores[:, :whole].unflatten(1, (groups, GROUP_ITEMS)).amax(dim=2)
    chosen = torch.topk(_sort_keys(highest, torch.arange(groups)), k, dim=1)[1]
    inside = (chosen[:, :, None] * GROUP_ITEMS + torch.arange(GROUP_ITEMS)).flatten(1)
    rest = torch.arange(whole, items).expand(users, -1)
    item = torch.cat([inside, rest], dim=1)
    return best_of(scores.gather(1, item), k, item)
