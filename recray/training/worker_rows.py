"""Reads the parts of one worker: rows to train on, and what validates the model."""

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from recray.config import Settings
from recray.data.dataset import Prepared, Ratings, in_order
from recray.evaluation.metrics import (
    PerUserMetrics,
    blocks_of,
    evaluate_block,
    metric_names,
    metric_sums,
)
from recray.inference.history import History
from recray.inference.scorer import Scorer
from recray.models.base import Model, Statistics, model_class
from recray.models.baselines import BiasOnly
from recray.models.history import HistoryModel
from recray.models.objectives import FoldInConfig, Objective
from recray.training.own_users import OwnUsers, moments_of
from recray.training.shard import Columns, Shard, Workers, rating_statistics

if TYPE_CHECKING:
    from recray.training.streaming import StreamedShard

Validate = Callable[[Model], dict[str, tuple[float, float]]]
"""From the model to (sum, count) of each metric over this worker's users."""


class WorkerRows:
    """Reads a worker's parts: all into memory, or a part at a time where they are too many.

    Args:
        settings: train.fit_on and train.max_rows_in_memory decide what is read, and how.
        prepared: The data set.
        workers: The group.
    """

    def __init__(self, settings: Settings, prepared: Prepared, workers: Workers) -> None:
        self.settings, self.prepared, self.workers = settings, prepared, workers
        kind = model_class(settings.model.kind)
        self.reader = kind if issubclass(kind, HistoryModel) else None
        self.parts = list(range(workers.rank, prepared.buckets, workers.size))
        self.fit_on = settings.train.fit_on
        self.fit = prepared.fit(self.fit_on)
        self.limit = settings.train.max_rows_in_memory
        self.rows_of: dict[int, int] = {}
        if self.limit is not None and self.fit_on == "train":  # the ends of the files tell
            counts = prepared.rows_of_parts("train")
            self.rows_of = {part: counts[part] for part in self.parts}
        elif self.limit is not None:
            self.rows_of = {part: len(self._train(part)) for part in self.parts}
        self.streamed = self.limit is not None and sum(self.rows_of.values()) > self.limit

    @property
    def users(self) -> OwnUsers:
        """The users that this worker trains."""
        return self._streamed_users if self.streamed else self._loaded[0]

    @cached_property
    def shard(self) -> "Shard | StreamedShard":
        """The ratings to train on."""
        if self.streamed and self.limit is not None:
            from recray.training.streaming import StreamedShard

            return StreamedShard(self._columns, self.rows_of, self.limit, self.users)
        users, rows = self._loaded
        timed = self.reader is not None and self.reader.reads_times
        timed = timed or self.settings.data.half_life is not None
        time = torch.from_numpy(rows.timestamp.copy()) if timed else None
        return Shard(*_tensors(rows), users, time)

    def validation(self, objective: Objective) -> Validate | None:
        """Build what ranks, for this worker's validation users, all items that they have not
        trained on; None without validation rows.
        """
        measure = self.per_user(objective)
        if measure is None:
            return None
        names = metric_names(self.settings.evaluate, rates=not self.settings.ranks)
        return lambda trained: metric_sums(measure(trained), names)

    def per_user(self, objective: Objective) -> Callable[[Model], PerUserMetrics | None] | None:
        """The same for the metrics of each user, which are None where this worker has none. All
        workers call what is built at once.
        """
        splits, settings = self.prepared.manifest["splits"], self.settings
        if self.fit_on != "train" or not splits["valid"]["rows"]:
            return None
        # What stands in for the unknown comes from the ratings of all workers, so that the summed
        # metrics do not depend on how many there are.
        group = self.workers.with_long_timeout()
        whole = rating_statistics(self.shard, self.fit.items, group)
        biases = None if settings.ranks else self._biases(whole)  # ranking asks for none
        fold_in = FoldInConfig(prior_strength=objective.default_prior_strength)
        of_all = fold_in, biases, whole.item_count.float(), None, self.fit.rating_range
        groups = self._seen if self.streamed else list(self._seen()).__iter__
        folds_in = self.reader is None and "fold_in" in splits

        def measure(trained: Model) -> PerUserMetrics | None:
            model, tables = on_cpu(trained), list[PerUserMetrics]()
            model.moments = moments_of(model, group.sum) if folds_in else None
            for valid, history in groups():
                scorer = Scorer(model, objective, history, *of_all)
                tables += [
                    evaluate_block(scorer, valid, b, settings.evaluate) for b in blocks_of(valid)
                ]
            model.moments = None
            return self._with_dense_ids(tables)

        return measure

    def _with_dense_ids(self, tables: list[PerUserMetrics]) -> PerUserMetrics | None:
        """Join the metrics of blocks of users; None where there are no blocks."""
        if not tables:
            return None
        dense = np.concatenate([self.users.ids.numpy(), self._others])
        return PerUserMetrics.join(replace(table, user=dense[table.user]) for table in tables)

    def _biases(self, whole: Statistics) -> BiasOnly:
        """Fit the bias-only model of this worker's users; each has all ratings in one group."""
        biases = BiasOnly(len(self.users), self.fit.items)
        biases.init_from_statistics(whole)
        total = torch.zeros_like(biases.user_bias)
        for train, *_ in self._groups():
            biases.fit_users(*_tensors(train))
            total += biases.user_bias
        biases.user_bias.copy_(total)
        return biases

    def _seen(self) -> Iterator[tuple[Ratings, History]]:
        """Yield validation rows, and what their users have rated, one group of parts at a time."""
        users = len(self.users) + len(self._others)
        for train, known, valid in self._groups():
            every = _by_user(_joined([train, known]))
            yield valid, History.of(every, users, self.fit.items, self.reader)

    def _groups(self) -> Iterator[tuple[Ratings, Ratings, Ratings]]:
        """Yield rows to train on, what is known of who is not trained, and rows to validate with;
        as many parts at once as memory allows.
        """
        if not self.streamed:
            known, valid = map(self._local, self._held)
            yield self._loaded[1], known, valid
        for part in self.parts if self.streamed else ():
            rows = self._train(part), self._read("fold_in", part), self._read("valid", part)
            train, known, valid = map(self._local, rows)
            yield train, known, valid

    @cached_property
    def _loaded(self) -> tuple[OwnUsers, Ratings]:
        """The users, and all rows to train on."""
        parts = [self._train(part) for part in self.parts]
        users = self._users(np.unique(rows.user) for rows in parts)
        return users, _joined([_renamed(rows, users.places(rows.user)) for rows in parts])

    @cached_property
    def _held(self) -> tuple[Ratings, Ratings]:
        """Rows of users who are not trained, and those to validate with, with dense ids."""
        known, valid = (
            _joined([self._read(split, part) for part in self.parts])
            for split in ("fold_in", "valid")
        )
        return known, valid

    @cached_property
    def _streamed_users(self) -> OwnUsers:
        return self._users(np.unique(self._train(part).user) for part in self.parts)

    def _users(self, ids: Iterable[NDArray[np.integer]]) -> OwnUsers:
        return OwnUsers.of(self.parts, list(ids), self.fit.users)

    @cached_property
    def _others(self) -> NDArray[np.int64]:
        """Dense ids of the users of these parts who are not trained; they come after those who are
        among the local ids.
        """
        every = (self._read(split, part) for split in ("fold_in", "valid") for part in self.parts)
        rows = every if self.streamed else self._held
        ids = np.unique(np.concatenate([np.zeros(0, np.int64), *(r.user for r in rows)]))
        return ids[self.users.places(ids) < 0]

    def _local(self, rows: Ratings) -> Ratings:
        """The rows with local ids, by which they are sorted."""
        place = self.users.places(rows.user)
        others = len(self.users) + np.searchsorted(self._others, rows.user)
        return _by_user(_renamed(rows, np.where(place < 0, others, place)))

    def _train(self, part: int) -> Ratings:
        return self._in_order(self.prepared.load_fit(self.fit_on, [part]))

    def _read(self, split: str, part: int) -> Ratings:
        return self._in_order(self.prepared.load(split, [part]))

    def _in_order(self, rows: Ratings) -> Ratings:
        """In the order that the model reads, which is found by dense ids."""
        ordered = self.reader is not None and self.reader.reads_order
        return in_order(rows) if ordered else rows

    def _columns(self, part: int) -> Columns:
        """Read the training rows of a part."""
        rows = self._train(part)
        return _tensors(_renamed(rows, self.users.places(rows.user)))


