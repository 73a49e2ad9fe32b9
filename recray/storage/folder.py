"""Folders on a local disk or on any store that pyarrow.fs opens.

A published folder ends with `manifest.json`: facts of its own, and name, bytes and sha256 of
every other file. A folder without one is not finished, and nothing reads it.

In a store the files lie in a folder inside, a generation, and the manifest says in which. Nothing
is ever written over: who publishes again writes another generation, and then the manifest anew.
"""

import contextlib
import json
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from recray.errors import DamagedFile, RecrayError
from recray.storage.files import (
    UNFINISHED,
    is_uri,
    parquet_bytes,
    retry,
    storage_errors,
    sync_folder,
    write_synced,
)
from recray.storage.manifest import (
    GENERATION,
    MANIFEST,
    MANIFEST_BYTES,
    Manifest,
    ManifestEntry,
    Pointer,
    manifest_entry,
    parse_manifest,
)
from recray.storage.reading import ReadFolder
from recray.storage.whole import in_parallel

OBJECT_STORES = ("s3", "gcs", "abfs")
"""Filesystems without folders: a file there needs none to be made."""


@dataclass(frozen=True)
class Folder(ReadFolder):
    """A folder by its path or URI; it is cheap to make and to pickle. See ReadFolder."""

    def child(self, name: str) -> "Folder":
        """The folder of that name inside this one."""
        return Folder(self.at(name))

    def published(self) -> bool:
        """Whether the folder is finished, which means that its manifest exists."""
        return self.exists(MANIFEST)

    def content(self) -> list[str]:
        """The names of all finished files except the manifest, and but for generations."""
        hidden = (UNFINISHED, GENERATION)
        return [n for n in self.files() if n != MANIFEST and not n.startswith(hidden)]

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
                write_synced(Path(self.at(name)), content)
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
        folder = Path(self.at())
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

    def current(self) -> tuple["Folder", Manifest]:
        """The folder as it is published now, and its manifest.

        Its files stay as they are until others have been published twice, in a store; on a disk,
        once.

        Raises:
            RecrayError: The folder is missing or was never finished, or the manifest lists no
                files, or names one outside of the folder.
        """
        content, path = self.find_json(MANIFEST, MANIFEST_BYTES), self.at(MANIFEST)
        if content is not None:
            manifest = parse_manifest(content, path)
            if isinstance(manifest, Pointer):
                return replace(self, generation=manifest.generation), manifest.inside(path)
            return self, manifest
        if not self.exists():
            raise RecrayError(f"no such folder: {self.path}")
        raise RecrayError(f"{self.path} has no {MANIFEST}: it is unfinished or not recray's")

    def manifest(self) -> Manifest:
        """The manifest of a published folder; see `current`."""
        return self.current()[1]

    def verify(self) -> Manifest:
        """Compare every file of the folder as it is now with its manifest, and return that."""
        now, manifest = self.current()
        now.compare(manifest)
        return manifest

    def compare(self, manifest: Manifest, sealed: str | None = None) -> None:
        """Compare every file with the manifest.

        Args:
            manifest: What `current` gave with this folder.
            sealed: A folder inside whose files are not opened.

        Raises:
            RecrayError: A file is missing, or its bytes are not those of the manifest.
        """
        hidden = f"{sealed}/"
        entries = [e for e in manifest.files if sealed is None or not e.name.startswith(hidden)]
        all(in_parallel(lambda entry: self.read_verified(entry) is not None, entries))

    def read_verified(self, entry: ManifestEntry) -> pa.Buffer:
        """Read a file once, and compare these bytes with its entry in the manifest.

        Raises:
            DamagedFile: The file is missing, or its bytes are not those of the entry.
            RecrayError: It cannot be read.
        """
        content = self.find(entry.name, entry.bytes)
        if content is None:
            raise DamagedFile(f"{self.path} lacks {entry.name}, which its manifest lists")
        digest = manifest_entry(entry.name, content).sha256
        if digest != entry.sha256:
            raise DamagedFile(
                f"{self.at(entry.name)} is damaged: sha256 {digest[:12]}..., "
                f"the manifest says {entry.sha256[:12]}..."
            )
        return content

    def write_manifest(
        self, kind: str, facts: Mapping[str, object], known: Iterable[ManifestEntry] = ()
    ) -> dict[str, Any]:
        """List every file of the folder with its bytes and sha256; this is written last.

        Args:
            kind: Kind of the folder.
            facts: What else the manifest says.
            known: Entries of files, as those that write a file return them: also of tasks that
                wrote here from another process. Files that are in none are read for theirs.

        Returns:
            What has been written.
        """
        before = {entry.name: entry for entry in known}
        files = [
            (before.get(name) or manifest_entry(name, self.read_buffer(name))).model_dump()
            for name in self.content()
        ]
        content = {"kind": kind, **facts, "files": files}
        self.write_json(MANIFEST, content)
        return content

    @contextmanager
    def output(self, name: str) -> Iterator[pa.NativeFile]:
        """A stream into the file, whose folder is made."""
        filesystem, path = self.locate(name)
        if filesystem.type_name not in OBJECT_STORES:
            filesystem.create_dir(path.rsplit("/", 1)[0], recursive=True)
        with filesystem.open_output_stream(path, compression=None) as stream:
            yield stream

    def _put(self, name: str, content: bytes | pa.Buffer) -> None:
        with self.output(name) as stream:
            stream.write(content)
