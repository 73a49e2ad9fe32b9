"""What all benchmarks share: facts of the machine, memory of a process tree, and repetitions."""

import ctypes
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple, Self

from pydantic import BaseModel, SerializeAsAny

from recray.runtime.session import local_cpus
from recray.runtime.tasks import map_tasks

PROC = Path("/proc")
SAMPLE_SECONDS = 0.1
Figures = dict[str, int | float | None]
"""Numbers by name; None where one cannot be measured here."""


class Row(BaseModel):
    """A line of a benchmark's table; a field that is not set is left out."""


class Machine(BaseModel):
    """The machine that a benchmark ran on: CPUs, versions, and load averages over one minute."""

    cpus: int | None
    load: float
    platform: str
    python: str
    ray: str
    torch: str
    pyarrow: str
    numpy: str
    pandas: str
    load_after: float

    @classmethod
    def after(cls, load: float) -> Self:
        """This machine now; `load` is that before the benchmark."""
        names = ("ray", "torch", "pyarrow", "numpy", "pandas")
        return cls(
            cpus=os.cpu_count(),
            load=load,
            platform=platform.platform(),
            python=platform.python_version(),
            load_after=load_now(),
            **{name: version(name) for name in names},
        )


class BenchmarkResult(BaseModel):
    """What a benchmark measured.

    Args:
        figures: The numbers that are compared with earlier ones, by name.
        rows: The table; the columns are the benchmark's own.
        gpu: Name of the GPU, where one was measured.
        machine: What it ran on.
    """

    figures: Figures
    rows: list[SerializeAsAny[Row]]
    gpu: str | None = None
    machine: Machine


@dataclass(frozen=True)
class Measurement:
    """Figures and rows, as a benchmark's module returns them."""

    figures: Figures
    rows: Sequence[Row]
    gpu: str | None = None


def load_now() -> float:
    """The load average over one minute."""
    return round(os.getloadavg()[0], 2)


def start_workers() -> None:
    """Have Ray start its worker processes, so that no measured call waits for them."""
    map_tasks(_Nothing(), 2 * local_cpus())


class _Nothing:
    def __call__(self, _number: int) -> dict[str, int]:
        return {}


def timed(function: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


class Spread(NamedTuple):
    """Seconds of a call that was repeated: the median, the least and the most."""

    seconds: float
    low: float
    high: float


def interleaved(ways: dict[str, Callable[[], object]], repetitions: int) -> dict[str, Spread]:
    """Run every way in turn, several times, so that a change of load hits all alike."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(repetitions):
        for way, function in ways.items():
            seconds[way].append(timed(function))
    return {way: Spread(statistics.median(s), min(s), max(s)) for way, s in seconds.items()}


def own_memory(entry: str, process: str = "self") -> int:
    """Bytes of an entry of a process's status: VmRSS, RssAnon, or VmHWM, the most so far.

    Not getrusage's ru_maxrss: that begins with what the process which started this one held.

    Raises:
        RuntimeError: The system does not tell it.
    """
    status = PROC / process / "status"
    for line in status.read_text().splitlines() if status.exists() else ():
        if line.startswith(f"{entry}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this system does not tell the memory of a process")


def apart(module: str, what: str, *arguments: str) -> str:
    """A measurement of a module in a fresh process, whose memory or Ray is its own: a row as JSON.

    Raises:
        RuntimeError: It failed; the message has the end of what it said.
    """
    command = [sys.executable, "-m", module, what, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{what}: {done.stderr[-2000:]}")
    return done.stdout.splitlines()[-1]


def trimmed_memory() -> int:
    """Bytes of this process that no file backs; what was freed is given back first."""
    ctypes.CDLL(None).malloc_trim(0)
    return own_memory("RssAnon")


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
            now = sum(_memory(pid) for pid in descendants(os.getpid())) / 1e6
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
    ticks = sum(_ticks(pid) for pid in descendants(os.getpid()))
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


def descendants(root: int) -> list[int]:
    """Ids of a process and of all that descend from it; Linux only."""
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


def processes_named(title: bytes) -> list[int]:
    """Ids of this process's descendants whose title begins so; Linux only."""
    found = []
    for pid in descendants(os.getpid()):
        with suppress(OSError):  # it ended meanwhile
            if (PROC / str(pid) / "cmdline").read_bytes().startswith(title):
                found.append(pid)
    return found


def _memory(pid: int) -> int:
    """Bytes of anonymous and shared memory, shared pages divided among those who share."""
    try:
        lines = (PROC / str(pid) / "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0  # it ended meanwhile
    kilobytes = [int(x.split()[1]) for x in lines if x.startswith(("Pss_Anon:", "Pss_Shmem:"))]
    return sum(kilobytes) * 1024


def start_recray(*words: object) -> subprocess.Popen[str]:
    """Begin a command in a session of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "recray", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def session_of(leader: int) -> list[int]:
    """Live processes of a session: Ray keeps its daemons in that of what started them."""
    found = []
    for status in PROC.glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            found.append(int(status.parent.name))
    return found
