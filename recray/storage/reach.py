"""Ask a store, before long work begins, whether it can be reached and written."""

import os
import uuid

import pyarrow.fs as pafs

from recray.errors import RecrayError, StorageError
from recray.storage.files import UNFINISHED, as_recray_error, locate

SILENCE_S = 2.0
"""Seconds without any byte after which an attempt of the check ends."""
ATTEMPTS = 2
"""Attempts of each request of the check; the work itself is more patient."""


def check_store(path: str, to_write: bool) -> None:
    """See within 10 s that an S3 bucket is there and lets us in; other places are not asked.

    The requests of the work itself wait for a store that fails in passing, and wait much longer.

    Args:
        path: A folder or file that is to be read, or a folder that is to be written.
        to_write: Whether a file is written there, and removed; an empty object may stay that
            stands for the folder.

    Raises:
        RecrayError: It cannot be read.
        StorageError: It cannot be written.
    """
    if not path.startswith("s3://"):
        return
    kind: type[RecrayError] = StorageError if to_write else RecrayError
    with as_recray_error(f"cannot {'write' if to_write else 'read'} {path}", kind):
        store, root = impatient(path)
        probe = f"{root}/{UNFINISHED}probe-{uuid.uuid4().hex[:8]}"
        # A list, because the answer to it, unlike that to a HEAD, says why.
        store.get_file_info(pafs.FileSelector(probe, allow_not_found=True))
        if to_write:
            with store.open_output_stream(probe, compression=None) as stream:
                stream.write(b"")
            store.delete_file(probe)
        elif store.get_file_info(root.split("/")[0]).type == pafs.FileType.NotFound:
            raise OSError("there is no such bucket")


def impatient(path: str) -> tuple[pafs.S3FileSystem, str]:
    """A client of an S3 store that gives up soon, and the path there."""
    found, root = locate(path)
    told = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    scheme, _, endpoint = told.rstrip("/").rpartition("://")
    store = pafs.S3FileSystem(
        region=found.region,
        scheme=scheme or "https",
        endpoint_override=endpoint or None,
        connect_timeout=SILENCE_S,
        request_timeout=SILENCE_S,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        allow_delayed_open=True,
    )
    return store, root
