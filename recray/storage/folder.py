"""Folders on a local disk or on any store that pyarrow.fs opens.

A published folder ends with `manifest.json`: facts of its own, and name, bytes and sha256 of
every other file. A folder without one is not finished, and nothing reads it.
"""

import contextlib
import json
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs

from recray.errors import DamagedFile, RecrayError
from recray.storage.files import (
    UNFINISHED,
    Manifest,
    ManifestEntry,
    is_uri,
    locate,
    manifest_entry,
    parquet_bytes,
    read_errors,
    retry,
    storage_errors,
    sync_folder,
    table_of,
    untorn,
    write_synced,
)
from recray.storage.whole import in_parallel, read_whole

T = TypeVar("T")
MANIFEST = "manifest.json"
OBJECT_STORES = ("s3", "gcs", "abfs")
"""Filesystems without folders: a file there needs none to be made."""


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
        filesystem, path = self.locate(name)
        with read_errors(f"{self.path}/{name}"):
            info = retry(self.path, lambda: filesystem.get_file_info(path))
        return bool(info.type != pafs.FileType.NotFound)

    def published(self) -> bool:
        """Whether the folder is finished, which means that its manifest exists."""
        return self.exists(MANIFEST)

    def files(self, recursive: bool = True) -> list[str]:
        """The names of all files below the folder, or directly in it, relative to it, sorted."""
        root, entries = self._list(recursive)
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

    def find(self, name: str) -> pa.Buffer | None:
        """The file's content; None where there is no such file. Large ones come in parallel.

        Raises:
            StorageError: The store does not answer.
            RecrayError: The file is not readable.
        """
        filesystem, path = self.locate(name)
        with read_errors(f"{self.path}/{name}"):
            try:
                return retry(self.path, lambda: read_whole(filesystem, path))
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

    def find_json(self, name: str) -> Any | None:
        """The file's content as JSON, even if it is replaced meanwhile; None if it is missing.

        Raises:
            DamagedFile: It is not JSON.
            RecrayError: It is not readable.
        """

        def attempt() -> Any | None:
            content = self.find(name)
            return None if content is None else json.loads(content.to_pybytes())

        with read_errors(f"{self.path}/{name}"):
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
        return table_of(self.read_buffer(name), f"{self.path}/{name}", columns)

    def write_bytes(self, name: str, content: bytes | pa.Buffer) -> ManifestEntry:
        """Write the file, making its folder; the content is on the disk when this returns.

        In a store that is one PUT, or an upload in parts of a file above 10 MB. What is returned
        goes into the manifest, so that nobody has to read the file for its digest.

        Raises:
            StorageError: The disk is full, read-only or not permitted.
        """
        with storage_errors(self.path):
            if is_uri(self.path):
                retry(self.path, lambda: self._put(name, content))
            else:
                write_synced(Path(self.path) / name, content)
        return manifest_entry(name, content)

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
        with storage_errors(self.path), self.output(name) as stream:
            yield stream

    def write_json(self, name: str, value: Any) -> ManifestEntry:
        """Write the value as indented JSON; a reader sees the old or the new file."""
        content = json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"
        return self.replace_bytes(name, content)

    def write_table(
        self, name: str, table: pa.Table, dictionary: Sequence[str] | None = None
    ) -> ManifestEntry:
        """Write the table as parquet; see parquet_bytes and write_bytes."""
        return self.write_bytes(name, parquet_bytes(table, dictionary))

    def replace_bytes(self, name: str, content: bytes, durable: bool = False) -> ManifestEntry:
        """Write or replace a file in one step: a reader sees the old or the new content.

        Args:
            name: The file.
            content: Its new content, which is on the disk when this returns.
            durable: Whether the name, too, must survive a power cut. A store always keeps it.

        Returns:
            As write_bytes does.
        """
        if is_uri(self.path):  # an object store shows a PUT only when it is complete
            return self.write_bytes(name, content)
        folder = Path(self.path)
        is_new = not folder.exists()
        temporary = f"{UNFINISHED}{uuid.uuid4().hex[:8]}-{name}"
        try:
            self.write_bytes(temporary, content)
            with storage_errors(self.path):
                os.replace(folder / temporary, folder / name)
                for directory in ([folder, folder.parent] if is_new else [folder]) * durable:
                    sync_folder(directory)
            return manifest_entry(name, content)
        finally:
            (folder / temporary).unlink(missing_ok=True)

    def delete(self, name: str = "") -> None:
        """Remove the folder, or the file or folder of that name inside it, if it exists."""
        filesystem, path = self.locate(name)

        def remove() -> None:
            # A store may have removed it and lost its answer: then it is gone already.
            with contextlib.suppress(FileNotFoundError):
                kind = filesystem.get_file_info(path).type
                if kind == pafs.FileType.File:
                    filesystem.delete_file(path)
                elif kind == pafs.FileType.Directory:
                    filesystem.delete_dir(path)

        with storage_errors(self.path):
            retry(self.path, remove)

    def delete_folder(self, name: str) -> None:
        """Remove the folder of that name with all that is in it, in few requests; see `delete`."""
        filesystem, path = self.locate(name)
        with storage_errors(self.path), contextlib.suppress(FileNotFoundError):
            retry(self.path, lambda: filesystem.delete_dir(path))

    def manifest(self) -> Manifest:
        """The manifest of a published folder.

        Raises:
            RecrayError: The folder is missing or was never finished, or the manifest lists no
                files, or names one outside of the folder.
        """
        content = self.find_json(MANIFEST)
        if content is not None:
            return Manifest.parse(content, f"{self.path}/{MANIFEST}")
        if not self.exists():
            raise RecrayError(f"no such folder: {self.path}")
        raise RecrayError(f"{self.path} has no {MANIFEST}: it is unfinished or not recray's")

    def verify(self, sealed: str | None = None) -> Manifest:
        """Compare every file with the manifest and return the manifest.

        Args:
            sealed: A folder inside whose files are not opened.

        Raises:
            RecrayError: A file is missing, or its bytes are not those of the manifest.
        """
        manifest = self.manifest()
        hidden = f"{sealed}/"
        entries = [e for e in manifest.files if sealed is None or not e.name.startswith(hidden)]
        all(in_parallel(lambda entry: self.read_verified(entry) is not None, entries))
        return manifest

    def read_verified(self, entry: ManifestEntry) -> pa.Buffer:
        """Read a file once, and compare these bytes with its entry in the manifest.

        Raises:
            DamagedFile: The file is missing, or its bytes are not those of the entry.
            RecrayError: It cannot be read.
        """
        content = self.find(entry.name)
        if content is None:
            raise DamagedFile(f"{self.path} lacks {entry.name}, which its manifest lists")
        digest = manifest_entry(entry.name, content).sha256
        if digest != entry.sha256:
            raise DamagedFile(
                f"{self.path}/{entry.name} is damaged: sha256 {digest[:12]}..., "
                f"the manifest says {entry.sha256[:12]}..."
            )
        return content

    def write_manifest(
        self, kind: str, facts: Mapping[str, object], known: Iterable[ManifestEntry] = ()
    ) -> None:
        """List every file of the folder with its bytes and sha256; this is written last.

        Args:
            kind: Kind of the folder.
            facts: What else the manifest says.
            known: Entries of files, as those that write a file return them: also of tasks that
                wrote here from another process. Files that are in none are read for theirs.
        """
        before = {entry.name: entry for entry in known}
        files = [
            (before.get(name) or manifest_entry(name, self.read_buffer(name))).model_dump()
            for name in self.content()
        ]
        self.write_json(MANIFEST, {"kind": kind, **facts, "files": files})

    def locate(self, name: str = "") -> tuple[pafs.FileSystem, str]:
        """The filesystem, and the path of the folder or of a file in it."""
        filesystem, root = locate(self.path)
        return filesystem, f"{root}/{name}" if name else root

    @contextmanager
    def output(self, name: str) -> Iterator[pa.NativeFile]:
        """A stream into the file, whose folder is made."""
        filesystem, path = self.locate(name)
        if filesystem.type_name not in OBJECT_STORES:
            filesystem.create_dir(path.rsplit("/", 1)[0], recursive=True)
        with filesystem.open_output_stream(path, compression=None) as stream:
            yield stream

    def _there(self, content: T | None, name: str) -> T:
        if content is None:
            raise RecrayError(f"cannot read {self.path}/{name}: there is no such file")
        return content

    def _put(self, name: str, content: bytes | pa.Buffer) -> None:
        with self.output(name) as stream:
            stream.write(content)

    def _list(self, recursive: bool) -> tuple[str, list[pafs.FileInfo]]:
        """The folder's own path on its filesystem, and the entries in it."""
        filesystem, root = self.locate()
        selector = pafs.FileSelector(root, recursive=recursive, allow_not_found=True)
        with read_errors(self.path):
            return root, retry(self.path, lambda: filesystem.get_file_info(selector))
