"""Versions of a bundle, one of them current; promoted through a gate, rolled back in one step.

REGISTRY/versions/<version>/    bundles, never changed
REGISTRY/promotions/            which of them is current, and was: see promotions.py
"""

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial

from pydantic import BaseModel, Field

from recray.data.ids import RawId
from recray.errors import CheckFailed, RecrayError, unknown_name
from recray.evaluation.promotion import check_not_worse
from recray.inference.bundle import KIND, Bundle, current_bundle
from recray.inference.bundle_checks import check_facts
from recray.serving.forgotten import refuse_forgotten
from recray.serving.promotions import PROMOTIONS, Overtaken, Pointer, Promotions
from recray.storage import (
    MANIFEST,
    UNFINISHED,
    Folder,
    FolderExists,
    check_store,
    current_of,
    publish,
)

VERSIONS = "versions"
VERSION = re.compile(r"[0-9a-f]{12}")
REMOVED = f"{UNFINISHED}removed"
"""File in the folder of a version that somebody has begun to delete."""
REPLACE_ATTEMPTS = 5


class RegistryEntry(BaseModel):
    """One version in a registry; of one that cannot be read nothing but its name is known."""

    version: str
    dataset: str | None = None
    preset: str | None = None
    created: str | None = Field(None, description="ISO 8601.")
    current: bool
    unreadable: str | None = Field(None, description="Why it cannot be read.")


class VersionList(BaseModel):
    """The versions of a registry."""

    versions: list[RegistryEntry]


class Rollback(BaseModel):
    """A version that has become current, and the one that was."""

    version: str
    before: str | None


class Promotion(Rollback):
    """A promoted version, with its comparison to the version before in words."""

    verdict: str


@dataclass(frozen=True)
class AddedVersion:
    """A version that was added: whether it is current now, and why.

    `before` is the version that was current; None where nothing was promoted, or nothing was.
    """

    version: str
    promoted: bool
    verdict: str
    before: str | None = None


