"""Folders that appear whole or not at all."""

import contextlib
import os
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from recray.errors import RecrayError, StorageError
from recray.storage.files import PROBE, STALE_HOURS, UNFINISHED, is_uri, staged
from recray.storage.folder import Folder
from recray.storage.manifest import (
    GENERATION,
    MANIFEST,
    Manifest,
    ManifestEntry,
    Pointer,
    parse_manifest,
    pointing,
)
from recray.storage.whole import in_parallel


class FolderExists(RecrayError):
    """A finished folder has that name, and is not to be replaced."""


@dataclass(frozen=True)
class NewFolder(Folder):
    """A folder that is being written. It keeps the entries of the files that it has written.

    What other processes wrote there is not among them: they return their entries, and whoever
    writes the manifest hands these in as `known`.

    Args:
        path, generation: As those of a Folder.
        written: The entries, by name.
        manifest_written: The content of its manifest, once that is there.
    """

    written: dict[str, ManifestEntry] = field(default_factory=dict, compare=False)
    manifest_written: dict[str, Any] = field(default_factory=dict, compare=False)

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
    ) -> dict[str, Any]:
        """Write the manifest; only files that this folder has not written are read for it.

        Raises:
            StorageError: A known file is not there any more.
        """
        entries = [*known, *self.written.values()]
        self.manifest_written.update(super().write_manifest(kind, facts, entries))
        listed = {MANIFEST, *(entry["name"] for entry in self.manifest_written["files"])}
        for name in {entry.name for entry in entries} - listed:
            if not name.startswith(UNFINISHED):
                raise StorageError(f"cannot write {self}: somebody has removed {name}")
        return self.manifest_written


def current_of(folder: Folder, kind: str, made_by: str) -> tuple[Folder, Manifest]:
    """A folder of that kind, which the command `made_by` makes, as it is now; see Folder.current.

    Raises:
        RecrayError: The folder is missing, unfinished or of another kind.
    """
    now, manifest = folder.current()
    if manifest.kind != kind:
        raise RecrayError(f"{folder} is a {manifest.kind}, not a {kind}; make one with `{made_by}`")
    return now, manifest


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

    On a disk a hidden sibling is renamed. In a store each writer has a folder inside of its own, a
    generation, and the manifest, which every reader asks for, names the one that is current: one
    PUT publishes it. The generation before stays until the next one, for whoever has opened it.
    The block writes the manifest.

    Raises:
        FolderExists: The target is finished, by now, and `replace` is not set.
        RecrayError: Something else lies there.
        StorageError: The disk is full or not writable.
    """
    if is_uri(target.path):
        yield from _new_generation(target, replace)
        return

    def check_target() -> None:
        # Checks of other commands come and go, and what a killed one leaves is nobody's.
        listed = target.files() if os.path.isdir(target.path) else []
        _refuse([name for name in listed if not name.startswith(PROBE)], target, replace)

    check_target()
    if os.path.isfile(target.path):
        raise RecrayError(f"{target} is a file; give a folder")
    with staged(Path(os.path.realpath(target.path)), taken=check_target) as staging:
        yield NewFolder(str(staging))


def _refuse(present: list[str], target: Folder, replace: bool) -> None:
    """Refuse to write over what lies there: a finished folder, or files that are not recray's."""
    if MANIFEST in present and not replace:
        raise FolderExists(f"{target} exists already; give another folder or remove it")
    if present and MANIFEST not in present:
        raise RecrayError(f"{target} is not empty and not recray's; give another folder")


def _new_generation(target: Folder, replace: bool) -> Iterator[NewFolder]:
    found = target.modified()
    others = [name for name in found if not name.startswith((PROBE, GENERATION))]
    _refuse(others, target, replace)
    if found:
        _delete_left(target, found)
    new = NewFolder(target.path, f"{GENERATION}{uuid.uuid4().hex[:12]}")
    try:
        yield new
        if not new.manifest_written:
            raise ValueError(f"{target} got no manifest")
        before = _current(target)
        if before is not None:
            _refuse([MANIFEST], target, replace)  # another writer has been faster
    except StorageError:  # it would be asked in vain; whoever writes next removes what is left
        raise
    except BaseException:
        target.delete_folder(new.generation)
        raise
    # From here on the generation may be what readers see, whatever becomes of this process.
    target.write_json(MANIFEST, pointing(new.generation, new.manifest_written, before))
    if isinstance(before, Pointer):
        # It is published: what stays here by a failure takes room and does no harm.
        with contextlib.suppress(StorageError):
            if before.before is not None:
                target.delete_folder(before.before)
            list(in_parallel(target.delete, before.flat))


def _current(target: Folder) -> Manifest | None:
    """The manifest that says which generation is current; None where nothing is published."""
    content = target.find_json(MANIFEST)
    return None if content is None else parse_manifest(content, target.at(MANIFEST))


def _delete_left(target: Folder, found: Mapping[str, float]) -> None:
    """Remove what killed writers have left, once no living writer can own it."""
    now = _current(target)
    kept = {now.generation, now.before} if isinstance(now, Pointer) else set()
    last: dict[str, float] = {}
    for name, modified in found.items():
        generation = name.split("/")[0]
        if generation.startswith(GENERATION) and generation not in kept:
            last[generation] = max(modified, last.get(generation, 0.0))
    for generation, modified in last.items():
        if modified < time.time() - STALE_HOURS * 3600:
            target.delete_folder(generation)
