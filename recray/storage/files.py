"""Files by path or URI: where they lie, how they are written, and what errors mean."""

import contextlib
import ctypes
import errno
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from recray.errors import DamagedFile, RecrayError, StorageError
from recray.storage.clients import connect
from recray.storage.reasons import is_permanent, reason_of

T = TypeVar("T")
UNFINISHED = ".unfinished-"
"""First characters of the names of files and folders that a writer has not finished."""
PROBE = f"{UNFINISHED}probe-"
"""Those of the names of files that are written to see whether and how fast that goes."""
STALE_HOURS = 24.0
"""No writer that lives leaves its files as they are for so long."""
STORE_ATTEMPTS = 8
STORE_RETRY_SECONDS = 0.2
"""Wait before the second attempt; doubled before each later one, so 25 s in all. The store's own
client has already tried several times when an error reaches us."""
STORE_PATIENCE_S = 60.0
"""No attempt begins later than this after the first one. As one at a silent store takes a minute at
most, a dead store is given up within two."""
TORN_ATTEMPTS, TORN_SECONDS = 5, 0.05
"""How often a file that cannot be parsed is read in a store, and the wait before the second time;
doubled before each later one.
"""
_FULL = {errno.ENOSPC: "no space left", errno.EROFS: "read-only", errno.EDQUOT: "over quota"}


def is_uri(path: str) -> bool:
    """Whether the path names a store (`s3://bucket/x`) and not a local folder."""
    return "://" in path


def locate(path: str) -> tuple[pafs.FileSystem, str]:
    """The filesystem of a local path or URI, and the path on it.

    Raises:
        RecrayError: It cannot be opened.
    """
    try:
        if is_uri(path):
            return connect(path)
        filesystem, inner = pafs.FileSystem.from_uri(os.path.abspath(path))
    except (pa.ArrowInvalid, ValueError, OSError) as error:
        raise RecrayError(
            f"cannot open {path}: {error}; give a local path or a URI such as s3://..."
        ) from error
    return filesystem, inner


@contextmanager
def as_recray_error(message: str, kind: type[RecrayError] = RecrayError) -> Iterator[None]:
    """Turn what pyarrow or a parser raises into one line, `MESSAGE: reason`.

    Raises:
        RecrayError: In place of the error, of that kind.
    """
    try:
        yield
    except (OSError, ValueError, pa.ArrowException) as error:
        raise kind(f"{message}: {reason_of(error)}") from error


def file_type(path: str) -> pafs.FileType:
    """Whether the path is a file, a folder, or not there.

    Raises:
        RecrayError: The store does not answer.
    """
    with as_recray_error(f"cannot read {path}"):
        filesystem, inner = locate(path)
        return filesystem.get_file_info(inner).type


def modified_ns(path: str) -> int:
    """When a file was last written, in nanoseconds; 0 where the store does not say."""
    filesystem, inner = locate(path)
    return filesystem.get_file_info(inner).mtime_ns or 0


def retry(path: str, work: Callable[[], T], on_disk: bool = False) -> T:
    """Do the work; repeat it where a store failed in passing.

    Args:
        path: Where it is done.
        work: What is done.
        on_disk: Whether it is tried again on a disk, too, which may be one of another machine.
    """
    end = time.monotonic() + STORE_PATIENCE_S
    attempts = STORE_ATTEMPTS if is_uri(path) or on_disk else 1
    attempt = 1
    while True:
        try:
            return work()
        except (FileNotFoundError, PermissionError, IsADirectoryError):
            raise
        except OSError as error:
            wait = STORE_RETRY_SECONDS * 2 ** (attempt - 1)
            late = time.monotonic() + wait > end
            if attempt == attempts or late or is_permanent(error):
                raise
        time.sleep(wait)
        attempt += 1


