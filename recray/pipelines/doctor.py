"""Is this cluster fit for the work? Each check says what it found and what to do about it."""

import contextlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass

from recray.data import movielens
from recray.errors import RecrayError
from recray.pipelines.findings import Diagnosis, Finding
from recray.pipelines.node_facts import (
    NodeFacts,
    NodeProbe,
    Token,
    asks_for_token,
    find_token,
    find_versions,
    probe_file,
)
from recray.pipelines.store_speed import measure_store
from recray.runtime.nodes import Node, capacity_of, run_on_all_nodes
from recray.runtime.ray_private import dashboard_url
from recray.runtime.session import LOCAL, session
from recray.storage import Folder, file_type, is_uri, open_input

Answers = list[tuple[Node, NodeFacts]]
WORKER_BYTES = 600 << 20
"""Memory of a process with torch and Ray, before any data."""
RATING_BYTES = 270
"""Memory that each rating takes in the process that trains and measures: its peak grew by so much
for each from 100,000 ratings to a million.
"""
STORE_BYTES = 75 << 20
"""What Ray itself asks of an object store; no rating passes through it."""


@dataclass(frozen=True)
class Plan:
    """What the cluster is to be fit for.

    Args:
        storage: Folder or URI of outputs; None: where this process runs.
        data: Source or prepared data set; None: not checked.
        workers: Training processes.
        port: HTTP port of the service.
    """

    storage: str | None = None
    data: str | None = None
    workers: int = 1
    port: int = 8000


def diagnose(plan: Plan, address: str = LOCAL) -> Diagnosis:
    """Check this machine, then join the cluster and check every node.

    Raises:
        RecrayError: The cluster cannot be joined, or there is no such data.
    """
    storage = Folder(plan.storage or os.getcwd()).path
    # Nodes have working folders of their own, so they get the whole path.
    path = Folder(plan.data).path if plan.data and _is_path(plan.data) else None
    ratings = _ratings(path or plan.data)
    token = _token_here()
    speed, refused = _measured(storage)
    with session(address), probe_file(storage, refused) as (probe, refused):
        told = run_on_all_nodes(NodeProbe(storage, probe, path, plan.port))
        answers = [(node, facts) for node, facts, _ in told if facts is not None]
        silent = [f"{node.name}: {why}" for node, _, why in told if why]
        findings = [_answering(len(told), silent)]
        if answers:
            findings += [
                _versions(answers),
                _workers(plan, answers),
                _storage(storage, plan.storage is not None, answers, refused),
                *speed,
                *([_data(path or plan.data, answers)] if plan.data else []),
                _port(plan, answers),
                token,
                *_tokens(answers),
                _dashboard(dashboard_url()),
                _gpus(answers),
                _memory(plan, answers, ratings),
                _object_store(answers),
            ]
        else:
            findings.append(token)
    problems = sum(finding.level == "problem" for finding in findings)
    return Diagnosis(problems=problems, checks=findings)


def _ok(check: str, found: str) -> Finding:
    return Finding(check, "ok", found)


def _warning(check: str, found: str, todo: str) -> Finding:
    return Finding(check, "warning", found, todo)


def _problem(check: str, found: str, todo: str) -> Finding:
    return Finding(check, "problem", found, todo)


def _each(answers: Answers, tell: Callable[[NodeFacts], str]) -> str:
    """What differs from node to node, by node; once where it is the same."""
    words = {node.name: tell(facts) for node, facts in answers}
    distinct = set(words.values())
    if len(distinct) == 1:
        return f"{distinct.pop()}{f' on {len(words)} nodes' if len(words) > 1 else ''}"
    return ", ".join(f"{name}: {word}" for name, word in words.items())


def _answering(nodes: int, silent: list[str]) -> Finding:
    if silent:
        return _problem("nodes", "; ".join(silent), "look at these nodes, or remove them")
    return _ok("nodes", f"{nodes} answer")


