"""`recray train`: what is refused before a run, and the run."""

from dataclasses import dataclass, replace

from recray.config import Settings, build_settings
from recray.data.dataset import Prepared, refuse_equal_ratings
from recray.data.features import feature_names
from recray.errors import RecrayError
from recray.evaluation.metrics import check_metric
from recray.models import build_model
from recray.models.objectives import build_objective
from recray.runtime.nodes import require_shared, wait_for_capacity
from recray.runtime.session import LOCAL, require_local, session, workers_at
from recray.runtime.worker_range import WorkerRange
from recray.training.callbacks import Callbacks, watch_history
from recray.training.checkpoint import RunFolder, TrainState
from recray.training.checks import (
    check_evaluation,
    check_half_life,
    check_negatives,
    check_start,
    described_k,
    described_preference,
    refuse_large_batch,
    resolved_k,
    resolved_preference,
)
from recray.training.devices import check_device, gpus_at, with_device
from recray.training.early_stopping import distrust_of_validation
from recray.training.elastic import ElasticTraining, counted, first_workers
from recray.training.loop import is_done
from recray.training.optimizers import EXACT, describe
from recray.training.ray_train import TrainJob
from recray.training.run_metadata import RunMetadata, RunSummary
from recray.training.streaming import check_streaming, fit_rows_of_parts, is_streamed
from recray.training.warm_start import StartWeights

MAX_FAILURES = 3
"""How often a group of workers of which one is lost begins again from the last checkpoint."""


# ------------------------------------------------------------------------------------- the run


def run(
    settings: Settings,
    prepared_path: str,
    out: str,
    workers: int | str | WorkerRange = 1,
    resume: bool = False,
    address: str = LOCAL,
    callbacks: Callbacks | None = None,
    max_failures: int = MAX_FAILURES,
    verify: bool = True,
) -> RunSummary:
    """Train a model on a prepared data set.

    Args:
        settings: Resolved settings; `data` and `split` are taken from the data set.
        prepared_path: Its folder.
        out: Folder of the run.
        workers: Processes, or a range such as "1..4"; on this machine 1 runs in this process.
        resume: Go on with the run in `out`; a finished one is left as it is.
        address: Ray cluster.
        callbacks: What is called while it trains; None calls nothing.
        max_failures: How often a new group goes on when a worker is lost.
        verify: Whether to compare the files of the data set with their sha256 first.

    Raises:
        RecrayError: What the user can fix; see the message.
    """
    prepared, allowed = Prepared.open(prepared_path, verify), workers_at(workers, address)
    settings = with_sizes_and_device(settings, prepared, allowed.start, address)
    start_weights = check_trainable(settings, prepared, allowed, address)
    folder, now = RunFolder(out), _metadata(settings, prepared, allowed.start)
    folder.validate(now, resume)
    if is_done(before := folder.train_state(), settings.train.epochs):
        return _finish(folder, before, already=True)
    distrust = distrust_of_validation(settings, prepared)
    own = (prepared.folder, str(folder), now.fingerprint)
    job = TrainJob(settings, *own, start_weights, bool(distrust))
    run = _Training(job, prepared, folder, now, before, callbacks or Callbacks(), distrust)
    run.train(allowed, address, max_failures)
    return _finish(folder, folder.train_state(check=False))


def _metadata(settings: Settings, prepared: Prepared, workers: int) -> RunMetadata:
    return RunMetadata(
        dataset=prepared.manifest["dataset"],
        prepared=prepared.folder.path,
        fingerprint=prepared.fingerprint_of(settings.train.fit_on),
        settings=settings,
        workers=workers,
    )


