"""What a bundle of somebody else says is compared with what it holds, before memory is given to it.

A few bytes can claim anything: two billion users in config.json, say, or be a link to another file.
Each of these is refused in one line. `checked_tables` has the same of tables.
"""

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, JsonValue, ValidationError
from torch import Tensor

from recray.errors import DamagedFile, RecrayError
from recray.models.base import Model
from recray.storage import Folder, Manifest, is_uri

JSON_BYTES = 16 << 20
"""Bytes that a JSON file of a bundle may have."""

Checked = TypeVar("Checked", bound=BaseModel)
Count = Annotated[int, Field(ge=1, lt=2**31)]
Counts = dict[str, Annotated[int, Field(ge=0)]]


class _Checked(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class _FoldIn(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    noise: FiniteFloat = 1.0
    prior_strength: FiniteFloat = 0.0


class _Config(_Checked):
    """config.json; what older bundles lack may be missing."""

    dataset: str
    settings: dict[str, JsonValue]
    users: Count
    items: Count
    rating_range: Annotated[list[FiniteFloat], Field(min_length=2, max_length=2)]
    fold_in: _FoldIn
    fingerprints: dict[str, str]
    epoch: int = 1
    run: dict[str, JsonValue] = {}
    valid: dict[str, JsonValue] = {}
    split: dict[str, JsonValue] = {}
    splits: dict[str, dict[str, JsonValue]] = {}
    unseen: Counts = {}


class _Facts(_Checked):
    """What the manifest of a bundle says beside its files."""

    dataset: str | None = None
    preset: str | None = None
    created: str | None = None


class _Metrics(_Checked):
    """metrics.json, as far as it is shown."""

    metrics: dict[str, JsonValue] = {}
    baselines: dict[str, JsonValue] = {}
    verdict: str | None = None


def check_config(config: object, path: str) -> None:
    """Compare config.json with what it must hold.

    Raises:
        DamagedFile: A key is missing, or its value is of another type or out of range.
    """
    low, high = checked(_Config, config, path).rating_range
    if low > high:
        raise DamagedFile(f"{path} is damaged: rating_range: {low:g} is above {high:g}")


def check_facts(manifest: Manifest, path: str) -> None:
    """Compare what a bundle's manifest says with the types that are read of it.

    Raises:
        DamagedFile: A value is of another type, or a JSON file is too large.
    """
    checked(_Facts, manifest.facts, path)
    for entry in manifest.files:
        if entry.name.endswith(".json") and entry.bytes > JSON_BYTES:
            raise DamagedFile(
                f"{path}: {entry.name} has {entry.bytes:,} bytes, {JSON_BYTES:,} are allowed"
            )


def check_results(metrics: JsonValue, training: JsonValue, path: str) -> None:
    """Compare metrics.json and training.json with the types that are shown of them.

    Raises:
        DamagedFile: A value is of another type.
    """
    checked(_Metrics, metrics, f"{path}/metrics.json")
    if not isinstance(training, list) or not all(isinstance(epoch, dict) for epoch in training):
        raise DamagedFile(f"{path}/training.json is damaged: it is no list of epochs")


def checked(model: type[Checked], value: object, path: str) -> Checked:
    """What a JSON file says, as that model.

    Raises:
        DamagedFile: A key is missing, or its value is of another type or out of range.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        if first["type"] == "missing":
            raise DamagedFile(f"{path} lacks {where}") from error
        raise DamagedFile(f"{path} is damaged: {where}: {first['msg']}") from error


def refuse_links(folder: Folder) -> None:
    """Refuse a folder on a disk that holds links, pipes or devices.

    A link leads out of the folder, and whoever opens a pipe waits for ever. Nothing is opened here.

    Raises:
        RecrayError: It holds one.
    """
    if is_uri(folder.path):
        return
    waiting = [Path(folder.path)]
    while waiting:
        try:
            entries = list(os.scandir(waiting.pop()))
        except FileNotFoundError:  # whoever reads the manifest says so
            return
        except OSError as error:
            raise RecrayError(f"cannot read {folder}: {error.strerror}") from error
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                waiting.append(Path(entry.path))
            elif not stat.S_ISREG(entry.stat(follow_symlinks=False).st_mode):
                kind = "a link" if entry.is_symlink() else "no plain file"
                raise RecrayError(f"{entry.path} is {kind}: a bundle holds plain files alone")


def check_weights(model: Model, weights: Mapping[str, Tensor], path: str) -> None:
    """Compare the type and the values of weights with the model that was made for them.

    Raises:
        RecrayError: One is of another type, or has a value that is not a finite number.
    """
    for name, own in model.state_dict().items():
        found = weights.get(name)
        if found is None:  # loading says which ones are missing
            continue
        if found.dtype != own.dtype:
            raise RecrayError(f"{path}: {name} is {found.dtype}, the model needs {own.dtype}")
        if found.is_floating_point() and not _all_finite(found):
            raise RecrayError(f"{path}: {name} has values that are not finite numbers")


def _all_finite(weight: Tensor) -> bool:
    """Whether no number is infinite or none at all; without a copy of a large table."""
    return not weight.numel() or bool(torch.isfinite(torch.stack(weight.aminmax())).all())
