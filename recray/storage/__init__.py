"""Folders on any filesystem or object store, and folders that appear whole or not at all."""

from recray.storage.folder import MANIFEST, UNFINISHED, Folder
from recray.storage.paths import (
    file_type,
    is_uri,
    modified_ns,
    open_input,
    parquet_bytes,
    storage_errors,
)
from recray.storage.publish import check_kind, publish, remove_stale

__all__ = [
    "MANIFEST",
    "UNFINISHED",
    "Folder",
    "check_kind",
    "file_type",
    "is_uri",
    "modified_ns",
    "open_input",
    "parquet_bytes",
    "publish",
    "remove_stale",
    "storage_errors",
]
