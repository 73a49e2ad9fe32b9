"""RAY TRAIN: start the workers; what each of them reads, and what it trains.

A worker reads the parts of the data set that it owns, and runs the loop of loop.py on them.
"""

import contextlib
import copy
import logging
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor

from recray.config import Settings
from recray.data.dataset import Prepared, Ratings
from recray.data.item_features import feature_matrix
from recray.errors import RecrayError
from recray.evaluation.metrics import (
    PerUserMetrics,
    blocks_of,
    evaluate_block,
    metric_names,
    metric_sums,
)
from recray.inference.scorer import History, Scorer
from recray.models import build_model
from recray.models.base import Model
from recray.models.baselines import BiasOnly
from recray.models.factorization import Hybrid
from recray.models.objectives import Objective, build_objective
from recray.runtime.ray_private import lean_trainer, lost_worker, unplaced, user_error
from recray.runtime.session import TERMINATED
from recray.storage import Folder
from recray.training.checkpoint import RunFolder
from recray.training.collectives import LONG_TIMEOUT_S, Workers
from recray.training.loop import TrainingRun, Validate
from recray.training.optimizers import device_of
from recray.training.shard import Columns, Shard, StreamedShard, check_streaming, rating_statistics
from recray.training.warm_start import StartWeights, initializer, read_start_weights

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer

Config = TypeVar("Config")


@dataclass(frozen=True)
class TrainJob:
    """What the driver hands to every worker.

    Args:
        settings: Resolved settings; a worker's working folder may be another one, so the paths in
            them are never read there.
        prepared: Folder of the data set.
        run: Folder of the run.
        start_weights: What train.init_from names, read once by the driver.
    """

    settings: Settings
    prepared: str
    run: str
    start_weights: tuple[StartWeights, ...] = ()


def fit(
    worker: Callable[[dict[str, Config]], None],
    config: dict[str, Config],
    folder: Folder,
    workers: int,
    gpus: float = 0.0,
) -> None:
    """Run a function under Ray Train.

    Args:
        worker: The function that each worker runs.
        config: Its argument.
        folder: Where Ray keeps its own files while it runs.
        workers: How many; 0 is Ray's local mode, in this process.
        gpus: GPUs that a worker reserves.

    Raises:
        RecrayError: What a worker raised for the user.
    """
    trainer = _trainer(worker, config, folder, workers, gpus)
    try:
        with contextlib.redirect_stdout(None):
            trainer.fit()
    except SystemExit as error:  # Ray's own SIGINT handler leaves with 0 or 1
        if error.code == TERMINATED:
            raise
        raise KeyboardInterrupt from error
    except Exception as error:
        failure: RecrayError | None = user_error(error) or lost_worker(error)
        failure = failure or unplaced(error, workers)
        if failure is not None:
            raise failure from error
        raise
    finally:
        folder.delete(".ray")


def _trainer(
    worker: Callable[[dict[str, Config]], None],
    config: dict[str, Config],
    folder: Folder,
    workers: int,
    gpus: float,
) -> "TorchTrainer":
    import ray.train

    logging.getLogger("ray.train").setLevel(logging.WARNING)
    resources = {"CPU": 1.0} | ({"GPU": gpus} if gpus else {})
    return lean_trainer()(
        worker,
        train_loop_config=config,
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers,
            use_gpu=gpus > 0,
            resources_per_worker=resources if workers else None,
        ),
        # Every attempt is a fresh Ray run: what resumes is our own checkpoint. Ray itself begins
        # again after a node that was taken away with notice, as often as that happens.
        run_config=ray.train.RunConfig(  # type: ignore[call-arg]  # typed as the one before V2
            name=f"attempt-{uuid.uuid4().hex[:12]}",
            storage_path=folder.child(".ray").path,
            failure_config=ray.train.FailureConfig(  # type: ignore[call-arg]
                max_failures=0, controller_failure_limit=3
            ),
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),
        ),
        torch_config=ray.train.torch.TorchConfig(
            backend="cpu:gloo,cuda:nccl" if gpus else "gloo", timeout_s=int(LONG_TIMEOUT_S)
        ),
    )


def train_worker(config: dict[str, TrainJob]) -> None:
    """Train on the users that this worker owns."""
    import ray.train

    torch.set_num_threads(1)
    job, context = config["job"], ray.train.get_context()
    workers = Workers(context.get_world_rank(), context.get_world_size())
    last = [time.monotonic()]

    def report(metrics: dict[str, float]) -> None:
        # Reports are a barrier and are polled: at most one a second, decided by rank 0's clock.
        due = time.monotonic() - last[0] >= 1.0 if workers.rank == 0 else False
        (agreed,) = workers.with_long_timeout().sum_floats(float(due))
        if agreed:
            last[0] = time.monotonic()
            ray.train.report(metrics)

    prepared = Prepared.open(job.prepared)
    run = build_run(job.settings, prepared, job.run, workers, report, job.start_weights)
    replace(run, preempting=lambda: ray.train.get_preemption_info() is not None).fit()


