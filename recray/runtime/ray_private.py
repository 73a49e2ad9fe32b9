"""Private names of Ray, and switches that it does not document.

Each use of a private name saves time or makes a message clearer. Where a version of Ray lacks the
name, the function takes the public, slower way, and the log says so in one line.
"""

import importlib
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, reduce
from typing import TYPE_CHECKING, Any

from recray.errors import RecrayError
from recray.runtime.environment import switched

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer
    from ray.tune.schedulers import TrialScheduler

_log = logging.getLogger(__name__)

# ---------------------------------------------------------------------------------- switches
# All of them were read in the source of Ray 2.60.0.

POLL_VARIABLE = "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"
"""Seconds between two looks of Ray Train at its workers."""
RAY_SWITCHES = {
    # With Ray's 2.0 s every Train report costs 2 s, and fit() another 5 s at its end.
    POLL_VARIABLE: "0.2",
    # A dead or silent worker fails the run; Ray alone would wait for ever.
    "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": "300",
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "120",
    # A checkpoint is to be written within 10 s of the notice that a node is taken away.
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
    "RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S": "300",
    # Spinning threads of several workers on few cores are slower than one thread each.
    "OMP_NUM_THREADS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_SCHEDULER_EVENTS": "0",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_COLOR_PREFIX": "0",  # what Ray says of its processes may go to a file
    # Serve kills its proxy where it needs longer than this to come up; its 5 s are too few for a
    # busy machine.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
}
"""While recray has Ray running."""
LOOPBACK_VARIABLE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""0: Ray is for this machine alone and binds 127.0.0.1, its own default on macOS."""
JOIN_SWITCHES = {"RAY_gcs_server_port_wait_time_s": "8"}
"""While Ray tries to join a cluster whose head listens: it gives up after 8 s."""
TUNE_SWITCHES = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no csv, json and TensorBoard files beside ours
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",  # its snapshots are not used
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # paths are the user's: train.init_from may be relative
}
"""While Tune runs."""
PRODUCTION_SWITCHES = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
}
"""Before Ray starts, on every node of a production service: HAProxy in place of Ray's Python proxy,
and one event loop in a replica. HAProxy binds every interface, so keys and a firewall belong to it.
"""
JOB_SWITCHES = {"RAY_JOB_STOP_WAIT_TIME_S": "20"}
"""Of a job: training writes its checkpoint when it is told to stop, and Ray's 3 s are too short."""
JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set by Ray in the process that is the driver of a job."""
QUIET_LOGGERS = {
    "ray.data": logging.WARNING,
    "ray.data._internal.progress": logging.ERROR,
    "ray.dashboard.modules.dashboard_sdk": logging.ERROR,
    "ray.dashboard.modules.job.sdk": logging.ERROR,
    "ray._private.runtime_env.packaging": logging.ERROR,
}
"""Loggers of Ray whose lines below a level say nothing to a user of recray."""
START_LOGGER = "ray._private.worker"
"""The logger of ray.init."""

_TEMP_VARIABLES = ("RAY_TMPDIR", "TMPDIR")
"""Where Ray puts its files on Linux: the first that is set."""
_SOCKET = "ray/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store.1"
"""The longest path of a socket in it."""
_SOCKET_BYTES = 103 if sys.platform == "darwin" else 107
"""The longest path that the system allows for a socket."""
SHORT_TEMP = "/tmp"


def temp_folder() -> str:
    """Where a local Ray keeps its files: the user's choice, or /tmp where that is too long.

    Raises:
        RecrayError: The choice is too long for the system's sockets, and /tmp is not writable.
    """
    name = next((name for name in _TEMP_VARIABLES if os.environ.get(name)), "")
    chosen = os.path.abspath(os.environ[name]) if name else SHORT_TEMP
    if len(os.fsencode(os.path.join(chosen, _SOCKET))) > _SOCKET_BYTES:
        if not os.access(SHORT_TEMP, os.W_OK | os.X_OK):
            raise RecrayError(
                f"{name} has {len(os.fsencode(chosen))} bytes, too many for Ray's sockets, and "
                f"{SHORT_TEMP} is not writable: set {_TEMP_VARIABLES[0]} to a folder of "
                f"{_SOCKET_BYTES - len(_SOCKET) - 1} bytes at most"
            )
        chosen = SHORT_TEMP
    return os.path.join(chosen, "ray")


# ------------------------------------------------------------------------------ private names

TOKEN_MODE = "ray._raylet:Config.initialize"
DASHBOARD_URL = "ray._private.worker:get_dashboard_url"
TRAIN_CALLBACKS = "ray.train.torch:TorchTrainer._create_default_callbacks"
SERVE_CLIENT = "ray.serve.context:_get_global_client"
SET_SERVE_CLIENT = "ray.serve.context:_set_global_client"
DRAINING_NODES = "ray._private.state:state.get_draining_nodes"
FREE_RESOURCES = "ray._private.state:available_resources_per_node"
AUTOSCALING = (
    "ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator:"
    "get_or_create_autoscaling_coordinator"
)
TASK_WATCHES = "ray.data.context:DataContext.execution_callback_classes"
MESSAGES = "ray._private.worker:print_to_stdstream"
CLUSTERS = "ray._private.ray_constants:ENABLE_RAY_CLUSTER"
WITHOUT_SETTER = "Serve is shut down with each local Ray, which takes longer"
NAMES = (
    TOKEN_MODE,
    DASHBOARD_URL,
    TRAIN_CALLBACKS,
    SERVE_CLIENT,
    SET_SERVE_CLIENT,
    DRAINING_NODES,
    FREE_RESOURCES,
    AUTOSCALING,
    TASK_WATCHES,
    MESSAGES,
    CLUSTERS,
)
REQUEST_S = 1800.0
"""How long the autoscaler remembers what a training that may grow has asked for."""


def find(name: str, instead: str) -> Any:
    """Look up a private name.

    Args:
        name: One of NAMES, as MODULE:ATTRIBUTE.
        instead: What happens without it, for the log.

    Returns:
        What it names; None where this Ray lacks it.
    """
    module, _, attribute = name.partition(":")
    try:
        return reduce(getattr, attribute.split("."), importlib.import_module(module))
    except (ImportError, AttributeError):
        _say_missing(name, instead)
        return None


@cache  # one line a name and process
def _say_missing(name: str, instead: str) -> None:
    import ray

    _log.warning("Ray %s has no %s: %s", ray.__version__, name.replace(":", "."), instead)


def reread_token_mode() -> bool:
    """Make a Ray that was imported already read RAY_AUTH_MODE again; False where it cannot be."""
    read_again = find(TOKEN_MODE, "RAY_AUTH_MODE counts only if it is set before ray is imported")
    if read_again is not None:
        read_again("")
    return read_again is not None


@contextmanager
def replaced(name: str, value: Any) -> Iterator[None]:
    """Put a value in the place of one of NAMES inside the block."""
    path, _, attribute = name.partition(":")
    module = importlib.import_module(path)
    before = getattr(module, attribute)
    setattr(module, attribute, value)
    try:
        yield
    finally:
        setattr(module, attribute, before)


@contextmanager
def messages_on_stderr() -> Iterator[None]:
    """What Ray says inside the block of processes that died goes to stderr.

    Ray prints it on stdout, which is for the result of a command.
    """
    show = find(MESSAGES, "what Ray says of processes that died comes on stdout")

    def show_on_stderr(data: dict[str, Any], ignore_prefix: bool) -> None:
        show({**data, "is_err": True}, ignore_prefix)

    with replaced(MESSAGES, show_on_stderr) if show is not None else nullcontext():
        yield


@contextmanager
def on_loopback() -> Iterator[None]:
    """A Ray that starts inside the block binds 127.0.0.1 where it can, and not all interfaces.

    Ray reads the variable once, when it is imported, and a later Ray of this process may be a
    cluster's. So this process is told by the constant, and those that Ray starts by the variable.
    """
    known = find(CLUSTERS, "a Ray of this machine binds all interfaces") is not None
    if not known or LOOPBACK_VARIABLE in os.environ:
        yield
        return
    with replaced(CLUSTERS, False), switched({LOOPBACK_VARIABLE: "0"}):
        yield


def dashboard_url() -> str | None:
    """HOST:PORT of the cluster's dashboard as the head binds it; None where none was started."""
    url = find(DASHBOARD_URL, "the dashboard is taken for one that was not started")
    return (url() or None) if url is not None else None


