"""Open zip, gzip and parquet files for reading, wherever they are stored.

Nothing is unpacked to the disk. A damaged file, an encrypted one, and one that would unpack to an
absurd size are refused in one line.
"""

import gzip
import lzma
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from recray.errors import RecrayError
from recray.storage import open_input

MAX_UNPACKED_BYTES = 4 << 30
MAX_RATIO = 100
"""An archive may unpack to so many times its own size."""

_DAMAGED = (zipfile.BadZipFile, EOFError, NotImplementedError, OSError, zlib.error, lzma.LZMAError)


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Turn what zipfile and gzip raise for damaged or encrypted files into one line."""
    try:
        yield
    except _DAMAGED as error:
        raise RecrayError(f"{path} is a damaged archive: {error}") from error
    except RuntimeError as error:
        if "encrypted" not in str(error):
            raise
        raise RecrayError(f"{path} is encrypted; give an open archive") from error


@contextmanager
def open_zip(path: str) -> Iterator[zipfile.ZipFile]:
    """Open an archive for reading from inside it.

    Raises:
        RecrayError: It is truncated, no zip at all, or would unpack to an absurd size.
    """
    with closing(open_input(path)) as opened:
        stream: Any = opened
        try:
            archive = zipfile.ZipFile(stream)
        except (zipfile.BadZipFile, NotImplementedError, pa.ArrowInvalid) as error:
            raise RecrayError(f"{path} is a damaged zip archive: {error}") from error
        with archive:
            members = archive.infolist()
            unpacked = sum(member.file_size for member in members)
            _refuse_bomb(path, unpacked, sum(member.compress_size for member in members))
            yield archive


def _refuse_bomb(path: str, unpacked: int, packed: int) -> None:
    # Small archives may unpack to 100 MiB, however well they are packed.
    if unpacked > MAX_UNPACKED_BYTES or unpacked > MAX_RATIO * max(packed, 1 << 20):
        raise RecrayError(
            f"{path} would unpack to {unpacked:,} bytes; at most {MAX_UNPACKED_BYTES:,} "
            f"and {MAX_RATIO} times its size are read"
        )


class _BoundedGzip(gzip.GzipFile):
    """A gzip file that is refused as soon as it has unpacked to an absurd size."""

    def __init__(self, path: str, stream: Any) -> None:
        super().__init__(fileobj=stream, mode="rb")
        self._path, self._packed, self._stream = path, stream.size(), stream

    def read(self, size: int | None = -1) -> bytes:
        """Read as gzip does.

        Raises:
            RecrayError: More bytes have come than are allowed.
        """
        content = super().read(size)
        _refuse_bomb(self._path, self.tell(), self._packed)
        return content

    def close(self) -> None:
        """Close the packed stream, too; gzip leaves it open."""
        super().close()
        self._stream.close()


def open_gzip(path: str) -> gzip.GzipFile:
    """Open a gzip file for reading."""
    return _BoundedGzip(path, open_input(path))


@contextmanager
def open_parquet(path: str) -> Iterator[pq.ParquetFile]:
    """Open a parquet file.

    Raises:
        RecrayError: It is damaged, as its end or what is read inside the block shows.
    """
    with closing(open_input(path)) as stream:
        try:
            yield pq.ParquetFile(stream)
        except (pa.ArrowException, OSError) as error:
            raise RecrayError(f"{path} is a damaged parquet file: {error}") from error
