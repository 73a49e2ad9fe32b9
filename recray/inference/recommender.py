"""Answers about one bundle, in raw ids and with titles."""

# Shape letter: B = pairs.

from collections import Counter
from collections.abc import Callable, Container, Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np
import torch

from recray.data.dataset import Ratings
from recray.data.ids import RawId
from recray.errors import RecrayError
from recray.inference.bundle import Bundle
from recray.inference.fast_path import Quick
from recray.inference.filters import ANYTHING, Wish
from recray.inference.item_catalog import Items
from recray.inference.recommendations import (
    FOLD_IN,
    MODEL,
    POPULAR,
    Askers,
    Lister,
    Rated,
    Recommendations,
    join,
)
from recray.inference.scorer import NONE, SOURCES, History, Ranker, top_k
from recray.schema import RATINGS

HIGHEST = 10
GivenRatings = list[tuple[RawId, float]]
"""Raw item ids and stars; of several for one item the last counts."""
Since = Callable[[RawId], GivenRatings]
"""Gives what a user has rated since training."""

__all__ = ["GivenRatings", "Recommendations", "Recommender", "UnknownUser"]


class UnknownUser(RecrayError):
    """No split has this user."""


class Recommender:
    """Answers about one bundle, in raw ids.

    Args:
        bundle: An opened bundle.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.users, self.items = bundle.user_ids, bundle.item_ids
        history = History.of(bundle.history, len(self.users), self.items.known)
        ranker = Ranker(bundle.model, bundle.objective, history, bundle.noise)
        # Not through self: a replaced model must be freed at once, not when cycles are looked for.
        self.facts = Items(self.items, bundle.item_table, lambda: ranker.popularity)
        self.ranker, self.lister = ranker, Lister(ranker, self.facts, bundle.version)
        self.quick = Quick(ranker, self.facts, bundle.version)

    @classmethod
    def open(cls, path: str) -> Self:
        """Open a bundle by path or URI, checking every file.

        Raises:
            RecrayError: It is missing, damaged or not a bundle.
        """
        return cls(Bundle.open(path))

    def forget_rows(self) -> None:
        """Let go of the ratings by rows, which only offline work reads: about as much again."""
        none = Ratings.of(RATINGS.empty_table())
        self.bundle = replace(self.bundle, history=none, holdout=none)

    @property
    def version(self) -> str:
        """The bundle's version."""
        return self.bundle.version

    def describe(self, item: int) -> dict[str, Any]:
        """Raw id, title, year and genres of a dense item id; year is None where unknown."""
        return self.facts.describe(item)

    # ------------------------------------------------------------------------------ lists

    def recommend(
        self,
        user: RawId,
        k: int = 10,
        exclude_seen: bool = True,
        wish: Wish = ANYTHING,
        since: GivenRatings | None = None,
    ) -> Recommendations:
        """The k best items for a user of the data set, or one with ratings since.

        Args:
            user: Raw user id.
            k: 1..number of items; fewer come where fewer remain.
            exclude_seen: Leave out what the user has rated.
            wish: What may be in the list, and how it is arranged.
            since: What the user has rated since training; items unknown to it are passed over.

        Raises:
            KeyError: No split has this user, and there are no ratings since.
            RecrayError: k is out of range, or there is no such genre.
        """
        self.check_k(k)
        news = self._with_news(user, since) if since else None
        if news is not None:
            askers = self._folded([news])
        else:
            dense = self.dense_user(user)
            state, source = self.ranker.states(np.array([dense]))
            askers = Askers(state, source, [self.ranker.history.of_user(dense)])
        return self.lister.lists(askers, k, exclude_seen, wish)[0]

    def _with_news(self, user: RawId, since: GivenRatings) -> Rated | None:
        """A user's history and what came since; None if nothing of it is new."""
        known, before = self._ratings(user, since)
        if known == before and self.users.encode_one(user) != NONE:
            return None
        keys = sorted(known)
        return torch.tensor(keys, dtype=torch.int64), torch.tensor([known[key] for key in keys])

    def _ratings(
        self, user: RawId, since: GivenRatings
    ) -> tuple[dict[int, float], dict[int, float]]:
        """Stars by dense id of an item that training knows: with what came since, and without."""
        dense = self.users.encode_one(user)
        before: dict[int, float] = {}
        if dense != NONE:
            item, rating = self.ranker.history.of_user(dense)
            before = dict(zip(item.tolist(), rating.tolist(), strict=True))
        items = self.items.encode_all([item for item, _ in since]).tolist()
        news = {
            item: stars
            for item, (_, stars) in zip(items, since, strict=True)
            if 0 <= item < self.items.known
        }
        return before | news, before

    def recommend_from(
        self,
        ratings: GivenRatings,
        k: int = 10,
        exclude_seen: bool = True,
        wish: Wish = ANYTHING,
    ) -> Recommendations:
        """The k best items for somebody who was not in training.

        Args:
            ratings: Raw item ids and stars; of several for one item the last counts.
            k: 1..number of items; fewer come where fewer remain.
            exclude_seen: Leave out the rated items.
            wish: What may be in the list, and how it is arranged.

        Raises:
            RecrayError: An item is unknown, a rating is off the scale, k is out of range, or there
                is no such genre.
        """
        self.check_k(k)
        return self.lister.lists(
            self._folded([self._dense_ratings(ratings)]), k, exclude_seen, wish
        )[0]

    def recommend_many(
        self,
        askers: Sequence[RawId | GivenRatings],
        k: int = 10,
        exclude_seen: bool = True,
        wish: Wish = ANYTHING,
        since: Since | None = None,
    ) -> list[Recommendations | RecrayError]:
        """The lists of many at once, scored by one matrix product; the same as one by one.

        Args:
            askers: Raw user ids, and ratings of people who were not in training.
            k: 1..number of items; fewer come where fewer remain.
            exclude_seen: Leave out what each has rated.
            wish: What may be in the lists, and how they are arranged.
            since: Gives what a user has rated since training.

        Returns:
            For each a list, or why there is none.

        Raises:
            RecrayError: k is out of range, or there is no such genre.
        """
        self.check_k(k)
        answers: list[Recommendations | RecrayError | None] = [None] * len(askers)
        news = self._news_of(askers, since) if since is not None else {}
        users = self._find_users(askers, answers, news)
        state, source = self.ranker.states(np.array(list(users.values()), np.int64))
        rated = [self.ranker.history.of_user(user) for user in users.values()]
        for row, given in enumerate(askers):
            if isinstance(given, list):
                try:
                    news[row] = self._dense_ratings(given)
                except RecrayError as error:
                    answers[row] = error
        everybody = join([Askers(state, source, rated), self._folded(list(news.values()))])
        made = self.lister.lists(everybody, k, exclude_seen, wish)
        for row, answer in zip([*users, *news], made, strict=True):
            answers[row] = answer
        return [answer for answer in answers if answer is not None]

    def _news_of(self, askers: Sequence[RawId | GivenRatings], since: Since) -> dict[int, Rated]:
        """Row to all ratings of the users who have rated something since training."""
        found = {}
        for row, given in enumerate(askers):
            if not isinstance(given, list) and (ratings := since(given)):
                rated = self._with_news(given, ratings)
                if rated is not None:
                    found[row] = rated
        return found

    def written(self, user: RawId, k: int, exclude_seen: bool) -> bytes | None:
        """recommend(...).plain() as JSON, the short way; None where there is none.

        Raises:
            RecrayError: k is out of range.
        """
        self.check_k(k)
        dense = self.users.encode_one(user)
        if not self.quick.able or not 0 <= dense < self.bundle.model.users:
            return None
        return self.quick.one(dense, k, exclude_seen)

    def written_many(
        self,
        askers: Sequence[RawId | GivenRatings],
        k: int,
        exclude_seen: bool,
        since: Since | None = None,
    ) -> list[tuple[str, str] | Recommendations | RecrayError]:
        """recommend_many without a wish; of users of the data set the source and the JSON.

        Raises:
            RecrayError: k is out of range.
        """
        self.check_k(k)
        answers: list[Any] = [None] * len(askers)
        news = self._news_of(askers, since) if since is not None else {}
        users = self._find_users(askers, answers, news)
        dense = np.array(list(users.values()), np.int64)
        for row, made in zip(users, self.quick.many(dense, k, exclude_seen), strict=True):
            answers[row] = made
        rest = [n for n, given in enumerate(askers) if isinstance(given, list) or n in news]
        chosen = [askers[row] for row in rest]
        others = self.recommend_many(chosen, k, exclude_seen, since=since)
        for row, answer in zip(rest, others, strict=True):
            answers[row] = answer
        return answers

    def _find_users(
        self,
        askers: Sequence[RawId | GivenRatings],
        answers: list[Any],
        besides: Container[int],
    ) -> dict[int, int]:
        """Row to dense id of the other users; the answers of unknown ones are errors."""
        raw = {
            row: given
            for row, given in enumerate(askers)
            if not isinstance(given, list) and row not in besides
        }
        dense = dict(zip(raw, self.users.encode_all(list(raw.values())).tolist(), strict=True))
        for row, user in raw.items():
            if dense[row] == NONE:
                answers[row] = UnknownUser(self.no_user(user))
        return {row: user for row, user in dense.items() if user != NONE}

    def _folded(self, rated: list[Rated]) -> Askers:
        return Askers(*self.ranker.states_of(rated), rated)

    def _dense_ratings(self, ratings: GivenRatings) -> Rated:
        dense = self.items.encode_all([item for item, _ in ratings]).tolist()
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

    def similar(self, item: RawId, k: int = 10, wish: Wish = ANYTHING) -> Recommendations:
        """The k items whose vectors point most nearly the same way (cosine).

        Raises:
            KeyError: The model was not trained on this item.
            RecrayError: The model has no item vectors, k is out of range, or no such genre.
        """
        self.check_k(k)
        dense, directions = self.items.encode_one(item), self.lister.directions()
        if not 0 <= dense < self.items.known:
            raise KeyError(item)
        scores = directions.cosines(dense)[None, :]
        scores[0, dense] = -torch.inf
        allowed = self.facts.allowed(wish)
        if allowed is not None:
            scores.masked_fill_(~allowed, -torch.inf)
        best_items, best = top_k(scores, k)
        there = best_items[0] != NONE
        return self.lister.answer(best_items[0][there].numpy(), best[0][there].numpy(), MODEL)

    def at_most(self, k: int) -> int:
        """A length of lists that the catalogue allows."""
        return min(k, self.items.known)

    def check_k(self, k: int) -> None:
        """Refuse a list longer than the catalogue.

        Raises:
            RecrayError: k is out of range.
        """
        if not 1 <= k <= self.items.known:
            raise RecrayError(
                f"k={k} is out of range: 1 to {self.items.known}, the catalogue's size"
            )

    def dense_user(self, user: RawId) -> int:
        """Dense id of a user.

        Raises:
            KeyError: No split has this user.
        """
        dense = self.users.encode_one(user)
        if dense == NONE:
            raise KeyError(user)
        return dense

    def no_user(self, user: RawId) -> str:
        """What to say of a user whom no split has."""
        return f"no user {user!r} in {self.bundle.config['dataset']}"

    # ------------------------------------------------------------------------------ facts

    def item(self, item: RawId) -> dict[str, Any]:
        """All that is known of an item: see Items.facts.

        Raises:
            KeyError: No split has this item.
        """
        dense = self.items.encode_one(item)
        if dense == NONE:
            raise KeyError(item)
        return self.facts.facts(dense)

    def find_item(self, written: str) -> RawId:
        """The raw id that somebody means by an id or by a part of a title.

        Raises:
            RecrayError: Nothing is called so.
        """
        try:
            raw = self.items.parse(written)
            if self.items.encode_one(raw) != NONE:
                return raw
        except KeyError:
            pass  # no id; perhaps a title
        found = self.facts.find(written, 1)
        if not found:
            raise RecrayError(f"no item {written!r} in {self.bundle.config['dataset']}")
        return found[0]["item"]

    def user(self, user: RawId, since: GivenRatings | None = None) -> dict[str, Any]:
        """What is known of a user: how much, of which genres, and what they rated highest.

        Raises:
            KeyError: No split has this user, and there are no ratings since.
        """
        dense = self.users.encode_one(user)
        if dense == NONE and not since:
            raise KeyError(user)
        rated, before = self._ratings(user, since or [])
        item = np.array(list(rated), np.int64)
        rating = np.array(list(rated.values()), np.float32)
        genres = Counter(genre for i in item.tolist() for genre in self.facts.genres[i])
        best = np.lexsort((item, -rating))[:HIGHEST]
        known = 0 <= dense < self.bundle.model.users
        return {
            "user": user,
            "in_training": known,
            "source": SOURCES[
                MODEL if known and rated == before else FOLD_IN if len(item) else POPULAR
            ],
            "ratings": len(item),
            "mean_rating": round(float(rating.mean()), 6) if len(item) else None,
            "genres": [{"genre": genre, "ratings": n} for genre, n in genres.most_common()],
            "highest": [
                self.describe(int(item[n])) | {"rating": float(rating[n])} for n in best.tolist()
            ],
        }

    @torch.no_grad()
    def score_pairs(self, pairs: Sequence[tuple[RawId, RawId]]) -> list[dict[str, Any]]:
        """The score of each pair of a raw user and a raw item.

        Returns:
            {"user", "item", "title", "score", "source"} each. The source is model, fold_in, or cold
            where the model knows nothing of one side: then the score is the mean with what is known
            of the other side if the model predicts stars, and None if it ranks.
        """
        if not pairs:
            return []
        user = self.users.encode_all([user for user, _ in pairs]).astype(np.int64)
        item = self.items.encode_all([item for _, item in pairs]).astype(np.int64)
        nobody, nothing = len(self.users), len(self.items)
        user, item = np.where(user < 0, nobody, user), np.where(item < 0, nothing, item)
        own, row = np.unique(user[user < nobody], return_inverse=True)
        state, source = self.ranker.states(own)
        place = np.zeros(len(pairs), np.int64)
        place[user < nobody] = row
        origin = np.full(len(pairs), POPULAR, np.int8)
        origin[user < nobody] = source[row]
        warm = (origin != POPULAR) & (item < self.items.known)
        score = np.full(len(pairs), np.nan)
        model = self.bundle.model
        chosen = state[torch.from_numpy(place[warm])], torch.from_numpy(item[warm])
        score[warm] = model.activation(model.logits(*chosen)).numpy()
        if model.score_type == "rating" and not warm.all():
            score[~warm] = self.ranker.baseline_stars(user[~warm], item[~warm])
        return [
            {
                "user": raw_user,
                "item": raw_item,
                "title": self.facts.titles[item[n]] if item[n] < nothing else None,
                "score": None if np.isnan(score[n]) else round(float(score[n]), 6),
                "source": SOURCES[origin[n]] if warm[n] else "cold",
            }
            for n, (raw_user, raw_item) in enumerate(pairs)
        ]
