"""Folders that appear whole or not at all."""

import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from recray.errors import RecrayError, StorageError
from recray.storage.files import (
    PROBE,
    UNFINISHED,
    Manifest,
    ManifestEntry,
    is_uri,
    retry,
    staged,
    storage_errors,
)
from recray.storage.folder import MANIFEST, OBJECT_STORES, Folder
from recray.storage.whole import in_parallel


@dataclass(frozen=True)
class NewFolder(Folder):
    """A folder that is being written. It keeps the entries of the files that it has written.

    What other processes wrote there is not among them: they return their entries, and whoever
    writes the manifest hands these in as `known`.

    Args:
        path: As that of a Folder.
        written: The entries, by name.
    """

    written: dict[str, ManifestEntry] = field(default_factory=dict, compare=False)

    def write_bytes(self, name: str, content: bytes | pa.Buffer) -> ManifestEntry:
        """Write the file; see Folder."""
        self.written[name] = super().write_bytes(name, content)
        return self.written[name]

    def replace_bytes(self, name: str, content: bytes, durable: bool = False) -> ManifestEntry:
        """Write or replace the file; see Folder."""
        self.written[name] = super().replace_bytes(name, content, durable)
        return self.written[name]

    def write_manifest(
        self, kind: str, facts: Mapping[str, object], known: Iterable[ManifestEntry] = ()
    ) -> None:
        """Write the manifest; only files that this folder has not written are read for it."""
        super().write_manifest(kind, facts, [*known, *self.written.values()])


def check_kind(folder: Folder, kind: str, made_by: str) -> Manifest:
    """Return the manifest of a folder of that kind, which the command `made_by` makes.

    Raises:
        RecrayError: The folder is missing, unfinished or of another kind.
    """
    manifest = folder.manifest()
    if manifest.kind != kind:
        raise RecrayError(f"{folder} is a {manifest.kind}, not a {kind}; make one with `{made_by}`")
    return manifest


def refuse_taken(folder: Folder, holds: bool, kind: str, resume: bool) -> None:
    """Refuse a folder of something else, or of a run or sweep (`kind`) that is not to be continued.

    Raises:
        RecrayError: It is taken.
    """
    if holds and not resume:
        raise RecrayError(
            f"{folder} holds a {kind} already; give --resume to continue it, or another folder"
        )
    if not holds and folder.files():
        raise RecrayError(f"{folder} is not empty and holds no {kind}; give another folder")


@contextmanager
def publish(target: Folder, replace: bool = False) -> Iterator[NewFolder]:
    """Yield a folder to write into; it becomes `target` when the block ends without an error.

    On a disk a hidden sibling is renamed. On an object store the files lie under their final name,
    but the manifest, which every reader asks for, is the last one. The block writes the manifest.
    A finished folder in a store stays as it is, and readable, until the new one is whole in a
    hidden folder inside; the store then copies the files, which takes seconds.

    Raises:
        RecrayError: The target exists and `replace` is not set.
        StorageError: The disk is full or not writable.
    """
    listed = target.files() if is_uri(target.path) or os.path.isdir(target.path) else []
    # Checks of other commands come and go, and what a killed one leaves is nobody's.
    present = [name for name in listed if not name.startswith(PROBE)]
    if MANIFEST in present and not replace:
        raise RecrayError(f"{target} exists already; give another folder or remove it")
    if not is_uri(target.path) and os.path.isfile(target.path):
        raise RecrayError(f"{target} is a file; give a folder")
    if present and not (MANIFEST in present or UNFINISHED in present):
        raise RecrayError(f"{target} is not empty and not recray's; give another folder")
    if not is_uri(target.path):
        with staged(Path(target.path)) as staging:
            yield NewFolder(str(staging))
    elif MANIFEST in present:
        yield from _replaced(target, present)
    else:
        if present:
            target.delete()
        target.write_bytes(UNFINISHED, b"")  # the files that a killed writer leaves are recray's
        yield NewFolder(target.path)
        target.delete(UNFINISHED)


def _replaced(target: Folder, before: list[str]) -> Iterator[NewFolder]:
    """Yield a hidden folder inside a finished one in a store, then put its files in their place."""
    leftovers = {name.split("/")[0] for name in before if name.startswith(f"{UNFINISHED}new-")}
    for name in leftovers:
        target.delete_folder(name)
    hidden = f"{UNFINISHED}new-{uuid.uuid4().hex[:8]}"
    staging = NewFolder(target.child(hidden).path)
    try:
        yield staging
        names = staging.content()
        filesystem, inner = target.locate()

        def copy(name: str) -> None:
            source = f"{inner}/{hidden}/{name}"
            retry(target.path, lambda: filesystem.copy_file(source, f"{inner}/{name}"))

        if filesystem.type_name not in OBJECT_STORES:
            for folder in {name.rpartition("/")[0] for name in names} - {""}:
                filesystem.create_dir(f"{inner}/{folder}", recursive=True)
        if not staging.published():
            raise ValueError(f"{staging} got no manifest")
        with storage_errors(target.path):
            target.write_bytes(UNFINISHED, b"")  # whoever comes after a kill knows whose it is
            target.delete(MANIFEST)  # from here to the new one nobody reads files of both
            list(in_parallel(copy, names))
            for name in {*before} - {*names, MANIFEST}:
                if not name.startswith(UNFINISHED):
                    target.delete(name)
            copy(MANIFEST)
            target.delete(UNFINISHED)
    except StorageError:  # it would be asked in vain; whoever writes next removes what is left
        raise
    except BaseException:
        target.delete_folder(hidden)
        raise
    target.delete_folder(hidden)
