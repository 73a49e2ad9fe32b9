"""RAY TRAIN: start a group of workers, each of which runs the loop of loop.py."""

import contextlib
import logging
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch

from recray.config import Settings
from recray.data.dataset import Prepared
from recray.errors import RecrayError
from recray.runtime.environment import TERMINATED, quiet_stdout
from recray.runtime.nodes import free_workers, request_workers, worker_resources
from recray.runtime.ray_errors import group_failure
from recray.runtime.ray_private import lean_trainer
from recray.storage import Folder, encoded
from recray.training.checkpoint import RunFolder
from recray.training.failures import machine_failures_told
from recray.training.loop import build_run
from recray.training.resizing import EndReason, GroupEnds
from recray.training.shard import LONG_TIMEOUT_S, Workers
from recray.training.warm_start import StartWeights

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer

Config = TypeVar("Config")
Outcome = TypeVar("Outcome")
_TURNS = threading.Lock()
"""Runs in this process take turns: torch has one random state for all threads."""


@dataclass(frozen=True)
class TrainJob:
    """What the driver hands to every worker.

    Args:
        settings: Resolved settings; a worker's working folder may be another one, so the paths in
            them are never read there.
        prepared: The opened data set's folder, so that all workers read the same files.
        run: Folder of the run.
        fingerprint: That of the data set, as the run began with it.
        start_weights: What train.init_from names, read once by the driver.
        keep_last: That of TrainingRun.
        most: Workers that the group may grow to.
        gpus: GPUs that a worker reserves.
    """

    settings: Settings
    prepared: Folder
    run: str
    fingerprint: str
    start_weights: tuple[StartWeights, ...] = ()
    keep_last: bool = False
    most: int = 1
    gpus: float = 0.0

    def open_prepared(self) -> Prepared:
        """The data set, which on a disk somebody may have replaced since the run began.

        Raises:
            RecrayError: It is another one by now.
        """
        prepared = Prepared.open(self.prepared)
        if prepared.fingerprint_of(self.settings.train.fit_on) != self.fingerprint:
            raise RecrayError(
                f"{self.prepared} was replaced while {self.run} trained on it; the run is kept, "
                "and goes on with --resume when that data set is there again"
            )
        return prepared


def fit(
    worker: Callable[[dict[str, Config]], Outcome],
    config: dict[str, Config],
    folder: Folder,
    workers: int,
    gpus: float = 0.0,
    starts: int = 4,
) -> Outcome:
    """Run a function under Ray Train; returns what it returned on worker 0.

    Args:
        worker: The function that each worker runs; what that of worker 0 returns is returned.
        config: Its argument.
        folder: Where Ray keeps its own files while it runs.
        workers: How many; 0 is Ray's local mode, in this process.
        gpus: GPUs that a worker reserves.
        starts: How often Ray tries for 60 s to place the workers.

    Raises:
        WorkerLost: A worker died, its node was taken away, or there was no room for all.
        RecrayError: What a worker raised for the user.
    """
    attempts = folder.child(".ray")
    own = attempts.child(f"attempt-{uuid.uuid4().hex[:12]}")
    trainer: Any = _trainer(worker, config, own, workers, gpus, starts)
    try:
        with quiet_stdout, contextlib.nullcontext() if workers else _TURNS:
            outcome: Outcome = trainer.fit().return_value
    except SystemExit as error:  # Ray's own SIGINT handler leaves with 0 or 1
        if error.code == TERMINATED:
            raise
        raise KeyboardInterrupt from error
    except Exception as error:
        if (failure := group_failure(error, workers)) is None:
            raise
        raise failure from error
    finally:
        own.delete()  # and no other one: another run may have begun in the same folder
    attempts.delete()  # what attempts have left that were killed
    return outcome


def _trainer(
    worker: Callable[[dict[str, Config]], Outcome],
    config: dict[str, Config],
    folder: Folder,
    workers: int,
    gpus: float,
    starts: int,
) -> "TorchTrainer":
    import ray.train

    logging.getLogger("ray.train").setLevel(logging.WARNING)
    return lean_trainer()(
        # What it returns comes back, although Ray's types do not say so.
        cast("Callable[[dict[Any, Any]], None]", worker),
        train_loop_config=config,
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers,
            use_gpu=gpus > 0,
            resources_per_worker=worker_resources(gpus) if workers else None,
        ),
        # Every attempt is a fresh Ray run: what resumes is our own checkpoint. Ray's own elastic
        # policy would not do: it resizes every 60 s in the middle of an epoch.
        run_config=ray.train.RunConfig(  # type: ignore[call-arg]  # typed as the one before V2
            name="ray",
            storage_path=encoded(folder.path),
            failure_config=ray.train.FailureConfig(  # type: ignore[call-arg]
                max_failures=0, max_preemption_failures=0, controller_failure_limit=starts - 1
            ),
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),
        ),
        torch_config=ray.train.torch.TorchConfig(
            backend="cpu:gloo,cuda:nccl" if gpus else "gloo", timeout_s=int(LONG_TIMEOUT_S)
        ),
    )


def train_worker(config: dict[str, TrainJob]) -> EndReason | None:
    """Train on the users that this worker owns.

    Returns:
        Why the group ended before the run did; None at the end of the run.
    """
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

    def has_room() -> bool:
        request_workers(job.run, job.most - workers.size, job.gpus)
        return free_workers(job.gpus) > 0

    with machine_failures_told(workers.rank, workers.size):
        prepared, folder = job.open_prepared(), RunFolder(job.run, warn=False)
        run = build_run(job.settings, prepared, folder, workers, report, job.start_weights)
        info = ray.train.get_preemption_info
        run = replace(
            run,
            preempting=lambda: info() is not None,
            has_room=has_room if workers.size < job.most else None,
            keep_last=job.keep_last,
        )
        try:
            run.fit()
        except GroupEnds as end:
            return end.reason
    return None
