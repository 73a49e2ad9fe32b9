"""Ask a store, before long work begins, whether it can be reached and written."""

import threading
import uuid
from collections.abc import Callable

import pyarrow.fs as pafs

from recray.errors import RecrayError, StorageError
from recray.storage.clients import CHECK, connect, is_object_store
from recray.storage.files import PROBE, as_recray_error

CHECK_S = 9.0
"""Seconds after which a store does not answer the check, whatever its client still waits for."""


def check_store(path: str, to_write: bool) -> None:
    """See within 10 s that a bucket is there and lets us in; other places are not asked.

    The requests of the work itself wait for a store that fails in passing, and wait much longer.

    Args:
        path: A folder or file that is to be read, or a folder that is to be written.
        to_write: Whether a file is written there, and removed; an empty object may stay that
            stands for the folder.

    Raises:
        RecrayError: It cannot be read.
        StorageError: It cannot be written.
    """
    if not is_object_store(path):
        return
    kind: type[RecrayError] = StorageError if to_write else RecrayError
    with as_recray_error(f"cannot {'write' if to_write else 'read'} {path}", kind):
        _within(CHECK_S, lambda: _ask(path, to_write))


def _ask(path: str, to_write: bool) -> None:
    store, root = connect(path, CHECK)
    probe = f"{root}/{PROBE}{uuid.uuid4().hex[:8]}"
    try:  # by a list, because the answer to it, unlike that to a HEAD, says why
        store.get_file_info(pafs.FileSelector(probe, allow_not_found=True))
    except OSError as error:
        refused = any(word in str(error) for word in ("ACCESS_DENIED", "PERMISSION_DENIED"))
        if to_write or not refused or not _is_file(store, root):
            raise
        return  # a file may be read where nothing may be listed
    if to_write:
        with store.open_output_stream(probe, compression=None) as stream:
            stream.write(b"")
        store.delete_file(probe)
    elif store.get_file_info(root.split("/")[0]).type == pafs.FileType.NotFound:
        raise OSError("there is no such bucket")


def _is_file(store: pafs.FileSystem, path: str) -> bool:
    try:
        return bool(store.get_file_info(path).type == pafs.FileType.File)
    except OSError:
        return False


def _within(seconds: float, ask: Callable[[], None]) -> None:
    """Do what may take much longer than its clients are told, such as finding a name.

    Raises:
        OSError: It takes longer; it goes on behind the scenes.
        Exception: What it raises.
    """
    raised: list[Exception] = []

    def asking() -> None:
        try:
            ask()
        except Exception as error:  # raised again below, where somebody waits for it
            raised.append(error)

    thread = threading.Thread(target=asking, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise OSError(f"the store does not answer: nothing came in {seconds:g} s")
    for error in raised:
        raise error
