"""Folders that appear whole or not at all, on a local disk or any URI that pyarrow.fs opens.

A published folder ends with `manifest.json`: facts of its own, and name, bytes and sha256 of
every other file. A folder without one is not finished and is never read.
"""

import errno
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from recray.errors import DamagedFile, RecrayError, StorageError
from recray.storage.parquet import parquet_bytes

T = TypeVar("T")
MANIFEST = "manifest.json"
UNFINISHED = ".unfinished-"
ATTEMPTS = 6
WAIT_S = 0.2
"""Before a store is asked again, doubled each time; the store's own client has tried before."""
_LASTING = (
    "ACCESS_DENIED NO_SUCH_BUCKET allow_bucket_creation INVALID_ACCESS_KEY SIGNATURE_DOES_NOT_MATCH"
).split()
_FULL = {errno.ENOSPC: "no space left", errno.EROFS: "read-only", errno.EDQUOT: "over quota"}


def is_uri(path: str) -> bool:
    """Whether the path names a store (`s3://bucket/x`) and not a local folder."""
    return "://" in path


def _locate(path: str) -> tuple[pafs.FileSystem, str]:
    """The filesystem of a local path or URI, and the path on it."""
    return pafs.FileSystem.from_uri(path if is_uri(path) else os.path.abspath(path))


def open_input(path: str) -> pa.NativeFile:
    """Open a file by local path or URI for reading at any place.

    Raises:
        RecrayError: It is missing or not readable.
    """
    try:
        filesystem, inner = _locate(path)
        return filesystem.open_input_file(inner)
    except (pa.ArrowInvalid, OSError, ValueError) as error:
        raise RecrayError(f"cannot read {path}: {error}") from error


def file_type(path: str) -> pafs.FileType:
    """What is there: a file, a folder, or nothing.

    Raises:
        RecrayError: The store cannot be asked.
    """
    try:
        filesystem, inner = _locate(path)
        return filesystem.get_file_info(inner).type
    except (pa.ArrowInvalid, OSError, ValueError) as error:
        raise RecrayError(f"cannot read {path}: {error}") from error


def modified(path: str) -> int:
    """When a file was last written, in nanoseconds; 0 where the store does not say."""
    filesystem, inner = _locate(path)
    return filesystem.get_file_info(inner).mtime_ns or 0


