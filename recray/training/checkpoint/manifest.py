"""What the manifest of a checkpoint says, and how its files are read by it.

    shared.safetensors                    items, layers, what the runner shares, and losses
    users-00001-of-00004.safetensors      rows of the users of worker 1 of 4, one part after another
    manifest.json                         the state, every file, and where each part's rows lie

Checkpoints of format 1 have all rows in weights.safetensors and optimizer.safetensors, and the
state in state.json. They are read, and no longer written.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor

from recray.errors import DamagedFile, RecrayError
from recray.storage import MANIFEST, UNFINISHED, Folder, Manifest, ManifestEntry, is_uri
from recray.storage.tensors import DTYPES
from recray.training.checkpoint.content import (
    STATE_OF,
    TrainState,
)
from recray.training.checkpoint.files import (
    NAMES,
    Section,
    verify_file,
)

FORMAT, OLD_FORMAT = 2, 1
"""Versions of checkpoints that are read; the first is written."""
IDS, WEIGHTS, LOSSES = "ids", "weights/", "losses"
HEADER = -1
SHARED, STATE = "shared.safetensors", "state.json"


class PartRows(BaseModel):
    """Where the rows of a part lie in a file.

    Args:
        part: Number of the part; HEADER for the head of the file, which has no rows.
        rows: Its users.
        begin: The first byte.
        end: The one after the last.
        sha256: Digest of these bytes.
    """

    part: int
    rows: int
    begin: int
    end: int
    sha256: str

    @property
    def section(self) -> Section:
        """The bytes."""
        return Section(self.begin, self.end, self.sha256)


class Column(BaseModel):
    """Kind of the numbers of a tensor with a row for each user, and the shape of a row."""

    dtype: str
    shape: list[int]

    @classmethod
    def of(cls, tensor: Tensor) -> "Column":
        """That of a tensor."""
        return cls(dtype=NAMES[tensor.dtype], shape=list(tensor.shape[1:]))

    def empty(self, rows: int) -> Tensor:
        """A tensor of so many rows, to be filled."""
        return torch.empty(rows, *self.shape, dtype=DTYPES[self.dtype])

    def zeros(self, rows: int) -> Tensor:
        """The same with zeros."""
        return torch.zeros(rows, *self.shape, dtype=DTYPES[self.dtype])


class UserFiles(BaseModel):
    """The rows of users in the files of a checkpoint.

    Args:
        users: Rows of a table of all users.
        columns: The tensors, in the order in which each part has them.
        files: By name: the parts, in the order in which they lie there.
    """

    users: int
    columns: dict[str, Column]
    files: dict[str, list[PartRows]]


class CheckpointManifest(BaseModel):
    """The content of manifest.json.

    Args:
        format: Version of the checkpoint.
        state: How far the run had come.
        files: Every other file.
        users: Where the rows of users lie; None where the model has none.
    """

    format: int
    state: TrainState
    files: list[ManifestEntry]
    users: UserFiles | None = None

    def content(self) -> dict[str, Any]:
        """What is written: also a digest of all else, since no other file vouches for this one."""
        facts = self.model_dump(exclude={"state"}) | {"state": asdict(self.state)}
        facts |= {"kind": "checkpoint", "epoch": self.state.epoch}
        return facts | {"sha256": _digest(facts)}

    def entry(self, name: str) -> ManifestEntry:
        """That of a file."""
        return next(entry for entry in self.files if entry.name == name)


class StoredCheckpoint(NamedTuple):
    """A checkpoint in a folder of checkpoints."""

    name: str
    manifest: CheckpointManifest

    @property
    def state(self) -> TrainState:
        """How far the run had come."""
        return self.manifest.state


class CheckpointList(NamedTuple):
    """What lies in a folder of checkpoints.

    Args:
        whole: Those with a manifest, newest first.
        damaged: Those whose manifest is damaged or lost, and the error.
        unfinished: What a writer has left half written, or is writing.
    """

    whole: list[StoredCheckpoint]
    damaged: dict[str, RecrayError]
    unfinished: list[str]


def _digest(facts: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def parse_manifest(content: Any, path: str) -> CheckpointManifest:
    """Read the content of a manifest of the newest format.

    Raises:
        DamagedFile: It is not what was written.
    """
    given = dict(content)
    if given.pop("sha256", None) != _digest(given):
        raise DamagedFile(f"{path} is damaged: its digest is another one")
    refuse_format(given.get("format"), path, FORMAT)
    try:
        return CheckpointManifest.model_validate(given)
    except ValidationError as error:
        raise DamagedFile(f"{path} is damaged") from error


def list_checkpoints(folder: Folder) -> CheckpointList:
    """Look for the checkpoints of a run; only their manifests are read.

    Args:
        folder: RUN/checkpoints.

    Raises:
        RecrayError: The folder, or a manifest, cannot be read, or is of another version.
    """
    found = CheckpointList([], {}, [])
    for name in folder.folders():
        one = folder.child(name)
        if name.startswith(UNFINISHED) or (is_uri(one.path) and not one.published()):
            found.unfinished.append(name)
            continue
        try:
            found.whole.append(StoredCheckpoint(name, _read_manifest(one)))
        except DamagedFile as error:
            found.damaged[name] = error
    found.whole.sort(key=lambda it: (it.state.epoch, it.state.step, it.name), reverse=True)
    return found


def _read_manifest(folder: Folder) -> CheckpointManifest:
    if not folder.published():
        raise DamagedFile(f"{folder} has no {MANIFEST}")
    content = folder.read_json(MANIFEST)
    given = content if isinstance(content, dict) else {}
    if "sha256" in given:
        return parse_manifest(given, f"{folder}/{MANIFEST}")
    refuse_format(given.get("format"), str(folder), OLD_FORMAT)
    files = Manifest.parse(content, f"{folder}/{MANIFEST}").files
    state = next((entry for entry in files if entry.name == STATE), None)
    if state is None:
        raise DamagedFile(f"{folder}/{MANIFEST} is damaged: it lists no {STATE}")
    verify_file(folder, state)
    try:
        known = STATE_OF.validate_python(folder.read_json(STATE))
    except ValidationError as error:
        raise DamagedFile(f"{folder}/{STATE} is damaged") from error
    return CheckpointManifest(format=OLD_FORMAT, state=known, files=files)


def refuse_format(found: object, path: str, expected: int) -> None:
    """Refuse a run or a checkpoint that another version of recray wrote.

    Raises:
        RecrayError: Its format is another one.
    """
    if isinstance(found, int) and found != expected:
        raise RecrayError(
            f"{path} was written by another version of recray: format {found}, this one reads "
            f"{expected}; train again, or use that version"
        )