class Registry:
    """A registry on a disk or an object store.

    Args:
        path: Local path or URI; the first `add` makes the folder.
    """

    def __init__(self, path: str) -> None:
        self.folder = Folder(path)
        self._promotions = Promotions(self.folder)

    def add(self, bundle_path: str) -> str:
        """Copy a bundle in, checking every file; return its version. Adding it again is fine.

        Each file is read once: what is compared with its digest is what is written. Who was
        forgotten is looked for at the begin and at the end, in these very files.

        Raises:
            RecrayError: The folder is no bundle, or is damaged.
        """
        source, manifest = current_bundle(Folder(bundle_path))
        version = str(manifest.facts["version"])
        target = self.folder_of(version)
        users = cache(partial(_users_of, source))
        refuse_forgotten(self.folder, users, bundle_path)
        if target.published():
            source.compare(manifest)
            return version
        with contextlib.suppress(FolderExists), publish(target) as folder:  # added twice at once
            for entry in manifest.files:
                folder.write_bytes(entry.name, source.read_verified(entry))
            folder.write_manifest(KIND, manifest.facts)
            refuse_forgotten(self.folder, users, bundle_path)
        return version

    def remove(self, version: str) -> None:
        """Delete a version. What a killed process has left of it, `end_removals` deletes."""
        folder = self.folder_of(version)
        folder.write_bytes(REMOVED, b"")
        folder.delete(MANIFEST)
        for name in folder.folders():
            folder.delete_folder(name)
        for name in folder.files(recursive=False):
            if name != REMOVED:
                folder.delete(name)
        folder.delete()

    def end_removals(self) -> None:
        """Delete what is left of versions that somebody has begun to delete."""
        for version in self.folder.child(VERSIONS).folders():
            if self.folder_of(version).exists(REMOVED):
                self.remove(version)

    def folder_of(self, version: str) -> Folder:
        """Return the folder of a version."""
        return self.folder.child(VERSIONS).child(version)

    def versions(self) -> list[RegistryEntry]:
        """List the versions, oldest first, and at the end those that cannot be read.

        Raises:
            RecrayError: The folder is no registry.
        """
        if not self.folder.exists(VERSIONS):
            raise RecrayError(f"no registry at {self.folder}; `recray registry add` makes one")
        current = self._promotions.read()[1].version
        names = self.folder.child(VERSIONS).folders()
        entries = [entry for name in names if (entry := self._entry(name, current)) is not None]
        return sorted(entries, key=lambda one: (one.created is None, one.created or ""))

    def _entry(self, version: str, current: str | None) -> RegistryEntry | None:
        """What is known of a version; None if nobody has finished it, or somebody deletes it."""
        folder, held = self.folder_of(version), {"version": version, "current": version == current}
        try:
            _, manifest = current_of(folder, KIND, "recray export")
            check_facts(manifest, folder.at(MANIFEST))
            return RegistryEntry.model_validate({**manifest.facts, **held})
        except RecrayError as error:
            if not folder.published():
                return None
            return RegistryEntry.model_validate({**held, "unreadable": str(error)})

    def _checked(self, pointer: Pointer) -> tuple[str, list[str]]:
        if pointer.version is None:
            raise RecrayError(
                f"{self.folder} has no current version; use `recray registry promote`"
            )
        for name in (pointer.version, *pointer.before):
            if not VERSION.fullmatch(name):  # it becomes a part of a path
                raise RecrayError(f"{self.folder}/{PROMOTIONS} names {name!r}, which is no version")
        return pointer.version, pointer.before

    def pointer(self) -> tuple[str, list[str]]:
        """Return the current version, and those before it, oldest first.

        Raises:
            RecrayError: No version has been promoted, or the registry cannot be read.
        """
        return self._checked(self._promotions.read()[1])

    def current(self) -> Folder:
        """Return the folder of the current version.

        Raises:
            RecrayError: No version has been promoted.
        """
        return self.folder_of(self.pointer()[0])

    def add_and_promote(self, bundle_path: str, force: bool = False) -> AddedVersion:
        """Add a bundle, and make it current unless it is worse than the version that is.

        Raises:
            RecrayError: The bundle is damaged, or has seen the current one's hold-out in training.
        """
        version = self.add(bundle_path)
        try:
            promotion = self.promote(version, force)
        except CheckFailed as error:
            return AddedVersion(version, False, str(error))
        return AddedVersion(version, True, promotion.verdict, promotion.before)

    def promote(self, version: str, force: bool = False) -> Promotion:
        """Make a version current, unless it is worse than the one that is current now.

        Args:
            version: A version of this registry.
            force: Promote it without a comparison.

        Raises:
            CheckFailed: The version is worse on the current one's hold-out.
            RecrayError: The version is unknown, or has seen that hold-out in training.
            Overtaken: Another version became current during the comparison; nothing has changed.
        """
        known = {entry.version: entry.unreadable for entry in self.versions()}
        if version not in known:
            raise unknown_name("version", version, list(known) or ["none yet"])
        if known[version] is not None:
            raise RecrayError(f"version {version} cannot be read: {known[version]}")
        number, pointer = self._promotions.read()
        current = pointer.version
        if current == version:
            return Promotion(version=version, before=current, verdict="is current already")
        if current is None:
            verdict = "first version"
        elif force:
            verdict = "forced"
        else:
            verdict = self._compared(version, self._checked(pointer)[0])
        earlier = pointer.before if current is None else [*pointer.before, current]
        self._promotions.write(number + 1, Pointer(version=version, before=earlier))
        return Promotion(version=version, before=current, verdict=verdict)

    def _compared(self, version: str, current: str) -> str:
        candidate, live = (Bundle.open(self.folder_of(v).path) for v in (version, current))
        return check_not_worse(candidate, live)

    def replace_versions(self, names: Mapping[str, str]) -> None:
        """Put other versions in the places of some, also of those that were current before.

        Raises:
            Overtaken: Others promote all the time; nothing has changed.
        """
        for attempt in range(REPLACE_ATTEMPTS):
            number, pointer = self._promotions.read()
            current = pointer.version and names.get(pointer.version, pointer.version)
            new = Pointer(version=current, before=[names.get(one, one) for one in pointer.before])
            if new == pointer:
                return
            try:
                self._promotions.write(number + 1, new)
                return
            except Overtaken:
                if attempt == REPLACE_ATTEMPTS - 1:
                    raise

    def rollback(self) -> Rollback:
        """Make the version before the current one current again.

        Raises:
            RecrayError: No version was current before.
            Overtaken: Another version became current meanwhile; nothing has changed.
        """
        number, pointer = self._promotions.read()
        if not pointer.before:
            raise RecrayError(f"{self.folder} has no earlier version to go back to")
        *earlier, version = pointer.before
        self._promotions.write(number + 1, Pointer(version=version, before=earlier))
        return Rollback(version=version, before=pointer.version)


def _users_of(source: Folder) -> list[RawId]:
    raw: list[RawId] = Bundle.open(source).user_ids.raw.tolist()
    return raw


def is_registry(path: str) -> bool:
    """Whether the folder is a registry and not a bundle."""
    folder = Folder(path)
    return folder.exists(VERSIONS) and not folder.published()


def resolve_bundle(path: str) -> str:
    """Return the path of a bundle as it is, and that of a registry's current version.

    Raises:
        RecrayError: Its store cannot be reached, as is seen within 10 s; the registry is damaged.
    """
    check_store(path, to_write=False)
    return Registry(path).current().path if is_registry(path) else path