@dataclass(frozen=True)
class Folder:
    """A folder by its path or URI; cheap to make and to pickle.

    Args:
        path: A local path, or a URI such as `s3://bucket/prefix`.

    Raises:
        RecrayError: The URI has options.
    """

    path: str

    def __post_init__(self) -> None:
        if not is_uri(self.path):
            object.__setattr__(self, "path", os.path.abspath(self.path))
        elif "?" in self.path:  # names of files come after the path
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

    def _open(self, name: str = "") -> tuple[pafs.FileSystem, str]:
        try:
            filesystem, root = pafs.FileSystem.from_uri(self.path)
        except (pa.ArrowInvalid, ValueError, OSError) as error:
            raise RecrayError(
                f"cannot open {self.path}: {error}; give a local path or a URI such as s3://..."
            ) from error
        return filesystem, f"{root}/{name}" if name else root

    def exists(self, name: str = "") -> bool:
        """Whether the folder, or the file of that name in it, is there."""
        filesystem, path = self._open(name)
        try:
            found = self._persist(lambda: filesystem.get_file_info(path))
            return bool(found.type != pafs.FileType.NotFound)
        except OSError as error:
            raise RecrayError(f"cannot look for {path}: {error}") from error

    def published(self) -> bool:
        """Whether the folder was finished: its manifest is there."""
        return self.exists(MANIFEST)

    def files(self) -> list[str]:
        """Names of all files below the folder, relative to it, sorted."""
        root, found = self._list(recursive=True)
        return sorted(
            f.path.removeprefix(root).lstrip("/") for f in found if f.type == pafs.FileType.File
        )

    def content(self) -> list[str]:
        """The same without the manifest, and without what has not been finished."""
        return [n for n in self.files() if n != MANIFEST and not n.startswith(UNFINISHED)]

    def folders(self) -> list[str]:
        """Names of the folders directly inside, sorted."""
        _, found = self._list(recursive=False)
        return sorted(f.base_name for f in found if f.type == pafs.FileType.Directory)

    def _list(self, recursive: bool) -> tuple[str, list[pafs.FileInfo]]:
        """The folder's own path on its filesystem, and what is in it."""
        filesystem, root = self._open()
        wanted = pafs.FileSelector(root, recursive=recursive, allow_not_found=True)
        try:
            return root, self._persist(lambda: filesystem.get_file_info(wanted))
        except OSError as error:
            raise RecrayError(f"cannot list {self.path}: {error}") from error

    def read_bytes(self, name: str) -> bytes:
        """The file's content.

        Raises:
            RecrayError: The file is not there or not readable.
        """
        return self.reader(name)()

    def reader(self, name: str) -> Callable[[], bytes]:
        """What reads a small file again and again and finds its filesystem only once.

        Raises:
            RecrayError: By each reading that fails.
        """
        filesystem, path = self._open(name)

        def once() -> bytes:
            with filesystem.open_input_stream(path, compression=None) as stream:
                return bytes(stream.read())

        def read() -> bytes:
            try:
                return self._persist(once)
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
        """The parquet file as an Arrow table."""
        content = self.read_bytes(name)
        try:
            # Rows decoded by one thread: callers run several of these side by side.
            return pq.read_table(pa.BufferReader(content), columns=columns, use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise DamagedFile(f"{self.path}/{name} is damaged: {error}") from error

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write the file, making its folder; it is on the disk when this returns.

        Raises:
            StorageError: No space, read-only or not permitted.
        """
        with storage_errors(self.path):
            if not is_uri(self.path):
                target = Path(self.path) / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with open(target, "wb") as stream:
                    stream.write(content)
                    stream.flush()
                    os.fsync(stream.fileno())
                return
            self._persist(lambda: self._put(name, content))

    def _put(self, name: str, content: bytes) -> None:
        filesystem, path = self._open(name)
        filesystem.create_dir(path.rsplit("/", 1)[0], recursive=True)
        with filesystem.open_output_stream(path, compression=None) as stream:
            stream.write(content)

    def _persist(self, work: Callable[[], T]) -> T:
        """Read or change something; a store that fails in passing is asked again, a disk is not."""
        for attempt in range(ATTEMPTS if is_uri(self.path) else 1):
            if attempt:
                time.sleep(WAIT_S * 2 ** (attempt - 1))
            try:
                return work()
            except FileNotFoundError:
                raise
            except OSError as error:
                problem = error
                if any(word in str(error) for word in _LASTING):
                    break
        raise problem

    @contextmanager
    def write_stream(self, name: str) -> Iterator[pa.NativeFile]:
        """Write a file piece by piece, making its folder, without waiting for the disk.

        For a store the pieces are kept until the file is whole, so that it can be sent again.

        Raises:
            StorageError: No space, read-only or not permitted.
        """
        if is_uri(self.path):
            sink = pa.BufferOutputStream()
            yield sink
            self.write_bytes(name, sink.getvalue().to_pybytes())
            return
        with storage_errors(self.path):
            filesystem, path = self._open(name)
            filesystem.create_dir(path.rsplit("/", 1)[0], recursive=True)
            with filesystem.open_output_stream(path, compression=None) as stream:
                yield stream

    def write_json(self, name: str, value: Any) -> None:
        """Write the value as indented JSON."""
        self.replace_bytes(name, json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n")

    def write_table(self, name: str, table: pa.Table, few: Sequence[str] | None = None) -> None:
        """Write the table as parquet; equal tables give equal bytes. `few` names the columns of few
        distinct values, worth a dictionary; None tries every column.
        """
        self.write_bytes(name, parquet_bytes(table, few))

    def replace_bytes(self, name: str, content: bytes) -> None:
        """Swap one file in a single step: a reader sees the old or the new content."""
        if is_uri(self.path):  # object stores show a PUT only when it is complete
            self.write_bytes(name, content)
            return
        temporary = f"{UNFINISHED}{uuid.uuid4().hex[:8]}-{name}"
        try:
            self.write_bytes(temporary, content)
            with storage_errors(self.path):
                os.replace(Path(self.path) / temporary, Path(self.path) / name)
        finally:
            (Path(self.path) / temporary).unlink(missing_ok=True)

    def add_bytes(self, name: str, content: bytes) -> None:
        """Add a file that appears whole; file and name are on the disk when this returns."""
        if is_uri(self.path):
            self.write_bytes(name, content)
            return
        path = Path(self.path)
        made = not path.exists()
        self.replace_bytes(name, content)
        with storage_errors(self.path):
            _sync_folder(path)
            if made:
                _sync_folder(path.parent)

    def delete(self, name: str = "") -> None:
        """Remove the folder, or the folder of that name inside it; missing is fine."""
        filesystem, path = self._open(name)
        if filesystem.get_file_info(path).type == pafs.FileType.Directory:
            with storage_errors(self.path):
                self._persist(lambda: filesystem.delete_dir(path))

    def delete_file(self, name: str) -> None:
        """Remove one file; missing is fine, for a store may have lost the answer to a removal."""
        filesystem, path = self._open(name)

        def remove() -> None:
            if filesystem.get_file_info(path).type == pafs.FileType.File:
                filesystem.delete_file(path)

        with storage_errors(self.path):
            self._persist(remove)

    def manifest(self) -> dict[str, Any]:
        """The manifest of a published folder.

        Raises:
            RecrayError: The folder is missing or was never finished.
        """
        if not self.exists():
            raise RecrayError(f"no such folder: {self.path}")
        if not self.published():
            raise RecrayError(f"{self.path} has no {MANIFEST}: it is unfinished or not recray's")
        return self.read_json(MANIFEST)

    def verify(self, sealed: str | None = None) -> dict[str, Any]:
        """Compare every file with the manifest and return the manifest.

        Args:
            sealed: Name of a folder inside whose files are not opened.

        Raises:
            RecrayError: A file is missing, or its bytes are not those of the manifest.
        """
        manifest = self.manifest()
        for entry in _entries(manifest, self.path):
            if sealed is not None and entry["name"].startswith(f"{sealed}/"):
                continue
            if not self.exists(entry["name"]):
                raise RecrayError(f"{self.path} lacks {entry['name']}, which its manifest lists")
            found = hashlib.sha256(self.read_bytes(entry["name"])).hexdigest()
            if found != entry["sha256"]:
                raise RecrayError(
                    f"{self.path}/{entry['name']} is damaged: sha256 {found[:12]}..., "
                    f"the manifest says {entry['sha256'][:12]}..."
                )
        return manifest

    def write_manifest(self, kind: str, facts: dict[str, Any]) -> None:
        """List every file of the folder with its bytes and sha256; written last."""
        entries = []
        for name in self.content():
            content = self.read_bytes(name)
            digest = hashlib.sha256(content).hexdigest()
            entries.append({"name": name, "bytes": len(content), "sha256": digest})
        self.write_json(MANIFEST, {"kind": kind, **facts, "files": entries})


def _entries(manifest: dict[str, Any], path: str) -> list[dict[str, Any]]:
    """The files that a manifest lists, each inside its folder.

    Raises:
        RecrayError: The manifest is none of ours, or names a file elsewhere.
    """
    try:
        entries = [{"name": str(e["name"]), "sha256": str(e["sha256"])} for e in manifest["files"]]
    except (KeyError, TypeError) as error:
        raise RecrayError(f"{path}/{MANIFEST} is damaged: it lists no files") from error
    for entry in entries:
        parts = entry["name"].split("/")
        if not all(parts) or {".", ".."} & set(parts) or "\\" in entry["name"]:
            raise RecrayError(f"{path}/{MANIFEST} names a file outside: {entry['name']!r}")
    return entries


def expect_kind(folder: Folder, kind: str, made_by: str) -> dict[str, Any]:
    """Return the manifest of a folder of that kind.

    Raises:
        RecrayError: It is missing, unfinished or of another kind.
    """
    manifest = folder.manifest()
    if manifest.get("kind") != kind:
        raise RecrayError(
            f"{folder} is a {manifest.get('kind')}, not a {kind}; make one with `{made_by}`"
        )
    return manifest


@contextmanager
def storage_errors(path: str) -> Iterator[None]:
    """Translate a full or read-only disk into one line with exit code 3.

    Raises:
        StorageError: In place of the OSError.
    """
    try:
        yield
    except OSError as error:
        reason = _FULL.get(error.errno or 0, error.strerror or str(error))
        raise StorageError(f"cannot write {path}: {reason}") from error


@contextmanager
def publish(target: Folder, replace: bool = False) -> Iterator[Folder]:
    """Give a folder to write into; it becomes `target` when the block ends without an error.

    Local: a hidden sibling is renamed. Object store: the files lie under their final name, but
    the manifest, which every reader asks for, is the last one. The block writes the manifest.

    Raises:
        RecrayError: The target is there already and `replace` is not set.
        StorageError: The disk is full or not writable.
    """
    if target.published() and not replace:
        raise RecrayError(f"{target} exists already; give another folder or remove it")
    if not is_uri(target.path) and os.path.isfile(target.path):
        raise RecrayError(f"{target} is a file; give a folder")
    if target.files() and not (target.published() or target.exists(UNFINISHED)):
        raise RecrayError(f"{target} is not empty and not recray's; give another folder")
    if is_uri(target.path):
        target.delete()
        target.write_bytes(UNFINISHED, b"")  # marks what a killed writer leaves as ours
        yield target
        target.delete_file(UNFINISHED)
        return
    path = Path(target.path)
    staging = path.with_name(f"{UNFINISHED}{path.name}-{uuid.uuid4().hex[:8]}")
    with storage_errors(target.path):
        sweep_unfinished(path)
        staging.mkdir(parents=True)
    try:
        yield Folder(str(staging))
        with storage_errors(target.path):
            _swap(staging, path)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def _swap(staging: Path, path: Path) -> None:
    old = path.with_name(f"{UNFINISHED}{path.name}-old-{uuid.uuid4().hex[:8]}")
    if path.exists():
        os.rename(path, old)
    try:
        os.rename(staging, path)
    except OSError:
        if old.exists():
            os.rename(old, path)
        raise
    _sync_folder(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync_folder(path: Path) -> None:
    """Bring the names in a folder to the disk, as fsync brings a file's content."""
    directory = os.open(path, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def sweep_unfinished(path: Path, older_than_hours: float = 24.0) -> None:
    """Remove what killed runs left beside `path`, once it is old enough to belong to nobody."""
    limit = time.time() - older_than_hours * 3600
    for left in path.parent.glob(f"{UNFINISHED}{path.name}-*"):
        if left.stat().st_mtime < limit:
            shutil.rmtree(left, ignore_errors=True)
