"""What a bundle knows of its users and items, and the scores of pairs, in raw ids."""

# Shape letter: B = pairs.

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from recray.data.ids import RawId, UserIds
from recray.errors import RecrayError
from recray.inference.bundle import Bundle
from recray.inference.catalog import ItemCatalog, ItemFacts, ItemSummary
from recray.inference.history import UserHistories, UserRatings
from recray.inference.queries import FOLD_IN, MODEL, POPULAR, SOURCES
from recray.inference.raw_ratings import (
    KnownOfUser,
    RawRatings,
    in_order_of_time,
    joined,
    same,
    user_ratings,
)
from recray.inference.scorer import Scorer
from recray.inference.service_facts import scale_of
from recray.inference.top_k import NONE
from recray.inference.user_parts import part_file
from recray.models.history import HistoryModel

EXAMPLE_USERS = 4
NAMED_ITEMS = 10
"""Items that a user's profile names, those with the highest ratings, and the last ones."""


@dataclass(frozen=True)
class RatedItem(ItemSummary):
    """An item with a user's rating of it."""

    rating: float


@dataclass(frozen=True)
class GenreCount:
    """How many of a user's rated items are of a genre."""

    genre: str
    ratings: int


@dataclass(frozen=True)
class UserProfile:
    """What is known of a user.

    Args:
        user: Raw id.
        in_training: Whether the model was trained on this user's ratings.
        source: Where the user's lists come from: model, fold_in or popular.
        ratings: Number of ratings of items that training knows.
        mean_rating: None without ratings.
        genres: Those of the rated items, the most frequent first.
        highest: The items with the highest ratings.
        latest: The last items, the newest first, where the model reads the order.
    """

    user: RawId
    in_training: bool
    source: str
    ratings: int
    mean_rating: float | None
    genres: list[GenreCount]
    highest: list[RatedItem]
    latest: list[RatedItem]


@dataclass(frozen=True)
class PairScore:
    """The score of a user and an item.

    Args:
        user: Raw id.
        item: Raw id.
        title: None where the data set has no such item.
        score: A rating or a logit. Where one side is cold, a model of ratings gives the mean with
            what is known of the other side, and a model that ranks gives None.
        source: model or fold_in; cold where the model knows nothing of one side.
    """

    user: RawId
    item: RawId
    title: str | None
    score: float | None
    source: str


