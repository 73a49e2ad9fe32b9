"""A bundle in Python: lists, likeness and reasons as pandas frames with titles."""

import os
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd

from recray.api import arguments
from recray.api.caller import left_as_found
from recray.data.ids import RawId
from recray.errors import RecrayError
from recray.evaluation.report import parse_report
from recray.inference.catalog import Filters
from recray.inference.inspect_user import inspect_user
from recray.inference.raw_ratings import RawRating
from recray.inference.recommendations import ExplainedItem, Recommendations
from recray.inference.recommender import Recommender
from recray.reporting import frames
from recray.serving.registry import resolve_bundle

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Pair = tuple[RawId, float] | tuple[RawId, float | None, object]
RatingsByItem = Mapping[RawId, float] | Iterable[RawId | Pair] | pd.Series | pd.DataFrame
"""Items, by raw id or by a part of the title, with stars and times or plain, in order; a table has
columns of these names.
"""


class Loaded:
    """Answers about one bundle; made by `recray.load`.

    Args:
        recommender: Answers in raw ids.
    """

    def __init__(self, recommender: Recommender) -> None:
        self.recommender = recommender
        self.bundle = recommender.bundle

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Open a bundle, or the current version of a registry.

        Raises:
            RecrayError: It is missing, damaged or not a bundle.
        """
        with left_as_found:  # a model is made with random weights, and then reads its own
            return cls(Recommender.open(resolve_bundle(arguments.path_of("bundle", path))))

    def __repr__(self) -> str:
        facts = self.bundle
        sizes = f"{facts.config['users']:,} users, {facts.config['items']:,} items"
        name = facts.settings.preset
        return f"<recray bundle {self.version}: {name} on {facts.config['dataset']}, {sizes}>"

    @property
    def path(self) -> str:
        """Folder of the bundle."""
        return self.bundle.folder.path

    @property
    def version(self) -> str:
        """12 hex digits that follow from weights, ids, history and settings."""
        return self.bundle.version

    # ------------------------------------------------------------------------------ lists

    def recommend(
        self, user: RawId, k: int | None = None, *, now: object = None, **filters: Any
    ) -> pd.DataFrame:
        """The k best items that a user has not rated.

        Args:
            user: Raw user id.
            k: Length of the list, 10 by default; fewer come where fewer remain.
            now: When it is asked for, as seconds since 1970 or a datetime, for a model that reads
                times; by default when the user's last rating came.
            filters: What may be in it, as in `recray recommend`: genres, not_genres, year_from,
                year_to, exclude, candidates, min_popularity, diversity, explain; one genre or id
                may stand for a list of it, and arrays and Series for lists.

        Returns:
            By place from 1: item, title, year, genres, score (stars or logits, as the model
            returns), source (model, fold_in or popular); with explain=True also `because`.

        Raises:
            RecrayError: No such user, genre or filter, or k is out of range.

        Example:
            >>> model = recray.load(bundle)
            >>> model.recommend(4, 2)["title"].tolist()
            ['Gentle Summer of Glass (2006)', 'Quiet River Returns (1967)']
            >>> set(model.recommend(4, 3, genres="Drama")["source"])
            {'model'}
            >>> model.recommend(9999)
            Traceback (most recent call last):
            recray.errors.RecrayError: no user 9999 in sample
        """
        user, asked = self._known(user), arguments.seconds("now", now)
        k, chosen = self._options(k, filters)
        return _listed(self.recommender.recommend(user, k, filters=chosen, now=asked))

    def recommend_from(
        self, ratings: RatingsByItem, k: int | None = None, *, now: object = None, **filters: Any
    ) -> pd.DataFrame:
        """The k best items for somebody who was not in training: folded in, not retrained.

        Args:
            ratings: Items, by raw id or by a part of the title, and stars: a dict, pairs, a Series
                whose index is the items, or a table with item, rating and perhaps time; or plain
                items. They are put in the order of their times, and stay as given without; of
                several for one item the last counts. Without any, what is popular.
            k: Length of the list, 10 by default.
            now: See recommend; no rating may be later.
            filters: See recommend.

        Returns:
            As recommend; `attrs["skipped"]` counts the items that training does not know.

        Raises:
            RecrayError: No such item or genre, a rating off the scale, a time after now, or k is
                out of range.

        Example:
            >>> model = recray.load(bundle)
            >>> model.recommend_from({"paper parade": 5, 12: 4.5}, 3)["source"].tolist()
            ['fold_in', 'fold_in', 'fold_in']
            >>> model.recommend_from({12: 7})
            Traceback (most recent call last):
            recray.errors.RecrayError: rating 7 is off the scale of 0.5 to 5
        """
        found = [
            RawRating(
                self._find(each.item),
                None if each.rating is None else arguments.number("rating", each.rating),
                arguments.seconds("time", each.time),
            )
            for each in arguments.ratings_of(ratings)
        ]
        (k, chosen), asked = self._options(k, filters), arguments.seconds("now", now)
        return _listed(self.recommender.recommend_from(found, k, filters=chosen, now=asked))

    def similar(self, item: RawId, k: int | None = None, **filters: Any) -> pd.DataFrame:
        """The k items whose vectors point most nearly the same way.

        Args:
            item: Raw item id, or a part of a title.
            k: Length of the list, 10 by default.
            filters: See recommend.

        Returns:
            By place from 1: item, title, year, genres, score (cosine, -1 to 1), source.

        Raises:
            RecrayError: No such item, training does not know it, or the model has no vectors.

        Example:
            >>> model = recray.load(bundle)
            >>> bool(model.similar("paper parade", 5)["score"].is_monotonic_decreasing)
            True
        """
        raw = self._find(item)
        k, chosen = self._options(k, filters)
        try:
            return _listed(self.recommender.similar(raw, k, chosen))
        except KeyError:
            raise RecrayError(f"{item!r}: the model was not trained on it") from None

    def explain(self, user: RawId, k: int | None = None) -> pd.DataFrame:
        """One user: the items rated best, those recommended, and those held out.

        Args:
            user: Raw user id.
            k: Length, 10 by default, of the lists of rated and of recommended films.

        Returns:
            By list (rated, recommended, held out) and place from 1: item, title, year, genres,
            rating (stars), score, rank (of a held-out film in the measured list, from 1), hit
            (held out, relevant, and of rank k or less).

        Raises:
            RecrayError: No such user, or k is out of range.

        Example:
            >>> model = recray.load(bundle)
            >>> model.explain(4, 5).loc["rated", "rating"].tolist()
            [5.0, 4.5, 4.5, 4.0, 4.0]
        """
        user, k = self._known(user), arguments.optional_whole("k", k)
        look = inspect_user(self.recommender, user, k)
        columns = ("rating", "score", "rank", "hit")
        lists = ("rated", "recommended", "held_out")
        parts = {
            name.replace("_", " "): frames.item_list(getattr(look, name), *columns)
            for name in lists
        }
        for part in parts.values():
            part["rank"] = part["rank"].astype("Int64")
            part[["rating", "score"]] = part[["rating", "score"]].astype(float)
        return pd.concat(parts, names=["list"])

    # ------------------------------------------------------------------------------ facts

    @cached_property
    def items(self) -> pd.DataFrame:
        """Items by raw id: title, year, genres (a list), ratings in training."""
        return frames.items(self.bundle.item_table)

    @property
    def users(self) -> pd.DataFrame:
        """Users by raw id: how many ratings are known, and how many of them are held out."""
        bundle, ids = self.bundle, self.bundle.user_ids
        counts = {
            name: np.bincount(part.user, minlength=len(ids))
            for name, part in (("known", bundle.interactions.known), ("held_out", bundle.holdout))
        }
        return pd.DataFrame(counts, index=pd.Index(ids.raw, name="user"))

    @property
    def holdout(self) -> pd.DataFrame:
        """The ratings it was measured on: user, item, title, rating, time (UTC)."""
        bundle = self.bundle
        titles = bundle.item_table["title"]
        return frames.ratings(bundle.holdout, bundle.user_ids, bundle.item_ids, titles)

    @property
    def predictions(self) -> pd.DataFrame:
        """The hold-out with `predicted`, the rating that the model expects.

        Raises:
            RecrayError: The model ranks and does not predict stars.
        """
        held = self.bundle.holdout
        predicted = self.recommender.measuring_scorer.predict(
            held.user.astype(np.int64), held.item.astype(np.int64)
        )
        return self.holdout.assign(predicted=predicted)

    @property
    def history(self) -> pd.DataFrame:
        """A row an epoch, by epoch: loss, validation metrics, seconds."""
        return frames.history(self.bundle.training)

    @property
    def metrics(self) -> pd.DataFrame:
        """What it was measured at when it was exported; see `recray.evaluate`.

        Raises:
            RecrayError: It had no test split to be measured on.
        """
        report = parse_report(self.bundle.metrics)
        if report is None:
            raise RecrayError(f"{self.path} has no test split to be measured on")
        return frames.metrics(report)

    @cached_property
    def plots(self) -> "dict[str, Figure]":
        """Every picture of its report, by name: data-..., training-..., predictions-..., ...."""
        from recray.reporting import report

        with left_as_found:
            drawn = report.of_bundle(self.bundle, "bundle").plots
        return {picture.name: picture.figure for picture in drawn}

    def report(self, out: str | os.PathLike[str], png: bool = False) -> str:
        """Write the report as one HTML file; see `recray report`.

        Args:
            out: The file.
            png: Whether to write the pictures as PNG beside it.

        Returns:
            The file.

        Raises:
            StorageError: It cannot be written.
        """
        from recray.reporting import report

        file = arguments.path_of("out", out)
        with left_as_found:
            return report.write(report.of_bundle(self.bundle, "bundle"), file, png)[0]

    def _options(self, k: object, given: Mapping[str, Any]) -> tuple[int | None, Filters]:
        """The length and the filters of a list as they were given."""
        items = self.recommender.items
        return arguments.optional_whole("k", k), arguments.filters_of(given, items)

    def _known(self, user: RawId) -> RawId:
        """The id as recray knows ids, not as an index of pandas gives it."""
        raw = arguments.raw_id("user", user, self.recommender.users)
        if self.recommender.users.encode_one(raw) < 0:
            raise RecrayError(self.recommender.no_user(raw))
        return raw

    def _find(self, item: RawId) -> RawId:
        known = arguments.scalar(item)
        if isinstance(known, str):
            return self.recommender.find_item(known)
        return arguments.raw_id("item", known, self.recommender.items)


def _listed(answer: Recommendations) -> pd.DataFrame:
    frame = frames.item_list(answer.items, "score").assign(source=answer.source)
    if answer.skipped is not None:
        frame.attrs["skipped"] = answer.skipped
    explained = [item for item in answer.items if isinstance(item, ExplainedItem)]
    if explained:
        reasons = [[reason.title for reason in item.why.items] for item in explained]
        frame["because"] = pd.Series(reasons, index=frame.index, dtype=object)
    return frame
