"""RAY TRAIN: the loop of loop.py on N workers, each with the users it owns."""

import contextlib
import logging
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from recray.config import Settings, build_settings
from recray.data.dataset import Prepared
from recray.data.item_features import feature_matrix
from recray.errors import RecrayError, WorkerLost
from recray.models import build_model
from recray.models.base import Model
from recray.models.factorization import Hybrid
from recray.models.objectives import build_objective
from recray.progress import Log
from recray.runtime.failures import lost_worker, unplaced, user_error
from recray.runtime.nodes import available_workers, require_shared, wait_for_capacity
from recray.runtime.ray_private import lean_trainer
from recray.runtime.session import LOCAL, TERMINATED, session
from recray.storage import Folder
from recray.training import checks
from recray.training.callbacks import Watch, following
from recray.training.checkpoint import Progress, RunFolder
from recray.training.collectives import SLOW_PATIENCE_S, Workers
from recray.training.epochs import Shard
from recray.training.loop import TrainingRun
from recray.training.optimizer_choice import describe, device_of
from recray.training.pretrain import pretrain, start_from
from recray.training.streaming import check_streaming
from recray.training.warm_start import read_starts
from recray.training.worker_data import WorkerRows

if TYPE_CHECKING:
    pass

MAX_FAILURES = 3
"""How often a group of workers of which one is lost begins again from the last checkpoint."""


def run(
    settings: Settings,
    prepared_path: str,
    out: str,
    workers: int = 1,
    resume: bool = False,
    address: str = LOCAL,
    watch: Watch | None = None,
    max_failures: int = MAX_FAILURES,
) -> dict[str, Any]:
    """Train a model on a prepared data set.

    Args:
        settings: Resolved settings; `data` and `split` are taken from the data set.
        prepared_path: Folder of the data set.
        out: Folder of the run.
        workers: Processes; 1 on the local machine runs in this one.
        resume: Go on with the run in `out`; a finished one is left as it is.
        address: Ray cluster.
        watch: Who is told of what happens; None tells nobody.
        max_failures: How often to begin again from the last checkpoint when a worker is lost.

    Returns:
        Summary of the run: epochs, best epoch, its metrics, whether it was finished before.

    Raises:
        RecrayError: What the user can fix; see the message.
    """
    prepared = Prepared.open(prepared_path, verify=True)
    settings = checks.for_data(settings, prepared)
    checks.check(settings, prepared, workers, address)
    folder = RunFolder(out)
    facts = _facts(settings, prepared, workers)
    watch = watch or Watch()
    folder.check(facts, resume)
    before = folder.progress()
    if before.ended(settings.train.epochs):
        return _end(folder, before, already=True)
    if before.epoch or before.step:
        watch.log(_continued(folder, before, settings, workers))
    config = {
        "settings": _elsewhere(settings),
        "prepared": prepared.folder.path,
        "run": folder.folder.path,
    }
    rows = prepared.manifest["splits"]["train"]["rows"]
    with session(address):
        busy = wait_for_capacity(workers)
        require_shared(folder.folder)
        watch.log(describe(settings, prepared.users, prepared.items, rows, workers))
        if checks.streams(settings, prepared, workers):
            watch.log(
                f"train: streams {rows:,} ratings; a worker holds at most "
                f"{settings.train.max_rows_in_memory:,} of them at once"
            )
        if busy is not None:
            watch.log(f"train: {busy}")
        folder.claim(facts, before)
        with following(folder.folder, watch, facts, before.history):
            processes = 0 if workers == 1 and address == LOCAL else workers
            _fit_again(config, folder, facts, processes, max_failures, watch.log)
    return _end(folder, folder.progress())


def _elsewhere(settings: Settings) -> dict[str, Any]:
    """The settings for workers, whose working folder is another one."""
    values = settings.plain()
    values["train"]["init_from"] = [Folder(path).path for path in settings.train.init_from]
    return values


def _continued(folder: RunFolder, before: Progress, settings: Settings, workers: int) -> str:
    """That a run is continued, and what is not as it was."""
    words = f"train: {folder.folder} goes on after epoch {before.epoch} of {settings.train.epochs}"
    if before.step:
        words += f" and {before.step:,} steps"
    then = folder.facts()["workers"]
    if then != workers:
        words += (
            f" with {workers} worker{'s' * (workers > 1)} instead of {then}: the same tables; the "
            "order of the ratings, and so the digits, are not those of an unbroken run"
        )
    return words


def _end(folder: RunFolder, progress: Progress, already: bool = False) -> dict[str, Any]:
    """Mark the run as finished, if it is not yet; return its summary."""
    summary = _summary(folder, progress, already)
    if not folder.finished:
        folder.finish(folder.facts() | {"summary": summary | {"already_finished": False}})
    return summary


def _facts(settings: Settings, prepared: Prepared, workers: int) -> dict[str, Any]:
    return {
        "dataset": prepared.manifest["dataset"],
        "prepared": prepared.folder.path,
        "fingerprint": prepared.fingerprint,
        "settings": settings.plain(),
        "workers": workers,
    }


