"""Is this cluster fit for the work? Each check says what it found and what to do about it."""

import contextlib
import os
import platform
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from recray.data import movielens
from recray.errors import RecrayError
from recray.runtime.nodes import Node, capacity_of, run_on_all_nodes
from recray.runtime.ray_private import dashboard_url
from recray.runtime.session import LOCAL, session, token_path
from recray.storage import UNFINISHED, Folder, file_type, is_uri, open_input

Level = Literal["ok", "warning", "problem"]
WORKER_BYTES = 600 << 20
"""Of a process with torch and Ray, before any data."""
RATING_BYTES = 270
"""Of the process that trains and measures, per rating: what its peak grew by from 100,000 ratings
to a million."""
GPU_S = 20.0
"""Until a GPU is given up; less than the node is given."""
STORE_BYTES = 75 << 20
"""What Ray itself asks of an object store; no rating passes through it."""


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Args:
        check: Its name.
        level: ok, warning or problem.
        found: What is there.
        todo: What to do; empty where nothing is.
    """

    check: str
    level: Level
    found: str
    todo: str = ""


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


_COMPUTE = """
import torch
count = torch.cuda.device_count()
for number in range(count):
    one = torch.ones(8, 8, device=f"cuda:{number}")
    assert float((one @ one)[0, 0]) == 8.0, f"GPU {number} computes wrongly"
