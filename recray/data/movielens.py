"""The MovieLens releases by name: fetched over https, checked, cached.

GroupLens permits research use and forbids redistribution of most of them; the README in each
archive has the binding text. Sizes and checksums are those of the official archives.
"""

import hashlib
import http.client
import os
import shutil
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from recray.errors import RecrayError, unknown_name
from recray.storage import UNFINISHED, storage_errors

ADDRESS = "https://files.grouplens.org/datasets/movielens"
LICENCE = (
    "GroupLens, University of Minnesota: research use, no commercial use without permission, "
    "no redistribution of most releases; the README in the archive is binding"
)


@dataclass(frozen=True)
class Release:
    """One archive.

    Args:
        name: Its name, and that of the folder on GroupLens's server.
        bytes: Size of the archive; 0 where the official one is not known.
        ratings: Ratings in it.
        users: Users who rated.
        items: Films that were rated.
        sha256: Of the official archive.
    """

    name: str
    bytes: int
    ratings: int
    users: int
    items: int
    sha256: str


RELEASES = {
    release.name: release
    for release in (
        Release(
            "ml-100k",
            4_924_029,
            100_000,
            943,
            1_682,
            "50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
        ),
        Release(
            "ml-1m",
            5_917_549,
            1_000_209,
            6_040,
            3_706,
            "a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
        ),
        Release(
            "ml-10m",
            65_566_137,
            10_000_054,
            69_878,
            10_677,
            "813c411ccb6122564edfe752e7f80c4dcc5aa25fa94c93622f6877a7ba252862",
        ),
        Release(
            "ml-20m",
            198_702_078,
            20_000_263,
            138_493,
            26_744,
            "96f243c338a8665f6bcc89c53edf6ee39162a846940de6b7c8c48aeada765ff3",
        ),
        Release(
            "ml-25m",
            261_978_986,
            25_000_095,
            162_541,
            59_047,
            "8b21cfb7eb1706b4ec0aac894368d90acf26ebdfb6aced3ebd4ad5bd1eb9c6aa",
        ),
        Release(
            "ml-32m",
            238_950_008,
            32_000_204,
            200_948,
            84_432,
            "e4a68655d7386b8f95f2f2424b2ff975dfdd15ffd59e0d864a14dca43e99d6ee",
        ),
        Release(
            "ml-latest-small",
            0,
            100_836,
            610,
            9_724,
            "696d65a3dfceac7c45750ad32df2c259311949efec81f0f144fdfb91ebc9e436",
        ),
    )
}


def cache_folder() -> Path:
    """Where downloads are kept: RECRAY_CACHE, or the user's cache folder."""
    chosen = os.environ.get("RECRAY_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "recray"


def release(name: str) -> Release:
    """A release by its name.

    Raises:
        RecrayError: There is none, with the nearest that there is.
    """
    if name not in RELEASES:
        raise unknown_name("release", name, RELEASES)
    return RELEASES[name]


def is_cached(name: str) -> bool:
    """Whether an archive of that name lies in the cache; fetch checks what it holds."""
    return (cache_folder() / f"{name}.zip").is_file()


def fetch(name: str, mirror: str | None = None, cache: Path | None = None) -> Path:
    """The release's archive on the local disk, downloaded once and checked each time.

    Args:
        name: A key of RELEASES.
        mirror: A folder or an https address that holds NAME.zip instead of GroupLens's own.
        cache: Where to keep it; cache_folder() by default.

    Raises:
        RecrayError: The name is unknown, the archive cannot be had, or it is not the official one.
    """
    wanted = release(name)
    target = (cache or cache_folder()) / f"{name}.zip"
    if target.is_file() and _sha256(target) == wanted.sha256:
        return target
    with storage_errors(str(target.parent)):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f"{UNFINISHED}{uuid.uuid4().hex[:8]}-{target.name}")
    try:
        _copy(f"{(mirror or ADDRESS).rstrip('/')}/{name}.zip", temporary, wanted)
        found = _sha256(temporary)
        if found != wanted.sha256:
            raise RecrayError(
                f"{name}.zip from {mirror or ADDRESS} has sha256 {found}; "
                f"the official archive has {wanted.sha256}"
            )
        with storage_errors(str(target)):
            os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


def download(address: str, cache: Path | None = None) -> Path:
    """A file of the user's own from the web, kept until the server says that it has changed.

    Args:
        address: An https:// or http:// address.
        cache: Where to keep it; cache_folder() by default.

    Raises:
        RecrayError: It cannot be had, or not whole.
    """
    with _reply(address) as reply:
        told = [reply.headers.get(name, "") for name in ("ETag", "Last-Modified", "Content-Length")]
        key = hashlib.sha256("\n".join([address, *told]).encode()).hexdigest()[:16]
        name = urllib.parse.urlparse(address).path.rstrip("/").rsplit("/", 1)[-1] or "download"
        target = (cache or cache_folder()) / "downloads" / key / name
        if target.is_file() and (told[0] or told[1]):
            return target
        with storage_errors(str(target.parent)):
            target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f"{UNFINISHED}{uuid.uuid4().hex[:8]}-{name}")
        try:
            _save(reply, temporary, int(told[2] or 1 << 40))
            if told[2] and temporary.stat().st_size < int(told[2]):
                raise RecrayError(f"{address}: the connection ended before the file did")
            with storage_errors(str(target)):
                os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    return target


@contextmanager
def _reply(address: str) -> Iterator[http.client.HTTPResponse]:
    try:
        with urllib.request.urlopen(address, timeout=60) as reply:
            yield reply
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        reason = getattr(error, "reason", error)
        raise RecrayError(
            f"cannot download {address}: {reason}; give --mirror, or the path of an archive"
        ) from error


def _copy(address: str, target: Path, release: Release) -> None:
    limit = release.bytes or 10_000_000
    if "://" not in address:
        if not Path(address).is_file():
            raise RecrayError(f"no such file: {address}")
        with storage_errors(str(target)):
            shutil.copyfile(address, target)
        return
    if not address.startswith("https://"):
        raise RecrayError(f"--mirror {address}: give a folder or an https:// address")
    with _reply(address) as reply:
        _save(reply, target, limit)


def _save(reply: BinaryIO, target: Path, limit: int) -> None:
    """Write what comes; an OSError of the disk is told apart from one of the network."""
    with storage_errors(str(target)):
        out = open(target, "wb")  # noqa: SIM115 - only opening and writing are the disk's
    with out:
        size = 0
        while block := reply.read(1 << 20):
            size += len(block)
            if size > limit:
                raise RecrayError(f"{target.name}: more than the expected {limit:,} bytes come")
            with storage_errors(str(target)):
                out.write(block)


def _sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
