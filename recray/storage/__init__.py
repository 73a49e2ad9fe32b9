"""Folders on any filesystem or object store, and folders that appear whole or not at all."""

from recray.storage.files import (
    UNFINISHED,
    Manifest,
    file_type,
    is_uri,
    modified_ns,
    open_input,
    parquet_bytes,
    remove_stale,
    storage_errors,
)
from recray.storage.folder import MANIFEST, Folder, check_kind, publish, refuse_taken

__all__ = [
    "MANIFEST",
    "UNFINISHED",
    "Folder",
    "Manifest",
    "check_kind",
    "file_type",
    "is_uri",
    "modified_ns",
    "open_input",
    "parquet_bytes",
    "publish",
    "refuse_taken",
    "remove_stale",
    "storage_errors",
]
