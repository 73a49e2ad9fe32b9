"""Paths and URIs: which filesystem they lie on, and what its errors mean."""

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from recray.errors import RecrayError, StorageError

_FULL = {errno.ENOSPC: "no space left", errno.EROFS: "read-only", errno.EDQUOT: "over quota"}


def is_uri(path: str) -> bool:
    """Whether the path names a store (`s3://bucket/x`) and not a local folder."""
    return "://" in path


def locate(path: str) -> tuple[pafs.FileSystem, str]:
    """The filesystem of a local path or URI, and the path on it."""
    return pafs.FileSystem.from_uri(path if is_uri(path) else os.path.abspath(path))


def open_input(path: str) -> pa.NativeFile:
    """Open a file by local path or URI for reading at any offset.

    Raises:
        RecrayError: The file is missing or not readable.
    """
    try:
        filesystem, inner = locate(path)
        return filesystem.open_input_file(inner)
    except (pa.ArrowInvalid, OSError, ValueError) as error:
        raise RecrayError(f"cannot read {path}: {error}") from error


def file_type(path: str) -> pafs.FileType:
    """Whether the path is a file, a folder, or not there.

    Raises:
        RecrayError: The store does not answer.
    """
    try:
        filesystem, inner = locate(path)
        return filesystem.get_file_info(inner).type
    except (pa.ArrowInvalid, OSError, ValueError) as error:
        raise RecrayError(f"cannot read {path}: {error}") from error


def modified_ns(path: str) -> int:
    """When a file was last written, in nanoseconds; 0 where the store does not say."""
    filesystem, inner = locate(path)
    return filesystem.get_file_info(inner).mtime_ns or 0


def parquet_bytes(table: pa.Table, dictionary: Sequence[str] | None = None) -> bytes:
    """Encode the table as parquet; equal tables give equal bytes.

    Args:
        table: The rows.
        dictionary: The columns with few distinct values, which are worth a dictionary. None tries
            a dictionary on every column.
    """
    sink = pa.BufferOutputStream()
    pq.write_table(
        table.combine_chunks(),
        sink,
        compression="zstd",
        version="2.6",
        use_dictionary=True if dictionary is None else list(dictionary),
    )
    return bytes(sink.getvalue().to_pybytes())


@contextmanager
def storage_errors(path: str) -> Iterator[None]:
    """Turn a full or read-only disk into an error of one line, with exit code 3.

    Raises:
        StorageError: In place of the OSError.
    """
    try:
        yield
    except OSError as error:
        reason = _FULL.get(error.errno or 0, error.strerror or str(error))
        raise StorageError(f"cannot write {path}: {reason}") from error


def sync_folder(path: Path) -> None:
    """Force the names in a local folder to the disk, as fsync forces a file's content."""
    directory = os.open(path, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