def on_cpu(model: Model) -> Model:
    """The model, or a copy where its weights are in the memory of a GPU: lists are made on CPUs."""
    weights = [*model.parameters(), *model.buffers()]
    if all(value.device.type == "cpu" for value in weights):
        return model
    # deepcopy takes what its memo holds as copied already; so nothing is copied on the GPU.
    moved: dict[int, object] = {id(b): b.cpu() for b in model.buffers()}
    moved |= {id(p): nn.Parameter(p.detach().cpu()) for p in model.parameters()}
    return copy.deepcopy(model, moved)


def _renamed(rows: Ratings, user: NDArray[np.int64]) -> Ratings:
    """The rows with other ids of users."""
    return replace(rows, user=user.astype(np.int32), place=None)


def _joined(parts: list[Ratings]) -> Ratings:
    """The rows of the parts, one after another; their places are those of the rows."""
    user, item, rating, timestamp = (
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("user", "item", "rating", "timestamp")
    )
    return Ratings(user, item, rating, timestamp, np.arange(len(user), dtype=np.int32))


def _by_user(rows: Ratings) -> Ratings:
    """The rows sorted by user; those of a user stay in their order."""
    if (np.diff(rows.user) >= 0).all():
        return rows
    return rows.where(np.argsort(rows.user, kind="stable"))


def _tensors(rows: Ratings) -> Columns:
    user, item = (torch.from_numpy(ids.astype(np.int64)) for ids in (rows.user, rows.item))
    return user, item, torch.from_numpy(rows.rating.copy())