print(count)
"""

Answers = list[tuple[Node, dict[str, Any]]]


def examine(plan: Plan, address: str = LOCAL) -> list[Finding]:
    """Check this machine, then join the cluster and check every node.

    Raises:
        RecrayError: The cluster cannot be joined, or there is no such data.
    """
    named = plan.storage is not None
    plan = replace(plan, storage=Folder(plan.storage or os.getcwd()).path)
    if plan.data and _is_path(plan.data):  # nodes have working folders of their own
        plan = replace(plan, data=Folder(plan.data).path)
    ratings = _ratings(plan.data)
    token = _token_here()
    with session(address), _probe(plan) as probe:
        look = _Look(plan, probe)
        told = run_on_all_nodes(look)
        answers = [(node, facts) for node, facts, _ in told if facts is not None]
        silent = [f"{node.name}: {why}" for node, _, why in told if why]
        if not answers:
            return [found for found in (_answering(told, silent), token) if found is not None]
        findings = [
            _answering(told, silent),
            _versions(answers),
            _workers(plan, answers),
            _storage(str(plan.storage), named, answers, probe),
            *([_data(plan.data, answers)] if plan.data else []),
            _port(plan, answers),
            token,
            _tokens(answers),
            _dashboard(dashboard_url()),
            _gpus(answers),
            _memory(plan, answers, ratings),
            _object_store(answers),
        ]
    return [finding for finding in findings if finding is not None]


# ------------------------------------------------------------------------------ on every node


@dataclass(frozen=True)
class _Look:
    """What a node tells of itself."""

    plan: Plan
    probe: str

    def __call__(self) -> dict[str, Any]:
        """Look at the node that this runs on."""
        import ray

        return {
            "ray": ray.__version__,
            "python": platform.python_version(),
            "storage": _why_not(lambda: self._storage()),
            "data": _why_not(lambda: self._data()),
            "port_free": _port_free(self.plan.port),
            "token": _token_file(),
            "torch_gpus": _torch_gpus(),
            "memory": _memory_free(),
        }

    def _storage(self) -> None:
        """See the probe of the caller, and write one of our own."""
        folder = Folder(str(self.plan.storage))
        if not folder.exists(self.probe):
            raise RecrayError("it does not see what was written from here")
        own = f"{self.probe}-{uuid.uuid4().hex[:8]}"
        folder.write_bytes(own, b"")
        folder.delete(own)

    def _data(self) -> None:
        if self.plan.data and _is_path(self.plan.data) and not Folder(self.plan.data).exists():
            raise RecrayError("it is not there")


def _why_not(attempt: Callable[[], None]) -> str:
    """Empty, or why the attempt failed."""
    try:
        attempt()
    except RecrayError as error:
        return str(error)
    return ""


def _port_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _token_file() -> dict[str, Any]:
    """Where the token comes from here, and who may read its file."""
    if "RAY_AUTH_TOKEN" in os.environ:
        return {"from": "RAY_AUTH_TOKEN", "mode": None}
    path = token_path()
    if not path.is_file():
        return {"from": None, "mode": None}
    return {"from": str(path), "mode": path.stat().st_mode & 0o777}


def _torch_gpus() -> str:
    """How many GPUs torch can compute with, or why it cannot.

    A process of its own: Ray hides the GPUs from a task that has asked for none.
    """
    environment = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _COMPUTE],
            env=environment,
            capture_output=True,
            text=True,
            timeout=GPU_S,
        )
    except subprocess.TimeoutExpired:
        return f"torch does not answer within {GPU_S:g} s"
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
    return done.stdout.strip()


def _memory_free() -> int:
    """Bytes that new processes may have here."""
    import psutil

    return int(psutil.virtual_memory().available)


# ------------------------------------------------------------------------------------ findings


def _each(answers: Answers, tell: Callable[[dict[str, Any]], str]) -> str:
    """What differs from node to node, by node; once where it is the same."""
    words = {node.name: tell(facts) for node, facts in answers}
    distinct = set(words.values())
    if len(distinct) == 1:
        return f"{distinct.pop()}{f' on {len(words)} nodes' if len(words) > 1 else ''}"
    return ", ".join(f"{name}: {word}" for name, word in words.items())


def _answering(told: list[Any], silent: list[str]) -> Finding:
    if silent:
        return Finding("nodes", "problem", "; ".join(silent), "look at these nodes, or remove them")
    return Finding("nodes", "ok", f"{len(told)} answer")


def _versions(answers: Answers) -> Finding:
    import ray

    found = _each(answers, lambda facts: f"Ray {facts['ray']}, Python {facts['python']}")
    own = (ray.__version__, platform.python_version().rsplit(".", 1)[0])
    theirs = {(facts["ray"], facts["python"].rsplit(".", 1)[0]) for _, facts in answers}
    if theirs != {own}:
        return Finding(
            "versions",
            "problem",
            f"here Ray {own[0]}, Python {own[1]}; {found}",
            f"install ray=={own[0]} and Python {own[1]} on every node",
        )
    if len({facts["python"] for _, facts in answers}) > 1:
        return Finding("versions", "warning", found, "use one Python on every node")
    return Finding("versions", "ok", found)


def _workers(plan: Plan, answers: Answers) -> Finding:
    cpus, most = capacity_of(node.resources for node, _ in answers)
    found = f"{cpus} CPUs for --workers {plan.workers}"
    if most > cpus:
        found += f"; the cluster grows to {most}"
    if plan.workers > most:
        return Finding("workers", "problem", found, "give fewer workers, or add nodes")
    if plan.workers == most:
        return Finding(
            "workers", "warning", found, "leave a CPU for what prepares and serves beside them"
        )
    return Finding("workers", "ok", found)


@contextlib.contextmanager
def _probe(plan: Plan) -> Iterator[str]:
    """A file in the storage while the block runs; its name, or empty where none can be written."""
    folder, name = Folder(str(plan.storage)), f"{UNFINISHED}doctor-{uuid.uuid4().hex[:8]}"
    try:
        folder.write_bytes(name, b"")
    except RecrayError:
        yield ""
        return
    try:
        yield name
    finally:
        folder.delete(name)


def _storage(place: str, named: bool, answers: Answers, probe: str) -> Finding:
    if not probe:
        return Finding(
            "storage", "problem", f"{place} cannot be written", "free it, or give another --storage"
        )
    blind = [f"{node.name}: {facts['storage']}" for node, facts in answers if facts["storage"]]
    if blind and not named and len(answers) > 1:
        found = f"{place} is not shared; outputs are to go elsewhere"
        return Finding("storage", "warning", found, "name the shared folder with --storage")
    if blind:
        return Finding(
            "storage",
            "problem",
            f"{place}: {'; '.join(blind)}",
            "mount one disk on every node, or use s3:// or gs://",
        )
    free = "" if is_uri(place) else f", {shutil.disk_usage(place).free / 2**30:,.1f} GiB free"
    if free and shutil.disk_usage(place).free < 1 << 30:
        return Finding("storage", "warning", f"{place}{free}", "free some space")
    return Finding("storage", "ok", f"{place} is written and seen by all{free}")


def _is_path(data: str) -> bool:
    return data != "sample" and data not in movielens.RELEASES


def _data(data: str, answers: Answers) -> Finding:
    if not _is_path(data):
        if data == "sample" or movielens.is_cached(data):
            return Finding("data", "ok", f"{data} is at hand")
        return Finding(
            "data", "warning", f"{data} is not in the cache", f"recray data fetch {data}"
        )
    missing = [f"{node.name}: {facts['data']}" for node, facts in answers if facts["data"]]
    if missing:
        return Finding(
            "data",
            "problem",
            f"{data}: {'; '.join(missing)}",
            "put it where every node can read it: a shared disk, s3:// or gs://",
        )
    return Finding("data", "ok", f"{data} can be read")


def _port(plan: Plan, answers: Answers) -> Finding | None:
    head = answers[0][1] if answers else None
    if head is None:
        return None
    if head["port_free"]:
        return Finding("port", "ok", f"{plan.port} is free")
    return Finding("port", "problem", f"{plan.port} is taken", "give another --port, or stop it")


def _token_here() -> Finding:
    """The token of this machine, as it was before Ray started."""
    if os.environ.get("RAY_AUTH_MODE", "token") != "token":
        return Finding(
            "token",
            "problem",
            f"RAY_AUTH_MODE={os.environ['RAY_AUTH_MODE']}: whoever reaches a port runs code",
            "unset it, or set it to token, here and on every node",
        )
    return _token_of("token", "here", _token_file())


def _token_of(check: str, where: str, token: dict[str, Any]) -> Finding:
    if token["from"] is None:
        return Finding(check, "ok", f"none {where} yet: the first start makes one, mode 0600")
    if token["mode"] is not None and token["mode"] & 0o077:
        return Finding(
            check,
            "problem",
            f"{token['from']} {where} has mode {token['mode']:04o}: others can read it",
            f"chmod 600 {token['from']}",
        )
    mode = "" if token["mode"] is None else f", mode {token['mode']:04o}"
    return Finding(check, "ok", f"{token['from']} {where}{mode}")


def _tokens(answers: Answers) -> Finding | None:
    """The first token file of a node that others can read."""
    for node, facts in answers:
        finding = _token_of("token on nodes", f"on {node.name}", facts["token"])
        if finding.level == "problem":
            return finding
    return None


def _dashboard(address: str | None) -> Finding:
    """Whether others can reach the dashboard, and whether it asks them for the token."""
    if not address:
        return Finding("dashboard", "ok", "not started")
    host, _, port = address.rpartition(":")
    outside = host not in ("127.0.0.1", "localhost", "::1")
    guarded = _asks_for_token(f"http://{address}/api/jobs/")
    if guarded is None:
        return Finding("dashboard", "ok", f"{address} cannot be reached from here")
    if not guarded:
        return Finding(
            "dashboard",
            "problem",
            f"{address} takes jobs from anybody",
            "start Ray with RAY_AUTH_MODE=token on every node",
        )
    if outside:
        return Finding(
            "dashboard",
            "warning",
            f"{address} is open to other machines, guarded by the token alone and not encrypted",
            f"start the head with --dashboard-host 127.0.0.1, and reach it by ssh -L {port}",
        )
    return Finding("dashboard", "ok", f"{address}, with a token")


def _asks_for_token(url: str) -> bool | None:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return False
    except urllib.error.HTTPError as error:
        return error.code in (401, 403)
    except OSError:
        return None


def _gpus(answers: Answers) -> Finding:
    counted = {node.name: int(node.resources.get("GPU", 0)) for node, _ in answers}
    seen = {node.name: facts["torch_gpus"] for node, facts in answers}
    broken = [f"{name}: {word}" for name, word in seen.items() if not word.isdigit()]
    if broken:
        return Finding("gpu", "problem", "; ".join(broken), "update the driver, or the torch wheel")
    blind = [name for name, count in counted.items() if count and seen[name] == "0"]
    if blind:
        return Finding(
            "gpu",
            "problem",
            f"Ray counts GPUs that torch does not see on {', '.join(blind)}",
            "install a torch for CUDA there",
        )
    total = sum(counted.values())
    return Finding("gpu", "ok", f"{total} that torch computes with" if total else "none; CPU only")


def _memory(plan: Plan, answers: Answers, ratings: int | None) -> Finding:
    least, name = min((facts["memory"], node.name) for node, facts in answers)
    if ratings is None:
        return Finding(
            "memory", "ok", f"at least {_gib(least)} free ({name}); --data says if that is enough"
        )
    need = WORKER_BYTES * plan.workers + RATING_BYTES * ratings
    found = f"{_gib(least)} free on {name}, about {_gib(need)} for {ratings:,} ratings"
    if need > least:
        return Finding("memory", "problem", found, "use nodes with more memory, or less data")
    return Finding("memory", "warning" if 2 * need > least else "ok", found)


def _object_store(answers: Answers) -> Finding:
    sizes = [int(node.resources.get("object_store_memory", 0)) for node, _ in answers]
    found = f"{_gib(min(sizes))} on the smallest node; ratings do not pass through it"
    if min(sizes) < STORE_BYTES:
        return Finding(
            "object store", "problem", found, f"start Ray with at least {STORE_BYTES >> 20} MiB"
        )
    return Finding("object store", "ok", found)


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