def draining_nodes() -> set[str]:
    """Ids of the nodes that are about to be taken away."""
    ask = find(DRAINING_NODES, "a node that is taken away counts until it is gone")
    return set(ask() or ()) if ask is not None else set()


def free_resources() -> list[dict[str, float]]:
    """What is free on each node that is not about to be taken away."""
    import ray

    ask = find(FREE_RESOURCES, "free CPUs are counted over all nodes")
    if ask is None:
        return [ray.available_resources()]
    leaving = draining_nodes()
    return [free for node, free in ask().items() if node not in leaving]


def request_nodes(name: str, resources: list[dict[str, float]]) -> None:
    """Ask the autoscaler for room beside what other trainings ask for; it is forgotten in time.

    ray.autoscaler.sdk.request_resources would not do: while a training runs, Ray Train calls it
    every few seconds with its present number of workers, and the last call counts.

    Args:
        name: Who asks; the last request of a name counts.
        resources: What each worker needs, of all workers.
    """
    coordinator = find(AUTOSCALING, "a cluster does not grow for a training that may have more")
    if coordinator is not None:
        coordinator().request_resources.remote(
            requester_id=name, resources=resources, expire_after_s=REQUEST_S
        )


def lean_trainer() -> type["TorchTrainer"]:
    """Ray's trainer without two processes of its own that this training has no use for.

    The manager of data sets, since there are none: a worker reads the parts that it owns. And,
    without a dashboard, the cleaner of placement groups. It asks the dashboard whether the
    controller lives, never learns it, and each run would wait 12 s at its end for it to give up.
    It is there for a driver that dies on a cluster; a local Ray ends with its driver.
    """
    from ray.train.torch import TorchTrainer

    slower = "each training run takes up to 12 s longer"
    if find(TRAIN_CALLBACKS, slower) is None:
        return TorchTrainer
    useless = {"DatasetsCallback"}
    url = find(DASHBOARD_URL, slower)
    if url is not None and not url():
        useless.add("PlacementGroupCleanerCallback")

    class LeanTrainer(TorchTrainer):
        def _create_default_callbacks(self) -> list[Any]:
            # mypy takes it for the class before V2.
            callbacks = super()._create_default_callbacks()  # type: ignore[misc]
            for name in useless - {type(callback).__name__ for callback in callbacks}:
                _say_missing(f"{TRAIN_CALLBACKS}.{name}", slower)
            return [callback for callback in callbacks if type(callback).__name__ not in useless]

    return LeanTrainer


