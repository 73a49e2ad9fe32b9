"""Processes of a service are killed, one after another, under a mixed load: what clients notice."""

import asyncio
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import ray

from recray.benchmarks.client import HOST, REPLICA, free_port
from recray.benchmarks.harness import Figures, Row, load_now, processes_named, session_of
from recray.benchmarks.mixed_load import Outcome, mixed_requests, send_steadily
from recray.inference.bundle import Bundle
from recray.progress import Log
from recray.runtime.environment import switched
from recray.runtime.ray_switches import LOOPBACK_VARIABLE
from recray.runtime.session import session
from recray.serving.deployment import serving
from recray.serving.registry import Registry

RATE = 15.0
"""Requests a second."""
WAIT = 0.15
"""Share of the requests that were sent before the kill."""
SETTLE_SECONDS = 120.0
POLL_SECONDS = 0.2
CONTROLLER, PROXY = b"ray::ServeController", b"ray::Proxy"


class Death(Row):
    """One process killed with SIGKILL: requests of a client that asks nothing twice.

    `how` counts the failed ones by their status; 0 had no answer.
    Seconds are since the kill: `down_s` until the last request that failed, 0 without any;
    `back_s` until there are as many processes of the kind as before.
    """

    what: str
    asked: int
    failed: int
    how: str
    down_s: float
    worst_s: float
    back_s: float | None
    load: float


class Victim(NamedTuple):
    """What is killed: how it is found, and how many must be there afterwards."""

    what: str
    find: Callable[[], list[int]]
    kill: Callable[[list[int]], None]
    comes_back: bool = True


def deaths(bundle: Bundle, folder: Path, requests: int, log: Log) -> tuple[Figures, list[Row]]:
    """Kill a replica of two, the controller, the proxy, and a node with one of two replicas.

    Args:
        bundle: What is served.
        folder: Gets a registry with it, which keeps ratings.
        requests: How many are sent around each kill.
        log: Receives what happens.
    """
    registry = Registry(str(folder / "registry-of-deaths"))
    registry.promote(registry.add(bundle.folder.path))
    load = _Load(bundle, requests, log)
    rows = [*_deaths_of_processes(registry, load), _death_of_a_node(registry, load)]
    figures: Figures = {f"{row.what}_killed_failed": row.failed for row in rows}
    figures["proxy_down_s"] = next(row.down_s for row in rows if row.what == "proxy")
    return figures, list(rows)


def _deaths_of_processes(registry: Registry, load: "_Load") -> list[Death]:
    titles = {"replica": REPLICA, "controller": CONTROLLER, "proxy": PROXY}
    port = free_port()
    with serving(registry.folder.path, HOST, port, replicas=2):
        return [
            load.around(Victim(name, partial(processes_named, title), _kill_first), port)
            for name, title in titles.items()
        ]


def _death_of_a_node(registry: Registry, load: "_Load") -> Death:
    port = free_port()
    with _two_nodes() as node, serving(registry.folder.path, HOST, port, replicas=2):
        if not set(processes_named(REPLICA)) & set(session_of(node)):
            raise RuntimeError("both replicas are on one node")
        victim = Victim("node", partial(session_of, node), _kill_all, comes_back=False)
        return load.around(victim, port)


class _Load:
    """Requests at a steady rate, in the midst of which something is killed.

    Args:
        bundle: What is asked for.
        requests: How many, each time.
        log: Receives what happens.
    """

    def __init__(self, bundle: Bundle, requests: int, log: Log) -> None:
        self.ask, self.requests, self.log = mixed_requests(bundle), requests, log
        self._sent = 0

    def around(self, victim: Victim, port: int) -> Death:
        """Kill it, and count what failed."""
        self.log(f"kill -9 of a {victim.what}, {self.requests} requests at {RATE:g} a second")
        _wait_until_whole()
        numbers = range(self._sent, self._sent + self.requests)
        self._sent = numbers.stop
        load, kill = load_now(), _Kill(victim)

        async def both() -> Sequence[Outcome]:
            sending = send_steadily(port, self.ask, RATE, numbers)
            outcomes, _ = await asyncio.gather(sending, kill.after(WAIT * self.requests / RATE))
            return outcomes

        return kill.row(asyncio.run(both()), load)


class _Kill:
    """One kill, and when it was."""

    def __init__(self, victim: Victim) -> None:
        self.victim = victim
        self._at = math.nan
        self._back_s: float | None = None

    async def after(self, seconds: float) -> None:
        """Kill it then, and wait until it is back."""
        await asyncio.sleep(seconds)
        before = self.victim.find()
        self.victim.kill(before)
        self._at = time.perf_counter()
        while self.victim.comes_back and self._back_s is None:
            await asyncio.sleep(POLL_SECONDS)
            there = await asyncio.to_thread(self.victim.find)
            if len(there) >= len(before) and there != before:
                self._back_s = time.perf_counter() - self._at

    def row(self, outcomes: Sequence[Outcome], load: float) -> Death:
        """What the client noticed."""
        failed = [one for one in outcomes if one.failed]
        return Death(
            what=self.victim.what,
            asked=len(outcomes),
            failed=len(failed),
            how=", ".join(f"{n} x {s}" for s, n in Counter(one.status for one in failed).items()),
            down_s=max((one.due + 1 / RATE - self._at for one in failed), default=0.0),
            worst_s=max(one.seconds for one in outcomes if not one.failed),
            back_s=self._back_s,
            load=load,
        )


def _wait_until_whole() -> None:
    """Wait until nothing is missing since the last kill."""
    end = time.monotonic() + SETTLE_SECONDS
    while (
        len(processes_named(REPLICA)) < 2
        or not processes_named(CONTROLLER)
        or not processes_named(PROXY)
    ):
        if time.monotonic() > end:
            raise RuntimeError(f"the service is not whole after {SETTLE_SECONDS:g} s")
        time.sleep(0.5)
    time.sleep(3.0)


def _kill_first(pids: list[int]) -> None:
    os.kill(min(pids), signal.SIGKILL)


def _kill_all(pids: list[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@contextmanager
def _two_nodes() -> Iterator[int]:
    """A Ray of two nodes on this machine, the first with room for one replica; the other's session.

    A node joins a Ray of all interfaces alone.
    """
    with switched({LOOPBACK_VARIABLE: "1"}), session(cpus=1):
        held: Any = ray.remote(num_cpus=0.7)(_Nothing).remote()
        ray.get(held.__ray_ready__.remote())
        with _second_node() as node:
            yield node


class _Nothing:
    """Takes the room of the first node."""


@contextmanager
def _second_node() -> Iterator[int]:
    """A second node of the running Ray on this machine; its session."""
    command = [str(Path(sys.executable).with_name("ray")), "start", "--block"]
    command += [f"--address={ray.get_runtime_context().gcs_address}"]
    command += ["--num-cpus=2", "--object-store-memory=150000000", "--disable-usage-stats"]
    command += ["--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"]
    node = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        end = time.monotonic() + SETTLE_SECONDS
        while sum(one["Alive"] for one in ray.nodes()) < 2:
            if time.monotonic() > end:
                raise RuntimeError("the second node does not join")
            time.sleep(0.5)
        yield node.pid
    finally:
        _kill_all(session_of(node.pid))
        node.wait()
