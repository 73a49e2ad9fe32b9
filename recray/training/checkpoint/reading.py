"""Reads checkpoints: the rows of one worker's users, or the tables of all; each byte once."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from recray.errors import RecrayError
from recray.models.base import is_user_table
from recray.storage import Folder
from recray.training.checkpoint.content import OPTIMIZER, Checkpoint, UserRows
from recray.training.checkpoint.files import copy_bytes, read_sections, read_tensors
from recray.training.checkpoint.manifest import (
    IDS,
    LOSSES,
    OLD_FORMAT,
    SHARED,
    WEIGHTS,
    CheckpointManifest,
    Column,
    UserFiles,
)
from recray.training.own_users import OwnUsers


def read_shared(folder: Folder, manifest: CheckpointManifest) -> Checkpoint:
    """Read all but the rows of users; in format 1 these are among the weights.

    Raises:
        DamagedFile: A file is missing, or not what was written.
        RecrayError: A file cannot be read.
    """
    if manifest.format == OLD_FORMAT:
        names = [e.name for e in manifest.files if e.name.endswith(".safetensors")]
        read = {n.split(".")[0]: read_tensors(folder, manifest.entry(n)) for n in names}
        losses = read.get("losses", {}).get(LOSSES)
        return Checkpoint(read["weights"], read["optimizer"], manifest.state, losses)
    known = read_tensors(folder, manifest.entry(SHARED))
    weights, optimizer = (
        {k.removeprefix(kind): t for k, t in known.items() if k.startswith(kind)}
        for kind in (WEIGHTS, OPTIMIZER)
    )
    return Checkpoint(weights, optimizer, manifest.state, known.get(LOSSES))


def read_checkpoint(folder: Folder, manifest: CheckpointManifest, own: OwnUsers) -> Checkpoint:
    """Read what a worker needs to go on: what is shared, and the rows of its users.

    Raises:
        DamagedFile: A file is missing, or not what was written.
        RecrayError: A file cannot be read, or is of other users.
    """
    found = read_shared(folder, manifest)
    if manifest.format == OLD_FORMAT:
        return _divided(found, own, str(folder))
    rows = UserRows(own, {})
    if manifest.users is not None:
        rows = read_users(folder, manifest.users, own)
    return replace(found, users=rows)


def _divided(whole: Checkpoint, own: OwnUsers, path: str) -> Checkpoint:
    """The rows of a worker's users, and what is shared, of a checkpoint of format 1."""
    names = [n for n in whole.weights if n.endswith(".weight")]
    tables = {n: whole.weights[n] for n in names if is_user_table(n.removesuffix(".weight"))}
    if not tables:
        return replace(whole, users=UserRows(own, {}))
    users = len(next(iter(tables.values())))
    rows = {n: t for n, t in whole.optimizer.items() if t.dim() and len(t) == users}
    others = [t for n, t in whole.weights.items() if n not in tables and t.dim()]
    if rows and any(len(t) == users for t in others):
        raise RecrayError(
            f"{path} is of an earlier version, and its users are as many as its items: their "
            "moments cannot be told apart; train again"
        )
    tensors = {name: table[own.ids] for name, table in tables.items()}
    tensors |= {f"{OPTIMIZER}{name}": tensor[own.ids] for name, tensor in rows.items()}
    return replace(
        whole,
        weights={n: t for n, t in whole.weights.items() if n not in tables},
        optimizer={n: t for n, t in whole.optimizer.items() if n not in rows},
        users=UserRows(own, tensors),
    )


def read_users(folder: Folder, rows: UserFiles, own: OwnUsers) -> UserRows:
    """Read the rows of a worker's users, whichever workers wrote them; each byte once.

    Raises:
        DamagedFile: A file is missing, or not what was written.
        RecrayError: A file cannot be read, or is of other users.
    """
    found = UserRows(own, {})
    tensors = {name: column.empty(len(own.ids)) for name, column in rows.columns.items()}
    places, written = dict(found.by_part()), 0
    for file, parts in rows.files.items():
        wanted = [part for part in parts if part.part in places]

        def take(number: int, content: memoryview) -> None:
            part = wanted[number]  # noqa: B023
            at = places[part.part]
            if part.rows == at.stop - at.start:
                _take_rows(rows.columns, content, {n: t[at] for n, t in tensors.items()})

        read_sections(folder, file, [part.section for part in wanted], take)
        written += sum(part.rows for part in wanted)
    if written != len(own.ids) or not torch.equal(tensors[IDS], own.ids):
        raise RecrayError(f"{folder} is of other users than those of the data set; train again")
    tensors.pop(IDS)
    return UserRows(own, tensors)


def read_user_tables(folder: Folder, rows: UserFiles) -> dict[str, Tensor]:
    """Read the weights of all users: tables by dense id. Beside them one read is held.

    Raises:
        DamagedFile: A file is missing, or not what was written.
        RecrayError: A file cannot be read.
    """
    kept = {n: c for n, c in rows.columns.items() if not n.startswith(OPTIMIZER) and n != IDS}
    tables = {name: column.zeros(rows.users) for name, column in kept.items()}
    for file, parts in rows.files.items():

        def take(number: int, content: memoryview) -> None:
            count = parts[number].rows  # noqa: B023
            some = {name: column.empty(count) for name, column in rows.columns.items()}
            _take_rows(rows.columns, content, some)
            for name, table in tables.items():
                table[some[IDS]] = some[name]

        read_sections(folder, file, [part.section for part in parts], take)
    return tables


def _take_rows(
    columns: Mapping[str, Column], content: memoryview, targets: Mapping[str, Tensor]
) -> None:
    """Cut the bytes of a part into the rows of its tensors."""
    begin = 0
    for name in columns:
        end = begin + targets[name].numel() * targets[name].element_size()
        copy_bytes(content[begin:end], targets[name])
        begin = end
