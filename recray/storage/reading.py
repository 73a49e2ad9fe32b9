"""Reading the files of a folder on a local disk or on any store that pyarrow.fs opens."""

import json
import os
import time
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs

from recray.errors import RecrayError
from recray.storage.files import is_uri, locate, read_errors, retry, table_of, untorn
from recray.storage.whole import read_whole

T = TypeVar("T")


@dataclass(frozen=True)
class ReadFolder:
    """A folder by its path or URI, whose files are read.

    Args:
        path: A local path, or a URI such as `s3://bucket/prefix`.
        generation: The folder inside in which its files lie; see `current`.

    Raises:
        RecrayError: The URI has options, or an empty part.
    """

    path: str
    generation: str = ""

    def __post_init__(self) -> None:
        if not is_uri(self.path):
            object.__setattr__(self, "path", os.path.abspath(self.path))
        elif "?" in self.path:  # a file's name is appended to the path, so options cannot stay
            raise RecrayError(
                f"{self.path}: options in a URI are not taken; an S3 store elsewhere is told by "
                "AWS_ENDPOINT_URL, on every node"
            )
        elif "//" in self.path.partition("://")[2].strip("/"):
            raise RecrayError(f"{self.path}: a part between two slashes is empty")

    def __str__(self) -> str:
        return self.path

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rstrip("/").rsplit("/", 1)[-1]

    def at(self, name: str = "") -> str:
        """The path or URI of a file in it."""
        parts = [self.path.rstrip("/"), self.generation, name]
        return "/".join(part for part in parts if part) or "/"

    def exists(self, name: str = "") -> bool:
        """Whether the folder, or the file of that name in it, exists."""
        filesystem, path = self.locate(name)
        with read_errors(self.at(name)):
            info = retry(self.path, lambda: filesystem.get_file_info(path))
        return bool(info.type != pafs.FileType.NotFound)

    def files(self, recursive: bool = True) -> list[str]:
        """The names of all files below the folder, or directly in it, relative to it, sorted."""
        return sorted(self.modified(recursive))

    def modified(self, recursive: bool = True) -> dict[str, float]:
        """When each of these files was last written, as a Unix time; now if a store is silent."""
        root, entries = self._list(recursive)
        now = time.time_ns()
        return {
            e.path.removeprefix(root).lstrip("/"): (e.mtime_ns or now) / 1e9
            for e in entries
            if e.type == pafs.FileType.File
        }

    def folders(self) -> list[str]:
        """The names of the folders directly inside, sorted."""
        _, entries = self._list(recursive=False)
        return sorted(e.base_name for e in entries if e.type == pafs.FileType.Directory)

    def find(self, name: str, largest: int | None = None) -> pa.Buffer | None:
        """The file's content; None where there is no such file. Large ones come in parallel.

        Raises:
            DamagedFile: It has more than `largest` bytes; nothing was read.
            StorageError: The store does not answer.
            RecrayError: The file is not readable.
        """
        filesystem, path = self.locate(name)
        with read_errors(self.at(name)):
            try:
                return retry(self.path, lambda: read_whole(filesystem, path, largest))
            except FileNotFoundError:
                return None

    def read_buffer(self, name: str) -> pa.Buffer:
        """The file's content.

        Raises:
            StorageError: The store does not answer.
            RecrayError: The file is missing or not readable.
        """
        return self._there(self.find(name), name)

    def read_bytes(self, name: str) -> bytes:
        """A copy of the same."""
        return bytes(self.read_buffer(name).to_pybytes())

    def find_json(self, name: str, largest: int | None = None) -> Any | None:
        """The file's content as JSON, even if it is replaced meanwhile; None if it is missing.

        Raises:
            DamagedFile: It is not JSON, or has more than `largest` bytes.
            RecrayError: It is not readable.
        """

        def attempt() -> Any | None:
            content = self.find(name, largest)
            return None if content is None else json.loads(content.to_pybytes())

        with read_errors(self.at(name)):
            return untorn(self.path, attempt)

    def read_json(self, name: str) -> Any:
        """The same of a file that must be there.

        Raises:
            RecrayError: The file is missing; or as find_json.
        """
        return self._there(self.find_json(name), name)

    def read_table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """The parquet file as an Arrow table.

        Raises:
            RecrayError: The file is missing or is not parquet.
        """
        return table_of(self.read_buffer(name), self.at(name), columns)

    def locate(self, name: str = "") -> tuple[pafs.FileSystem, str]:
        """The filesystem, and the path of the folder or of a file in it."""
        filesystem, root = locate(self.at())
        return filesystem, f"{root}/{name}" if name else root

    def _there(self, content: T | None, name: str) -> T:
        if content is None:
            raise RecrayError(f"cannot read {self.at(name)}: there is no such file")
        return content

    def _list(self, recursive: bool) -> tuple[str, list[pafs.FileInfo]]:
        """The folder's own path on its filesystem, and the entries in it."""
        filesystem, root = self.locate()
        selector = pafs.FileSelector(root, recursive=recursive, allow_not_found=True)
        with read_errors(self.path):
            return root, retry(self.path, lambda: filesystem.get_file_info(selector))