@contextmanager
def read_errors(path: str) -> Iterator[None]:
    """Turn what reading a file raises into one line.

    Raises:
        DamagedFile: In place of a ValueError, which a parser raised.
        StorageError: A store does not answer, or refuses.
        RecrayError: It is missing, or not readable on a disk.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise RecrayError(f"cannot read {path}: there is no such file") from error
    except OSError as error:
        kind = StorageError if is_uri(path) else RecrayError
        raise kind(f"cannot read {path}: {reason_of(error)}") from error
    except (ValueError, pa.ArrowException) as error:
        raise DamagedFile(f"{path} is damaged: {error}") from error
    except RecursionError as error:
        raise DamagedFile(f"{path} is damaged: it is nested too deeply") from error


def untorn(path: str, read: Callable[[], T]) -> T:
    """Read and parse a file that may be replaced; again, in a store, where it cannot be parsed.

    A store tells the size and gives the content by two requests. A file that grew between the two
    comes without its end.

    Raises:
        ValueError: What `read` raised in the last attempt.
    """
    for attempt in range(TORN_ATTEMPTS - 1 if is_uri(path) else 0):
        try:
            return read()
        except ValueError:
            time.sleep(TORN_SECONDS * 2**attempt)
    return read()


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


def table_of(content: pa.Buffer, path: str, columns: list[str] | None = None) -> pa.Table:
    """The rows of a parquet file with that content.

    Raises:
        DamagedFile: It is not parquet; the message says the path.
    """
    with as_recray_error(f"{path} is damaged", DamagedFile):
        # One thread decodes: callers read several files at the same time.
        return pq.read_table(pa.BufferReader(content), columns=columns, use_threads=False)


@contextmanager
def storage_errors(path: str) -> Iterator[None]:
    """Turn a full or read-only disk into an error of one line, with exit code 3.

    Raises:
        StorageError: In place of the OSError.
    """
    try:
        yield
    except OSError as error:
        said = reason_of(error) if is_uri(path) else error.strerror or str(error)
        reason = _FULL.get(error.errno or 0, said)
        raise StorageError(f"cannot write {path}: {reason}") from error


@contextmanager
def synced(path: Path) -> Iterator[BinaryIO]:
    """Open a local file to be written, making its folder; its content is on the disk at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())


def write_synced(path: Path, content: bytes | pa.Buffer) -> None:
    """Write a local file, making its folder; the content is on the disk when this returns."""
    with synced(path) as stream:
        stream.write(content)


def sync_folder(path: Path) -> None:
    """Force the names in a local folder to the disk, as fsync forces a file's content."""
    directory = os.open(path, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


@contextmanager
def staged(path: Path, taken: Callable[[], None]) -> Iterator[Path]:
    """Yield a hidden folder beside `path`, which gets that name when the block has ended well.

    Args:
        path: The folder to be; no link.
        taken: As swap_in takes it.

    Raises:
        StorageError: The disk is full or not writable.
    """
    staging = path.with_name(f"{UNFINISHED}{path.name}-{uuid.uuid4().hex[:8]}")
    with storage_errors(str(path)):
        remove_stale(path)
        staging.mkdir(parents=True)
    try:
        yield staging
        with storage_errors(str(path)):
            swap_in(staging, path, taken)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def swap_in(staging: Path, path: Path, taken: Callable[[], None] = lambda: None) -> None:
    """Rename the finished folder to its final name; an old one goes only after that.

    Args:
        staging: The finished folder.
        path: Its final name.
        taken: Called where a folder with files has that name; it raises where that must stay.
    """
    old = path.with_name(f"{UNFINISHED}{path.name}-old-{uuid.uuid4().hex[:8]}")
    try:
        os.rename(staging, path)  # the system refuses a name that another writer has just taken
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        taken()
        if _exchanged(staging, path):
            old = staging
        else:
            os.rename(path, old)
            try:
                os.rename(staging, path)
            except OSError:
                os.rename(old, path)
                raise
    sync_folder(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def _exchanged(one: Path, other: Path) -> bool:
    """Exchange two names in one step, so that nobody misses either; whether that can be done.

    Linux can, on its own filesystems; not macOS, and not NFS.
    """
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of <linux/fs.h>
    names = os.fsencode(one), os.fsencode(other)
    return rename is not None and rename(here, names[0], here, names[1], exchange) == 0


def remove_stale(path: Path, older_than_hours: float = STALE_HOURS) -> None:
    """Remove what killed writers left beside `path`, once no living writer can own it."""
    limit = time.time() - older_than_hours * 3600
    for leftover in path.parent.glob(f"{UNFINISHED}{path.name}-*"):
        with contextlib.suppress(FileNotFoundError):  # its writer has ended meanwhile
            if leftover.stat().st_mtime < limit:
                shutil.rmtree(leftover, ignore_errors=True)
