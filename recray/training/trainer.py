"""RAY TRAIN: the loop of loop.py on N workers, each with the users it owns."""

import contextlib
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch

from recray import cluster
from recray.config import Settings, build_settings
from recray.data.features import feature_matrix, feature_names
from recray.data.negatives import NegativeSampler
from recray.data.prepared import Prepared, Ratings, refuse_equal_ratings
from recray.errors import RecrayError
from recray.measuring import UserTable, blocks_of, check_metric, measure, metric_names, sums_of
from recray.models import build_model
from recray.models.base import Model
from recray.models.baselines import BiasOnly
from recray.models.hybrid import Hybrid
from recray.objectives import Contrast, UnratedClass, build_objective
from recray.ranking import History, Ranker
from recray.storage import Folder
from recray.training.checkpoint import Progress, RunFolder
from recray.training.grow import read_starts
from recray.training.loop import TrainingRun, Validate, statistics_of
from recray.training.steps import Shard
from recray.training.sync import Workers
from recray.training.warm import check_pretraining, pretrain, start_from

OnEpoch = Callable[[dict[str, Any]], None]


def run(
    settings: Settings,
    prepared_path: str,
    out: str,
    workers: int = 1,
    resume: bool = False,
    address: str = cluster.LOCAL,
    on_epoch: OnEpoch | None = None,
) -> dict[str, Any]:
    """Train a model on a prepared data set.

    Args:
        settings: Resolved settings; `data` and `split` are taken from the data set.
        prepared_path: Folder of the data set.
        out: Folder of the run.
        workers: Processes; 1 on the local machine runs in this one.
        resume: Go on with the run in `out`; a finished one is left as it is.
        address: Ray cluster.
        on_epoch: Told each epoch's metrics as they come.

    Returns:
        Summary of the run: epochs, best epoch, its metrics, whether it was finished before.

    Raises:
        RecrayError: What the user can fix; see the message.
    """
    prepared = Prepared.open(prepared_path, verify=True)
    settings = for_data(settings, prepared)
    check(settings, prepared, workers, address)
    folder = RunFolder(out)
    facts = _facts(settings, prepared, workers)
    folder.check(facts, resume)
    if folder.finished:
        before = _progress(folder)
        if before.stopped or before.epoch >= settings.train.epochs:
            return _summary(folder, before, already=True)
    config = {
        "settings": settings.plain(),
        "prepared": prepared.folder.path,
        "run": folder.folder.path,
    }
    with cluster.session(address):
        cluster.require(workers)
        folder.claim(facts)
        with _following(folder.folder, on_epoch):
            _fit(config, folder.folder, 0 if workers == 1 and address == cluster.LOCAL else workers)
    summary = _summary(folder, _progress(folder))
    folder.finish(facts | {"summary": summary})
    return summary


def for_data(settings: Settings, prepared: Prepared) -> Settings:
    """The settings with what the data set decides: its own groups, and the rating levels.

    Raises:
        RecrayError: The model needs rating levels, and the data have too many.
    """
    values = settings.plain() | prepared.manifest["settings"]
    if settings.model.kind == "softmax-dnn" and settings.model.levels is None:
        levels = [level for level, _ in prepared.manifest["ratings"]["levels"]]
        if not levels:
            raise RecrayError(
                f"{prepared.folder} has more than 100 different ratings: "
                "model.kind=softmax-dnn needs model.levels"
            )
        values["model"]["levels"] = levels
    if settings.model.kind == "hybrid" and settings.model.item_features is None:
        values["model"]["item_features"] = feature_names(prepared.item_table[: prepared.items])
    return build_settings(values)


