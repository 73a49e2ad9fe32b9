"""Ingest against textbook Ray Data and pandas: rows a second, and peak memory against size."""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from recray.benchmarks.harness import (
    Figures,
    Measurement,
    Row,
    interleaved,
    peak_memory,
    start_workers,
    timed,
)
from recray.config import Settings
from recray.data import ingest, source
from recray.data.formats import reading
from recray.data.formats.layout import FileRange
from recray.data.ids import DenseIds
from recray.data.spill import read_arrow, write_arrow
from recray.progress import Log
from recray.runtime.session import session
from recray.runtime.tasks import map_tasks
from recray.storage import Folder

CHUNK = 1_000_000


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Args:
        compared: Rows of the files on which all ways are timed; figures are taken at the last.
        kinds: Formats of these files, csv among them.
        repetitions: How often each way is timed.
        watched: Rows of the files whose peak memory is measured.
    """

    compared: tuple[int, ...]
    kinds: tuple[str, ...]
    repetitions: int
    watched: tuple[int, ...]


FULL = Sizes((1_000_000, 5_000_000), ("csv", "parquet"), 3, (5_000_000, 25_000_000))
QUICK = Sizes((5_000_000,), ("csv",), 2, (1_000_000, 5_000_000))


class Timing(Row):
    """Seconds of one way on one file."""

    way: str
    file: str
    rows: int
    rows_per_s: int
    seconds: float
    low: float
    high: float


class Memory(Row):
    """Peak memory of a whole prepare."""

    way: str = "prepare, memory"
    file: str = "csv"
    rows: int
    seconds: float
    rows_per_s: int
    peak_mb: int | None


def run(sizes: Sizes, log: Log) -> Measurement:
    """Compare the ways at each size and format, then measure the memory of whole prepares."""
    with tempfile.TemporaryDirectory(prefix="recray-benchmark-") as folder:
        rows: list[Row] = []
        with session():
            start_workers()
            for size, kind in product(sizes.compared, sizes.kinds):
                path = generate(Path(folder), size, kind)
                timings = _compare(path, size, kind, Path(folder), sizes.repetitions, log)
                rows += timings
                if kind == "csv":
                    figures = _figures(timings)
        peaks = {}
        for size in sizes.watched:
            peaks[size], row = _peak(generate(Path(folder), size, "csv"), size, Path(folder), log)
            rows.append(row)
    small, large = peaks.get(5_000_000), peaks.get(25_000_000)
    figures["peak_mb_25m_over_5m"] = large / small if small and large else None
    return Measurement(figures, rows)


def _figures(rows: "list[Timing]") -> Figures:
    seconds = {row.way: row.seconds for row in rows}
    return {
        "read_encode_over_textbook": seconds["textbook"] / seconds["read+encode"],
        "prepare_over_textbook": seconds["textbook"] / seconds["prepare"],
        "read_encode_over_pandas": seconds["pandas"] / seconds["read+encode"],
    }


def generate(folder: Path, rows: int, kind: str, each: int = 154) -> Path:
    """Write ratings of so many for each user, by default as ml-25m has, and of as many items as it
    has; returns the file.
    """
    path = folder / f"ratings-{rows}-{each}.{kind}"
    if path.exists():
        return path
    rng = np.random.default_rng(0)
    users, items = max(1, rows // each), 59_047
    popularity = 1 / (10 + np.arange(items))
    edges = np.cumsum(popularity / popularity.sum())
    write: Any = pacsv.CSVWriter if kind == "csv" else pq.ParquetWriter
    writer = None
    for first in range(0, rows, CHUNK):
        size = min(CHUNK, rows - first)
        user = np.sort(
            rng.integers(first * users // rows, (first + size) * users // rows + 1, size)
        )
        columns = {
            "userId": user + 1,
            "movieId": np.searchsorted(edges, rng.random(size)) + 1,
            "rating": rng.integers(1, 11, size) / 2,
            "timestamp": rng.integers(9 * 10**8, 15 * 10**8, size),
        }
        table = pa.table(columns)
        writer = writer or write(str(path), table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()
    return path


def _compare(
    path: Path, size: int, kind: str, folder: Path, repetitions: int, log: Log
) -> list[Timing]:
    """All ways on one file, in the Ray that runs."""
    from recray.benchmarks import textbook

    out = folder / "out"
    ways: dict[str, Callable[[], object]] = {
        "read+encode": lambda: read_encode(str(path), out),
        "prepare": lambda: _prepare(str(path), out),
        "pandas": lambda: _pandas(str(path)),
        "textbook": lambda: textbook.read_encode(str(path)),
    }
    found = interleaved(ways, repetitions)
    rows = []
    for way, seconds in found.items():
        speed = round(size / seconds.seconds)
        rounded = {name: round(value, 3) for name, value in seconds._asdict().items()}
        rows.append(Timing(way=way, file=kind, rows=size, rows_per_s=speed, **rounded))
        log(f"{size:,} rows {kind}: {way} {seconds.seconds:.2f} s")
    return rows


def _peak(path: Path, size: int, folder: Path, log: Log) -> tuple[float | None, Memory]:
    """Peak memory of a whole prepare, with a Ray of its own, whose processes are counted."""
    with peak_memory() as peak, session():
        seconds = timed(lambda: _prepare(str(path), folder / "out"))
    mb = None if peak.mb is None else round(peak.mb)
    log(f"{size:,} rows csv: whole prepare {seconds:.1f} s, peak {mb} MB")
    speed = round(size / seconds)
    return peak.mb, Memory(rows=size, seconds=round(seconds, 3), rows_per_s=speed, peak_mb=mb)


def _prepare(path: str, out: Path) -> None:
    settings = Settings()
    ingest.prepare(source.detect_source(path, settings), str(out), settings)
    shutil.rmtree(out)


def _pandas(path: str) -> None:
    frame = pd.read_csv(path) if path.endswith(".csv") else pd.read_parquet(path)
    for column in ("userId", "movieId"):
        frame[column] = pd.factorize(frame[column], sort=True)[0]


# ----------------------------------------------------------------- the first and last of the maps


def read_encode(path: str, out: Path) -> None:
    """Parse the files and encode the ids, without the shuffle, the split and the parquet files."""
    given = source.detect_source(path, Settings())
    spill = Folder(str(out))
    out.mkdir()
    read = map_tasks(_Read(given.ranges, spill), len(given.ranges))
    names = [name for result in read for name in result["names"]]
    dense_ids = []
    for column in ("raw_user", "raw_item"):
        parts = [read_arrow(spill, f"{column}-{name}")["id"].to_numpy() for name in names]
        key = np.unique(np.concatenate(parts))
        dense_ids.append(DenseIds(key, np.arange(len(key), dtype=np.int32), len(key)))
    map_tasks(_Encode(spill, names, *dense_ids), len(names))
    shutil.rmtree(out)


@dataclass(frozen=True)
class _Read:
    """The parsed rows of one file range, and their distinct ids."""

    ranges: tuple[FileRange, ...]
    spill: Folder

    def __call__(self, number: int) -> dict[str, list[str]]:
        names = []
        for chunk, (_, parsed) in enumerate(reading.parsed(self.ranges[number])):
            names.append(f"{number:05d}-{chunk:05d}.arrow")
            write_arrow(self.spill, names[-1], parsed.table)
            for column in ("raw_user", "raw_item"):
                distinct = pc.unique(parsed.table[column])
                write_arrow(self.spill, f"{column}-{names[-1]}", pa.table({"id": distinct}))
        return {"names": names}


@dataclass(frozen=True)
class _Encode:
    """The dense ids of one spill file."""

    spill: Folder
    names: list[str]
    users: DenseIds
    items: DenseIds

    def __call__(self, number: int) -> dict[str, int]:
        table = read_arrow(self.spill, self.names[number])
        columns = {
            "user": self.users.of(table["raw_user"].to_numpy()),
            "item": self.items.of(table["raw_item"].to_numpy()),
            "rating": table["rating"],
            "timestamp": table["timestamp"],
        }
        write_arrow(self.spill, f"encoded-{self.names[number]}", pa.table(columns))
        return {}
