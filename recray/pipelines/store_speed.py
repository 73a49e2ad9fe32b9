"""How fast a store answers, and how fast it takes and gives bytes: for `recray doctor`."""

import contextlib
import os
import statistics
import time
import uuid
from collections.abc import Callable

import pyarrow.fs as pafs
from pydantic import BaseModel

from recray.errors import StorageError
from recray.storage import PROBE, check_store
from recray.storage.clients import CHECK, connect
from recray.storage.files import as_recray_error

REPETITIONS = 3
LARGE_BYTES = 4 << 20
"""What is sent and read to measure bytes a second: as much as a small store takes in 2 s."""


class StoreSpeed(BaseModel):
    """What a store needs, seen from here; medians of three for the small requests.

    Args:
        region: The bucket's region.
        put_ms: Milliseconds of writing a file of one byte.
        get_ms: Of reading it, its size known.
        head_ms: Of asking for its size.
        up_mb_s: Megabytes a second of writing one file of 4 MiB.
        down_mb_s: Of reading it.
        ranges: Whether a range of it can be read alone.
    """

    region: str
    put_ms: float
    get_ms: float
    head_ms: float
    up_mb_s: float
    down_mb_s: float
    ranges: bool

    def __str__(self) -> str:
        small = f"PUT {self.put_ms:g} ms, GET {self.get_ms:g} ms, HEAD {self.head_ms:g} ms"
        large = f"{self.up_mb_s:g} MB/s up, {self.down_mb_s:g} MB/s down"
        return f"region {self.region}: {small}; {large}"


def measure_store(uri: str) -> StoreSpeed:
    """Write, read and remove one small file and one of 4 MiB below an S3 URI.

    Raises:
        StorageError: A request failed; the files are removed all the same where that is possible.
    """
    check_store(uri, to_write=True)
    with as_recray_error(f"cannot use {uri}", StorageError):
        store, root = connect(uri, CHECK)
        path = f"{root}/{PROBE}{uuid.uuid4().hex[:8]}"
        try:
            return _measured(store, path)
        finally:
            with contextlib.suppress(OSError):  # what failed before says more
                store.delete_file(path)


def _measured(store: pafs.S3FileSystem, path: str) -> StoreSpeed:
    content = os.urandom(LARGE_BYTES)  # no store and no proxy can pack it
    put = _median_ms(lambda: _write(store, path, b"x"))
    head = _median_ms(lambda: store.get_file_info(path))
    with store.open_input_file(path) as small:
        get = _median_ms(lambda: small.read_at(1, 0))
    up = _seconds(lambda: _write(store, path, content))
    with store.open_input_file(path) as large:
        down = _seconds(lambda: large.read_at(LARGE_BYTES, 0))
        ranges = large.read_at(100, 1000) == content[1000:1100]
    rates = [round(LARGE_BYTES / 1e6 / seconds, 1) for seconds in (up, down)]
    return StoreSpeed(
        region=store.region,
        put_ms=put,
        get_ms=get,
        head_ms=head,
        up_mb_s=rates[0],
        down_mb_s=rates[1],
        ranges=ranges,
    )


def _write(store: pafs.S3FileSystem, path: str, content: bytes) -> None:
    with store.open_output_stream(path, compression=None) as stream:
        stream.write(content)


def _seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def _median_ms(work: Callable[[], object]) -> float:
    return round(1e3 * statistics.median(_seconds(work) for _ in range(REPETITIONS)), 1)