def _summary(folder: RunFolder, progress: Progress, already: bool = False) -> dict[str, Any]:
    best = next(e for e in progress.history if e["epoch"] == progress.best_epoch)
    return {
        "run": folder.folder.path,
        "epochs": progress.epoch,
        "best_epoch": progress.best_epoch,
        "best": best,
        "stopped_early": progress.stopped,
        "already_finished": already,
    }


def _fit_again(
    config: dict[str, Any],
    folder: RunFolder,
    facts: dict[str, Any],
    workers: int,
    max_failures: int,
    log: Log,
) -> None:
    """Train; when a worker is lost, begin again with a new group from the newest good checkpoint.

    Where its node was lost too, and what is left has no room for as many, it goes on with fewer.
    What a worker raises is not tried again: training is exact, so it would raise it again.

    Raises:
        WorkerLost: More than max_failures times.
        RecrayError: What the user can fix.
    """
    gpus = float(workers > 0 and config["settings"]["train"]["device"] == "cuda")
    for failures in range(max_failures + 1):
        try:
            return fit(train_worker, config, folder.folder, workers, gpus)
        except WorkerLost as error:
            if failures == max_failures:
                times = "once" if not failures else f"{failures + 1} times"
                raise WorkerLost(
                    f"a worker was lost {times}, --max-failures is {max_failures}: {error}; "
                    "continue with --resume"
                ) from error
            progress = folder.progress()
            again = f"again after epoch {progress.epoch}, {failures + 1} of {max_failures}"
            log(f"train: {error}; {again}")
            room = available_workers(workers)
            if 0 < room < workers:
                fewer = f"{room} worker{'s' * (room > 1)} instead of {workers}"
                log(
                    f"train: the nodes that are left have {room} CPUs: goes on with {fewer}; the "
                    "digits are not those of an unbroken run"
                )
                workers = room
                folder.claim(facts | {"workers": workers}, progress)
    return None


def fit(
    worker: Callable[[dict[str, Any]], None],
    config: dict[str, Any],
    folder: Folder,
    workers: int,
    gpus: float = 0.0,
) -> None:
    """Run a function under Ray Train.

    Args:
        worker: What each worker runs.
        config: What it is given.
        folder: Where Ray keeps its own files while it runs.
        workers: How many; 0 is Ray's local mode, in this process.
        gpus: GPUs that a worker reserves.

    Raises:
        RecrayError: What a worker raised for the user.
    """
    import ray.train

    logging.getLogger("ray.train").setLevel(logging.WARNING)
    trainer = lean_trainer()(
        worker,
        train_loop_config=config,
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers,
            use_gpu=gpus > 0,
            resources_per_worker=({"CPU": 1} | ({"GPU": gpus} if gpus else {}))
            if workers
            else None,
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
            backend="cpu:gloo,cuda:nccl" if gpus else "gloo", timeout_s=int(SLOW_PATIENCE_S)
        ),
    )
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


def train_worker(config: dict[str, Any]) -> None:
    """Train on the users that this worker owns: the parts of its buckets, read once."""
    import ray.train

    torch.set_num_threads(1)
    context = ray.train.get_context()
    workers = Workers(context.get_world_rank(), context.get_world_size())
    last = [time.monotonic()]

    def report(metrics: dict[str, float]) -> None:
        # Reports are a barrier and are polled: at most one a second, decided by rank 0's clock.
        due = time.monotonic() - last[0] >= 1.0 if workers.rank == 0 else False
        (agreed,) = workers.slow().sum_floats(float(due))
        if agreed:
            last[0] = time.monotonic()
            ray.train.report(metrics)

    settings = build_settings(config["settings"])
    prepared = Prepared.open(config["prepared"])
    run = build_run(settings, prepared, config["run"], workers, report)
    replace(run, leaving=lambda: ray.train.get_preemption_info() is not None).fit()


def build_run(
    settings: Settings,
    prepared: Prepared,
    run_folder: str,
    workers: Workers,
    report: Callable[[dict[str, float]], None],
) -> TrainingRun:
    """Everything one worker needs, with the rows of its own buckets."""
    rows = WorkerRows(settings, prepared, workers)
    low, high = prepared.rating_range
    objective = build_objective(settings, low, high)
    if rows.streamed:  # also where validation rows, or fewer workers than there were, make it so
        check_streaming(settings, objective, max(rows.rows_of.values()), workers.size)
    torch.manual_seed(settings.train.seed)  # the same start on every worker
    model = build_model(settings, prepared.users, prepared.items)
    if isinstance(model, Hybrid):
        table = prepared.item_table[: prepared.items]
        names = settings.model.item_features or ()
        model.describe_items(torch.from_numpy(feature_matrix(table, names)))
    model.to(device_of(settings.train))
    trained = read_starts(settings.train.init_from, prepared)
    start: Callable[[Model], None] | None = None
    if trained:
        start = partial(start_from, runs=trained, alpha=settings.train.neumf_alpha)
    elif settings.train.als_pretrain_epochs and isinstance(
        rows.shard, Shard
    ):  # a streamed one is refused
        start = partial(pretrain, shard=rows.shard, settings=settings, workers=workers.slow())
    return TrainingRun(
        settings,
        model,
        objective,
        rows.shard,
        RunFolder(run_folder),
        workers,
        rows.validation(objective),
        report,
        start,
    )
