"""A bundle without one of its users: no id, no rating and no row of the user is left in it.

What the items have learned from the user's ratings stays until the next training.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import safetensors.torch
import torch
from pydantic import JsonValue

from recray import schema
from recray.data.ids import RawId
from recray.errors import RecrayError
from recray.inference.bundle import KIND, RUN, TWIN, Bundle, version_of_digests
from recray.inference.bundle_users import FILE as USERS
from recray.inference.bundle_users import UsersFile
from recray.inference.user_features import FILE as USER_FEATURES
from recray.inference.user_parts import END, HISTORY, ITEM, RAW, RAW_END, part_file
from recray.inference.users_of_before import BEFORE_THESE, IDS, INTERACTIONS
from recray.models.base import Model, is_user_table
from recray.storage import Folder, FolderExists, parquet_bytes, publish
from recray.storage.tensors import as_bytes, tensors_in

FITS = {"": "", TWIN: f"{TWIN}/", RUN: f"{RUN}/"}
"""Names of the fits of a bundle, and what the names of their files begin with."""


def write_without(path: str, user: RawId, folder_of: Callable[[str], Folder]) -> str | None:
    """Write a bundle again without a user.

    Args:
        path: The bundle.
        user: Raw id.
        folder_of: Gives the folder of a version.

    Returns:
        The version of the new bundle; None if the old one does not have this user.

    Raises:
        RecrayError: The bundle is damaged, or has no other user.
    """
    bundle = Bundle.open(path)
    dense = bundle.user_ids.encode_one(user)
    if dense < 0:
        return None
    contents = _contents(bundle, dense)
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    version = version_of_digests(digests)
    target = folder_of(version)
    if not target.published():
        # Two who forget at the same time may write the same.
        with contextlib.suppress(FolderExists), publish(target) as folder:
            for name, content in contents.items():
                folder.write_bytes(name, content)
            folder.write_manifest(KIND, {**bundle.manifest.facts, "version": version})
    return version


def _contents(bundle: Bundle, dense: int) -> dict[str, bytes]:
    """The content of every file, by its name."""
    folder = bundle.folder
    if folder.exists(USERS):
        changed = _users(folder, dense)
    else:
        changed = {IDS: _ids(folder.read_table(IDS), dense)}
        for name in (INTERACTIONS, *BEFORE_THESE):
            if folder.exists(name):
                changed[name] = _rows(folder.read_table(name), dense)
    if folder.exists(USER_FEATURES):
        kept = _all_but(len(bundle.user_ids), dense)
        changed[USER_FEATURES] = parquet_bytes(
            folder.read_table(USER_FEATURES).take(kept), ["gender"]
        )
    parts = [
        schema.INTERACTION_PARTS[code]
        for code in bundle.interactions.part[bundle.interactions.rows.user == dense].tolist()
    ]
    opened = {"": bundle, TWIN: bundle.measured, RUN: bundle.chosen}
    for name, where in FITS.items():
        if folder.exists(f"{where}config.json"):
            config = folder.read_json(f"{where}config.json")
            changed[f"{where}config.json"] = _config(config, dense, parts)
            if name or not folder.exists(USERS):
                changed[f"{where}weights.safetensors"] = _weights(opened[name].model, dense)
    files = [entry.name for entry in bundle.manifest.files]
    return {name: changed.get(name) or folder.read_bytes(name) for name in files}


def _users(folder: Folder, dense: int) -> dict[str, bytes]:
    """The files of users that change: the dense ids behind become one less."""
    facts = UsersFile.read(folder)
    numbering = facts.numbering
    first, counts = numbering.first, numbering.counts
    partition, group = (
        int(at[0]) for at in np.nonzero((first <= dense) & (dense < first + counts))
    )
    row = int(np.flatnonzero(numbering.users_of(partition) == dense)[0])
    tensors = tensors_in(as_bytes(folder.read_buffer(part_file(partition))))
    ends = tensors[END]
    cells = slice(int(ends[row - 1]) if row else 0, int(ends[row]))
    gone = dict.fromkeys(HISTORY, cells)
    if facts.text:
        ends = tensors[RAW_END]
        gone[RAW] = slice(int(ends[row - 1]) if row else 0, int(ends[row]))
    kept = {}
    for name, tensor in tensors.items():
        own = gone.get(name, slice(row, row + 1))
        if name in (END, RAW_END):  # what lies behind the user's moves up
            length = gone[RAW if name == RAW_END else ITEM]
            tensor = torch.cat([tensor[:row], tensor[row:] - (length.stop - length.start)])
        kept[name] = torch.cat([tensor[: own.start], tensor[own.stop :]])
    changed = numbering.counts.copy()
    changed[partition, group] -= 1
    facts = facts.model_copy(update={"counts": changed.tolist()})
    return {
        USERS: facts.model_dump_json(indent=2).encode() + b"\n",
        part_file(partition): safetensors.torch.save(kept),
    }


def _all_but(count: int, place: int) -> pa.Array:
    return pa.array([n for n in range(count) if n != place], pa.int64())


def _ids(ids: pa.Table, dense: int) -> bytes:
    is_user = pc.equal(ids["kind"], "user")
    gone = pc.and_(is_user, pc.equal(ids["id"], dense))
    return parquet_bytes(_closed(ids, "id", dense, is_user).filter(pc.invert(gone)))


def _rows(rows: pa.Table, dense: int) -> bytes:
    own = pc.equal(rows["user"], dense)
    return parquet_bytes(_closed(rows, "user", dense).filter(pc.invert(own)))


def _closed(table: pa.Table, name: str, dense: int, where: pa.Array | None = None) -> pa.Table:
    """The table with the dense ids behind the user's one less."""
    behind = pc.greater(table[name], dense)
    if where is not None:
        behind = pc.and_(behind, where)
    place = table.schema.get_field_index(name)
    moved = pc.subtract(table[name], pc.cast(behind, table.schema.field(name).type))
    return table.set_column(place, table.schema.field(name), moved)


def _config(config: dict[str, JsonValue], dense: int, parts: list[str]) -> bytes:
    """config.json with one user less, and without the user's rows in the counts of the splits."""
    users, splits = config["users"], config.get("splits", {})
    if not isinstance(users, int) or not isinstance(splits, dict):
        raise ValueError("the config was checked when the bundle was opened")
    if users == 1:
        raise RecrayError("a bundle of one user cannot be without this one: delete it")
    config["users"] = users - (dense < users)
    for name, split in splits.items():
        own = parts.count(name)
        if own and isinstance(split, dict):
            for key, less in (("rows", own), ("users", 1)):
                count = split.get(key)
                if isinstance(count, int):
                    split[key] = count - less
    return json.dumps(config, indent=2, ensure_ascii=False).encode() + b"\n"


def _weights(model: Model, dense: int) -> bytes:
    """The weights without the user's row in each table of users."""
    tables = {f"{name}.weight" for name in model.embeddings() if is_user_table(name)}
    weights = dict(model.state_dict())
    if dense < model.users:
        for name in tables:
            weights[name] = torch.cat([weights[name][:dense], weights[name][dense + 1 :]])
    return safetensors.torch.save({name: w.contiguous() for name, w in weights.items()})
