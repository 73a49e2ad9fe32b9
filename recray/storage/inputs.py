"""Files that are read a part at a time, from a disk or from a store that may fail in passing."""

import io

import pyarrow as pa

from recray.storage.files import as_recray_error, is_uri, locate, read_errors, retry


def open_input(path: str) -> pa.NativeFile:
    """Open a file by local path or URI for reading at any offset.

    A read from a store that fails in passing is repeated. If the store goes on to fail, the read
    raises StorageError, through whatever reads and unpacks the file.

    Raises:
        RecrayError: The file is missing or not readable.
    """
    with as_recray_error(f"cannot read {path}"):
        filesystem, inner = locate(path)
        file = retry(path, lambda: filesystem.open_input_file(inner))
        return pa.PythonFile(_StoreFile(path, file), mode="r") if is_uri(path) else file


class _StoreFile(io.RawIOBase):
    """A file of a store whose reads are repeated where the store failed in passing.

    Args:
        path: Its URI, for messages.
        file: The file; it is closed with this one.
    """

    def __init__(self, path: str, file: pa.NativeFile) -> None:
        super().__init__()
        self._path, self._file = path, file
        self._size, self._position = file.size(), 0

    def readable(self) -> bool:
        """It is there to be read."""
        return True

    def seekable(self) -> bool:
        """It can be read from anywhere."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place; return it."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        """The place."""
        return self._position

    def read(self, size: int = -1) -> bytes:
        """At most so many bytes, all that are left by default; none at the end.

        Raises:
            StorageError: The store does not give them.
        """
        begin, left = self._position, max(0, self._size - self._position)
        count = left if size < 0 else min(size, left)
        if not count:
            return b""
        with read_errors(self._path):
            content: bytes = retry(self._path, lambda: self._file.read_at(count, begin))
        self._position += len(content)
        return content

    def close(self) -> None:
        """Close the file, too."""
        if not self.closed:
            super().close()
            self._file.close()