def check(settings: Settings, prepared: Prepared, workers: int, address: str) -> None:
    """Refuse what cannot be trained, before anything starts or is written.

    Raises:
        RecrayError: Too many workers, or settings that do not fit each other or the data.
    """
    if workers > prepared.buckets:
        raise RecrayError(
            f"--workers {workers}: the data set has {prepared.buckets} parts, "
            "one is needed per worker"
        )
    if address == cluster.LOCAL:
        cluster.require_local(workers)
    if not settings.ranks:
        refuse_equal_ratings(prepared)
    if max(settings.evaluate.k) > prepared.items:
        raise RecrayError(
            f"evaluate.k={max(settings.evaluate.k)} is larger than the catalogue "
            f"of {prepared.items} items"
        )
    low, high = prepared.rating_range
    bar = settings.evaluate.relevant_from
    if bar is not None and bar > high:
        raise RecrayError(
            f"evaluate.relevant_from={bar:g}: no rating is above {high:g}, "
            "nothing would be relevant"
        )
    objective = build_objective(settings, low, high)
    objective.check(build_model(settings, 1, 1))
    trained = read_starts(settings.train.start_from, prepared)
    if trained:
        model = build_model(settings, prepared.users, prepared.items)
        start_from(model, trained, settings.train.merge_alpha)
    if settings.train.pretrain:
        check_pretraining(build_model(settings, 1, 1))
        if trained:
            raise RecrayError("train.pretrain and train.start_from exclude each other")
    negatives = settings.objective.negatives
    if isinstance(objective, Contrast | UnratedClass) and negatives != "all":
        NegativeSampler(prepared.items, negatives)  # refuses more than the catalogue can give
    check_metric(settings.metric, settings.evaluate, stars=not settings.ranks)


def _facts(settings: Settings, prepared: Prepared, workers: int) -> dict[str, Any]:
    return {
        "dataset": prepared.manifest["dataset"],
        "prepared": prepared.folder.path,
        "fingerprint": prepared.fingerprint,
        "settings": settings.plain(),
        "workers": workers,
    }


def _progress(folder: RunFolder) -> Progress:
    """How far the newest checkpoint that can be read has come."""
    newest = folder.latest()
    return newest.progress if newest is not None else Progress()


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


def _fit(config: dict[str, Any], folder: Folder, workers: int) -> None:
    """Run train_worker under Ray Train; 0 workers is Ray's local mode, in this process."""
    import ray.train
    import ray.train.torch

    logging.getLogger("ray.train").setLevel(logging.WARNING)
    trainer = ray.train.torch.TorchTrainer(
        train_worker,
        train_loop_config=config,
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers, resources_per_worker={"CPU": 1} if workers else None
        ),
        # Every attempt is a fresh Ray run: what resumes is our own checkpoint.
        run_config=ray.train.RunConfig(  # type: ignore[call-arg]  # typed as the one before V2
            name=f"attempt-{uuid.uuid4().hex[:12]}",
            storage_path=folder.child(".ray").path,
            failure_config=ray.train.FailureConfig(  # type: ignore[call-arg]
                max_failures=0, controller_failure_limit=3
            ),
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),
        ),
        torch_config=ray.train.torch.TorchConfig(backend="gloo", timeout_s=120),
    )
    try:
        with contextlib.redirect_stdout(None):
            trainer.fit()
    except SystemExit as error:  # Ray's own SIGINT handler leaves with sys.exit(0)
        raise KeyboardInterrupt from error
    except Exception as error:
        failure = cluster.user_error(error)
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
        (agreed,) = workers.sum_floats(float(due))
        if agreed:
            last[0] = time.monotonic()
            ray.train.report(metrics)

    settings = build_settings(config["settings"])
    prepared = Prepared.open(config["prepared"])
    build_run(settings, prepared, config["run"], workers, report).fit()


