"""Bundles as earlier versions wrote them: ids and interactions of all users in tables."""

import numpy as np
import pyarrow as pa
import safetensors.torch

from recray import schema
from recray.data.dataset import time_column
from recray.inference.bundle import KIND, Bundle, version_of
from recray.storage import Folder, publish

USERS = ("users.json", "facts.safetensors", "weights.safetensors")


def id_table(bundle):
    tables = []
    for kind, ids in (("user", bundle.user_ids), ("item", bundle.item_ids)):
        columns = {
            "kind": pa.array([kind] * len(ids), pa.string()),
            "id": np.arange(len(ids), dtype=np.int32),
            "raw": pa.nulls(len(ids), pa.int64()) if ids.text else ids.column(),
            "text": ids.column() if ids.text else pa.nulls(len(ids), pa.string()),
        }
        tables.append(pa.table(columns))
    return pa.concat_tables(tables)


def interaction_table(rows, part):
    names = pa.DictionaryArray.from_arrays(part, pa.array(schema.INTERACTION_PARTS))
    columns = [rows.user, rows.item, rows.rating, time_column(rows.timestamp), names]
    table = pa.table(columns, schema=schema.INTERACTIONS)
    return table if rows.place is None else table.append_column(schema.PLACE, [rows.place])


def write_before(bundle, path, with_interactions=True):
    """Write a bundle again as an earlier version did."""
    with publish(Folder(str(path))) as folder:
        for name in bundle.folder.content():
            if name not in USERS and not name.startswith("users/"):
                folder.write_bytes(name, bundle.folder.read_bytes(name))
        weights = safetensors.torch.save(dict(bundle.model.state_dict()))
        folder.write_bytes("weights.safetensors", weights)
        folder.write_table("ids.parquet", id_table(bundle))
        every = bundle.interactions
        if with_interactions:
            folder.write_table("interactions.parquet", interaction_table(every.rows, every.part))
        else:
            for name, rows in (("history", every.before_test), ("holdout", every.withheld)):
                columns = [rows.user, rows.item, rows.rating, rows.timestamp]
                folder.write_table(f"{name}.parquet", pa.table(columns, schema=schema.RATINGS))
        folder.write_manifest(KIND, bundle.manifest.facts | {"version": version_of(folder, {})})
    return Bundle.open(str(path))
