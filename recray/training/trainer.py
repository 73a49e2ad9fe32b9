"""`recray train`: what is refused before a run, and the run."""

from dataclasses import dataclass

from recray.config import Settings, build_settings
from recray.data.dataset import Prepared, refuse_equal_ratings
from recray.data.features import feature_names
from recray.errors import RecrayError, WorkerLost
from recray.evaluation.metrics import check_metric
from recray.models import build_model
from recray.models.objectives import build_objective
from recray.runtime.nodes import available_workers, require_shared, wait_for_capacity
from recray.runtime.session import LOCAL, require_local, session
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
from recray.training.loop import is_done
from recray.training.optimizers import EXACT, describe
from recray.training.ray_train import Callbacks, TrainJob, fit, train_worker, watch_history
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
    workers: int = 1,
    resume: bool = False,
    address: str = LOCAL,
    callbacks: Callbacks | None = None,
    max_failures: int = MAX_FAILURES,
    verify: bool = True,
) -> RunSummary:
    """Train a model on a prepared data set.

    Args:
        settings: Resolved settings; `data` and `split` are taken from the data set.
        prepared_path: Folder of the data set.
        out: Folder of the run.
        workers: Processes; 1 on the local machine runs in this one.
        resume: Go on with the run in `out`; a finished one is left as it is.
        address: Ray cluster.
        callbacks: What is called while it trains; None calls nothing.
        max_failures: How often to begin again from the last checkpoint when a worker is lost.
        verify: Whether to compare the files of the data set with their sha256 first.

    Raises:
        RecrayError: What the user can fix; see the message.
    """
    prepared = Prepared.open(prepared_path, verify=verify)
    settings = with_sizes_and_device(settings, prepared, workers, address)
    start_weights = check_trainable(settings, prepared, workers, address)
    folder, callbacks = RunFolder(out), callbacks or Callbacks()
    now = _metadata(settings, prepared, workers)
    folder.validate(now, resume)
    before = folder.train_state()
    if is_done(before, settings.train.epochs):
        return _finish(folder, before, already=True)
    distrust = distrust_of_validation(settings, prepared)
    job = TrainJob(settings, str(prepared.folder), str(folder), start_weights, distrust is not None)
    _Training(job, prepared, folder, now, before, callbacks, distrust).run(address, max_failures)
    return _finish(folder, folder.train_state())


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

    def run(self, address: str, max_failures: int) -> None:
        """Train to the end, on a cluster or in this process."""
        workers, log = self.metadata.workers, self.callbacks.log
        if self.before.epoch or self.before.step:
            log(self._continued())
        if self.callbacks.on_start is not None:
            self.callbacks.on_start(self.job.settings.train.epochs, self.job.settings.metric)
        with session(address):
            busy = wait_for_capacity(workers)
            require_shared(self.folder.folder)
            for line in self._plan():
                log(line)
            if busy is not None:
                log(f"train: {busy}")
            self.folder.reserve(self.metadata, self.before)
            with watch_history(self.folder, self.callbacks, self.metadata, self.before.history):
                processes = 0 if workers == 1 and address == LOCAL else workers
                self._fit_again(processes, max_failures)

    def _plan(self) -> list[str]:
        """Describe how the run will train, before it begins."""
        settings, prepared, workers = self.job.settings, self.prepared, self.metadata.workers
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

    def _continued(self) -> str:
        """Say that a run is continued, and what differs from its beginning."""
        epochs, before, now = self.job.settings.train.epochs, self.before, self.metadata.workers
        message = f"train: {self.folder.folder} goes on after epoch {before.epoch} of {epochs}"
        if before.step:
            message += f" and {before.step:,} steps"
        then = self.folder.metadata().workers
        if then != now:
            message += (
                f" with {_workers(now)} instead of {then}: the same tables; the "
                "order of the ratings, and so the digits, are not those of an unbroken run"
            )
        return message

    def _fit_again(self, workers: int, max_failures: int) -> None:
        """Train; when a worker is lost, begin again with a new group from the newest checkpoint.

        An error that a worker raises is not tried again: training is exact, so it would come again.

        Raises:
            WorkerLost: More than max_failures times.
            RecrayError: What the user can fix.
        """
        gpus = float(workers > 0 and self.job.settings.train.device == "cuda")
        for failures in range(max_failures + 1):
            try:
                return fit(train_worker, {"job": self.job}, self.folder.folder, workers, gpus)
            except WorkerLost as error:
                if failures == max_failures:
                    times = "once" if not failures else f"{failures + 1} times"
                    raise WorkerLost(
                        f"a worker was lost {times}, --max-failures is {max_failures}: {error}; "
                        "continue with --resume"
                    ) from error
                state = self.folder.train_state()
                again = f"again after epoch {state.epoch}, {failures + 1} of {max_failures}"
                self.callbacks.log(f"train: {error}; {again}")
                workers = self._remaining(workers, state)
        return None

    def _remaining(self, workers: int, state: TrainState) -> int:
        """Count the workers to go on with: fewer where the nodes that are left have less room."""
        room = available_workers(workers)
        if not 0 < room < workers:
            return workers
        self.callbacks.log(
            f"train: the nodes that are left have {room} CPUs: goes on with {_workers(room)} "
            f"instead of {workers}; the digits are not those of an unbroken run"
        )
        self.folder.reserve(self.metadata.model_copy(update={"workers": room}), state)
        return room


def _workers(count: int) -> str:
    return f"{count} worker{'s' * (count > 1)}"


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
    settings: Settings, prepared: Prepared, workers: int, address: str
) -> tuple[StartWeights, ...]:
    """Refuse what cannot be trained, before anything starts or is written.

    Returns:
        What train.init_from names, which was read to be checked.

    Raises:
        RecrayError: Too many workers, or settings that do not fit each other or the data.
    """
    if settings.train.choose_from:
        raise ValueError("a run is of one model: see recray.training.model_selection")
    if workers > prepared.buckets:
        raise RecrayError(
            f"--workers {workers}: the data set has {prepared.buckets} parts, "
            "one is needed per worker"
        )
    if address == LOCAL:
        require_local(workers)
    if not settings.ranks:
        refuse_equal_ratings(prepared)
    check_evaluation(settings, prepared)
    check_half_life(settings)
    check_device(settings.train, workers, address)
    if settings.train.optimizer not in EXACT:
        refuse_large_batch(settings, prepared)
    objective = build_objective(settings, *prepared.fit(settings.train.fit_on).rating_range)
    objective.check(build_model(settings, 1, 1))
    limit = settings.train.max_rows_in_memory
    if limit is not None and is_streamed(settings, prepared, workers):
        check_streaming(settings, objective, max(fit_rows_of_parts(settings, prepared)), workers)
    start_weights = check_start(settings, prepared)
    check_negatives(settings, prepared, objective)
    if settings.train.metric != "auto":
        check_metric(settings.metric, settings.evaluate, rates=not settings.ranks)
    return start_weights
