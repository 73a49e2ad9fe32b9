"""What all benchmarks share: facts of the machine, memory of a process tree, and repetitions."""

import os
import platform
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from recray.runtime.nodes import map_tasks
from recray.runtime.session import local_cpus

PROC = Path("/proc")
SAMPLE_SECONDS = 0.1


def machine() -> dict[str, Any]:
    """CPUs, load average over one minute, and versions."""
    return {
        "cpus": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "platform": platform.platform(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("ray", "torch", "pyarrow", "numpy", "pandas")},
    }


def start_workers() -> None:
    """Have Ray start its worker processes, so that no measured call waits for them."""
    map_tasks(_Nothing(), 2 * local_cpus())


class _Nothing:
    def __call__(self, _number: int) -> dict[str, Any]:
        return {}


def timed(function: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def interleaved(
    ways: dict[str, Callable[[], object]], repetitions: int
) -> dict[str, dict[str, float]]:
    """Run every way in turn, several times, so that a change of load hits all alike.

    Returns:
        Way to {"seconds": median, "low", "high"}.
    """
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(repetitions):
        for way, function in ways.items():
            seconds[way].append(timed(function))
    return {
        way: {"seconds": statistics.median(s), "low": min(s), "high": max(s)}
        for way, s in seconds.items()
    }


def own_memory(entry: str) -> int:
    """Bytes of an entry of this process's status: VmRSS, RssAnon, or VmHWM, the most so far.

    Not getrusage's ru_maxrss: that begins with what the process which started this one held.

    Raises:
        RuntimeError: The system does not tell it.
    """
    status = PROC / "self" / "status"
    for line in status.read_text().splitlines() if status.exists() else ():
        if line.startswith(f"{entry}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this system does not tell the memory of a process")


class Peak:
    """The most memory of this process and its descendants at once; Linux only.

    Counts anonymous and shared memory, shared pages once; files that are mapped are the page
    cache's. `mb` is None where /proc is missing.
    """

    mb: float | None = None


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """Watch the memory while the block runs."""
    peak, stop = Peak(), threading.Event()

    def watch() -> None:
        while not stop.is_set():
            now = sum(_memory(pid) for pid in _descendants(os.getpid())) / 1e6
            peak.mb = max(peak.mb or 0.0, now)
            stop.wait(SAMPLE_SECONDS)

    if not PROC.is_dir():
        yield peak
        return
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


def ray_cpu_seconds() -> float:
    """CPU seconds that the Ray workers among this process's descendants have used; Linux only."""
    ticks = sum(_ticks(pid) for pid in _descendants(os.getpid()))
    return ticks / os.sysconf("SC_CLK_TCK")


def _ticks(pid: int) -> int:
    """User and system time of a Ray worker, 0 for any other process."""
    try:
        if not (PROC / str(pid) / "cmdline").read_bytes().startswith(b"ray::"):
            return 0
        fields = (PROC / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return 0  # it ended meanwhile
    return int(fields[11]) + int(fields[12])


def _descendants(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except (OSError, IndexError):
                continue  # it ended meanwhile
            children.setdefault(parent, []).append(int(entry.name))
    found, queue = [], [root]
    while queue:
        pid = queue.pop()
        found.append(pid)
        queue += children.get(pid, [])
    return found


def _memory(pid: int) -> int:
    """Bytes of anonymous and shared memory, shared pages divided among those who share."""
    try:
        lines = (PROC / str(pid) / "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0  # it ended meanwhile
    kilobytes = [int(x.split()[1]) for x in lines if x.startswith(("Pss_Anon:", "Pss_Shmem:"))]
    return sum(kilobytes) * 1024
