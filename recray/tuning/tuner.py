"""RAY TUNE: trials side by side, pruned while they run. Tune starts, stops and prunes; what has
ended is known from the trials' own files, so nothing of Tune's state is kept.
"""

import contextlib
import json
import logging
import os
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from recray.errors import RecrayError
from recray.runtime.nodes import capacity, require_shared, scale_up
from recray.runtime.session import LOCAL, session
from recray.tuning.driver import Desk, OnEvent
from recray.tuning.request import Order, Room, Search, concurrency, takes
from recray.tuning.store import Goal, Record, SweepFolder
from recray.tuning.trial import TrialRun, load
from recray.tuning.trial_queue import Candidate, Plan

REDUCTION = 4
"""ASHA keeps the best quarter at each rung."""
FIRST = 9
"""The first rung is at this part of the epochs."""

_TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no csv, json and TensorBoard files beside ours
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",  # its snapshots are not used
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # paths are the user's: train.init_from may be relative
}


def _fitting(search: Search) -> int:
    import ray

    scale_up(max(search.order.workers, min(search.order.concurrent or 1, capacity().max_cpus)))
    there = ray.cluster_resources()
    order, cpus = search.order, int(there.get("CPU", 0))
    if order.concurrent is None and order.address == LOCAL:
        # A local Ray has more logical CPUs than real ones.
        cpus = min(cpus, max(os.cpu_count() or 1, order.workers))
    room = Room(cpus, there.get("GPU", 0.0), there.get("memory"))
    return concurrency(order.concurrent, room, takes(search))


def run(search: Search, on_event: OnEvent | None = None) -> Plan:
    """Run all trials that have not ended, and write results.parquet and best.yaml.

    Args:
        search: What `check` returned.
        on_event: Told of each report and each end.

    Returns:
        The plan, with every trial that has ended.

    Raises:
        RecrayError: No trial came to a value, or the cluster has no room for one.
    """
    with session(search.order.address):
        at_once = _fitting(search)
        require_shared(search.sweep.folder)
        search.claim()
        plan = search.plan()
        if plan.waiting:
            _fit(search, plan, at_once, on_event)
    records = sorted(plan.records.values(), key=lambda r: r.number)
    search.sweep.write_results(records, search.goal, search.order.searcher)
    winner = search.goal.winner(records)
    if winner is None:
        reason = next((r.error for r in records if r.error), "nothing was measured")
        raise RecrayError(f"none of {len(records)} trials came to a {search.goal.metric}: {reason}")
    search.sweep.write_best(winner, search.goal)
    return plan


@contextlib.contextmanager
def _tune_environment() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in _TUNE_ENVIRONMENT}
    os.environ.update({k: v for k, v in _TUNE_ENVIRONMENT.items() if before[k] is None})
    level = logging.getLogger("ray.tune").level
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # errors of trials are rows
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)
        logging.getLogger("ray.tune").setLevel(level)
        for name, value in before.items():
            if value is None:
                del os.environ[name]


def _fit(search: Search, plan: Plan, at_once: int, on_event: OnEvent | None) -> None:
    """Let Tune run what is waiting."""
    from ray import tune

    desk = Desk(plan, search.order.trials, on_event)
    scheduler = _scheduler(search)
    for record in plan.records.values():
        _replay(scheduler, record, search.goal)
    trainable = tune.with_resources(
        tune.with_parameters(
            _trainable(),
            order=search.order,
            data=load(search.data) if search.order.workers == 1 else search.data,
            sweep=search.sweep.folder.path,
            goal=search.goal,
        ),
        _resources(search.order),
    )
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=_searcher(desk),
            scheduler=scheduler,
            num_samples=len(plan.waiting),
            max_concurrent_trials=at_once,
            # 0.2 s a trial instead of 2; an actor that waits for its next trial is not told that
            # the last one has ended, so one with workers of its own leaves with its trial.
            reuse_actors=search.order.workers == 1,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name=f"attempt-{uuid.uuid4().hex[:12]}",
            storage_path=search.sweep.folder.child(".ray").path,
            failure_config=tune.FailureConfig(max_failures=0),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            progress_reporter=tune.CLIReporter(),  # that of notebooks needs a stdout to clear
            verbose=0,
        ),
    )
    try:
        with _tune_environment(), contextlib.redirect_stdout(None):
            tuner.fit()
    except Exception:
        if desk.failure is None:
            raise
    finally:
        search.sweep.folder.delete(".ray")
    if desk.failure is not None:
        raise desk.failure
    if desk.running:  # Tune takes Ctrl-C for itself, gives all CPUs back and returns
        raise KeyboardInterrupt


