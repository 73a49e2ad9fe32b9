"""The nodes of the cluster: call something on each, and see that they share a disk."""

import contextlib
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from recray.errors import RecrayError
from recray.storage import UNFINISHED, Folder, is_uri, storage_errors

WAIT_S = 30.0
"""Until a node that does not answer is given up."""
MAX_CPUS_RESOURCE = "max_cpus"
"""Resource of the head of a cluster with an autoscaler: the CPUs that it may come to have. Ray does
not tell; the files in cluster/ set it.
"""
GROW_S = 900.0
"""Until new nodes are given up: a machine has to be rented, and its image fetched."""


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


def this_node() -> str:
    """Ray's id of the node that this process runs on."""
    import ray

    return str(ray.get_runtime_context().get_node_id())


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


class Capacity(NamedTuple):
    """The CPUs of a cluster.

    Args:
        cpus: Those it has now.
        max_cpus: Those it may come to have; with no autoscaler the same.
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
    return capacity_of(node.resources for node in alive_nodes())


def scale_up(wanted: int, wait_s: float = GROW_S) -> int:
    """Have at least so many CPUs in a cluster that may grow to them; it is told on stderr.

    Ray asks for nodes itself where tasks wait, but what waits for a task gives up earlier.

    Returns:
        The CPUs that the cluster has.

    Raises:
        RecrayError: They do not come.
    """
    there, most = capacity()
    if wanted <= there or wanted > most:
        return there
    from ray.autoscaler.sdk import request_resources

    print(f"the cluster has {there} CPUs, asks for {wanted} and waits for them", file=sys.stderr)
    end = time.monotonic() + wait_s
    request_resources(num_cpus=wanted)
    try:
        while (there := capacity().cpus) < wanted:
            if time.monotonic() > end:
                raise RecrayError(
                    f"the cluster has {there} CPUs, {wait_s:.0f} s after {wanted} were asked for; "
                    "`ray status` says what its autoscaler is at"
                )
            time.sleep(1.0)
    finally:
        request_resources(bundles=[])  # what is idle may go again
    return there


def wait_for_capacity(workers: int) -> str | None:
    """Refuse what the connected cluster can never place; have one that grows get its nodes.

    Returns:
        A line to say if it must wait for others to end; None if there is room now.

    Raises:
        RecrayError: More workers than its CPUs, or than it may come to have; or these do not come.
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


def available_workers(workers: int, notice_s: float = 25.0, back_s: float = 30.0) -> int:
    """How many of the workers the cluster has CPUs for, now that a worker was lost.

    Args:
        workers: As many as there were.
        notice_s: Until the loss of a node is known; Ray asks it five times, 3 s apart.
        back_s: Until another takes its place, where one does.
    """
    begin = time.monotonic()
    while True:
        left = alive_nodes()
        cpus = int(sum(node.resources.get("CPU", 0) for node in left))
        wait_s = back_s if cpus < workers else notice_s if len(left) > 1 else 0.0
        if time.monotonic() - begin >= wait_s:
            return min(cpus, workers)
        time.sleep(0.5)


def run_on_all_nodes(
    function: Callable[[], Any], wait_s: float = WAIT_S
) -> list[tuple[Node, Any, str]]:
    """Call a function once on each node, beside whatever runs there.

    Returns:
        (node, what the function returned, "") or (node, None, why it did not), for each node that
        has not left meanwhile.
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
    ray.wait(tasks, num_returns=len(tasks), timeout=wait_s)
    answers: list[tuple[Node, Any, str]] = []
    for node, task in zip(nodes, tasks, strict=True):
        try:
            answers.append((node, ray.get(task, timeout=0), ""))
        except ray.exceptions.TaskUnschedulableError:
            continue  # it has left since it was asked
        except ray.exceptions.GetTimeoutError:
            answers.append((node, None, f"no answer in {wait_s:g} s"))
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error
            answers.append((node, None, str(cause).strip().splitlines()[0]))
    return answers


def nodes_without_access(folder: str) -> list[str]:
    """The nodes that do not see a file written here into a local folder, with the reason.

    Raises:
        StorageError: It cannot be written here.
    """
    probe = f"{UNFINISHED}probe-{uuid.uuid4().hex[:8]}"

    def sees() -> bool:
        return (Path(folder) / probe).is_file()

    with storage_errors(folder):
        (Path(folder) / probe).touch()
    try:
        answers = run_on_all_nodes(sees)
    finally:
        with contextlib.suppress(FileNotFoundError):
            (Path(folder) / probe).unlink()
    return [f"{node.name}{f': {why}' if why else ''}" for node, seen, why in answers if not seen]


def require_shared(folder: Folder) -> None:
    """Refuse an output that the nodes of a cluster would each write to a disk of their own.

    Raises:
        RecrayError: It is a local folder and there are nodes that do not see it.
    """
    if is_uri(folder.path) or len(alive_nodes()) == 1:
        return
    place = Path(folder.path).parent
    with storage_errors(folder.path):
        place.mkdir(parents=True, exist_ok=True)
    blind = nodes_without_access(str(place))
    if blind:
        raise RecrayError(
            f"{folder} is not shared: {', '.join(blind)} cannot see {place}; "
            "give a disk that all nodes mount, or a URI such as s3://"
        )
