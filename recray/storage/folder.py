"""Read and write the files of a folder, on a local disk or on any store that pyarrow.fs opens."""

import hashlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from recray.errors import DamagedFile, RecrayError
from recray.storage.paths import is_uri, parquet_bytes, storage_errors, sync_folder

T = TypeVar("T")
MANIFEST = "manifest.json"
UNFINISHED = ".unfinished-"
"""First characters of the names of files and folders that a writer has not finished."""
STORE_ATTEMPTS = 6
STORE_RETRY_SECONDS = 0.2
"""Wait before the second attempt; doubled before each later one. The store's own client has
already tried several times when an error reaches us."""
_PERMANENT_ERRORS = (
    "ACCESS_DENIED NO_SUCH_BUCKET allow_bucket_creation INVALID_ACCESS_KEY SIGNATURE_DOES_NOT_MATCH"
).split()


@dataclass(frozen=True)
class Folder:
    """A folder by its path or URI; it is cheap to make and to pickle.

    Args:
        path: A local path, or a URI such as `s3://bucket/prefix`.

    Raises:
        RecrayError: The URI has options.
    """

    path: str

    def __post_init__(self) -> None:
        if not is_uri(self.path):
            object.__setattr__(self, "path", os.path.abspath(self.path))
        elif "?" in self.path:  # a file's name is appended to the path, so options cannot stay
            raise RecrayError(
                f"{self.path}: options in a URI are not taken; an S3 store elsewhere is told by "
                "AWS_ENDPOINT_URL, on every node"
            )

    def __str__(self) -> str:
        return self.path

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rstrip("/").rsplit("/", 1)[-1]

    def child(self, name: str) -> "Folder":
        """The folder of that name inside this one."""
        return Folder(f"{self.path.rstrip('/')}/{name}")

    def exists(self, name: str = "") -> bool:
        """Whether the folder, or the file of that name in it, exists."""
        filesystem, path = self._open(name)
        try:
            info = self._retry(lambda: filesystem.get_file_info(path))
            return bool(info.type != pafs.FileType.NotFound)
        except OSError as error:
            raise RecrayError(f"cannot look for {path}: {error}") from error

    def published(self) -> bool:
        """Whether the folder is finished, which means that its manifest exists."""
        return self.exists(MANIFEST)

    def files(self) -> list[str]:
        """The names of all files below the folder, relative to it, sorted."""
        root, entries = self._list(recursive=True)
        return sorted(
            e.path.removeprefix(root).lstrip("/") for e in entries if e.type == pafs.FileType.File
        )

    def content(self) -> list[str]:
        """The names of all finished files except the manifest."""
        return [n for n in self.files() if n != MANIFEST and not n.startswith(UNFINISHED)]

    def folders(self) -> list[str]:
        """The names of the folders directly inside, sorted."""
        _, entries = self._list(recursive=False)
        return sorted(e.base_name for e in entries if e.type == pafs.FileType.Directory)

    def read_bytes(self, name: str) -> bytes:
        """The file's content.

        Raises:
            RecrayError: The file is missing or not readable.
        """
        return self.reader(name)()

    def reader(self, name: str) -> Callable[[], bytes]:
        """Make a function that reads one small file; for files that are polled.

        The filesystem is looked up once, here, and not by each call.

        Raises:
            RecrayError: By each call that cannot read the file.
        """
        filesystem, path = self._open(name)

        def attempt() -> bytes:
            with filesystem.open_input_stream(path, compression=None) as stream:
                return bytes(stream.read())

        def read() -> bytes:
            try:
                return self._retry(attempt)
            except OSError as error:
                raise RecrayError(f"cannot read {self.path}/{name}: {error}") from error

        return read

    def read_json(self, name: str) -> Any:
        """The file's content as JSON.

        Raises:
            RecrayError: The file is missing or is not JSON.
        """
        try:
            return json.loads(self.read_bytes(name))
        except ValueError as error:
            raise DamagedFile(f"{self.path}/{name} is damaged: {error}") from error

    def read_table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """The parquet file as an Arrow table.

        Raises:
            RecrayError: The file is missing or is not parquet.
        """
        content = self.read_bytes(name)
        try:
            # One thread decodes: callers read several files at the same time.
            return pq.read_table(pa.BufferReader(content), columns=columns, use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise DamagedFile(f"{self.path}/{name} is damaged: {error}") from error

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write the file, making its folder; the content is on the disk when this returns.

        Raises:
            StorageError: The disk is full, read-only or not permitted.
        """
        with storage_errors(self.path):
            if is_uri(self.path):
                self._retry(lambda: self._put(name, content))
                return
            target = Path(self.path) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(target, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())

    @contextmanager
    def write_stream(self, name: str) -> Iterator[pa.NativeFile]:
        """Write a file bit by bit, making its folder, without waiting for the disk.

        For a store the bytes are kept in memory until the file is whole, so that a failed upload
        can be repeated.

        Raises:
            StorageError: The disk is full, read-only or not permitted.
        """
        if is_uri(self.path):
            sink = pa.BufferOutputStream()
            yield sink
            self.write_bytes(name, sink.getvalue().to_pybytes())
            return
        with storage_errors(self.path), self._output(name) as stream:
            yield stream

    def write_json(self, name: str, value: Any) -> None:
        """Write the value as indented JSON; a reader sees the old or the new file."""
        self.replace_bytes(name, json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n")

    def write_table(
        self, name: str, table: pa.Table, dictionary: Sequence[str] | None = None
    ) -> None:
        """Write the table as parquet; see parquet_bytes."""
        self.write_bytes(name, parquet_bytes(table, dictionary))

    def replace_bytes(self, name: str, content: bytes, durable: bool = False) -> None:
        """Write or replace a file in one step: a reader sees the old or the new content.

        Args:
            name: The file.
            content: Its new content, which is on the disk when this returns.
            durable: Whether the name, too, must survive a power cut. A store always keeps it.
        """
        if is_uri(self.path):  # an object store shows a PUT only when it is complete
            self.write_bytes(name, content)
            return
        folder = Path(self.path)
        is_new = not folder.exists()
        temporary = f"{UNFINISHED}{uuid.uuid4().hex[:8]}-{name}"
        try:
            self.write_bytes(temporary, content)
            with storage_errors(self.path):
                os.replace(folder / temporary, folder / name)
                for directory in ([folder, folder.parent] if is_new else [folder]) * durable:
                    sync_folder(directory)
        finally:
            (folder / temporary).unlink(missing_ok=True)

    def delete(self, name: str = "") -> None:
        """Remove the folder, or the folder of that name inside it, if it exists."""
        filesystem, path = self._open(name)
        if filesystem.get_file_info(path).type == pafs.FileType.Directory:
            with storage_errors(self.path):
                self._retry(lambda: filesystem.delete_dir(path))

    def delete_file(self, name: str) -> None:
        """Remove one file if it exists."""
        filesystem, path = self._open(name)

        def remove() -> None:
            # A store may have removed the file and lost its answer: then it is gone already.
            if filesystem.get_file_info(path).type == pafs.FileType.File:
                filesystem.delete_file(path)

        with storage_errors(self.path):
            self._retry(remove)

    def manifest(self) -> dict[str, Any]:
        """The manifest of a published folder.

        Raises:
            RecrayError: The folder is missing or was never finished.
        """
        if not self.exists():
            raise RecrayError(f"no such folder: {self.path}")
        if not self.published():
            raise RecrayError(f"{self.path} has no {MANIFEST}: it is unfinished or not recray's")
        manifest: dict[str, Any] = self.read_json(MANIFEST)
        return manifest

    def verify(self, sealed: str | None = None) -> dict[str, Any]:
        """Compare every file with the manifest and return the manifest.

        Args:
            sealed: A folder inside whose files are not opened.

        Raises:
            RecrayError: A file is missing, or its bytes are not those of the manifest.
        """
        manifest = self.manifest()
        for name, expected in self._digests(manifest).items():
            if sealed is not None and name.startswith(f"{sealed}/"):
                continue
            if not self.exists(name):
                raise RecrayError(f"{self.path} lacks {name}, which its manifest lists")
            digest = hashlib.sha256(self.read_bytes(name)).hexdigest()
            if digest != expected:
                raise RecrayError(
                    f"{self.path}/{name} is damaged: sha256 {digest[:12]}..., "
                    f"the manifest says {expected[:12]}..."
                )
        return manifest

    def write_manifest(self, kind: str, facts: Mapping[str, Any]) -> None:
        """List every file of the folder with its bytes and sha256; this is written last."""
        entries = []
        for name in self.content():
            content = self.read_bytes(name)
            digest = hashlib.sha256(content).hexdigest()
            entries.append({"name": name, "bytes": len(content), "sha256": digest})
        self.write_json(MANIFEST, {"kind": kind, **facts, "files": entries})

    def _digests(self, manifest: dict[str, Any]) -> dict[str, str]:
        """The sha256 of each file that a manifest lists.

        Raises:
            RecrayError: The manifest lists no files, or names one outside of the folder.
        """
        path = f"{self.path}/{MANIFEST}"
        try:
            digests = {str(e["name"]): str(e["sha256"]) for e in manifest["files"]}
        except (KeyError, TypeError) as error:
            raise RecrayError(f"{path} is damaged: it lists no files") from error
        for name in digests:
            parts = name.split("/")
            if not all(parts) or {".", ".."} & set(parts) or "\\" in name:
                raise RecrayError(f"{path} names a file outside: {name!r}")
        return digests

    def _open(self, name: str = "") -> tuple[pafs.FileSystem, str]:
        """The filesystem, and the path of the folder or of a file in it."""
        try:
            filesystem, root = pafs.FileSystem.from_uri(self.path)
        except (pa.ArrowInvalid, ValueError, OSError) as error:
            raise RecrayError(
                f"cannot open {self.path}: {error}; give a local path or a URI such as s3://..."
            ) from error
        return filesystem, f"{root}/{name}" if name else root

    @contextmanager
    def _output(self, name: str) -> Iterator[pa.NativeFile]:
        """A stream into the file, whose folder is made."""
        filesystem, path = self._open(name)
        filesystem.create_dir(path.rsplit("/", 1)[0], recursive=True)
        with filesystem.open_output_stream(path, compression=None) as stream:
            yield stream

    def _put(self, name: str, content: bytes) -> None:
        with self._output(name) as stream:
            stream.write(content)

    def _list(self, recursive: bool) -> tuple[str, list[pafs.FileInfo]]:
        """The folder's own path on its filesystem, and the entries in it."""
        filesystem, root = self._open()
        selector = pafs.FileSelector(root, recursive=recursive, allow_not_found=True)
        try:
            return root, self._retry(lambda: filesystem.get_file_info(selector))
        except OSError as error:
            raise RecrayError(f"cannot list {self.path}: {error}") from error

    def _retry(self, work: Callable[[], T]) -> T:
        """Do the work; repeat it where a store failed in passing. A disk is not tried again."""
        for attempt in range(STORE_ATTEMPTS if is_uri(self.path) else 1):
            if attempt:
                time.sleep(STORE_RETRY_SECONDS * 2 ** (attempt - 1))
            try:
                return work()
            except FileNotFoundError:
                raise
            except OSError as error:
                last_error = error
                if any(word in str(error) for word in _PERMANENT_ERRORS):
                    break
        raise last_error
