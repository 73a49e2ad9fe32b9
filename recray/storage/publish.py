"""Folders that appear whole or not at all.

A published folder ends with `manifest.json`: facts of its own, and name, bytes and sha256 of
every other file. A folder without one is not finished, and nothing reads it.
"""

import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recray.errors import RecrayError
from recray.storage.folder import UNFINISHED, Folder
from recray.storage.paths import is_uri, storage_errors, sync_folder


def check_kind(folder: Folder, kind: str, made_by: str) -> dict[str, Any]:
    """Return the manifest of a folder of that kind.

    Args:
        folder: The folder.
        kind: The kind that its manifest must name.
        made_by: The command that makes such a folder, for the message.

    Raises:
        RecrayError: The folder is missing, unfinished or of another kind.
    """
    manifest = folder.manifest()
    if manifest.get("kind") != kind:
        raise RecrayError(
            f"{folder} is a {manifest.get('kind')}, not a {kind}; make one with `{made_by}`"
        )
    return manifest


@contextmanager
def publish(target: Folder, replace: bool = False) -> Iterator[Folder]:
    """Yield a folder to write into; it becomes `target` when the block ends without an error.

    On a disk a hidden sibling is renamed. On an object store the files lie under their final name,
    but the manifest, which every reader asks for, is the last one. The block writes the manifest.

    Raises:
        RecrayError: The target exists and `replace` is not set.
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
        target.write_bytes(UNFINISHED, b"")  # the files that a killed writer leaves are recray's
        yield target
        target.delete_file(UNFINISHED)
        return
    path = Path(target.path)
    staging = path.with_name(f"{UNFINISHED}{path.name}-{uuid.uuid4().hex[:8]}")
    with storage_errors(target.path):
        remove_stale(path)
        staging.mkdir(parents=True)
    try:
        yield Folder(str(staging))
        with storage_errors(target.path):
            _swap(staging, path)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def _swap(staging: Path, path: Path) -> None:
    """Rename the finished folder to its final name; an old one goes only after that."""
    old = path.with_name(f"{UNFINISHED}{path.name}-old-{uuid.uuid4().hex[:8]}")
    if path.exists():
        os.rename(path, old)
    try:
        os.rename(staging, path)
    except OSError:
        if old.exists():
            os.rename(old, path)
        raise
    sync_folder(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def remove_stale(path: Path, older_than_hours: float = 24.0) -> None:
    """Remove what killed writers left beside `path`, once no living writer can own it."""
    limit = time.time() - older_than_hours * 3600
    for leftover in path.parent.glob(f"{UNFINISHED}{path.name}-*"):
        if leftover.stat().st_mtime < limit:
            shutil.rmtree(leftover, ignore_errors=True)
