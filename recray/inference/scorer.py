"""Scores of all items for users, for lists and for evaluation alike."""

# Shape letters: U = users, I = items, K = length of a list, S = embedding size, C = candidates,
# B = pairs.

from collections.abc import Sequence
from functools import cached_property, partial
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recray.errors import RecrayError
from recray.inference.bundle import Bundle
from recray.inference.exact_lists import exact_top_k
from recray.inference.history import History, UserHistories, UserRatings, in_memory
from recray.inference.indexed_lists import POPULAR_ITEMS, indexed_top_k
from recray.inference.interactions import Histories
from recray.inference.item_index import ItemIndex
from recray.inference.queries import FOLD_IN, MODEL, POPULAR, Queries
from recray.inference.top_k import NONE, Ids, Scores, TopK, best_of_one
from recray.models.base import ITEM_BLOCK, LinearModel, Model
from recray.models.baselines import BiasOnly
from recray.models.history import HistoryModel
from recray.models.objectives import Contributions, FoldIn, FoldInConfig, Objective


class Scorer:
    """Scores all items for users: trained ones, folded-in ones, and those without any rating.

    Args:
        model: A trained model.
        objective: Folds users in; None for baselines, which give the others popular items.
        history: The ratings that scores follow from; users from model.users on were not in
            training.
        fold_in: Noise and prior of folding in.
        bias_only: Predicts where the model cannot; fitted on the history by default. A worker
            that holds a part of the history passes the one of the whole.
        popularity: (I,) number of ratings of each item; from the history by default.
        seen: What lists leave out; the history by default.
        rating_range: Lowest and highest rating, which no predicted one leaves; those of the
            history by default.
        learned: What the model has learned from; the history by default. A state that is a
            function of the history may follow from more.
    """

    index: ItemIndex | None = None
    """Of the items of a large catalogue, where lists may be approximate."""

    def __init__(
        self,
        model: Model,
        objective: Objective | None,
        history: UserHistories,
        fold_in: FoldInConfig = FoldInConfig(),  # noqa: B008 (frozen)
        bias_only: BiasOnly | None = None,
        popularity: Tensor | None = None,
        seen: UserHistories | None = None,
        rating_range: tuple[float, float] | None = None,
        learned: UserHistories | None = None,
    ) -> None:
        self.model = model.eval()
        self.objective, self.history, self.fold_in = objective, history, fold_in
        self.seen = history if seen is None else seen
        self.learned = history if learned is None else learned
        if bias_only is not None:
            self.bias_only = bias_only
        if popularity is not None:
            self.popularity = self.trained_popularity = popularity
        if rating_range is not None:
            self.rating_range = rating_range

    @classmethod
    def for_service(cls, bundle: Bundle) -> Self:
        """The scorer of what users get: its lists leave out everything that is known of them."""
        if bundle.stored is None:
            return cls._of(bundle, bundle.interactions.for_service(bundle.model))
        fit_on, facts = bundle.settings.train.fit_on, bundle.stored.facts
        scorer = cls._of(bundle, bundle.stored.histories(bundle.model, fit_on))
        scorer.popularity, scorer.trained_popularity = facts.popularity, facts.trained_popularity
        scorer.bias_only = bundle.stored.biases(scorer.learned)
        return scorer

    @classmethod
    def for_measurement(cls, bundle: Bundle, all_users: int = 0) -> Self:
        """The scorer that does not know the test rows, and so ranks them.

        Args:
            bundle: An opened bundle.
            all_users: Users that may be measured, if more than the bundle has ids for.
        """
        return cls._of(bundle, bundle.interactions.for_measurement(bundle.model, all_users))

    @classmethod
    def _of(cls, bundle: Bundle, of: Histories) -> Self:
        given = bundle.model, bundle.objective, of.rated, bundle.fold_in
        scale = bundle.rating_range
        return cls(*given, seen=of.seen, rating_range=scale, learned=of.learned)

    @cached_property
    def popularity(self) -> Tensor:
        """(I,) float32 ratings of each item, those by users unknown to training included."""
        return in_memory(self.learned).statistics(self.model.items).item_count.float()

    @cached_property
    def trained_popularity(self) -> Tensor:
        """(I,) float32 ratings of each item by the users that training knows."""
        known = in_memory(self.learned).rows(0, self.model.users)
        return known.statistics(self.model.items).item_count.float()

    @cached_property
    def rating_range(self) -> tuple[float, float]:
        """Lowest and highest rating of the history."""
        known = in_memory(self.learned).statistics(self.model.items)
        return known.low, known.high

    @cached_property
    def bias_only(self) -> BiasOnly:
        """The baseline that predicts a pair with a side that training does not know."""
        users, items = self.model.users, self.model.items
        model, known = BiasOnly(users, items), in_memory(self.learned).rows(0, users)
        model.init_from_statistics(known.statistics(items))
        rated = known.as_csr()
        model.fit_users(torch.from_numpy(known.coo_indices()[0]), rated.item, rated.rating)
        return model

    @cached_property
    def _item_matrix(self) -> tuple[Tensor, Tensor] | None:
        """(I, S) rows and (I,) offsets of a linear model, kept since single users come often."""
        model, every = self.model, slice(None)
        if self.index is not None or not isinstance(model, LinearModel):
            return None  # of so many items a copy of the rows is not kept
        return model.item_rows(every).detach(), model.item_offset(every).detach()

    @cached_property
    def _solver(self) -> FoldIn:
        if self.objective is None:
            raise ValueError("a scorer without an objective cannot fold in")
        return self.objective.fold_in_solver(self.model, self.fold_in, self.trained_popularity)

    def contributions(self) -> Contributions | None:
        """A folded-in state as a sum over ratings; None where the objective has no such sum."""
        if self.objective is None:
            return None
        return self.objective.contributions(self.model, self.fold_in, self.trained_popularity)

    @torch.no_grad()
    def user_embeddings(
        self, users: Ids, now: Ids | None = None
    ) -> tuple[Tensor, NDArray[np.int8]]:
        """(U, S) embeddings of users of the data set, and (U,) where each comes from.

        Args:
            users: (U,) dense ids.
            now: (U,) seconds when each list is asked for, for a model that reads times.
        """
        if isinstance(self.model, HistoryModel):
            return self._states_by_history(self.model, users, self.history.of_users(users), now)
        if max(users.tolist(), default=NONE) < self.model.users:  # one user costs numpy more
            return self.model.user_state(torch.from_numpy(users)), np.zeros(len(users), np.int8)
        trained = users < self.model.users
        embedding = self.model.no_states(len(users))
        embedding[torch.from_numpy(trained)] = self.model.user_state(
            torch.from_numpy(users[trained])
        )
        source = np.where(trained, MODEL, POPULAR).astype(np.int8)
        new = np.flatnonzero(~trained)
        new = new[self.history.counts(users[new]) > 0]
        if self.objective is not None and len(new):
            rated = self.history.of_users(users[new])
            embedding[torch.from_numpy(new)] = self._solver(rated.as_csr())
            source[new] = FOLD_IN
        return embedding, source

    def _states_by_history(
        self, model: HistoryModel, users: Ids, rated: History, now: Ids | None
    ) -> tuple[Tensor, NDArray[np.int8]]:
        known = np.where(users < model.users, MODEL, FOLD_IN)
        source = np.where(np.diff(rated.indptr) > 0, known, POPULAR).astype(np.int8)
        return model.state_of(rated.as_csr(now)), source

    @torch.no_grad()
    def queries(self, users: Ids, now: Ids | None = None) -> Queries:
        """Make queries of (U,) dense ids of the data set; see user_embeddings."""
        if isinstance(self.model, HistoryModel):
            rated = self.history.of_users(users)
            embedding, source = self._states_by_history(self.model, users, rated, now)
            seen = rated if self.seen is self.history else self.seen.of_users(users)
            return Queries(embedding, source, lambda: rated, seen, now)
        embedding, source = self.user_embeddings(users)
        seen = self.seen.of_users(users)
        rated_of = partial(self.history.of_users, users)
        return Queries(embedding, source, rated_of, seen, now)

    @torch.no_grad()
    def queries_of_ratings(
        self,
        rated: Sequence[UserRatings],
        seen: Sequence[UserRatings] | None = None,
        now: Ids | None = None,
    ) -> Queries:
        """Make queries of the ratings of users, one at least, who were not in training.

        Args:
            rated: What is folded in, for each user.
            seen: What each list leaves out; the same by default.
            now: (U,) seconds when each list is asked for, for a model that reads times.
        """
        source = np.full(len(rated), POPULAR, np.int8)
        new = [row for row, user in enumerate(rated) if len(user.item)]
        source[new] = FOLD_IN
        folded = History.join(rated)
        if isinstance(self.model, HistoryModel):
            embedding = self.model.state_of(folded.as_csr(now))
        else:
            embedding = self.model.no_states(len(rated))
            if new:
                embedding[new] = self._solver(folded.of_users(np.array(new)).as_csr())
        left_out = folded if seen is None else History.join(seen)
        return Queries(embedding, source, lambda: folded, left_out, now)

    @cached_property
    def most_popular(self) -> Ids:
        """The items with the most ratings, ascending by id."""
        known = self.popularity[None, :].numpy()
        return np.sort(best_of_one(known, min(POPULAR_ITEMS, self.model.items))[0][0])

    @torch.no_grad()
    def top_k(
        self,
        queries: Queries,
        k: int,
        exclude_seen: bool = True,
        candidates: Tensor | None = None,
    ) -> TopK:
        """The k best items of each user, by score, then by ascending item id; with an index, nearly
        all of them, unless each user has candidates of their own.

        Args:
            queries: U users.
            k: Length of the lists; cut to the number of items.
            exclude_seen: Leave out what the user has seen.
            candidates: (I,) or (U, I) bool; only these items may be listed. None allows all.
        """
        if self.index is None or (candidates is not None and candidates.dim() > 1):
            return exact_top_k(self, queries, k, exclude_seen, candidates)
        k = min(k, self.model.items)
        return indexed_top_k(self, self.index, queries, k, exclude_seen, candidates)

    def blocks(self, users: int) -> list[tuple[int, int]]:
        """First and last item, the latter excluded, of what is scored at once."""
        items = self.model.items
        size = items if users == 1 and self._item_matrix else ITEM_BLOCK
        return [(n, min(n + size, items)) for n in range(0, items, size)]

    def block_scores(self, queries: Queries, first: int, last: int) -> Tensor:
        """(U, last - first) scores of some items; popularity where nothing is known of a user."""
        if len(queries) == 1 and self._item_matrix:
            rows, offset = self._item_matrix
            logits = torch.addmv(offset, rows, queries.embedding[0])
            scores = (logits if self.model.output == "raw" else self.model.activation(logits))[None]
        else:
            scores = self.model.score_items(queries.embedding, first, last)
        if POPULAR in queries.source.tolist():
            popular = torch.from_numpy(queries.source == POPULAR)
            scores[popular] = self.popularity[first:last]
        return scores

    @torch.no_grad()
    def scores(self, queries: Queries) -> Tensor:
        """(U, I) scores of all items; popularity where nothing is known of a user."""
        blocks = [self.block_scores(queries, *block) for block in self.blocks(len(queries))]
        return torch.cat(blocks, dim=1)

    def rank(self, users: Ids, k: int, exclude_seen: bool = True) -> TopK:
        """The k best items of (U,) users of the data set; see top_k."""
        return self.top_k(self.queries(users), k, exclude_seen)

    def rank_candidates(self, users: Ids, row: Tensor, item: Tensor, k: int) -> TopK:
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
    def predict(self, user: Ids, item: Ids) -> Scores:
        """Predict the ratings of pairs, within the scale.

        A pair with an unknown side gets the mean and the known biases.

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
        cold = cold[folded]
        chosen = embedding[torch.from_numpy(place[folded])], torch.from_numpy(item[cold]).long()
        rating[cold] = self.model.activation(self.model.logits(*chosen)).numpy()
        rest = np.isnan(rating)
        if rest.any():
            rating[rest] = self.bias_only.predict(user[rest], item[rest])
        return self.within_scale(rating)

    def within_scale(self, score: Scores) -> Scores:
        """Cut predicted ratings to the scale; the scores of a model that ranks stay as they are."""
        return score.clip(*self.rating_range) if self.model.score_type == "rating" else score

    def shown_scores(self, ranked: TopK) -> Scores:
        """(U, K) scores as lists show them; the order is that of the scores before the cut."""
        if self.model.score_type != "rating":
            return ranked.score
        counts = (ranked.source == POPULAR)[:, None]  # a number of ratings is no rating
        return np.where(counts, ranked.score, self.within_scale(ranked.score))
