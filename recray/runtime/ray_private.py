"""Private names of Ray.

Each use of a private name saves time or makes a message clearer. Where a version of Ray lacks the
name, the function takes the public, slower way, and the log says so in one line.
"""

import importlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, reduce
from typing import TYPE_CHECKING, Any

from recray.runtime.environment import switched
from recray.runtime.ray_switches import LOOPBACK_VARIABLE

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer
    from ray.tune.schedulers import TrialScheduler

_log = logging.getLogger(__name__)

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
