"""Lists from one bundle, for users of its data set and for others: raw ids in, titles out."""

# Shape letters: U = users, K = length of a list.

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch

from recray.data.ids import RawId
from recray.errors import RecrayError
from recray.inference.catalog import NO_FILTERS, Filters
from recray.inference.costs import Costs
from recray.inference.lookup import Lookup
from recray.inference.queries import MODEL, POPULAR, SOURCES, Queries
from recray.inference.raw_ratings import (
    KnownOfUser,
    RatingsSince,
    RawRating,
    RawRatings,
    refuse_later,
)
from recray.inference.recommendations import (
    Explainer,
    Explanation,
    ItemSimilarity,
    Recommendations,
    mmr_pool,
    mmr_rerank,
)
from recray.inference.top_k import NONE, Ids, Scores, TopK, top_k
from recray.models.base import ITEM_BLOCK
from recray.models.history import HistoryModel
from recray.models.objectives import Preference

SCORES_AT_ONCE = 1 << 21
"""Scores that one block of users may have, so that they stay in the processor's cache: 8 MB."""
SCORE_DIGITS = 6
DEFAULT_K = 10
"""Length of a list, in a catalogue that is not smaller."""


class UnknownUser(RecrayError):
    """No split has this user."""


class Recommender(Lookup):
    """Makes lists from one bundle, in raw ids.

    Args:
        bundle: An opened bundle.
    """

    @cached_property
    def costs(self) -> Costs:
        """What lists of this model cost, measured the first time that it is asked."""
        return Costs.measured(self)

    @cached_property
    def _similarity(self) -> ItemSimilarity | None:
        return ItemSimilarity.of(self.bundle.model)

    def similarity(self) -> ItemSimilarity:
        """The cosines of the items.

        Raises:
            RecrayError: The model has no item vectors.
        """
        if self._similarity is None:
            raise RecrayError(f"a {type(self.bundle.model).__name__} model has no item vectors")
        return self._similarity

    @cached_property
    def _explainer(self) -> Explainer:
        settings, scale = self.bundle.settings.objective, self.bundle.rating_range
        preference = Preference.for_reasons(settings, *scale)
        return Explainer(self.scorer, self._similarity, self.catalog, preference)

    # ------------------------------------------------------------------------------ lists

    def recommend(
        self,
        user: RawId,
        k: int | None = None,
        exclude_seen: bool = True,
        filters: Filters = NO_FILTERS,
        since: RawRatings | None = None,
        now: int | None = None,
    ) -> Recommendations:
        """The k best items for a user of the data set, or one with ratings since.

        Args:
            user: Raw user id.
            k: 1..number of items; the list is shorter where fewer remain. See check_k for None.
            exclude_seen: Leave out everything that the user is known to have rated.
            filters: Which items the list may hold, and how it is arranged.
            since: What the user has rated since training, in order; items unknown to it are
                passed over.
            now: When the list is asked for, in seconds since 1970, for a model that reads times;
                None: when the user's last rating came.

        Raises:
            KeyError: No split has this user, and there are no ratings since.
            RecrayError: k is out of range, there is no such genre, or now is before a rating.
        """
        k = self.check_k(k)
        known = self._with_new_ratings(user, since) if since else None
        if known is not None:
            refuse_later(known.rated, now)
            queries = self._queries_of([known], now)
        elif (dense := self.users.encode_one(user)) != NONE:
            self._refuse_later_than(dense, now)
            queries = self._queries_of_users([dense], now)
        else:
            raise KeyError(user)
        return self._lists(queries, k, exclude_seen, filters)[0]

    def recommend_from(
        self,
        ratings: RawRatings,
        k: int | None = None,
        exclude_seen: bool = True,
        filters: Filters = NO_FILTERS,
        now: int | None = None,
    ) -> Recommendations:
        """The k best items for a user who was not in training.

        Args:
            ratings: What the user has done, by raw item ids. They are put in the order of their
                times, and stay in the order given where they have none. Of several for one item
                the last counts; those of items that training does not know are skipped.
            k: 1..number of items; the list is shorter where fewer remain. See check_k for None.
            exclude_seen: Leave out the rated items.
            filters: Which items the list may hold, and how it is arranged.
            now: When the list is asked for; see recommend.

        Raises:
            RecrayError: A rating is off the scale, only some have a time or one is after now, k is
                out of range, or there is no such genre.
        """
        k = self.check_k(k)
        known = self._posted(ratings, now)
        (answer,) = self._lists(self._queries_of([known], now), k, exclude_seen, filters)
        return replace(answer, skipped=known.skipped)

    def recommend_many(
        self,
        users: Sequence[RawId | RawRatings],
        k: int | None = None,
        exclude_seen: bool = True,
        filters: Filters = NO_FILTERS,
        since: RatingsSince | None = None,
        now: int | None = None,
    ) -> list[Recommendations | RecrayError]:
        """The lists of many users, scored together; the same as one by one.

        Args:
            users: Raw user ids, and ratings of users who were not in training.
            k: 1..number of items; a list is shorter where fewer remain. See check_k for None.
            exclude_seen: Leave out what each has rated.
            filters: Which items the lists may hold, and how they are arranged.
            since: Gives what a user has rated since training.
            now: When the lists are asked for; see recommend.

        Returns:
            For each a list, or why there is none.

        Raises:
            RecrayError: k is out of range, or there is no such genre.
        """
        k = self.check_k(k)
        dense = iter(self._dense_of([u for u in users if not isinstance(u, list)]))
        found = dict(enumerate(self._dense_or_known(user, dense, since, now) for user in users))
        answers: dict[int, Recommendations | RecrayError] = {}
        answers |= {row: error for row, error in found.items() if isinstance(error, RecrayError)}
        stored = {row: user for row, user in found.items() if isinstance(user, int)}
        folded = {row: user for row, user in found.items() if isinstance(user, KnownOfUser)}
        queries = self._queries_of_users(list(stored.values()), now)
        lists = self._lists(queries, k, exclude_seen, filters)
        if folded:
            known = list(folded.values())
            made = self._lists(self._queries_of(known, now), k, exclude_seen, filters)
            lists += [replace(m, skipped=u.skipped) for m, u in zip(made, known, strict=True)]
        answers.update(zip([*stored, *folded], lists, strict=True))
        return [answers[row] for row in range(len(users))]

    def similar(
        self, item: RawId, k: int | None = None, filters: Filters = NO_FILTERS
    ) -> Recommendations:
        """The k items whose vectors point most nearly the same way (cosine).

        A model of histories without item vectors gives the list after this item alone: what comes
        next, or goes with it.

        Raises:
            KeyError: The model was not trained on this item.
            RecrayError: The model has no item vectors, k is out of range, or no such genre.
        """
        k, dense = self.check_k(k), self.items.encode_one(item)
        if not 0 <= dense < self.items.known:
            raise KeyError(item)
        if self._similarity is None and isinstance(self.bundle.model, HistoryModel):
            alone = self._posted([RawRating(item)], None)
            return self._lists(self._queries_of([alone], None), k, True, filters)[0]
        scores = self.similarity().cosines(dense)[None, :].numpy()
        scores[0, dense] = -np.inf
        mask = self.catalog.candidate_mask(filters)
        if mask is not None:
            scores[0, ~mask.numpy()] = -np.inf
        ranked = TopK(*top_k(scores, k), np.array([MODEL], np.int8))
        (cut,) = self._cut(ranked, ranked.score, k, 0.0)
        return Recommendations(*cut, SOURCES[MODEL], self.version, self.catalog)

    def at_most(self, k: int) -> int:
        """Cut a length of lists to the size of the catalogue."""
        return min(k, self.items.known)

    def check_k(self, k: int | None) -> int:
        """The length of a list: DEFAULT_K, or the whole of a smaller catalogue, if nobody asked.

        Raises:
            RecrayError: k is asked for and out of range.
        """
        if k is None:
            return self.at_most(DEFAULT_K)
        if not 1 <= k <= self.items.known:
            raise RecrayError(
                f"k={k} is out of range: 1 to {self.items.known}, the catalogue's size"
            )
        return k

    # ------------------------------------------------------------------ from scores to lists

    def _lists(
        self, queries: Queries, k: int, exclude_seen: bool, filters: Filters
    ) -> list[Recommendations]:
        """Score, mask, cut, re-rank, explain: every list for users is made here."""
        mask = None if filters is NO_FILTERS else self.catalog.candidate_mask(filters)
        block = max(1, SCORES_AT_ONCE // min(self.items.known, ITEM_BLOCK))
        pool = mmr_pool(k, self.items.known, filters.diversity)
        lists: list[Recommendations] = []
        for first in range(0, len(queries), block):
            part = queries[first : first + block] if len(queries) > block else queries
            ranked = self.scorer.top_k(part, pool, exclude_seen, mask)
            shown = self.scorer.shown_scores(ranked)
            for row, cut in enumerate(self._cut(ranked, shown, k, filters.diversity)):
                why = self._explain(part, row, cut[0]) if filters.explain else None
                source = SOURCES[part.source[row]]
                lists.append(Recommendations(*cut, source, self.version, self.catalog, why))
        return lists

    def _cut(
        self, ranked: TopK, shown: Scores, k: int, diversity: float
    ) -> Iterator[tuple[list[int], list[float]]]:
        """Items and rounded shown scores of each list, without empty places; re-ranked for
        diversity by the scores before they were cut to the scale.
        """
        scores = shown.astype(np.float64).round(SCORE_DIGITS)
        rows = zip(ranked.item.tolist(), scores.tolist(), strict=True)
        for row, (item, score) in enumerate(rows):
            length = item.index(NONE) if NONE in item else len(item)
            if not diversity:
                yield item[:length], score[:length]
                continue
            unit = self.similarity().unit_vectors(torch.tensor(item[:length], dtype=torch.int64))
            order = mmr_rerank(unit, ranked.score[row, :length], k, diversity)
            yield [item[place] for place in order], [score[place] for place in order]

    def _explain(self, queries: Queries, row: int, listed: list[int]) -> list[Explanation]:
        query = queries[row : row + 1]
        rated = query.rated.of_user(0)
        if query.source[0] == POPULAR:  # such a list follows from nothing that the user has rated
            rated = rated.at(torch.arange(0))
        return self._explainer.explain(query, rated, listed)

    # --------------------------------------------------------------------------- raw ratings

    def _queries_of_users(self, dense: list[int], now: int | None) -> Queries:
        """Queries of users of the data set."""
        users = np.array(dense, np.int64)
        return self.scorer.queries(users, self._asked(len(users), now))

    def _queries_of(self, known: list[KnownOfUser], now: int | None) -> Queries:
        """Queries of users who are folded in, one at least."""
        rated, seen = [user.rated for user in known], [user.seen for user in known]
        return self.scorer.queries_of_ratings(rated, seen, self._asked(len(known), now))

    def _asked(self, users: int, now: int | None) -> Ids | None:
        """When each of the lists is asked for, as a model that reads times takes it."""
        return None if now is None or not self.reads_times else np.full(users, now, np.int64)

    def _refuse_later_than(self, dense: int, now: int | None) -> None:
        if now is not None:
            refuse_later(self.scorer.history.of_user(dense), now)

    def _dense_of(self, users: Sequence[RawId]) -> list[int | RecrayError]:
        """The dense id of each user, NONE if there is none, or why its file cannot be read."""
        with suppress(RecrayError):
            return list(self.users.encode_all(users).tolist())
        found: list[int | RecrayError] = []
        for user in users:
            try:
                found.append(self.users.encode_one(user))
            except RecrayError as error:
                found.append(error)
        return found

    def _dense_or_known(
        self,
        user: RawId | RawRatings,
        dense: Iterator[int | RecrayError],
        since: RatingsSince | None,
        now: int | None,
    ) -> int | KnownOfUser | RecrayError:
        """A dense id, or ratings to fold in: those passed, or a user's with new ones; or an error.

        The next of the dense ids is that of the user, unless there are ratings in place of one.
        """
        try:
            if isinstance(user, list):
                return self._posted(user, now)
            place, new = next(dense), since(user) if since is not None else None
            if isinstance(place, RecrayError):
                return place
            known = self._with_new_ratings(user, new) if new else None
            if known is not None:
                refuse_later(known.rated, now)
            elif place != NONE:
                self._refuse_later_than(place, now)
        except RecrayError as error:
            return error
        if known is not None:
            return known
        return UnknownUser(self.no_user(user)) if place == NONE else place

    def _with_new_ratings(self, user: RawId, since: RawRatings) -> KnownOfUser | None:
        """What is known of a user with the ratings since; None if nothing of them is new."""
        known = self._known_of_user(user, since)
        return known if known.changed or self.users.encode_one(user) == NONE else None
