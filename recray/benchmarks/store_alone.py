"""What one process takes beside a store: a replica that starts, a task that gathers, a driver."""

import pickle
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

from recray.benchmarks import synthetic
from recray.benchmarks.counted_store import BUCKET, counted_store, environment
from recray.benchmarks.counting_proxy import Proxy
from recray.benchmarks.folder_store import folder_store
from recray.benchmarks.harness import PROC, Figures, Row, own_memory
from recray.benchmarks.ingest import generate
from recray.config import Settings
from recray.data import ingest, split, tasks
from recray.data.filtered import item_rules
from recray.data.scan import join_scans, scan
from recray.data.source import detect_source
from recray.data.spill import SpillFolder
from recray.progress import Log
from recray.runtime.environment import switched
from recray.storage import Folder

T = TypeVar("T")
LATENCY_S = 0.025
"""What each request of a replica that starts waits."""


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Args:
        small: Ratings of the small set, where no archive is given.
        large: Ratings of the csv files that are prepared; figures are taken at the first.
        trained: Whether the first of them is trained, exported and opened as well.
        served: Users, items, ratings of a user and dim of the bundle that a replica opens.
        gathered: Ratings of the sets whose first partition one task gathers.
        users: Ratings, and how many each user has, of the two sets that tell what the driver
            holds of a user.
    """

    small: int
    large: tuple[int, ...]
    trained: bool
    served: tuple[int, int, int, int]
    gathered: tuple[int, ...]
    users: tuple[int, int, int]


@dataclass(frozen=True)
class Lab:
    """Where figures are measured, and how much of them.

    Args:
        sizes: How much is measured.
        data: Folder of archives named after their releases; None generates a set of that size.
        folder: Folder for generated files.
        log: Receives what happens, one line at a time.
    """

    sizes: Sizes
    data: str | None
    folder: Path
    log: Log


class Alone(Row):
    """What one process took."""

    figure: str
    of: str
    seconds: float | None = None
    cpu_s: float | None = None
    memory_mb: float | None = None
    requests: int | None = None
    down_mb: float | None = None


def _in_process(work: Callable[..., T], *arguments: object) -> T:
    """Do something in a process of its own, whose memory is that of this work alone."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def _begin_peak() -> int:
    """Forget the most memory that this process has had; the bytes that it has now."""
    (PROC / "self" / "clear_refs").write_text("5")
    return own_memory("VmRSS")


# --------------------------------------------------------------------------------- a replica


def serve_open(lab: Lab) -> tuple[Figures, Sequence[Row]]:
    """Open a large bundle as a replica does, behind a store whose requests wait."""
    folder = lab.folder / "served"
    _in_process(_make_bundle, folder, *lab.sizes.served)
    with (
        folder_store(folder) as address,
        Proxy(address, delay_s=LATENCY_S).running() as proxy,
        switched(environment(proxy.url), overrule=True),
        proxy.watch() as traffic,
    ):
        seconds, cpu, memory = _in_process(_open_replica, f"s3://{BUCKET}/bundle-0")
    megabytes = round(traffic.down() / 1e6, 1)
    lab.log(f"a replica on a bundle of {megabytes:,.0f} MB: {seconds:.1f} s")
    row = Alone(
        figure="serve_open_1gb_s",
        of="replica",
        seconds=round(seconds, 2),
        cpu_s=round(cpu, 2),
        memory_mb=round(memory / 1e6),
        requests=len(traffic.requests),
        down_mb=megabytes,
    )
    figures: Figures = {"serve_open_1gb_s": row.seconds if megabytes > 950 else None}
    return figures | {"serve_open_s_a_gb": round(seconds / megabytes * 1000, 2)}, [row]


def _make_bundle(folder: Path, users: int, items: int, per_user: int, dim: int) -> None:
    synthetic.make_bundle(folder, users, items, per_user, dim)


def _open_replica(path: str) -> tuple[float, float, int]:
    from recray.serving.hot_swap import load_and_warm_up

    before, begin, cpu = _begin_peak(), time.perf_counter(), time.process_time()
    load_and_warm_up(path)
    seconds, used = time.perf_counter() - begin, time.process_time() - cpu
    return seconds, used, own_memory("VmHWM") - before


# ------------------------------------------------------------------------------- one task


def gather_memory(lab: Lab) -> tuple[Figures, Sequence[Row]]:
    """Spill sets of several sizes into a store, and gather the first partition of each."""
    figures: Figures = {}
    rows = []
    for ratings in lab.sizes.gathered:
        path = generate(lab.folder, ratings, "csv")
        with counted_store() as proxy:
            _in_process(_scan, path)
            with proxy.watch() as traffic:
                seconds, memory = _in_process(_gather)
        megabytes = round(memory / 1e6, 1)
        lab.log(f"{ratings:,} ratings: a gather task adds {megabytes} MB")
        figures |= {"gather_task_mb": megabytes, f"gather_task_mb_{ratings}": megabytes}
        rows.append(
            Alone(
                figure="gather_task_mb",
                of=f"{ratings} ratings",
                seconds=round(seconds, 2),
                memory_mb=megabytes,
                requests=len(traffic.requests),
                down_mb=round(traffic.down() / 1e6, 2),
            )
        )
    return figures, rows


def _scan(path: Path) -> None:
    """Spill a file into the store, and leave there what the scans returned."""
    source, spill = detect_source(str(path), Settings()), _spill()
    scans = [scan(n, file_range=one, spill=spill) for n, one in enumerate(source.ranges)]
    scanned = join_scans(source, scans, Settings().data)
    kept = scanned.files, split.partitions_for(scanned.rows), scanned.timed
    spill.folder.write_bytes("scanned", pickle.dumps((*kept, item_rules(source, Settings().data))))


def _gather() -> tuple[float, int]:
    spill = _spill()
    files, partitions, timed, rules = pickle.loads(spill.folder.read_bytes("scanned"))
    before, begin = _begin_peak(), time.perf_counter()
    tasks.gather(
        0,
        spill=spill,
        scanned=files,
        partitions=partitions,
        rules=rules,
        settings=Settings(),
        timed=timed,
    )
    return time.perf_counter() - begin, own_memory("VmHWM") - before


def _spill() -> SpillFolder:
    return SpillFolder(Folder(f"s3://{BUCKET}/spill"))


# ------------------------------------------------------------------------------- the driver


def driver_memory(lab: Lab) -> tuple[Figures, Sequence[Row]]:
    """Prepare as many ratings of few and of many users; what the driver holds for one more."""
    ratings, *eaches = lab.sizes.users
    peaks, rows = [], []
    for each in eaches:
        path = generate(lab.folder, ratings, "csv", each)
        peaks.append(_in_process(_drive, path, str(lab.folder / f"driver-{each}")))
        of = f"{ratings} ratings by {ratings // each} users"
        lab.log(f"{of}: the driver holds {peaks[-1] / 1e6:.0f} MB")
        rows.append(Alone(figure="driver_bytes_a_user", of=of, memory_mb=round(peaks[-1] / 1e6, 1)))
    more = ratings // eaches[1] - ratings // eaches[0]
    return {"driver_bytes_a_user": round((peaks[1] - peaks[0]) / more, 1)}, rows


def _drive(path: Path, out: str) -> int:
    source = detect_source(str(path), Settings())
    before = _begin_peak()
    ingest.prepare(source, out, Settings())
    return own_memory("VmHWM") - before
