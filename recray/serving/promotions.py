"""The promotions of a registry: numbered files, each written once, the newest of which counts.

REGISTRY/promotions/000001.json    {"version", "before": [...]}, and so on; never replaced
REGISTRY/claims/                   who is about to write the next one, in a store alone
REGISTRY/current.json              of registries made before these files: counts as number 0

To promote is to write the number after the one that was read, so of two that read the same one
only one succeeds. A disk has link(2), which makes a name that must not exist yet. A store has no
such request that pyarrow.fs offers: see Promotions._write_claimed.
"""

import contextlib
import json
import os
import random
import socket
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ValidationError

from recray.errors import RecrayError, StorageError
from recray.storage import UNFINISHED, Folder, PolledFile, is_uri, storage_errors

PROMOTIONS, CLAIMS, BEFORE_NUMBERS = "promotions", "claims", "current.json"
CLAIM_ATTEMPTS, CLAIM_SECONDS = 6, 0.2
"""How often a store's lock is asked for, and the longest wait after the first attempt, which
doubles: about 6 s in all.
"""


class Pointer(BaseModel):
    """Content of a promotion: the current version, and those before it, oldest first."""

    version: str | None
    before: list[str]


class Overtaken(RecrayError):
    """Somebody else has written the next promotion."""


class Promotions:
    """Reads the newest promotion, again and again, and writes the next one.

    Args:
        registry: Folder of the registry.
    """

    def __init__(self, registry: Folder) -> None:
        self.registry, self.folder = registry, registry.child(PROMOTIONS)
        self._newest: tuple[int, PolledFile[Pointer]] | None = None

    def read(self) -> tuple[int, Pointer]:
        """The newest promotion and its number; 0 and no version where there is none.

        After the first time it costs two looks, at the file that was the newest and at the name
        of the next one.

        Raises:
            DamagedFile: It names no version.
            RecrayError: It cannot be read.
        """
        found = self._known() or self._searched()
        while found is not None:
            number, pointer = found
            following = self._file(number + 1)
            value = following.read()
            if value is None:
                return number, pointer
            self._newest = number + 1, following
            found = number + 1, value
        return 0, Pointer(version=None, before=[])

    def write(self, number: int, pointer: Pointer) -> None:
        """Write the promotion of a number; every reader sees it when this returns.

        Raises:
            Overtaken: It has been written by somebody else; nothing has changed.
            StorageError: The disk is full, read-only or not permitted.
        """
        content = json.dumps(pointer.model_dump(), indent=1).encode()
        if is_uri(self.registry.path):
            self._write_claimed(number, content)
        else:
            self._link(number, content)

    def _known(self) -> tuple[int, Pointer] | None:
        """What was the newest at the last look; None if it is gone, as after a restore."""
        if self._newest is None:
            return None
        number, file = self._newest
        value = file.read()
        return None if value is None else (number, value)

    def _searched(self) -> tuple[int, Pointer] | None:
        names = [name.removesuffix(".json") for name in self.folder.files(recursive=False)]
        number = max((int(name) for name in names if name.isdecimal()), default=0)
        self._newest = number, self._file(number)
        return self._known()

    def _file(self, number: int) -> PolledFile[Pointer]:
        if not number:
            return PolledFile(self.registry, BEFORE_NUMBERS, _parse)
        return PolledFile(self.folder, _name(number), _parse)

    def _overtaken(self) -> Overtaken:
        return Overtaken(
            f"{self.registry}: another version was promoted, or rolled back to, meanwhile; nothing "
            "was changed: see `recray registry list`, and try again"
        )

    def _link(self, number: int, content: bytes) -> None:
        """Give the number's name to a finished file: the system refuses a name that is taken."""
        temporary = f"{UNFINISHED}{uuid.uuid4().hex}"
        inner = Path(self.folder.path)
        try:
            self.folder.write_bytes(temporary, content)
            with storage_errors(self.folder.path):
                try:
                    os.link(inner / temporary, inner / _name(number))
                except FileExistsError as error:
                    raise self._overtaken() from error
        finally:
            with contextlib.suppress(OSError):
                (inner / temporary).unlink()

    def _write_claimed(self, number: int, content: bytes) -> None:
        """Write the number while no other process may, in a store that lists what was put.

        A write whose end is unknown may still arrive, so it keeps its claim, and the registry
        takes no promotion before somebody has looked. If it arrives, it has the same content.
        """
        with self._claimed() as claim:
            if self.folder.exists(_name(number)):
                raise self._overtaken()
            try:
                self.folder.write_bytes(_name(number), content)
            except StorageError as error:
                raise StorageError(
                    f"{error}; the promotion may have arrived: see `recray registry list`, then "
                    f"remove {self.registry}/{CLAIMS}/{claim}, which keeps others from promoting"
                ) from error

    @contextlib.contextmanager
    def _claimed(self) -> Iterator[str]:
        """Hold the store's lock; yields the name of the claim.

        Each process puts a claim of its own name, and then lists all claims. It goes on only if it
        sees no other. Of two processes the one whose PUT ended later lists after both PUTs, so it
        sees the other's claim, unless that one has removed it after its work: never do both go on.
        This needs a store that lists at once what was put (S3, GCS, Azure, MinIO). Nobody's claim
        ever runs out: time does not tell a slow process from a dead one.
        """
        claims = self.registry.child(CLAIMS)
        who = {"host": socket.gethostname(), "process": os.getpid()}
        for attempt in range(CLAIM_ATTEMPTS):
            name = f"{uuid.uuid4().hex}.json"  # a new one: a late DELETE must not take it away
            since = datetime.now(UTC).isoformat(timespec="seconds")
            claims.write_json(name, {**who, "since": since})
            others = [other for other in claims.files(recursive=False) if other != name]
            if not others:
                break
            claims.delete(name)
            time.sleep(random.uniform(0, CLAIM_SECONDS * 2**attempt))
        else:
            raise RecrayError(self._is_claimed(claims, others[0]))
        try:
            yield name
        except StorageError:
            raise
        except BaseException:
            claims.delete(name)
            raise
        claims.delete(name)

    def _is_claimed(self, claims: Folder, name: str) -> str:
        by = claims.find_json(name) or {}
        owner = " ".join(f"{fact} {value}" for fact, value in by.items()) or "just ended"
        return (
            f"{self.registry}: another promotion is under way ({owner}); try again, or, if that "
            f"process has died, remove {claims}/{name}"
        )


def _name(number: int) -> str:
    return f"{number:06}.json"


def _parse(content: bytes) -> Pointer:
    """Read the content of a promotion.

    Raises:
        ValueError: It names no version.
    """
    try:
        return Pointer.model_validate_json(content)
    except ValidationError as error:
        raise ValueError(f"it names no version: {error.errors()[0]['msg']}") from error
