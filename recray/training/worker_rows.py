"""Reads the parts of one worker: rows to train on, and what validates the model."""

import copy
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

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
            self.rows_of = {part: len(self._read([part])[0]) for part in self.parts}
        self.streamed = self.limit is not None and sum(self.rows_of.values()) > self.limit

    @cached_property
    def shard(self) -> "Shard | StreamedShard":
        """The ratings to train on."""
        owned = torch.zeros(self.fit.users, dtype=torch.bool)
        for _, train, _ in self._groups():
            owned[torch.from_numpy(np.unique(train.user).astype(np.int64))] = True
        if self.streamed and self.limit is not None:
            from recray.training.streaming import StreamedShard

            return StreamedShard(self._columns, self.rows_of, self.limit, owned)
        rows = self._all[0]
        timed = self.reader is not None and self.reader.reads_times
        timed = timed or self.settings.data.half_life is not None
        time = torch.from_numpy(rows.timestamp.copy()) if timed else None
        return Shard(*_tensors(rows), owned, time)

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
        """The same for the metrics of each user, which are None where this worker has none."""
        prepared, settings = self.prepared, self.settings
        if self.fit_on != "train" or not prepared.manifest["splits"]["valid"]["rows"]:
            return None
        # What stands in for the unknown comes from the ratings of all workers, so that the summed
        # metrics do not depend on how many there are.
        whole = rating_statistics(self.shard, self.fit.items, self.workers.with_long_timeout())
        biases = None if settings.ranks else self._biases(whole)  # ranking asks for none
        fold_in = FoldInConfig(prior_strength=objective.default_prior_strength)
        of_all = fold_in, biases, whole.item_count.float(), None, self.fit.rating_range
        groups = self._seen if self.streamed else list(self._seen()).__iter__

        def measure(trained: Model) -> PerUserMetrics | None:
            on_cpu = settings.train.device == "cpu"
            model, tables = trained if on_cpu else copy.deepcopy(trained).cpu(), []
            for valid, history in groups():
                scorer = Scorer(model, objective, history, *of_all)
                tables += [
                    evaluate_block(scorer, valid, b, settings.evaluate) for b in blocks_of(valid)
                ]
            return PerUserMetrics.join(tables) if tables else None

        return measure

    def _biases(self, whole: Statistics) -> BiasOnly:
        """Fit the bias-only model of this worker's users; each has all ratings in one group."""
        biases = BiasOnly(self.fit.users, self.fit.items)
        biases.init_from_statistics(whole)
        total = torch.zeros_like(biases.user_bias)
        for _, train, _ in self._groups():
            biases.fit_users(*_tensors(train))
            total += biases.user_bias
        biases.user_bias.copy_(total)
        return biases

    def _seen(self) -> Iterator[tuple[Ratings, History]]:
        """Yield validation rows, and what their users have rated, one group of parts at a time."""
        users, items, *_ = self.fit
        for parts, train, valid in self._groups():
            known = Ratings.concatenate([train, self.prepared.load("fold_in", parts)])
            last = max(int(valid.user.max(initial=-1)), int(known.user.max(initial=-1)))
            yield valid, History.of(known, max(last + 1, users), items, self.reader)

    def _groups(self) -> Iterator[tuple[list[int], Ratings, Ratings]]:
        """Yield parts with their rows to train on and to validate with, as memory allows."""
        if not self.streamed:
            yield self.parts, *self._all
        for part in self.parts if self.streamed else ():
            yield [part], *self._read([part])

    @cached_property
    def _all(self) -> tuple[Ratings, Ratings]:
        return self._read(self.parts)

    def _read(self, parts: list[int]) -> tuple[Ratings, Ratings]:
        """Read the rows to train on and to validate with."""
        rows = self.prepared.load_fit(self.fit_on, parts)
        ordered = self.reader is not None and self.reader.reads_order
        return in_order(rows) if ordered else rows, self.prepared.load("valid", parts)

    def _columns(self, part: int) -> Columns:
        """Read the training rows of a part."""
        return _tensors(self.prepared.load_fit(self.fit_on, [part]))


def _tensors(rows: Ratings) -> Columns:
    user, item = (torch.from_numpy(ids.astype(np.int64)) for ids in (rows.user, rows.item))
    return user, item, torch.from_numpy(rows.rating.copy())
