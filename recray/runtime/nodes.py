"""The nodes of the cluster: their CPUs, a call on each of them, a disk for all."""

import sys
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from recray.errors import RecrayError
from recray.runtime.ray_private import draining_nodes, free_resources, request_nodes
from recray.storage import PROBE, Folder, is_uri, storage_errors

T = TypeVar("T")

ANSWER_TIMEOUT_S = 30.0
MAX_CPUS_RESOURCE = "max_cpus"
"""Resource of the head of a cluster with an autoscaler: the CPUs that the cluster may grow to.

Ray does not say how many these are; the files in cluster/ set the resource.
"""
SCALE_UP_TIMEOUT_S = 900.0
"""How long new nodes may take: a machine has to be rented, and its image fetched."""


@dataclass(frozen=True)
class Node:
    """A node that is alive.

    Args:
        id: Ray's own.
        name: Its address, and whether it is the head.
        resources: CPU, GPU, memory and object_store_memory as Ray counts them.
    """

    id: str
    name: str
    resources: dict[str, float]


def alive_nodes() -> list[Node]:
    """The nodes of the cluster, the head first."""
    import ray

    found = []
    for facts in ray.nodes():
        if facts["Alive"]:
            head = "node:__internal_head__" in facts["Resources"]
            mark = "head" if head else facts["NodeID"][:6]  # several may share an address
            name = f"{facts['NodeManagerAddress']} ({mark})"
            found.append((not head, Node(facts["NodeID"], name, facts["Resources"])))
    return [node for _, node in sorted(found, key=lambda pair: (pair[0], pair[1].id))]


# ----------------------------------------------------------------------------------- capacity


def usable_nodes() -> list[Node]:
    """The nodes of the cluster without those that are about to be taken away."""
    leaving = draining_nodes()
    return [node for node in alive_nodes() if node.id not in leaving]


class Capacity(NamedTuple):
    """The CPUs of a cluster.

    Args:
        cpus: Those that it has now.
        max_cpus: Those that it may grow to; the same number where there is no autoscaler.
    """

    cpus: int
    max_cpus: int


def capacity_of(resources: Iterable[Mapping[str, float]]) -> Capacity:
    """Add up the resources of nodes."""
    rows = list(resources)
    cpus, most = (int(sum(r.get(name, 0) for r in rows)) for name in ("CPU", MAX_CPUS_RESOURCE))
    return Capacity(cpus, max(cpus, most))


def capacity() -> Capacity:
    """Add up the resources of the cluster that this process is connected to."""
    return capacity_of(node.resources for node in usable_nodes())


def scale_up(cpus: int, timeout_s: float = SCALE_UP_TIMEOUT_S) -> int:
    """Ask the autoscaler for a number of CPUs and wait for them; stderr says so.

    Ray asks for nodes by itself when tasks wait. But it places the workers of a training run only
    for a limited time, so the nodes must be there before.

    Returns:
        The CPUs that the cluster has. They may be fewer where the cluster cannot grow that far.

    Raises:
        RecrayError: The nodes do not come in time.
    """
    current, most = capacity()
    if not current < cpus <= most:
        return current
    from ray.autoscaler.sdk import request_resources

    print(f"the cluster has {current} CPUs, asks for {cpus} and waits for them", file=sys.stderr)
    end = time.monotonic() + timeout_s
    request_resources(num_cpus=cpus)
    try:
        while (current := capacity().cpus) < cpus:
            if time.monotonic() > end:
                raise RecrayError(
                    f"the cluster has {current} CPUs, {timeout_s:.0f} s after {cpus} were asked "
                    "for; `ray status` says what its autoscaler is at"
                )
            time.sleep(1.0)
    finally:
        request_resources(bundles=[])  # nodes that are idle may go again
    return current


def wait_for_capacity(workers: int) -> str | None:
    """Refuse more workers than the cluster can ever place, and let a cluster grow to them.

    Returns:
        A line for the user if the workers must wait until others have ended; None if not.

    Raises:
        RecrayError: There are more workers than CPUs that the cluster may grow to, or these do not
            come in time.
    """
    import ray

    most = capacity().max_cpus
    if workers > most:
        raise RecrayError(
            f"--workers {workers}: the cluster has {most} CPUs, one is needed per worker; "
            "give fewer workers or add nodes"
        )
    cpus = scale_up(workers)
    free = ray.available_resources().get("CPU", 0)
    if workers > free:
        return f"{free:g} of {cpus} CPUs of the cluster are free: waiting for {workers}"
    return None