def build_run(
    settings: Settings,
    prepared: Prepared,
    run_folder: str,
    workers: Workers,
    report: Callable[[dict[str, float]], None],
    start_weights: Sequence[StartWeights] | None = None,
) -> TrainingRun:
    """Read the ratings of a worker's own parts, and build the model and the objective.

    Args:
        settings: Resolved settings.
        prepared: The data set.
        run_folder: Folder of the run.
        workers: The group.
        report: Receives the metrics of each epoch.
        start_weights: What train.init_from names; None reads it here.
    """
    rows = WorkerRows(settings, prepared, workers)
    objective = build_objective(settings, *prepared.rating_range)
    if rows.streamed:  # also where validation rows, or fewer workers than there were, make it so
        check_streaming(settings, objective, max(rows.rows_of.values()), workers.size)
    torch.manual_seed(settings.train.seed)  # the same start on every worker
    model = build_model(settings, prepared.users, prepared.items)
    if isinstance(model, Hybrid):
        table = prepared.item_table[: prepared.items]
        names = settings.model.item_features or ()
        model.describe_items(torch.from_numpy(feature_matrix(table, names)))
    model.to(device_of(settings.train))
    if start_weights is None:
        start_weights = read_start_weights(settings.train.init_from, prepared)
    return TrainingRun(
        settings,
        model,
        objective,
        rows.shard,
        RunFolder(run_folder),
        workers,
        rows.validation(objective),
        report,
        initializer(settings, rows.shard, workers.with_long_timeout(), start_weights),
    )


class WorkerRows:
    """Reads the parts of one worker: all into memory, or a part at a time where they are too many.

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
        """The ratings to train on."""
        owned = torch.zeros(self.prepared.users, dtype=torch.bool)
        for train, _ in self._groups():
            owned[torch.from_numpy(np.unique(train.user).astype(np.int64))] = True
        if self.streamed and self.limit is not None:
            return StreamedShard(self._columns, self.rows_of, self.limit, owned)
        return Shard(*_tensors(self._all[0]), owned)

    def validation(self, objective: Objective) -> Validate | None:
        """Build the function that ranks, for this worker's validation users, all items that they
        have not trained on; None without validation rows.
        """
        prepared, settings = self.prepared, self.settings
        if settings.train.fit_on != "train" or not prepared.manifest["splits"]["valid"]["rows"]:
            return None
        # What stands in for the unknown comes from the ratings of all workers, so that the summed
        # metrics do not depend on how many there are.
        whole = rating_statistics(self.shard, prepared.items, self.workers.with_long_timeout())
        # A model that ranks predicts no rating, so nothing will ask for the biases.
        rates = not settings.ranks
        biases = self._biases(lambda b: b.init_from_statistics(whole)) if rates else None
        popularity = whole.item_count.float()
        names = metric_names(settings.evaluate, rates=rates)
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
        """Fit the bias-only model of this worker's users; each has all ratings in one group."""
        biases = BiasOnly(self.prepared.users, self.prepared.items)
        observe(biases)
        total = torch.zeros_like(biases.user_bias)
        for train, _ in self._groups():
            biases.fit_users(*_tensors(train))
            total += biases.user_bias
        biases.user_bias.copy_(total)
        return biases

    def _seen(self) -> Iterator[tuple[Ratings, History]]:
        """Yield validation rows, and what their users have rated, one group of parts at a time."""
        users, items = self.prepared.users, self.prepared.items
        for (train, valid), parts in zip(self._groups(), self._numbers, strict=True):
            known = Ratings.concatenate([train, self.prepared.load("fold_in", parts)])
            last = max(int(valid.user.max(initial=-1)), int(known.user.max(initial=-1)))
            yield valid, History.of(known, max(last + 1, users), items)

    @property
    def _numbers(self) -> list[list[int]]:
        return [[part] for part in self.parts] if self.streamed else [self.parts]

    def _groups(self) -> Iterator[tuple[Ratings, Ratings]]:
        """Yield rows to train on and to validate with, as many at once as memory allows."""
        if not self.streamed:
            yield self._all
            return
        for part in self.parts:
            yield self._read([part])

    @cached_property
    def _all(self) -> tuple[Ratings, Ratings]:
        return self._read(self.parts)

    def _read(self, parts: list[int]) -> tuple[Ratings, Ratings]:
        """Read the rows to train on and to validate with, of users and items of the training."""
        prepared = self.prepared
        train, valid = prepared.load("train", parts), prepared.load("valid", parts)
        if self.settings.train.fit_on == "train":
            return train, valid
        known = valid.where((valid.user < prepared.users) & (valid.item < prepared.items))
        return Ratings.concatenate([train, known]), valid

    def _columns(self, part: int) -> Columns:
        """Read the training rows of a part."""
        if self.settings.train.fit_on == "train":
            return _tensors(self.prepared.load("train", [part]))
        return _tensors(self._read([part])[0])


def _tensors(rows: Ratings) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.from_numpy(rows.user.astype(np.int64)),
        torch.from_numpy(rows.item.astype(np.int64)),
        torch.from_numpy(rows.rating.copy()),
    )