def serve_address() -> tuple[str, int] | None:
    """Host and port of the cluster's Serve; None where none runs, or where nothing tells."""
    client = find(SERVE_CLIENT, "a Serve with another port is not seen")
    try:
        running = client and client(raise_if_no_controller_running=False)
        return (running.http_config.host, running.http_config.port) if running else None
    except (AttributeError, TypeError):
        _say_missing(f"{SERVE_CLIENT}.http_config", "a Serve with another port is not seen")
        return None


def forget_serve() -> None:
    """Make Serve forget its client.

    Serve keeps it after ray.shutdown() and takes it for the client of the next Ray if that has the
    same job id, which it has where both run on this machine alone: the next service would ask a
    controller that is dead.
    """
    setter = find(SET_SERVE_CLIENT, WITHOUT_SETTER)
    if setter is not None:
        setter(None)


def leave_no_serve() -> None:
    """Shut Serve down in the public way before a local Ray ends, if it cannot just forget."""
    if find(SET_SERVE_CLIENT, WITHOUT_SETTER) is None:
        from ray import serve

        serve.shutdown()


@dataclass(frozen=True)
class _EndedTrial:
    """As much of an ended trial as the schedulers look at; they also keep it as a key."""

    trial_id: str


def replay_trial(
    scheduler: "TrialScheduler", trial_id: str, results: list[dict[str, float]]
) -> None:
    """Tell a scheduler of a trial that ended in an earlier process.

    Schedulers declare a controller and a Trial of Tune. Those that recray takes look at the trial's
    id alone; another Ray may look at more, and then begins without that trial.
    """
    trial: Any = _EndedTrial(trial_id)
    nobody: Any = None
    try:
        scheduler.on_trial_add(nobody, trial)
        for result in results:
            scheduler.on_trial_result(nobody, trial, result)
        scheduler.on_trial_complete(nobody, trial, results[-1])
    except (AttributeError, TypeError) as error:
        name = f"{type(scheduler).__module__}:{type(scheduler).__name__}"
        _say_missing(name, f"trials of before do not count for pruning ({error})")
