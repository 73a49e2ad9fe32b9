"""Folders that appear whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from recray.errors import RecrayError
from recray.storage.files import UNFINISHED, Manifest, is_uri, staged
from recray.storage.folder import Folder


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
        target.delete(UNFINISHED)
        return
    with staged(Path(target.path)) as staging:
        yield Folder(str(staging))