def _versions(answers: Answers) -> Finding:
    found = _each(answers, lambda facts: f"Ray {facts.ray}, Python {facts.python}")
    ray, python = find_versions()
    own = (ray, python.rsplit(".", 1)[0])
    theirs = {(facts.ray, facts.python.rsplit(".", 1)[0]) for _, facts in answers}
    if theirs != {own}:
        here = f"here Ray {own[0]}, Python {own[1]}; {found}"
        todo = f"install ray=={own[0]} and Python {own[1]} on every node"
        return _problem("versions", here, todo)
    if len({facts.python for _, facts in answers}) > 1:
        return _warning("versions", found, "use one Python on every node")
    return _ok("versions", found)


def _workers(plan: Plan, answers: Answers) -> Finding:
    cpus, most = capacity_of(node.resources for node, _ in answers)
    found = f"{cpus} CPUs for --workers {plan.workers}"
    if most > cpus:
        found += f"; the cluster grows to {most}"
    if plan.workers > most:
        return _problem("workers", found, "give fewer workers, or add nodes")
    if plan.workers == most:
        return _warning("workers", found, "leave a CPU for what prepares and serves beside them")
    return _ok("workers", found)


def _measured(place: str) -> tuple[list[Finding], str]:
    """How fast an S3 store is from here, and why it cannot be used; nothing of other places."""
    if not place.startswith("s3://"):
        return [], ""
    try:
        found = measure_store(place)
    except RecrayError as error:
        return [], str(error)
    if not found.ranges:
        todo = "use a store that answers a Range with that range alone"
        return [_problem("store", f"{found}; it gives no ranges", todo)], ""
    return [_ok("store", str(found))], ""


def _storage(place: str, named: bool, answers: Answers, refused: str) -> Finding:
    if refused:
        return _problem("storage", refused, "put that right, or give another --storage")
    blind = [f"{node.name}: {facts.storage}" for node, facts in answers if facts.storage]
    if blind and not named and len(answers) > 1:
        found = f"{place} is not shared; outputs are to go elsewhere"
        return _warning("storage", found, "name the shared folder with --storage")
    if blind:
        found = f"{place}: {'; '.join(blind)}"
        return _problem("storage", found, "mount one disk on every node, or use s3:// or gs://")
    if is_uri(place):
        return _ok("storage", f"{place} is written and seen by all")
    free = shutil.disk_usage(place).free
    if free < 1 << 30:
        return _warning("storage", f"{place}, {_gib(free)} free", "free some space")
    return _ok("storage", f"{place} is written and seen by all, {_gib(free)} free")


def _is_path(data: str) -> bool:
    return data != "sample" and data not in movielens.RELEASES


def _data(data: str, answers: Answers) -> Finding:
    if not _is_path(data):
        if data == "sample" or movielens.is_cached(data):
            return _ok("data", f"{data} is at hand")
        return _warning("data", f"{data} is not in the cache", f"recray data fetch {data}")
    missing = [f"{node.name}: {facts.data}" for node, facts in answers if facts.data]
    if missing:
        todo = "put it where every node can read it: a shared disk, s3:// or gs://"
        return _problem("data", f"{data}: {'; '.join(missing)}", todo)
    return _ok("data", f"{data} can be read")


def _port(plan: Plan, answers: Answers) -> Finding:
    if answers[0][1].port_free:
        return _ok("port", f"{plan.port} is free")
    return _problem("port", f"{plan.port} is taken", "give another --port, or stop it")


def _token_here() -> Finding:
    """The token of this machine, as it was before Ray started."""
    mode = os.environ.get("RAY_AUTH_MODE", "token")
    if mode != "token":
        found = f"RAY_AUTH_MODE={mode}: whoever reaches a port runs code"
        return _problem("token", found, "unset it, or set it to token, here and on every node")
    return _token_of("token", "here", find_token())


def _token_of(check: str, where: str, token: Token) -> Finding:
    if token.source is None:
        return _ok(check, f"none {where} yet: the first start makes one, mode 0600")
    if token.mode is None:
        return _ok(check, f"{token.source} {where}")
    if token.mode & 0o077:
        found = f"{token.source} {where} has mode {token.mode:04o}: others can read it"
        return _problem(check, found, f"chmod 600 {token.source}")
    return _ok(check, f"{token.source} {where}, mode {token.mode:04o}")