def build_run(
    settings: Settings,
    prepared: Prepared,
    run_folder: str,
    workers: Workers,
    report: Callable[[dict[str, float]], None],
) -> TrainingRun:
    """Everything one worker needs, with the rows of its own buckets in memory."""
    parts = list(range(workers.rank, prepared.buckets, workers.size))
    train, valid = _rows(settings, prepared, parts)
    low, high = prepared.rating_range
    objective = build_objective(settings, low, high)
    torch.manual_seed(settings.train.seed)  # the same start on every worker
    model = build_model(settings, prepared.users, prepared.items)
    if isinstance(model, Hybrid):
        table = prepared.item_table[: prepared.items]
        names = settings.model.item_features or ()
        model.describe_items(torch.from_numpy(feature_matrix(table, names)))
    owned = torch.zeros(prepared.users, dtype=torch.bool)
    owned[torch.from_numpy(np.unique(train.user).astype(np.int64))] = True
    shard = Shard(
        torch.from_numpy(train.user.astype(np.int64)),
        torch.from_numpy(train.item.astype(np.int64)),
        torch.from_numpy(train.rating.copy()),
        owned,
    )
    validate = None
    if settings.train.rows == "train" and prepared.manifest["splits"]["valid"]["rows"]:
        # What stands in for the unknown comes from the ratings of all workers, so that the summed
        # metrics do not depend on how many there are.
        whole = statistics_of(shard, prepared.users, prepared.items, workers)
        biases = BiasOnly(prepared.users, prepared.items)
        biases.observe(whole)
        biases.fit_users(shard.user, shard.item, shard.rating)
        known = Ratings.concatenate([train, prepared.load("fold_in", parts)])
        last = max(int(valid.user.max(initial=-1)), int(known.user.max(initial=-1)))
        history = History.of(known, max(last + 1, prepared.users), prepared.items)

        def ranker(model: Model) -> Ranker:
            return Ranker(model, objective, history, 1.0, biases, whole.item_count.float())

        validate = _validation(settings, valid, ranker)
    trained = read_starts(settings.train.start_from, prepared)
    start: Callable[[Model], None] | None = None
    if trained:
        start = partial(start_from, runs=trained, alpha=settings.train.merge_alpha)
    elif settings.train.pretrain:
        start = partial(pretrain, shard=shard, settings=settings, workers=workers)
    return TrainingRun(
        settings,
        model,
        objective,
        shard,
        RunFolder(run_folder),
        workers,
        validate,
        report,
        start,
    )


def _rows(settings: Settings, prepared: Prepared, parts: list[int]) -> tuple[Ratings, Ratings]:
    """The rows to train on and to validate with, of users and items that training knows."""
    train, valid = prepared.load("train", parts), prepared.load("valid", parts)
    if settings.train.rows == "train":
        return train, valid
    known = valid.where((valid.user < prepared.users) & (valid.item < prepared.items))
    return Ratings.concatenate([train, known]), valid


def _validation(settings: Settings, valid: Ratings, ranker: Callable[[Model], Ranker]) -> Validate:
    """Ranks this worker's validation users among all items they have not trained on."""
    names = metric_names(settings.evaluate, stars=not settings.ranks)
    blocks = blocks_of(valid)

    def validate(model: Model) -> dict[str, tuple[float, float]]:
        made = ranker(model)
        tables = [measure(made, valid, block, settings.evaluate) for block in blocks]
        return sums_of(UserTable.join(tables) if tables else None, names)

    return validate


@contextlib.contextmanager
def _following(folder: Folder, on_epoch: OnEpoch | None) -> Iterator[None]:
    """Tell on_epoch of each new entry of epochs.json while the block runs, wherever it trains."""
    if on_epoch is None:
        yield
        return
    seen = len(folder.read_json("epochs.json")) if folder.exists("epochs.json") else 0
    stop = threading.Event()

    def tell() -> None:
        nonlocal seen
        if folder.exists("epochs.json"):
            history = folder.read_json("epochs.json")
            for entry in history[seen:]:
                on_epoch(entry)
            seen = max(seen, len(history))

    def follow() -> None:
        while not stop.wait(0.25):
            tell()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        tell()
