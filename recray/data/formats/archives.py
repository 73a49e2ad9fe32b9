"""Open zip archives for reading, wherever they are stored, and bound what packed files may become.

Nothing is unpacked to the disk. A damaged file, an encrypted one, and one that would unpack to an
absurd size are refused in one line.
"""

import lzma
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from contextvars import ContextVar
from typing import Any

import pyarrow as pa

from recray.errors import RecrayError
from recray.storage import SpanReader, is_uri, open_input

MAX_UNPACKED_BYTES = 4 << 30
MAX_RATIO = 100
"""An archive may unpack to so many times its own size."""

_kept: ContextVar[tuple[str, zipfile.ZipFile] | None] = ContextVar("kept", default=None)
"""The archive that stays open while its files are looked at, and its path."""
_DAMAGED = (zipfile.BadZipFile, EOFError, NotImplementedError, OSError, zlib.error, lzma.LZMAError)


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Turn what is raised for damaged or encrypted packed files into one line."""
    try:
        yield
    except _DAMAGED as error:
        raise RecrayError(f"{path} is a damaged archive: {error}") from error
    except RuntimeError as error:
        if "encrypted" not in str(error):
            raise
        raise RecrayError(f"{path} is encrypted; give an open archive") from error


@contextmanager
def keep_zip_open(path: str) -> Iterator[zipfile.ZipFile]:
    """Open an archive, and have `open_zip` give this very one inside the block.

    Raises:
        RecrayError: As `open_zip`.
    """
    with open_zip(path) as archive:
        before = _kept.set((path, archive))
        try:
            yield archive
        finally:
            _kept.reset(before)


@contextmanager
def open_zip(path: str) -> Iterator[zipfile.ZipFile]:
    """Open an archive for reading from inside it. Of one in a store what is asked for is fetched.

    Raises:
        RecrayError: It is truncated, no zip at all, or would unpack to an absurd size.
    """
    kept = _kept.get()
    if kept is not None and kept[0] == path:
        yield kept[1]
        return
    with closing(_seekable(path)) as stream:
        try:
            archive = zipfile.ZipFile(stream)
        except (zipfile.BadZipFile, NotImplementedError, pa.ArrowInvalid) as error:
            raise RecrayError(f"{path} is a damaged zip archive: {error}") from error
        with archive:
            members = archive.infolist()
            unpacked = sum(member.file_size for member in members)
            refuse_bomb(path, unpacked, sum(member.compress_size for member in members))
            if isinstance(stream, SpanReader):
                stream.divide([member.header_offset for member in members])
            yield archive


def _seekable(path: str) -> Any:
    opened = open_input(path)
    return SpanReader(opened) if is_uri(path) else opened


def refuse_bomb(path: str, unpacked: int, packed: int) -> None:
    """Refuse a file that has unpacked, or says that it would unpack, to an absurd size.

    Args:
        path: Its name.
        unpacked: Bytes.
        packed: Its own size in bytes.

    Raises:
        RecrayError: It is larger than MAX_UNPACKED_BYTES, or MAX_RATIO times its own size.
    """
    # Small archives may unpack to 100 MiB, however well they are packed.
    if unpacked > MAX_UNPACKED_BYTES or unpacked > MAX_RATIO * max(packed, 1 << 20):
        raise RecrayError(
            f"{path} would unpack to {unpacked:,} bytes; at most {MAX_UNPACKED_BYTES:,} "
            f"and {MAX_RATIO} times its size are read"
        )
