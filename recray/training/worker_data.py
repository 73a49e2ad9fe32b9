"""What a worker reads of a prepared data set: rows to train on, and rows to validate with."""

import copy
from collections.abc import Callable, Iterator
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from recray.config import Settings
from recray.data.dataset import Prepared, Ratings
from recray.evaluation.per_user import (
    PerUserMetrics,
    blocks_of,
    evaluate_block,
    metric_names,
    metric_sums,
)
from recray.inference.history import History
from recray.inference.scorer import Scorer
from recray.models.base import Model
from recray.models.baselines import BiasOnly
from recray.models.objectives import Objective
from recray.training.collectives import Workers
from recray.training.epochs import Shard
from recray.training.loop import Validate, statistics_of
from recray.training.streaming import Columns, StreamedShard


def rows_of_workers(prepared: Prepared, workers: int) -> list[int]:
    """Training rows of each worker, from the ends of the files alone."""
    rows = prepared.rows_of_parts("train")
    return [sum(rows[rank::workers]) for rank in range(workers)]


class WorkerRows:
    """The rows of the parts of one worker: in memory, or a part at a time where they are too many.

    Args:
        settings: train.fit_on and train.max_rows_in_memory decide what is read, and how.
        prepared: The data set.
        workers: The group.
    """

    def __init__(self, settings: Settings, prepared: Prepared, workers: Workers) -> None:
        self.settings, self.prepared, self.workers = settings, prepared, workers
        self.parts = list(range(workers.rank, prepared.buckets, workers.size))
        self.limit = settings.train.max_rows_in_memory
        self.rows_of: dict[int, int] = {}
        if self.limit is not None:
            counts = prepared.rows_of_parts("train")
            self.rows_of = {part: counts[part] for part in self.parts}
            if settings.train.fit_on != "train":
                self.rows_of = {part: len(self._read([part])[0]) for part in self.parts}
        self.streamed = self.limit is not None and sum(self.rows_of.values()) > self.limit

    @cached_property
    def shard(self) -> Shard | StreamedShard:
        """The rows to train on."""
        owned = torch.zeros(self.prepared.users, dtype=torch.bool)
        for train, _ in self._groups():
            owned[torch.from_numpy(np.unique(train.user).astype(np.int64))] = True
        if self.streamed and self.limit is not None:
            return StreamedShard(self._columns, self.rows_of, self.limit, owned)
        return Shard(*_tensors(self._all[0]), owned)

    def validation(self, objective: Objective) -> Validate | None:
        """Ranks this worker's validation users among all items they have not trained on; None
        without validation rows.
        """
        prepared, settings = self.prepared, self.settings
        if settings.train.fit_on != "train" or not prepared.manifest["splits"]["valid"]["rows"]:
            return None
        # What stands in for the unknown comes from the ratings of all workers, so that the summed
        # metrics do not depend on how many there are.
        whole = statistics_of(self.shard, prepared.items, self.workers.slow())
        biases = self._biases(lambda model: model.init_from_statistics(whole))
        popularity = whole.item_count.float()
        names = metric_names(settings.evaluate, rates=not settings.ranks)
        groups = self._seen if self.streamed else list(self._seen()).__iter__

        def validate(trained: Model) -> dict[str, tuple[float, float]]:
            on_cpu = settings.train.device == "cpu"
            model, tables = trained if on_cpu else copy.deepcopy(trained).cpu(), []
            for valid, history in groups():
                scorer = Scorer(model, objective, history, 1.0, biases, popularity)
                blocks = blocks_of(valid)
                tables += [
                    evaluate_block(scorer, valid, block, settings.evaluate) for block in blocks
                ]
            return metric_sums(PerUserMetrics.join(tables) if tables else None, names)

        return validate

    def _biases(self, observe: Callable[[BiasOnly], None]) -> BiasOnly:
        """The bias-only model of this worker's users; each has all their rows in one group."""
        biases = BiasOnly(self.prepared.users, self.prepared.items)
        observe(biases)
        total = torch.zeros_like(biases.user_bias)
        for train, _ in self._groups():
            biases.fit_users(*_tensors(train))
            total += biases.user_bias
        biases.user_bias.copy_(total)
        return biases

    def _seen(self) -> Iterator[tuple[Ratings, History]]:
        """Validation rows, and what their users have rated, of one group of parts after another."""
        users, items = self.prepared.users, self.prepared.items
        for (train, valid), parts in zip(self._groups(), self._numbers, strict=True):
            known = Ratings.concatenate([train, self.prepared.load("fold_in", parts)])
            last = max(int(valid.user.max(initial=-1)), int(known.user.max(initial=-1)))
            yield valid, History.of(known, max(last + 1, users), items)

    @property
    def _numbers(self) -> list[list[int]]:
        return [[part] for part in self.parts] if self.streamed else [self.parts]

    def _groups(self) -> Iterator[tuple[Ratings, Ratings]]:
        """Rows to train on and to validate with, as many at once as may be in memory."""
        if not self.streamed:
            yield self._all
            return
        for part in self.parts:
            yield self._read([part])

    @cached_property
    def _all(self) -> tuple[Ratings, Ratings]:
        return self._read(self.parts)

    def _read(self, parts: list[int]) -> tuple[Ratings, Ratings]:
        """The rows to train on and to validate with, of users and items that training knows."""
        prepared = self.prepared
        train, valid = prepared.load("train", parts), prepared.load("valid", parts)
        if self.settings.train.fit_on == "train":
            return train, valid
        known = valid.where((valid.user < prepared.users) & (valid.item < prepared.items))
        return Ratings.concatenate([train, known]), valid

    def _columns(self, part: int) -> Columns:
        """The training rows of a part."""
        if self.settings.train.fit_on == "train":
            return _tensors(self.prepared.load("train", [part]))
        return _tensors(self._read([part])[0])


def _tensors(rows: Ratings) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.from_numpy(rows.user.astype(np.int64)),
        torch.from_numpy(rows.item.astype(np.int64)),
        torch.from_numpy(rows.rating.copy()),
    )
