"""Files that are read a part at a time, from a disk or from a store that may fail in passing."""

import pyarrow as pa

from recray.storage.files import as_recray_error, is_uri, locate, read_errors, retry
from recray.storage.spans import OpenFile


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


class _StoreFile(OpenFile):
    """A file of a store whose reads are repeated where the store failed in passing.

    Args:
        path: Its URI, for messages.
        file: The file; it is closed with this one.
    """

    def __init__(self, path: str, file: pa.NativeFile) -> None:
        super().__init__(file)
        self._path = path

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
