"""Removes a user from a registry and its ratings log, and keeps the user from coming back.

Every release is written again without the user, under a version of its own, and the old ones are
deleted; so one can still go back to an earlier release, and none of them knows the user.
"""

import contextlib
import secrets
import time
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, Field

from recray.data.feedback import SNAPSHOTS
from recray.data.feedback_events import LoggedRating
from recray.data.feedback_log import LEVELS, LogWriter, RatingsLog
from recray.data.ids import RawId
from recray.errors import DamagedFile, RecrayError
from recray.inference.bundle import Bundle
from recray.inference.bundle_without import write_without
from recray.serving.forgotten import Forgotten
from recray.serving.registry import VERSIONS, Registry
from recray.storage import Folder, is_uri

LOCAL_PAUSE_SECONDS, STORE_PAUSE_SECONDS = 2.0, 12.0
"""Until every replica has seen in the log that the user's ratings are taken back, and has ended
what it was putting together.
"""


class ForgottenUser(BaseModel):
    """What was removed of a user."""

    registry: str
    ratings: int = Field(description="Events of the user that the ratings log held.")
    parts: int = Field(description="Parts of the log that were written again.")
    versions: dict[str, str] = Field(
        description="Versions that were written again without the user: the old and the new name."
    )
    damaged_parts: list[str] = Field(description="Parts that nobody can read; they are deleted.")

    def text(self) -> str:
        """What was removed, in words."""
        lines = [f"log: {self.ratings:,} ratings, {self.parts} parts written again"]
        lines += [f"log: {name} was damaged and is deleted" for name in self.damaged_parts]
        releases = self.versions.items()
        lines += [f"release {old} is {new} now, without the user" for old, new in releases]
        return "\n".join(lines)


@dataclass
class _InLog:
    """What a log held of a user."""

    ratings: int = 0
    parts: int = 0
    damaged: list[str] = field(default_factory=list)


def forget(path: str, written: str, ratings_log: str | None = None) -> ForgottenUser:
    """Remove a user from a registry, from all its releases, and from its ratings log.

    Args:
        path: The registry.
        written: The user's id as somebody writes it.
        ratings_log: Folder of the log; None: the registry's own, if there is one.

    Raises:
        RecrayError: There is no registry, neither it nor the log knows such a user, or a release
            is damaged.
    """
    registry = Registry(path)
    if registry.folder.exists(VERSIONS):
        registry.end_removals()
    versions = _readable(registry)
    if not versions:
        raise RecrayError(f"{path} has no version")
    ids = Bundle.open(registry.folder_of(versions[-1]).path).user_ids
    try:
        user = ids.parse(written)
    except KeyError as error:
        raise RecrayError(f"no user {written!r}: the users of {path} are numbers") from error
    log_folder = Folder(ratings_log) if ratings_log else registry.folder.child("ratings")
    log = RatingsLog.open(log_folder.path) if log_folder.exists() or ratings_log else None
    forgotten = Forgotten(registry.folder)
    if not (forgotten.among([user]) or _is_known(registry, versions, log, user)):
        raise RecrayError(f"no user {written!r} in {path} or its ratings log")
    forgotten.add(user)
    found = _InLog() if log is None else _clean_log(log, user)
    made = _rewrite(registry, user)
    if not Forgotten(registry.folder).among([user]):  # another one was written at that moment
        Forgotten(registry.folder).add(user)
    return ForgottenUser(
        registry=path,
        ratings=found.ratings,
        parts=found.parts,
        damaged_parts=found.damaged,
        versions=made,
    )


def _readable(registry: Registry) -> list[str]:
    """All versions, oldest first.

    Raises:
        RecrayError: One cannot be read, and may hold the user.
    """
    entries = registry.versions()
    for one in entries:
        if one.unreadable is not None:
            raise RecrayError(
                f"version {one.version} cannot be read, and may hold the user: repair it or "
                f"remove {registry.folder_of(one.version)} first ({one.unreadable})"
            )
    return [one.version for one in entries]


def _rewrite(registry: Registry, user: RawId) -> dict[str, str]:
    """Write all versions again that know the user, and put them in the place of the old ones.

    Versions may come meanwhile, of others who forget somebody as well: each is looked at once.
    """
    made: dict[str, str] = {}
    seen: set[str] = set()
    while True:
        versions = [version for version in _readable(registry) if version not in seen]
        if not versions:
            return made
        found = {version: _without(registry, version, user) for version in versions}
        now = {version: new for version, new in found.items() if new is not None}
        registry.replace_versions(now)
        for version in now:
            registry.remove(version)
        made |= now
        seen.update(versions)


def _without(registry: Registry, version: str, user: RawId) -> str | None:
    """The version without the user; None where it has never known the user, or is gone."""
    folder = registry.folder_of(version)
    try:
        return write_without(folder.path, user, registry.folder_of)
    except RecrayError:
        if folder.published():
            raise
        return None


def _is_known(registry: Registry, versions: list[str], log: RatingsLog | None, user: RawId) -> bool:
    bundles = (Bundle.open(registry.folder_of(version).path) for version in versions)
    found = any(bundle.user_ids.encode_one(user) >= 0 for bundle in bundles)
    return found or (log is not None and _holds(log, user))


def _holds(log: RatingsLog, user: RawId) -> bool:
    """Whether any event of the log is of the user."""
    for name in log.names():
        with contextlib.suppress(DamagedFile):
            part = log.read_part(name)
            if part is not None and pc.any(_own(part, user)).as_py():
                return True
    return False


def _own(part: pa.Table, user: RawId) -> pa.ChunkedArray:
    """Which events are of the user."""
    return pc.equal(part["user"], pa.scalar(user, part.schema.field("user").type))


def _clean_log(log: RatingsLog, user: RawId) -> _InLog:
    """Remove a user's events.

    Replicas first see that all is taken back. What one of them was putting together meanwhile may
    hold the user once more, so the parts are looked at until twice nothing is found.
    """
    writer, found, clean = LogWriter(log), _InLog(), 0
    now = time.time_ns() // 1000
    writer.append([LoggedRating(user, None, None, secrets.token_hex(8), now)])
    pause = STORE_PAUSE_SECONDS if is_uri(log.folder.path) else LOCAL_PAUSE_SECONDS
    while clean < 2:
        time.sleep(pause)
        before = found.parts
        _sweep(log, writer, user, now, found)
        clean = clean + 1 if found.parts == before else 0
    log.folder.delete(SNAPSHOTS)
    return found


def _sweep(log: RatingsLog, writer: LogWriter, user: RawId, until: int, found: _InLog) -> None:
    """Write each part that has events of the user again without them."""
    for name in log.names():
        try:
            part = log.read_part(name)
        except DamagedFile:  # it may hold the id, and no training reads it
            log.folder.delete(name)
            found.damaged.append(name)
            continue
        if part is None:
            continue
        own = pc.and_(_own(part, user), pc.less_equal(part["received"], until))
        mine = part.filter(own)
        if len(mine):
            writer.together([name], LEVELS + 1, [part.filter(pc.invert(own))])
            found.ratings += len(mine) - mine["rating"].null_count
            found.parts += 1