@dataclass(frozen=True)
class _Training:
    """A run that was checked and is not finished.

    Args:
        job: What every worker is handed.
        prepared: The data set.
        folder: The run.
        metadata: What the run is.
        before: How far it has come.
        callbacks: What is called while it trains.
        distrust: Why validation cannot pick the best epoch; None where it can.
    """

    job: TrainJob
    prepared: Prepared
    folder: RunFolder
    metadata: RunMetadata
    before: TrainState
    callbacks: Callbacks
    distrust: str | None

    def train(self, allowed: WorkerRange, address: str, max_failures: int) -> None:
        """Train to the end, on a cluster or in this process."""
        log = self.callbacks.log
        if self.callbacks.on_start is not None:
            self.callbacks.on_start(self.job.settings.train.epochs, self.job.settings.metric)
        with session(address):
            busy = wait_for_capacity(allowed.start)
            local_mode = allowed.most == 1 and address == LOCAL
            gpus = float(self.job.settings.train.device == "cuda" and not local_mode)
            workers = first_workers(allowed, gpus)
            now = self.metadata.model_copy(update={"workers": workers})
            if self.before.epoch or self.before.step:
                log(self._continued(workers))
            require_shared(self.folder.folder)
            for line in self._plan(workers):
                log(line)
            if busy is not None:
                log(f"train: {busy}")
            self.folder.reserve(now, self.before)
            with watch_history(self.folder, self.callbacks, now, self.before.history):
                job = replace(self.job, gpus=gpus)
                training = ElasticTraining(job, self.folder, now, allowed, log)
                training.run(max_failures, local_mode)

    def _plan(self, workers: int) -> list[str]:
        """Describe how the run will train, before it begins."""
        settings, prepared = self.job.settings, self.prepared
        fit = prepared.fit(settings.train.fit_on)
        rows = sum(fit_rows_of_parts(settings, prepared))
        line = describe(settings, fit.users, fit.items, rows, workers)
        lines = [f"{line}{described_preference(settings, *fit.rating_range)}"]
        lines += described_k(settings, prepared)
        if self.distrust is not None:
            epochs = settings.train.epochs
            lines.append(f"train: {self.distrust}: all {epochs} epochs are run, the last is kept")
        limit = settings.train.max_rows_in_memory
        if limit is not None and is_streamed(settings, prepared, workers):
            lines.append(
                f"train: streams {rows:,} ratings; a worker holds at most {limit:,} of them at once"
            )
        return lines

    def _continued(self, now: int) -> str:
        """Say that a run is continued, and what differs from its beginning."""
        epochs, before = self.job.settings.train.epochs, self.before
        message = f"train: {self.folder.folder} goes on after epoch {before.epoch} of {epochs}"
        if before.step:
            message += f" and {before.step:,} steps"
        then = self.folder.metadata().workers
        if then != now:
            message += (
                f" with {counted(now)} instead of {then}: the same tables; the "
                "order of the ratings, and so the digits, are not those of an unbroken run"
            )
        return message


def _finish(folder: RunFolder, state: TrainState, already: bool = False) -> RunSummary:
    """Mark the run as finished, if it is not yet; return its summary."""
    summary = RunSummary(
        run=folder.folder.path,
        epochs=state.epoch,
        best_epoch=state.best_epoch,
        best=next(entry for entry in state.history if entry["epoch"] == state.best_epoch),
        stopped_early=state.stopped,
    )
    if not folder.finished:
        folder.finish(summary)
    return summary.model_copy(update={"already_finished": already})


# ------------------------------------------------------------ what is settled before it starts


def adapt_to_dataset(settings: Settings, prepared: Prepared) -> Settings:
    """Fill in what the data set decides: its own groups, sizes, what ratings mean, rating levels,
    item features.

    Raises:
        RecrayError: The model needs rating levels, and the data have too many; or no scale fits
            the ratings.
    """
    settings = settings.sized(prepared.users, prepared.items)
    values = settings.plain() | prepared.manifest["settings"]
    values["objective"] |= resolved_preference(settings, prepared)
    values["evaluate"] |= resolved_k(settings, prepared)
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


def with_sizes_and_device(
    settings: Settings, prepared: Prepared, workers: int, address: str
) -> Settings:
    """Fill in what the data set decides, and then where workers train; see adapt_to_dataset."""
    settings = adapt_to_dataset(settings, prepared)
    if settings.train.choose_from:  # each of those settles its own device
        return settings
    return with_device(settings, prepared, workers, lambda: gpus_at(address))


def check_trainable(
    settings: Settings, prepared: Prepared, workers: int | WorkerRange, address: str
) -> tuple[StartWeights, ...]:
    """Refuse what cannot be trained, before anything starts or is written.

    Returns:
        What train.init_from names, which was read to be checked.

    Raises:
        RecrayError: Too many workers, or settings that do not fit each other or the data.
    """
    if settings.train.choose_from:
        raise ValueError("a run is of one model: see recray.training.model_selection")
    allowed = WorkerRange.of(workers)
    if allowed.most > prepared.buckets:
        raise RecrayError(
            f"--workers {allowed}: the data set has {prepared.buckets} parts, "
            "one is needed per worker"
        )
    if address == LOCAL:
        require_local(allowed.most)
    if not settings.ranks:
        refuse_equal_ratings(prepared)
    check_evaluation(settings, prepared)
    check_half_life(settings)
    check_device(settings.train, allowed.start, address)
    if settings.train.optimizer not in EXACT:
        refuse_large_batch(settings, prepared)
    objective = build_objective(settings, *prepared.fit(settings.train.fit_on).rating_range)
    objective.check(build_model(settings, 1, 1))
    limit = settings.train.max_rows_in_memory
    for count in {allowed.start, allowed.most}:
        if limit is not None and is_streamed(settings, prepared, count):
            check_streaming(settings, objective, max(fit_rows_of_parts(settings, prepared)), count)
    start_weights = check_start(settings, prepared)
    check_negatives(settings, prepared, objective)
    if settings.train.metric != "auto":
        check_metric(settings.metric, settings.evaluate, rates=not settings.ranks)
    return start_weights
