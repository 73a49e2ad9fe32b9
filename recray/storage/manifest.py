"""The manifest, which lists the files of a published folder and says where they lie."""

import hashlib
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Annotated, Any, Self

import pyarrow as pa
from pydantic import BaseModel, Field, JsonValue, ValidationError

from recray.errors import DamagedFile, RecrayError

MANIFEST = "manifest.json"
MANIFEST_BYTES = 32 << 20
"""Bytes that it may have: enough for the names and digests of 200,000 files."""
GENERATION = "generation-"
"""First characters of the names of folders inside a published one, as whose files it appears."""
_Generation = Annotated[str, Field(pattern=f"^{GENERATION}[0-9a-f]{{12}}$")]


class ManifestEntry(BaseModel):
    """A file that a manifest lists, by its path below the folder."""

    name: str
    bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


def manifest_entry(name: str, content: bytes | pa.Buffer) -> ManifestEntry:
    """The entry of a file with that content."""
    digest = hashlib.sha256(content).hexdigest()
    return ManifestEntry(name=name, bytes=len(content), sha256=digest)


class Manifest(BaseModel, extra="allow"):
    """What `manifest.json` says: the kind of the folder, facts of that kind, and every file."""

    kind: str | None = None
    files: list[ManifestEntry]

    @property
    def facts(self) -> dict[str, JsonValue]:
        """All but the kind and the files."""
        return self.model_extra or {}

    @classmethod
    def parse(cls, content: JsonValue, path: str) -> Self:
        """Read the content of a manifest.

        Raises:
            RecrayError: It does not list its files, or names one outside of its folder.
        """
        try:
            manifest = cls.model_validate(content)
        except ValidationError as error:
            where = ".".join(map(str, error.errors()[0]["loc"])) or "the whole"
            reason = error.errors()[0]["msg"]
            raise DamagedFile(f"{path} is damaged: {where}: {reason}") from error
        for name in manifest.named():
            parts = name.split("/")
            if not all(parts) or {".", ".."} & set(parts) or "\\" in name:
                raise RecrayError(f"{path} names a file outside: {name!r}")
        return manifest

    def named(self) -> Iterator[str]:
        """The names of all files that it says something of."""
        return (entry.name for entry in self.files)


class Pointer(Manifest):
    """The manifest of a folder in a store, whose files lie in a folder inside.

    Args:
        generation: That folder; names of files begin with it.
        before: The one whose place it took; None for the first. Who had opened it reads on.
        flat: The names of the files whose place it took where these lay in the folder itself, as
            after a copy from a disk. They stay as long as `before` would.
    """

    generation: _Generation
    before: _Generation | None = None
    flat: list[str] = []

    def named(self) -> Iterator[str]:
        """See Manifest."""
        return chain(super().named(), self.flat)

    def inside(self, path: str) -> Manifest:
        """The manifest that lies beside the files.

        Raises:
            DamagedFile: It names files elsewhere; the message says the path.
        """
        start = f"{self.generation}/"
        for entry in self.files:
            if not entry.name.startswith(start):
                raise DamagedFile(f"{path} is damaged: {entry.name} is not in {self.generation}")
        files = [e.model_copy(update={"name": e.name.removeprefix(start)}) for e in self.files]
        return Manifest(kind=self.kind, files=files, **self.facts)


def pointing(
    generation: str, content: Mapping[str, Any], before: Manifest | None
) -> dict[str, JsonValue]:
    """The content of a Pointer.

    Args:
        generation: The folder inside whose files are whole.
        content: The manifest that lies there.
        before: The manifest whose place it takes; None where nothing was published.
    """
    files = [one | {"name": f"{generation}/{one['name']}"} for one in content["files"]]
    last: dict[str, JsonValue] = {"before": None, "flat": []}
    if isinstance(before, Pointer):
        last["before"] = before.generation
    elif before is not None:
        last["flat"] = [entry.name for entry in before.files]
    return {**content, "generation": generation, **last, "files": files}


def parse_manifest(content: JsonValue, path: str) -> Manifest:
    """Read the content of a manifest; a Pointer where the files lie in a folder inside.

    Raises:
        RecrayError: As Manifest.parse.
    """
    points = isinstance(content, dict) and "generation" in content
    return (Pointer if points else Manifest).parse(content, path)