def _tokens(answers: Answers) -> list[Finding]:
    """The first token file of a node that others can read."""
    found = (_token_of("token on nodes", f"on {n.name}", facts.token) for n, facts in answers)
    return [finding for finding in found if finding.level == "problem"][:1]


def _dashboard(address: str | None) -> Finding:
    """Whether others can reach the dashboard, and whether it asks them for the token."""
    if not address:
        return _ok("dashboard", "not started")
    host, _, port = address.rpartition(":")
    outside = host not in ("127.0.0.1", "localhost", "::1")
    guarded = asks_for_token(f"http://{address}/api/jobs/")
    if guarded is None:
        return _ok("dashboard", f"{address} cannot be reached from here")
    if not guarded:
        found = f"{address} takes jobs from anybody"
        return _problem("dashboard", found, "start Ray with RAY_AUTH_MODE=token on every node")
    if outside:
        found = f"{address} is open to other machines, guarded by the token alone and not encrypted"
        todo = f"start the head with --dashboard-host 127.0.0.1, and reach it by ssh -L {port}"
        return _warning("dashboard", found, todo)
    return _ok("dashboard", f"{address}, with a token")


def _gpus(answers: Answers) -> Finding:
    counted = {node.name: int(node.resources.get("GPU", 0)) for node, _ in answers}
    seen = {node.name: facts.torch_gpus for node, facts in answers}
    broken = [f"{name}: {word}" for name, word in seen.items() if not word.isdigit()]
    if broken:
        return _problem("gpu", "; ".join(broken), "update the driver, or the torch wheel")
    blind = [name for name, count in counted.items() if count and seen[name] == "0"]
    if blind:
        found = f"Ray counts GPUs that torch does not see on {', '.join(blind)}"
        return _problem("gpu", found, "install a torch for CUDA there")
    total = sum(counted.values())
    return _ok("gpu", f"{total} that torch computes with" if total else "none; CPU only")


def _memory(plan: Plan, answers: Answers, ratings: int | None) -> Finding:
    least, name = min((facts.memory, node.name) for node, facts in answers)
    if ratings is None:
        return _ok("memory", f"at least {_gib(least)} free ({name}); --data says if that is enough")
    need = WORKER_BYTES * plan.workers + RATING_BYTES * ratings
    found = f"{_gib(least)} free on {name}, about {_gib(need)} for {ratings:,} ratings"
    if need > least:
        return _problem("memory", found, "use nodes with more memory, or less data")
    return Finding("memory", "warning" if 2 * need > least else "ok", found)


def _object_store(answers: Answers) -> Finding:
    sizes = [int(node.resources.get("object_store_memory", 0)) for node, _ in answers]
    found = f"{_gib(min(sizes))} on the smallest node; ratings do not pass through it"
    if min(sizes) < STORE_BYTES:
        return _problem("object store", found, f"start Ray with at least {STORE_BYTES >> 20} MiB")
    return _ok("object store", found)


def _gib(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB"


def _ratings(data: str | None) -> int | None:
    """How many ratings the data have; of a file, about, by its size.

    Raises:
        RecrayError: There is no such data.
    """
    if data is None:
        return None
    if data == "sample":
        return 60_000
    if data in movielens.RELEASES:
        return movielens.RELEASES[data].ratings
    folder = Folder(data)
    if folder.published():
        return int(folder.manifest().model_dump().get("counts", {}).get("ratings", 0))
    kind = file_type(data).name
    if kind == "NotFound":
        raise RecrayError(f"--data {data}: no such file or folder, and no release of that name")
    files = folder.files() if kind == "Directory" else []
    paths = [f"{folder.path}/{name}" for name in files] or [data]
    total = 0
    for path in paths:
        with contextlib.closing(open_input(path)) as stream:
            total += stream.size()
    # A line is 20 to 30 bytes; archives keep about a quarter of that.
    return total // (6 if data.endswith((".zip", ".gz", ".parquet")) else 22)
