"""Clients of stores: how long they wait, how often they ask again, and one for many requests."""

import json
import os
import pickle
from datetime import timedelta
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import quote

import pyarrow.fs as pafs


class Patience(NamedTuple):
    """How long a store may keep us waiting.

    Args:
        silence_s: Seconds without a connection, or without any byte, after which an attempt at a
            request ends; S3 alone.
        attempts: Attempts at each request, with growing waits in between; S3 alone.
        limit_s: Seconds during which a request that fails is repeated; Google's store alone.
    """

    silence_s: float
    attempts: int
    limit_s: int


WORK = Patience(silence_s=10.0, attempts=4, limit_s=45)
"""Of the work itself: a request to a store that is silent fails after some 45 s."""
CHECK = Patience(silence_s=2.0, attempts=2, limit_s=2)
"""Of the questions that are asked before the work."""


def is_object_store(path: str) -> bool:
    """Whether the path names a bucket, or something in one, of a store that has requests."""
    return path.startswith(("s3://", "gs://", "gcs://"))


def encoded(uri: str) -> str:
    """The URI as pyarrow and Ray read it: in one of an object store a name stands as it is.

    To them `#` would end the name, `%20` be a space, and a space be no part of a URI.
    """
    if not is_object_store(uri):
        return uri
    scheme, rest = uri.split("://", 1)
    place, mark, options = rest.partition("?")
    bucket, slash, name = place.partition("/")
    return f"{scheme}://{bucket}{slash}{quote(name)}{mark}{options}"


def connect(uri: str, patience: Patience = WORK) -> tuple[pafs.FileSystem, str]:
    """The filesystem of a URI, and the path on it.

    What the URI says by `?region=`, `scheme=` or `endpoint_override=` holds, and the environment
    where it says nothing. Equal stores share a client, and so its connections.

    Raises:
        OSError: The region of a bucket cannot be found.
        ValueError: It is no URI of a store.
    """
    found, path = pafs.FileSystem.from_uri(encoded(uri))
    if found.type_name not in ("s3", "gcs"):
        return found, path
    # pyarrow tells the options of a filesystem, but no address's, where it pickles one.
    ((options,),) = found.__reduce__()[1:2]
    if found.type_name == "gcs":
        options.pop("retry_time_limit", None)
        return _gcs(pickle.dumps(options), patience, _told("GOOGLE_", "STORAGE_EMULATOR_")), path
    return _s3(json.dumps(options, sort_keys=True), patience, _told("AWS_")), path


Told = tuple[tuple[str, str], ...]


def _told(*prefixes: str) -> Told:
    """What the environment says to clients, which read it by themselves."""
    return tuple(sorted(item for item in os.environ.items() if item[0].startswith(prefixes)))


@lru_cache(maxsize=16)
def _gcs(options: bytes, patience: Patience, told: Told) -> pafs.FileSystem:
    """The client of Google's store with these pickled options."""
    limit = timedelta(seconds=patience.limit_s)
    return pafs.GcsFileSystem(**pickle.loads(options) | {"retry_time_limit": limit})


@lru_cache(maxsize=16)
def _s3(options: str, patience: Patience, told: Told) -> pafs.S3FileSystem:
    """The client with these options; those of the environment (`told`) it reads by itself."""
    return pafs.S3FileSystem(
        **json.loads(options)
        | {
            "connect_timeout": patience.silence_s,
            "request_timeout": patience.silence_s,
            "retry_strategy": pafs.AwsStandardS3RetryStrategy(max_attempts=patience.attempts),
            # A small file is then written by one request, and not by the three of an upload in
            # parts.
            "allow_delayed_open": True,
        }
    )