def _resources(order: Order) -> dict[str, float]:
    """What Tune reserves for a trial; Ray Train reserves for workers of its own."""
    if order.workers > 1:
        return {"memory": 1}  # Tune refuses to reserve nothing
    return {"CPU": 1} | ({"GPU": order.gpus} if order.gpus else {})


def _scheduler(search: Search) -> Any:
    """What stops trials early, by epochs and the best value so far."""
    from ray.tune import schedulers

    longest = search.longest
    shared: dict[str, Any] = {
        "time_attr": "epoch",
        "metric": "value",
        "mode": "min" if search.goal.lower else "max",
        "grace_period": max(1, longest // FIRST),
    }
    match search.order.scheduler:
        case "asha":
            return schedulers.AsyncHyperBandScheduler(
                **shared, max_t=longest, reduction_factor=REDUCTION, stop_last_trials=False
            )
        case "median":
            shared["min_time_slice"] = float("inf")  # never pause: there is no checkpoint
            return schedulers.MedianStoppingRule(**shared)
    return schedulers.FIFOScheduler()


class _Past:
    """A trial of before, as a scheduler knows trials."""

    def __init__(self, key: str) -> None:
        self.trial_id = key


def _replay(scheduler: Any, record: Record, goal: Goal) -> None:
    """Tell the scheduler what it had been told of a trial that has ended."""
    values = goal.so_far(record.history)
    if not values:
        return
    past = _Past(record.key)
    results = [{"epoch": n, "value": value} for n, value in enumerate(values, 1)]
    scheduler.on_trial_add(None, past)
    for result in results:
        scheduler.on_trial_result(None, past, result)
    scheduler.on_trial_complete(None, past, results[-1])


def _trainable() -> Any:
    """A trial as Tune runs it: an epoch a step, in an actor that serves one trial after another."""
    from ray import tune

    class TuneTrial(tune.Trainable):
        def setup(self, config: dict[str, Any], **given: Any) -> None:
            self._given = given
            self.reset_config(config)

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            candidate = Candidate(**json.loads(new_config["candidate"]))
            self._trial = _trial(candidate, **self._given)
            return True

        def step(self) -> dict[str, Any]:
            return self._trial.step()

        def cleanup(self) -> None:
            self._trial.close()

    return TuneTrial


def _trial(candidate: Candidate, order: Order, data: Any, sweep: str, goal: Goal) -> Any:
    """The trial in this process, or on workers of its own."""
    if order.workers == 1:
        return TrialRun(data, SweepFolder(sweep), candidate, goal, order.folds)
    from recray.tuning.distributed_trial import TeamTrial

    return TeamTrial(data.folder.path, SweepFolder(sweep), candidate, goal, order)


def _searcher(desk: Desk) -> Any:
    """The plan as Tune asks for trials. Tune swallows errors here: they are kept for the end."""
    from ray.tune.search import Searcher

    class PlanSearcher(Searcher):
        def suggest(self, trial_id: str) -> Any:
            candidate = _kept(desk, lambda: desk.next(trial_id))
            if desk.failure is not None:
                raise RuntimeError("the sweep has come to an end") from desk.failure
            if candidate is None:
                return Searcher.FINISHED
            return {"candidate": json.dumps(asdict(candidate))}

        def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
            _kept(desk, lambda: desk.reported(trial_id, result))

        def on_trial_complete(
            self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
        ) -> None:
            _kept(desk, lambda: desk.ended(trial_id, None if error else result))

        def save(self, checkpoint_path: str) -> None:
            pass

        def restore(self, checkpoint_path: str) -> None:
            pass

    return PlanSearcher()


def _kept(desk: Desk, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except BaseException as error:
        desk.failure = desk.failure or error
        return None
