"""Bytes from a store in as few requests as it allows: one for most files, parallel ranges else."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pyarrow as pa
import pyarrow.fs as pafs

T = TypeVar("T")
S = TypeVar("S")
ONE_READ_BYTES = 32 << 20
"""Bytes that come by one request."""
RANGE_BYTES, RANGES_AT_ONCE = 16 << 20, 8
"""More of them come by ranges of so many bytes, so many at the same time."""
FILES_AT_ONCE = 4
"""Files that are read at the same time: what they wait for is the store."""


def read_whole(filesystem: pafs.FileSystem, path: str, largest: int | None = None) -> pa.Buffer:
    """The content of a file. In a store that is one HEAD, for its size, and one GET.

    Args:
        filesystem: Where it lies.
        path: The file.
        largest: Bytes that it may have.

    Raises:
        OSError: It is missing, cannot be read, or has become shorter meanwhile.
        ValueError: It is larger; nothing was read.
    """
    with filesystem.open_input_file(path) as file:
        if largest is not None and file.size() > largest:
            raise ValueError(f"it has {file.size():,} bytes, and may have {largest:,}")
        if filesystem.type_name == "local":
            return file.read_buffer()
        return read_range(file, 0, file.size())


def read_range(file: pa.NativeFile, begin: int, count: int) -> pa.Buffer:
    """Bytes of an open file; fewer, or none, behind its end.

    Raises:
        OSError: They cannot be read, or the file has become shorter since it was opened.
    """
    count = max(0, min(count, file.size() - begin))
    if count <= ONE_READ_BYTES:
        return pa.py_buffer(file.read_at(count, begin) if count else b"")
    held = pa.allocate_buffer(count)
    target = memoryview(held).cast("B")

    def fetch(place: int) -> None:
        wanted = min(RANGE_BYTES, count - place)
        content = file.read_at(wanted, begin + place)
        if len(content) < wanted:
            raise OSError("the file has become shorter while it was read")
        target[place : place + wanted] = content

    with ThreadPoolExecutor(RANGES_AT_ONCE) as pool:
        list(pool.map(fetch, range(0, count, RANGE_BYTES)))
    return held


def in_parallel(work: Callable[[S], T], given: Iterable[S]) -> Iterator[T]:
    """Do something with each file, a few at the same time; yields in the order of the files.

    Raises:
        Exception: What was raised for the first of them that failed.
    """
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        yield from pool.map(work, given)