class Lookup:
    """Looks users, items and scores up in one bundle, by raw ids.

    Args:
        bundle: An opened bundle.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle, self.version = bundle, bundle.version
        stored = bundle.stored
        self.users: UserIds = bundle.user_ids if stored is None else stored.store
        self.items = bundle.item_ids
        scorer = Scorer.for_service(bundle)
        scorer.index = bundle.index
        self._filtered: UserHistories = (
            bundle.interactions.filtered_history if stored is None else stored.filtered
        )
        scale = scale_of(bundle) if stored is None else stored.facts.scale
        low, high, step = scale.tolist()
        self.rating_scale, self.rating_step = (low, high), step or None
        # The catalogue must not refer to self: a model that was replaced has to be freed at once,
        # not when the garbage collector next looks for cycles.
        self.catalog = ItemCatalog(self.items, bundle.item_table, lambda: scorer.popularity)
        self.scorer = scorer
        model = bundle.model
        self.reads_order = isinstance(model, HistoryModel) and model.reads_order
        self.reads_times = isinstance(model, HistoryModel) and model.reads_times

    @classmethod
    def open(cls, path: str) -> Self:
        """Open a bundle by path or URI, checking every file.

        Raises:
            RecrayError: It is missing, damaged or not a bundle.
        """
        return cls(Bundle.open(path))

    @cached_property
    def measuring_scorer(self) -> Scorer:
        """The scorer that does not know the held-out ratings; `scorer` is what users get."""
        return Scorer.for_measurement(self.bundle.measured)

    @cached_property
    def example_users(self) -> list[RawId]:
        """Raw ids of some users that training knows, where there are such."""
        return self.users.first(EXAMPLE_USERS)

    @property
    def damaged_users(self) -> list[str]:
        """Files of users that turned out to be damaged when they were first used."""
        stored = self.bundle.stored
        return [] if stored is None else [part_file(p) for p in stored.store.damaged]

    def no_user(self, user: RawId) -> str:
        """The message for a user whom no split has."""
        return f"no user {user!r} in {self.bundle.config['dataset']}"

    def item(self, item: RawId) -> ItemFacts:
        """Tell all that is known of an item.

        Raises:
            KeyError: No split has this item.
        """
        dense = self.items.encode_one(item)
        if dense == NONE:
            raise KeyError(item)
        return self.catalog.facts(dense)

    def find_item(self, text: str) -> RawId:
        """The raw id of an item that a text names, by its id or by a part of its title.

        Raises:
            RecrayError: No item has this id or title.
        """
        raw: RawId | None = None
        with suppress(KeyError):  # the text is no id; perhaps it is a title
            raw = self.items.parse(text)
        if raw is not None and self.items.encode_one(raw) != NONE:
            return raw
        # A number that no item has is a wrong id, and not the title that looks most like it.
        found = [] if isinstance(raw, int) else self.catalog.find(text, 1)
        if not found:
            raise RecrayError(f"no item {text!r} in {self.bundle.config['dataset']}")
        return found[0].item

    def user(self, user: RawId, since: RawRatings | None = None) -> UserProfile:
        """Tell what is known of a user.

        Raises:
            KeyError: No split has this user, and there are no ratings since.
        """
        dense = self.users.encode_one(user)
        if dense == NONE and not since:
            raise KeyError(user)
        known = self._known_of_user(user, since or [])
        item, rating = known.seen.item.numpy(), known.seen.rating.numpy()
        genres = Counter(genre for i in item.tolist() for genre in self.catalog.genres.of(i))
        trained = 0 <= dense < self.bundle.model.users
        folds = len(known.rated.item) > 0
        source = MODEL if trained and not known.changed else FOLD_IN if folds else POPULAR
        return UserProfile(
            user,
            trained,
            SOURCES[source],
            len(item),
            round(float(rating.mean()), 6) if len(item) else None,
            [GenreCount(genre, count) for genre, count in genres.most_common()],
            self.best_rated(item, rating, NAMED_ITEMS),
            self._latest(known.seen) if self.reads_order else [],
        )

    def _latest(self, known: UserRatings) -> list[RatedItem]:
        pairs = zip(known.item.tolist(), known.rating.tolist(), strict=True)
        last = list(pairs)[: -NAMED_ITEMS - 1 : -1]
        return [RatedItem(*self.catalog.fields(item), rating) for item, rating in last]

    def best_rated(
        self, item: NDArray[np.integer], rating: NDArray[np.float32], k: int
    ) -> list[RatedItem]:
        """The k of (N,) dense items with the highest of (N,) ratings, best first."""
        return [
            RatedItem(*self.catalog.fields(int(item[n])), float(rating[n]))
            for n in np.lexsort((item, -rating))[:k]
        ]

    def _known_of_user(self, user: RawId, since: RawRatings) -> KnownOfUser:
        """What is known of a user, with the ratings since, which come in the order of time."""
        dense = self.users.encode_one(user)
        new, _ = self._dense_ratings(since)
        if dense == NONE:
            return KnownOfUser(new, new, len(new.item) > 0)
        known = self.scorer.seen.of_user(dense)
        seen = joined(known, new)
        filtered = self._filtered.of_user(dense).item
        kept = ~torch.isin(seen.item, filtered) | torch.isin(seen.item, new.item)
        changed = not same(known, seen, self.reads_order, self.reads_times)
        return KnownOfUser(seen.at(kept), seen, changed)

    def _dense_ratings(self, ratings: RawRatings) -> tuple[UserRatings, int]:
        """The ratings of items that training knows, and how many there are of others."""
        dense = self.items.encode_all([rating.item for rating in ratings]).tolist()
        known = [row for row, item in enumerate(dense) if 0 <= item < self.items.known]
        items, kept = [dense[row] for row in known], [ratings[row] for row in known]
        timed = self.reads_order or self.reads_times
        plain = self.bundle.rating_range[1]
        return user_ratings(items, kept, plain, timed), len(ratings) - len(known)

    def _posted(self, ratings: RawRatings, now: int | None) -> KnownOfUser:
        """What somebody who was not in training says of themselves.

        Raises:
            RecrayError: A rating is off the scale, only some have a time, or one is after now.
        """
        low, high = self.rating_scale
        for rating in ratings:
            if rating.rating is not None and not low <= rating.rating <= high:
                raise RecrayError(
                    f"rating {rating.rating:g} is off the scale of {low:g} to {high:g}"
                )
        known, skipped = self._dense_ratings(in_order_of_time(ratings, now))
        return KnownOfUser(known, known, True, skipped)

    @torch.no_grad()
    def score_pairs(self, pairs: Sequence[tuple[RawId, RawId]]) -> list[PairScore]:
        """Score each pair of a raw user and a raw item."""
        if not pairs:
            return []
        user = self.users.encode_all([user for user, _ in pairs]).astype(np.int64)
        item = self.items.encode_all([item for _, item in pairs]).astype(np.int64)
        known = user >= 0
        # Unknown ids become the first ones after all known: predictions take them for cold ones.
        user = np.where(known, user, len(self.users))
        item = np.where(item < 0, len(self.items), item)
        unique, row = np.unique(user[known], return_inverse=True)
        embedding, unique_source = self.scorer.user_embeddings(unique)
        place = np.zeros(len(pairs), np.int64)
        place[known] = row
        source = np.full(len(pairs), POPULAR, np.int8)
        source[known] = unique_source[row]
        warm = (source != POPULAR) & (item < self.items.known)
        score = np.full(len(pairs), np.nan, np.float32)
        model = self.bundle.model
        chosen = embedding[torch.from_numpy(place[warm])], torch.from_numpy(item[warm])
        score[warm] = model.activation(model.logits(*chosen)).numpy()
        if model.score_type == "rating" and not warm.all():
            score[~warm] = self.scorer.bias_only.predict(user[~warm], item[~warm])
        score = self.scorer.within_scale(score)
        return [
            PairScore(
                raw_user,
                raw_item,
                self.catalog.title(int(item[n])) if item[n] < len(self.items) else None,
                None if np.isnan(score[n]) else round(float(score[n]), 6),
                SOURCES[source[n]] if warm[n] else "cold",
            )
            for n, (raw_user, raw_item) in enumerate(pairs)
        ]