def worker_resources(gpus: float = 0.0) -> dict[str, float]:
    """What a training worker reserves."""
    return {"CPU": 1.0} | ({"GPU": gpus} if gpus else {})


def free_workers(gpus: float = 0.0) -> int:
    """Count the workers that the cluster has room for beside everything that runs on it."""
    return _places(free_resources(), gpus)


def _places(nodes: Iterable[Mapping[str, float]], gpus: float) -> int:
    needs = worker_resources(gpus).items()
    return sum(min(int(node.get(name, 0) / need + 1e-6) for name, need in needs) for node in nodes)


def request_workers(name: str, workers: int, gpus: float = 0.0) -> None:
    """Ask the autoscaler for room for more workers; where there is none, nothing happens.

    Args:
        name: Who asks; the last request of a name counts.
        workers: Workers beside those that run; 0 takes the request back.
        gpus: GPUs that a worker reserves.
    """
    if any(MAX_CPUS_RESOURCE in node.resources for node in alive_nodes()):
        request_nodes(name, [worker_resources(gpus)] * max(workers, 0))


def workers_left(
    most: int,
    nodes_before: set[str],
    lost: bool,
    gpus: float = 0.0,
    notice_s: float = 25.0,
    release_s: float = 20.0,
) -> int:
    """Count the workers that there is room for when a group of them has ended.

    Args:
        most: The most that may go on.
        nodes_before: Ids of the nodes when the group began.
        lost: Whether a worker was lost. Its node may be, too, which Ray learns late.
        gpus: GPUs that a worker reserves.
        notice_s: Seconds until Ray knows that a node was lost; it asks it five times, 3 s apart.
        release_s: Seconds until Ray counts as free what the group had; after that, others use it.
    """
    begin = time.monotonic()
    while True:
        nodes, free = usable_nodes(), free_workers(gpus)
        waited_s = time.monotonic() - begin
        all_free = free >= min(most, _places((node.resources for node in nodes), gpus))
        known = not lost or len(nodes) == 1 or not nodes_before <= {node.id for node in nodes}
        if waited_s >= notice_s or (known and (all_free or waited_s >= release_s)):
            return min(most, free)
        time.sleep(0.5)


# ----------------------------------------------------------------------------- calls on nodes


class NodeAnswer(NamedTuple, Generic[T]):
    """What a node says to a call.

    Args:
        node: The node.
        value: What the function returned; None if it did not.
        error: Why it did not return; empty if it did.
    """

    node: Node
    value: T | None
    error: str


def run_on_all_nodes(
    function: Callable[[], T], timeout_s: float = ANSWER_TIMEOUT_S
) -> list[NodeAnswer[T]]:
    """Call a function once on each node, whatever else runs there.

    Returns:
        An answer for each node that has not left the cluster in the meantime.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    call = ray.remote(lambda: function())  # Ray takes functions, and no other callables
    nodes = alive_nodes()
    tasks = [
        call.options(
            num_cpus=0,
            max_retries=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False),
        ).remote()
        for node in nodes
    ]
    ray.wait(tasks, num_returns=len(tasks), timeout=timeout_s)
    answers: list[NodeAnswer[T]] = []
    for node, task in zip(nodes, tasks, strict=True):
        try:
            answers.append(NodeAnswer(node, ray.get(task, timeout=0), ""))
        except ray.exceptions.TaskUnschedulableError:
            continue  # the node has left since the call
        except ray.exceptions.GetTimeoutError:
            answers.append(NodeAnswer(node, None, f"no answer in {timeout_s:g} s"))
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error
            answers.append(NodeAnswer(node, None, str(cause).strip().splitlines()[0]))
    return answers


def require_shared(folder: Folder) -> None:
    """Refuse a folder for outputs if each node of the cluster would write to a disk of its own.

    Raises:
        RecrayError: It is a local folder and there are nodes that do not see it.
    """
    if is_uri(folder.path) or len(alive_nodes()) == 1:
        return
    parent = Path(folder.path).parent
    probe = parent / f"{PROBE}{uuid.uuid4().hex[:8]}"
    with storage_errors(folder.path):
        parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
    try:
        answers = run_on_all_nodes(probe.is_file)
    finally:
        probe.unlink(missing_ok=True)
    blind = [f"{node.name}{f': {why}' if why else ''}" for node, sees, why in answers if not sees]
    if blind:
        raise RecrayError(
            f"{folder} is not shared: {', '.join(blind)} cannot see {parent}; "
            "give a disk that all nodes mount, or a URI such as s3://"
        )
