"""Reads checkpoints: the rows of one worker's users, or the tables of all; each byte once."""

from collections.abc import Collection, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from recray.errors import RecrayError
from recray.storage import Folder
from recray.training.checkpoint.content import OPTIMIZER, Checkpoint, UserRows
from recray.training.checkpoint.files import copy_bytes, read_sections, read_tensors
from recray.training.checkpoint.manifest import (
    HEADER,
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
    # Copies, since a runner keeps them: views would keep the bytes of the weights as well.
    optimizer = {name: tensor.clone() for name, tensor in optimizer.items()}
    return Checkpoint(weights, optimizer, manifest.state, known.get(LOSSES))


def read_checkpoint(
    folder: Folder, manifest: CheckpointManifest, own: OwnUsers, tables: Collection[str]
) -> Checkpoint:
    """Read what a worker needs to go on: what is shared, and the rows of its users.

    Args:
        folder: The checkpoint's.
        manifest: What it says.
        own: The worker's users.
        tables: Names of the weights with rows of users, which format 1 does not tell.

    Raises:
        DamagedFile: A file is missing, or not what was written.
        RecrayError: A file cannot be read, or is of other users.
    """
    found = read_shared(folder, manifest)
    if manifest.format == OLD_FORMAT:
        return _divided(found, own, tables, str(folder))
    rows = UserRows(own, {})
    if manifest.users is not None:
        rows = read_users(folder, manifest.users, own)
    return replace(found, users=rows)


def _divided(whole: Checkpoint, own: OwnUsers, tables: Collection[str], path: str) -> Checkpoint:
    """The rows of a worker's users, and what is shared, of a checkpoint of format 1."""
    known = {n: t for n, t in whole.weights.items() if n in tables and len(t) == own.total}
    if not known:
        return replace(whole, users=UserRows(own, {}))
    rows = {n: t for n, t in whole.optimizer.items() if t.dim() and len(t) == own.total}
    others = [t for n, t in whole.weights.items() if n not in tables and t.dim()]
    if rows and any(len(t) == own.total for t in others):
        raise RecrayError(
            f"{path} is of an earlier version, and its users are as many as its items: their "
            "moments cannot be told apart; train again"
        )
    tensors = {name: table[own.ids] for name, table in known.items()}
    tensors |= {f"{OPTIMIZER}{name}": tensor[own.ids] for name, tensor in rows.items()}
    return replace(
        whole,
        weights={n: t for n, t in whole.weights.items() if n not in known},
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
    places, written = {HEADER: slice(0, 0), **dict(found.by_part())}, 0
    for file, parts in rows.files.items():
        wanted = [part for part in parts if part.part in places]
        if len(wanted) == 1:  # the head alone
            continue
        for number, content in read_sections(folder, file, [part.section for part in wanted]):
            part = wanted[number]
            at = places[part.part]
            if part.rows and part.rows == at.stop - at.start:
                _take_rows(rows.columns, content, {n: t[at] for n, t in tensors.items()})
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
        for number, content in read_sections(folder, file, [part.section for part in parts]):
            count = parts[number].rows
            if not count:  # a head, or a part without users
                continue
            some = {name: column.empty(count) for name, column in rows.columns.items()}
            _take_rows(rows.columns, content, some)
            for name, table in tables.items():
                table[some[IDS]] = some[name]
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
