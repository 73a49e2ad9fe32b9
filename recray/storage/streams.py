"""Large files: written by a function, and read by ranges, without a copy of the whole."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

import pyarrow as pa

from recray.errors import DamagedFile
from recray.storage.files import is_uri, read_errors, retry, storage_errors, synced
from recray.storage.folder import Folder
from recray.storage.whole import read_range

T = TypeVar("T")


class Sink(Protocol):
    """What takes the bytes of a file, one piece after another."""

    def write(self, content: bytes | memoryview, /) -> object:
        """Take the next piece."""


def write_from(folder: Folder, name: str, write: Callable[[Sink], T]) -> T:
    """Write a file by a function, making its folder, and return what the function returns.

    The content is on the disk when this returns. Where a store fails in passing the function is
    called again, so that no copy of the content is kept for that.

    Raises:
        StorageError: The disk is full, read-only or not permitted.
    """
    with storage_errors(folder.path):
        if not is_uri(folder.path):
            with synced(Path(folder.path) / name) as stream:
                return write(stream)

        def attempt() -> T:
            with folder.output(name) as stream:
                return write(stream)

        return retry(folder.path, attempt)


def range_reader(folder: Folder, name: str) -> Callable[[int, int], pa.Buffer]:
    """Make a function that reads bytes of a file, by their begin and number.

    The file is opened once. A read that fails is tried again, on a disk as well. Behind the end of
    the file there are fewer bytes, or none. Many bytes come by several requests in parallel.

    Raises:
        DamagedFile: By a call, if the file is missing.
        StorageError: By a call, if a store does not answer.
        RecrayError: By a call that cannot read the file.
    """
    filesystem, path = folder.locate(name)
    opened: list[pa.NativeFile] = []

    def attempt(begin: int, count: int) -> pa.Buffer:
        try:
            if not opened:
                opened.append(filesystem.open_input_file(path))
            return read_range(opened[0], begin, count)
        except OSError:
            opened.clear()
            raise

    def read(begin: int, count: int) -> pa.Buffer:
        with read_errors(f"{folder}/{name}"):
            try:
                return retry(folder.path, lambda: attempt(begin, count), on_disk=True)
            except FileNotFoundError as error:
                raise DamagedFile(f"{folder} lacks {name}, which its manifest lists") from error

    return read
