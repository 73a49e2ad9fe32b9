"""Folders on any filesystem or object store, and folders that appear whole or not at all."""

from recray.storage.clients import encoded
from recray.storage.files import (
    PROBE,
    UNFINISHED,
    as_recray_error,
    file_type,
    is_uri,
    modified_ns,
    parquet_bytes,
    remove_stale,
    storage_errors,
    swap_in,
)
from recray.storage.folder import Folder
from recray.storage.inputs import open_input
from recray.storage.manifest import MANIFEST, Manifest, ManifestEntry
from recray.storage.polled import Pause, PolledFile
from recray.storage.published import FolderExists, NewFolder, current_of, publish, refuse_taken
from recray.storage.reach import check_store
from recray.storage.spans import SpanReader
from recray.storage.streams import Sink, range_reader, write_from
from recray.storage.whole import in_parallel

__all__ = [
    "MANIFEST",
    "PROBE",
    "UNFINISHED",
    "Folder",
    "FolderExists",
    "Manifest",
    "ManifestEntry",
    "NewFolder",
    "Pause",
    "PolledFile",
    "Sink",
    "SpanReader",
    "as_recray_error",
    "check_store",
    "current_of",
    "encoded",
    "file_type",
    "in_parallel",
    "is_uri",
    "modified_ns",
    "open_input",
    "parquet_bytes",
    "publish",
    "range_reader",
    "refuse_taken",
    "remove_stale",
    "storage_errors",
    "swap_in",
    "write_from",
]
