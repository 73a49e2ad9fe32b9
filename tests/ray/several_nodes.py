"""A cluster of several nodes on one machine, started and ended by hand, with a token of its own."""

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from recray.benchmarks.harness import session_of

RAY = str(Path(sys.executable).with_name("ray"))
ROOT = Path(__file__).parents[2]


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def wait_for(condition, seconds: float = 240, pause: float = 0.2):
    """What the condition gives as soon as it is true."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "it never came"
        time.sleep(pause)
    return value


class Nodes:
    """`ray start --head`, and nodes beside it, that end with the `with` block.

    Args:
        count: Nodes beside the head.
        head_cpus: CPUs of the head.
        cpus: CPUs of each other node.
        head_resources: Other resources of the head.
        environment: Variables of the nodes, and of commands against them.
    """

    def __init__(
        self,
        count: int = 2,
        head_cpus: int = 0,
        cpus: int = 1,
        head_resources: dict[str, float] | None = None,
        **environment: str,
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="nodes-"))  # short: Ray puts sockets below it
        token = self.folder / "token"
        token.write_text(secrets.token_hex(32))
        token.chmod(0o600)
        gcs, self.dashboard_port, client = free_ports(3)
        self.address = f"127.0.0.1:{gcs}"
        self.dashboard = f"http://127.0.0.1:{self.dashboard_port}"
        own = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN")
        self.environment = (
            {k: v for k, v in os.environ.items() if k not in own}
            | {
                "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN_PATH": str(token),
                "RAY_USAGE_STATS_ENABLED": "0",
                "RAY_SCHEDULER_EVENTS": "0",
                "RAY_raylet_start_wait_time_s": "120",
                "OMP_NUM_THREADS": "1",
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "PYTHONPATH": str(ROOT),
            }
            | environment
        )
        self.running: list[subprocess.Popen] = []
        self.count, self.cpus = count, cpus
        self.head = ["--head", f"--port={gcs}", f"--dashboard-port={self.dashboard_port}"]
        self.head += [f"--ray-client-server-port={client}", f"--temp-dir={self.folder}/ray"]
        self.head += [f"--num-cpus={head_cpus}", f"--resources={json.dumps(head_resources or {})}"]

    def __enter__(self) -> "Nodes":
        try:
            self._start(self.head)
            wait_for(self.alive)
            self.fill(self.count)
        except BaseException:
            self.__exit__()
            raise
        return self

    def fill(self, count: int) -> None:
        """Have so many nodes beside the head: as many as are missing are started."""
        missing = count - sum(node.poll() is None for node in self.running[1:])
        for number in range(count - missing + 1, count + 1):
            self.add()  # in turn: two that start at once may take one port
            wait_for(lambda there=number + 1: self.alive() == there)
        wait_for(lambda: self.alive() == count + 1)  # the head knows of those that were killed

    def add(self, *before: str) -> subprocess.Popen:
        """Start a node; `before` are the words that run the command."""
        name = f"--node-name=node-{len(self.running)}"
        return self._start([f"--address={self.address}", f"--num-cpus={self.cpus}", name], before)

    def _start(self, options: list[str], before=()) -> subprocess.Popen:
        common = ["--block", "--disable-usage-stats", "--min-worker-port=0", "--max-worker-port=0"]
        common += ["--dashboard-agent-listen-port=0", "--object-store-memory=150000000"]
        with (self.folder / f"node-{len(self.running)}.log").open("w") as log:
            node = subprocess.Popen(
                [*before, RAY, "start", *options, *common],
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.running.append(node)
        return node

    def ask(self, path: str):
        """The dashboard's answer; None before it gives one."""
        token = (self.folder / "token").read_text()
        request = urllib.request.Request(
            self.dashboard + path, headers={"Authorization": f"Bearer {token}"}
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as reply:
                return json.load(reply)["data"]["result"]["result"]
        except (OSError, KeyError, TypeError):
            return None

    def alive(self) -> int:
        """How many nodes live, the head among them."""
        rows = self.ask("/api/v0/nodes?limit=100") or []
        return sum(row["state"] == "ALIVE" for row in rows)

    def running_on(self, node_id: str) -> subprocess.Popen:
        """The process that started a node."""
        rows = self.ask("/api/v0/nodes?limit=100") or []
        (name,) = (row["node_name"] for row in rows if row["node_id"] == node_id)
        return self.running[int(name.removeprefix("node-"))]

    def nodes_of(self, class_name: str) -> set[str]:
        """The nodes on which living actors of a class are."""
        rows = self.ask("/api/v0/actors?limit=1000&detail=1") or []
        return {
            row["node_id"]
            for row in rows
            if class_name in row["class_name"] and row["state"] == "ALIVE"
        }

    def drain(self, node_id: str, seconds: int = 60) -> None:
        """Announce that a node is taken away in so many seconds."""
        words = ["drain-node", "--address", self.address, "--node-id", node_id]
        words += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "test"]
        words += ["--deadline-remaining-seconds", str(seconds)]
        subprocess.run([RAY, *words], env=self.environment, check=True)

    def kill(self, node: subprocess.Popen) -> None:
        """End a node at once, with all that runs on it."""
        for pid in [*session_of(node.pid), node.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        node.wait(timeout=30)

    def __exit__(self, *_error: object) -> None:
        for node in reversed(self.running):
            self.kill(node)
        shutil.rmtree(self.folder, ignore_errors=True)

    def recray(self, *arguments: object, **changes: str) -> subprocess.CompletedProcess:
        """Run a command against this cluster."""
        return subprocess.run(
            [sys.executable, "-m", "recray", *map(str, arguments)],
            env=self.environment | changes,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=560,
        )

    def start(self, *arguments: object, stderr=subprocess.STDOUT) -> subprocess.Popen:
        """Start a command against this cluster."""
        return subprocess.Popen(
            [sys.executable, "-m", "recray", *map(str, arguments)],
            env=self.environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            start_new_session=True,
        )
