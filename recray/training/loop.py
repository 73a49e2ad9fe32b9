"""The training loop: plain PyTorch, no cluster, the same for one worker and for many."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from recray.config import Settings, without_effect
from recray.data.dataset import Prepared
from recray.data.features import feature_matrix
from recray.errors import RecrayError
from recray.evaluation.metrics import RATING
from recray.models import build_model
from recray.models.base import Model
from recray.models.factorization import Hybrid
from recray.models.history import ClosedForm
from recray.models.objectives import Objective, build_objective
from recray.schema import TIMINGS
from recray.training.checkpoint import (
    OPTIMIZER,
    Checkpoint,
    CheckpointStore,
    TrainState,
    UserRows,
)
from recray.training.devices import device_of
from recray.training.epochs import EpochRunner
from recray.training.own_users import OwnUsers, first_model, user_weights
from recray.training.resizing import ResizeWatch
from recray.training.run_metadata import EpochEntry
from recray.training.runners import epoch_runner
from recray.training.shard import Shard, Workers, rating_statistics
from recray.training.streaming import StreamedShard, check_streaming
from recray.training.warm_start import (
    StartWeights,
    has_start,
    pretrain,
    read_start_weights,
    start_from,
)
from recray.training.worker_rows import Validate, WorkerRows

Report = Callable[[EpochEntry], None]

LOWER_IS_BETTER = RATING
"""Metrics of which the lowest value is the best."""


def is_done(state: TrainState, epochs: int) -> bool:
    """Whether nothing is left to train of so many epochs."""
    return state.stopped or state.epoch >= epochs


@dataclass(frozen=True)
class TrainingRun:
    """Everything one worker needs to train.

    Args:
        settings: The resolved settings.
        model: With rows of this worker's users; the others are equal on every worker.
        objective: What is minimised.
        shard: This worker's rows.
        checkpoints: The same for all workers.
        workers: The group.
        validate: Sums and counts of validation metrics over this worker's users; None if there
            is no validation split.
        report: Receives the summed metrics after each epoch, on every worker.
        initialize: Gives the model its first weights, where they are not random.
        preempting: Whether the machines of this group are about to be taken away, the same on
            every worker; asked every few seconds. A checkpoint is then written between two steps,
            and the group ends.
        has_room: Whether the cluster has room for more workers than this group has; asked by
            worker 0 at the end of an epoch, where the group then ends.
        keep_last: Run all epochs and keep the last, whatever validation says.
    """

    settings: Settings
    model: Model
    objective: Objective
    shard: Shard | StreamedShard
    checkpoints: CheckpointStore
    workers: Workers
    validate: Validate | None
    report: Report
    initialize: Callable[[Model], None] | None = None
    preempting: Callable[[], bool] | None = None
    has_room: Callable[[], bool] | None = None
    keep_last: bool = False

    def fit(self) -> TrainState:
        """Train from the newest checkpoint, or from the start, to the end.

        Raises:
            RecrayError: The loss is not finite any more; the last good checkpoint stays.
            GroupEnds: Another number of workers is to go on from the newest checkpoint.
        """
        *_, last = self.epochs()
        return last

    def epochs(self) -> Iterator[TrainState]:
        """Train as `fit` does; gives the state at the start and after each epoch.

        Raises:
            RecrayError: The loss is not finite any more.
        """
        runner = epoch_runner(self.model, self.objective, self.shard, self.settings, self.workers)
        state = self._restore(runner)
        self.workers.with_long_timeout().barrier()
        watch = None
        if self.preempting is not None:
            save = partial(self._save, runner, state)
            watch = ResizeWatch(self.preempting, self.has_room, save, self.workers)
            runner.on_step(watch.after_step)
        yield state
        while not is_done(state, self.settings.train.epochs):
            self._epoch(runner, state)
            yield state
            if watch is not None and not is_done(state, self.settings.train.epochs):
                watch.after_epoch()

    def _restore(self, runner: EpochRunner) -> TrainState:
        tables = user_weights(self.model)
        checkpoint = self.checkpoints.restore(self.shard.users, tables, self.workers)
        if checkpoint is None:
            group = self.workers.with_long_timeout()
            self.model.init_from_statistics(rating_statistics(self.shard, self.model.items, group))
            if self.initialize is not None:
                self.initialize(self.model)
            return TrainState()
        free = self.model.sized_by_data if isinstance(self.model, ClosedForm) else ()
        checkpoint.check_compatible(self.model.state_dict(), str(self.checkpoints), free)
        self.model.load_state_dict(checkpoint.model_weights)
        runner.load_state(checkpoint.optimizer, checkpoint.users.optimizer)
        state, losses = checkpoint.train_state, checkpoint.losses
        if losses is not None and len(losses) == self.workers.size:
            runner.continue_at(state.step, losses[self.workers.rank])
        state.step = 0  # with other workers the epoch begins again, with the tables as they are
        return state

    def _epoch(self, runner: EpochRunner, state: TrainState) -> None:
        begin = time.perf_counter()
        own = runner.run(state.epoch)
        # The loss is that before the last step, which may have been the one too far.
        whole = all(bool(torch.isfinite(p).all()) for p in self.model.parameters())
        # The last phase of exact solves ends at different times, so the patience is long.
        group = self.workers.with_long_timeout()
        loss_sum, rows, broken = group.sum_floats(*own, float(not whole))
        if not math.isfinite(loss_sum) or broken:
            step = self._first_of(runner.bad_step())
            where = f"step {step} of epoch" if step is not None else "epoch"
            raise RecrayError(
                f"the loss became {math.nan if broken else loss_sum} in {where} {state.epoch + 1}"
                f"{self._remedy()}; the last good checkpoint stays"
            )
        trained = time.perf_counter()
        loss = {"loss": loss_sum / rows} if runner.has_loss else {}
        metrics = {**loss, **self._validation()}
        state.epoch += 1
        # Rank 0's clock for everybody: decisions and history must not differ between workers.
        clock = (trained - begin, time.perf_counter() - begin) if self.workers.rank == 0 else (0, 0)
        training, seconds = self.workers.with_long_timeout().sum_floats(*clock)
        self._judge(state, metrics)
        timings = (round(seconds, 4), round(rows / max(training, 1e-9)))
        entry = {"epoch": state.epoch, **metrics, **dict(zip(TIMINGS, timings, strict=True))}
        state.history.append(entry)
        self._save(runner, state)
        self.report(entry)

    def _remedy(self) -> str:
        """Name the settings that keep a loss finite, of those that this run uses."""
        changes = {"train.lr": "smaller", "train.l2": "larger"}
        used = [name for name in changes if not without_effect(self.settings, name)]
        given = " and ".join(f"{name}={self.settings.value(name):g}" for name in used)
        change = " or ".join(f"a {changes[name]} {name}" for name in used)
        return f" with {given}; use {change}" if used else ""

    def _first_of(self, step: int | None) -> int | None:
        """The first step that some worker names."""
        steps = torch.zeros(self.workers.size, dtype=torch.int64)
        steps[self.workers.rank] = step or 0
        named = self.workers.sum(steps)
        return int(named[named > 0].min()) if bool(named.any()) else None

    def _save(self, runner: EpochRunner, state: TrainState, step: int = 0) -> None:
        """Write a checkpoint, at the end of an epoch or after a step; all workers at once."""
        losses = None
        if step:
            runner.finish_steps()
            own = runner.losses_so_far()
            losses = own.new_zeros(self.workers.size, len(own))
            losses[self.workers.rank] = own
            self.workers.with_long_timeout().sum(losses)
        every, tables = self.model.state_dict(), user_weights(self.model)
        weights = {name: value for name, value in every.items() if name not in tables}
        rows = {name: every[name] for name in tables}
        rows |= {f"{OPTIMIZER}{name}": value for name, value in runner.user_state().items()}
        users, at = UserRows(self.shard.users, rows), replace(state, step=step)
        content = Checkpoint(weights, runner.state(), at, losses, users)
        self.checkpoints.save(content, self.workers)

    def _validation(self) -> dict[str, float]:
        if self.validate is None:
            return {}
        self.model.eval()
        with torch.no_grad():
            sums = self.validate(self.model)
        names = sorted(sums)
        flat = self.workers.with_long_timeout().sum_floats(
            *(number for name in names for number in sums[name])
        )
        means = {}
        for place, name in enumerate(names):
            total, count = flat[2 * place], flat[2 * place + 1]
            mean = total / count if count else math.nan
            means[name] = math.sqrt(mean) if name == "rmse" else mean
        return means

    def _judge(self, state: TrainState, metrics: dict[str, float]) -> None:
        """Remember the best epoch; stop when patience has run out. Without validation, or one that
        can be trusted, the last epoch is the best.
        """
        name, train = self.settings.metric, self.settings.train
        if self.keep_last or not math.isfinite(metrics.get(name, math.nan)):
            state.best_epoch = state.epoch
            return
        value = metrics[name]
        sign = -1 if name in LOWER_IS_BETTER else 1
        if state.best_value is None or sign * value > sign * state.best_value:
            state.best_epoch, state.best_value = state.epoch, value
        waited = state.epoch - state.best_epoch
        state.stopped = train.patience is not None and waited >= train.patience


# --------------------------------------------------------------------- from files to a run


def build_run(
    settings: Settings,
    prepared: Prepared,
    checkpoints: CheckpointStore,
    workers: Workers,
    report: Callable[[dict[str, float]], None],
    start_weights: Sequence[StartWeights] | None = None,
) -> TrainingRun:
    """Read the ratings of a worker's own parts, and build the model and the objective.

    Args:
        settings: Resolved settings.
        prepared: The data set.
        checkpoints: Those of the run.
        workers: The group.
        report: Receives the metrics of each epoch.
        start_weights: What train.init_from names; None reads it here.
    """
    rows = WorkerRows(settings, prepared, workers)
    fit = prepared.fit(settings.train.fit_on)
    objective = build_objective(settings, *fit.rating_range)
    if rows.streamed:  # also where validation rows, or fewer workers than there were, make it so
        check_streaming(settings, objective, max(rows.rows_of.values()), workers.size)
    model = _build_model(settings, prepared, rows.users).to(device_of(settings.train))
    return TrainingRun(
        settings,
        model,
        objective,
        rows.shard,
        checkpoints,
        workers,
        rows.validation(objective),
        report,
        _initializer(settings, prepared, rows, start_weights),
    )


def _build_model(settings: Settings, prepared: Prepared, users: OwnUsers) -> Model:
    fit = prepared.fit(settings.train.fit_on)
    model = first_model(partial(build_model, settings), users, fit.items, settings.train.seed)
    if isinstance(model, Hybrid):
        table = prepared.item_table[: fit.items]
        names = settings.model.item_features or ()
        model.describe_items(torch.from_numpy(feature_matrix(table, names)))
    return model


def _initializer(
    settings: Settings,
    prepared: Prepared,
    rows: WorkerRows,
    start_weights: Sequence[StartWeights] | None,
) -> Callable[[Model], None] | None:
    """Choose how a model gets its first weights; None leaves the random ones."""
    train, shard = settings.train, rows.shard
    if train.init_from and has_start(settings):
        whole = start_weights or read_start_weights(train.init_from, prepared, train.fit_on)
        runs = [run.of_users(rows.users) for run in whole]
        return partial(start_from, runs=runs, alpha=train.neumf_alpha)
    if train.als_pretrain_epochs and isinstance(shard, Shard):  # check_streaming refuses the other
        workers, fit = rows.workers.with_long_timeout(), prepared.fit(train.fit_on)
        return lambda model: pretrain(model, shard, settings, workers, fit.rating_range)
    return None
