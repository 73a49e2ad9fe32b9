"""RAY TUNE: trials side by side, pruned while they run.

Tune starts, stops and prunes trials; the SearchDriver owns them. What has ended is known from the
trials' own files, so nothing of Tune's state is kept.
"""

import contextlib
import json
import logging
import os
import signal
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from recray.data.dataset import Prepared
from recray.errors import RecrayError
from recray.runtime.environment import quiet_stdout, switched
from recray.runtime.nodes import capacity, require_shared, scale_up
from recray.runtime.ray_private import replay_trial
from recray.runtime.ray_switches import TUNE_SWITCHES
from recray.runtime.session import LOCAL, session
from recray.storage import encoded
from recray.tuning.driver import OnUpdate, SearchDriver
from recray.tuning.request import (
    Resources,
    TuneRequest,
    ValidatedSearch,
    concurrency,
    trial_resources,
)
from recray.tuning.results import Values
from recray.tuning.store import Metric, SweepFolder, TrialResult, TrialSpec
from recray.tuning.trial import Trial, TrialDataset, TrialRun, load

REDUCTION_FACTOR = 4
"""ASHA keeps the best quarter of the trials at each rung."""
FIRST_RUNG = 9
"""The first rung, and the first time that a trial may be stopped, is at 1/9 of the epochs."""


def run(search: ValidatedSearch, on_update: OnUpdate | None = None) -> list[TrialResult]:
    """Run all trials that have not ended, and write results.parquet and best.yaml.

    Args:
        search: The search that `check` returned.
        on_update: Called with each report and each end of a trial.

    Returns:
        Every trial that has ended, by number.

    Raises:
        RecrayError: No trial came to a value, or not even one trial fits the cluster.
    """
    with session(search.request.address):
        concurrent = _fitting_trials(search)
        require_shared(search.sweep.folder)
        search.sweep.reserve(search.metadata())
        driver = SearchDriver(search, on_update)
        if driver.waiting:
            _fit(driver, concurrent)
    results = sorted(driver.results.values(), key=lambda result: result.number)
    metric = search.metric
    search.sweep.write_results(results, metric, search.request.searcher)
    winner = metric.winner(results)
    if winner is None:
        reason = next((r.error for r in results if r.error), "nothing was measured")
        raise RecrayError(f"none of {len(results)} trials came to a {metric.name}: {reason}")
    search.sweep.write_best(winner, metric)
    return results


def _fitting_trials(search: ValidatedSearch) -> int:
    """How many trials run at once in the cluster, which is scaled up for them."""
    import ray

    request = search.request
    scale_up(max(request.workers, min(request.concurrent or 1, capacity().max_cpus)))
    available = ray.cluster_resources()
    cpus = int(available.get("CPU", 0))
    if request.concurrent is None and request.address == LOCAL:
        # A local Ray has more logical CPUs than real ones.
        cpus = min(cpus, max(os.cpu_count() or 1, request.workers))
    cluster = Resources(cpus, available.get("GPU", 0.0), available.get("memory"))
    return concurrency(request.concurrent, cluster, trial_resources(search))


@contextlib.contextmanager
def _tune_environment() -> Iterator[None]:
    """Set Tune's environment variables, silence its log, and keep the caller's Ctrl-C handler."""
    level = logging.getLogger("ray.tune").level
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # errors of trials are results
    handler = signal.getsignal(signal.SIGINT)
    try:
        with switched(TUNE_SWITCHES):
            yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)
        logging.getLogger("ray.tune").setLevel(level)


def _fit(driver: SearchDriver, concurrent: int) -> None:
    """Let Tune run the trials that wait."""
    search = driver.search
    try:
        with _tune_environment(), quiet_stdout:
            _tuner(driver, concurrent).fit()
    except Exception:
        if driver.failure is None:
            raise
    finally:
        search.sweep.folder.delete(".ray")
    if driver.failure is not None:
        raise driver.failure
    if driver.running:  # Tune takes Ctrl-C for itself, gives all CPUs back and returns
        raise KeyboardInterrupt


def _tuner(driver: SearchDriver, concurrent: int) -> Any:
    from ray import tune

    search, request = driver.search, driver.search.request
    scheduler = _scheduler(search)
    for result in driver.results.values():
        # The scheduler learns the reports of trials that ended in an earlier attempt.
        values = search.metric.best_so_far(result.history)
        if values:
            reports = [{"epoch": n, "value": value} for n, value in enumerate(values, 1)]
            replay_trial(scheduler, result.key, reports)
    trainable = tune.with_parameters(
        _trainable(),
        request=request,
        data=load(search.data) if request.workers == 1 else search.data,
        sweep=search.sweep.folder.path,
        metric=search.metric,
    )
    return tune.Tuner(
        tune.with_resources(trainable, _reservation(request)),
        tune_config=tune.TuneConfig(
            search_alg=_search_algorithm(driver),
            scheduler=scheduler,
            num_samples=len(driver.waiting),
            max_concurrent_trials=concurrent,
            # Reuse costs 0.2 s per trial instead of 2. But an actor that waits for its next trial
            # is not told that the last one has ended, so it cannot send that trial's workers away.
            reuse_actors=request.workers == 1,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name=f"attempt-{uuid.uuid4().hex[:12]}",
            storage_path=encoded(search.sweep.folder.child(".ray").path),
            failure_config=tune.FailureConfig(max_failures=0),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            progress_reporter=tune.CLIReporter(),  # that of notebooks needs a stdout to clear
            verbose=0,
        ),
    )


def _reservation(request: TuneRequest) -> dict[str, float]:
    """What Tune reserves for a trial; for a trial with workers Ray Train reserves instead."""
    if request.workers > 1:
        return {"memory": 1}  # one byte, as Tune refuses to reserve nothing
    return {"CPU": 1} | ({"GPU": request.gpus} if request.gpus else {})


def _scheduler(search: ValidatedSearch) -> Any:
    """The scheduler, which stops trials early by their epochs and best values so far."""
    from ray.tune import schedulers

    longest = search.largest("train.epochs", search.settings.train.epochs)
    mode = "min" if search.metric.lower_is_better else "max"
    grace_period = max(1, longest // FIRST_RUNG)
    match search.request.scheduler:
        case "asha":
            return schedulers.AsyncHyperBandScheduler(
                "epoch", "value", mode, longest, grace_period, REDUCTION_FACTOR,
                stop_last_trials=False,
            )  # fmt: skip
        case "median":  # an endless time slice: without a checkpoint no trial can be paused
            return schedulers.MedianStoppingRule(
                "epoch", "value", mode, grace_period, min_time_slice=sys.maxsize
            )
    return schedulers.FIFOScheduler()


def _trainable() -> Any:
    """The class of Tune's actors: a step is an epoch, and an actor serves trial after trial."""
    from ray import tune

    class TuneTrial(tune.Trainable):
        def setup(self, config: dict[str, str], **parameters: Any) -> None:
            self._parameters = parameters
            self.reset_config(config)

        def reset_config(self, new_config: dict[str, str]) -> bool:
            spec = TrialSpec(**json.loads(new_config["spec"]))
            self._trial = _open_trial(spec, **self._parameters)
            return True

        def step(self) -> Values:
            return asdict(self._trial.step())

        def cleanup(self) -> None:
            self._trial.close()

    return TuneTrial


def _open_trial(
    spec: TrialSpec, request: TuneRequest, data: Prepared, sweep: str, metric: Metric
) -> Trial:
    """The trial in this process, or on workers of its own."""
    if isinstance(data, TrialDataset):
        return TrialRun(data, SweepFolder(sweep), spec, metric, request.folds)
    from recray.tuning.distributed_trial import DistributedTrial

    return DistributedTrial(data.folder, SweepFolder(sweep), spec, metric, request)


def _search_algorithm(driver: SearchDriver) -> Any:
    """The driver as Tune's search algorithm, which is asked for trials."""
    from ray.tune.search import Searcher

    class DriverSearch(Searcher):
        def suggest(self, trial_id: str) -> Any:
            spec = _keep_failure(driver, lambda: driver.next(trial_id))
            if driver.failure is not None:
                raise RuntimeError("the sweep has come to an end") from driver.failure
            return Searcher.FINISHED if spec is None else {"spec": json.dumps(asdict(spec))}

        def on_trial_result(self, trial_id: str, result: Values) -> None:
            _keep_failure(driver, lambda: driver.reported(trial_id, str(result["entry"])))

        def on_trial_complete(
            self, trial_id: str, result: Values | None = None, error: bool = False
        ) -> None:
            if not error and result and "entry" in result:
                self.on_trial_result(trial_id, result)
            _keep_failure(driver, lambda: driver.ended(trial_id, error or result is None))

        def save(self, checkpoint_path: str) -> None:
            pass

        def restore(self, checkpoint_path: str) -> None:
            pass

    return DriverSearch()


def _keep_failure(driver: SearchDriver, call: Callable[[], Any]) -> Any:
    """Call the driver; Tune would swallow an error of its search algorithm, so it is kept."""
    try:
        return call()
    except BaseException as error:
        driver.failure = driver.failure or error
        return None
