"""A bundle of any number of items with an index, written piece by piece: nothing is trained."""

# Shape letters: I = items, U = users, D = vector length.

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import safetensors.torch
import torch
from numpy.typing import NDArray

from recray.benchmarks.synthetic import GENRES, make_bundle
from recray.inference import service_facts
from recray.inference.bundle import KIND, WEIGHTS, Bundle, version_of
from recray.inference.index_build import write_index
from recray.inference.scorer import Scorer
from recray.progress import Log
from recray.storage import MANIFEST, Folder, Manifest

USERS, FEW_ITEMS, PER_USER, DIM = 2000, 4000, 50, 64
NORMS = (0.0, 0.011, 0.08, 0.234, 0.529, 0.928, 1.291, 1.809, 2.267)
NORMS_AT = (0.0, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)
"""Quantiles of the norms of item vectors, measured on ml-1m, as are the next two."""
SPECTRUM = np.arange(1, DIM + 1) ** -0.37
"""Standard deviations of the numbers of a vector."""
ITEM_MEAN, USER_MEAN = 0.5, 0.37
"""Length of the mean vector over the length of a usual one's deviation from it."""
BLOCK = 1 << 16
FIRST_YEAR, YEARS = 1925, 100


def indexed_bundle(folder: Path, items: int, log: Log) -> str:
    """Write the bundle, with USERS users who have rated some of the first FEW_ITEMS items.

    Raises:
        RecrayError: The folder is taken.
    """
    vectors = torch.from_numpy(_user_vectors(USERS, 0))
    small = make_bundle(folder, USERS, FEW_ITEMS, PER_USER, DIM, vectors=vectors)
    out = small.folder
    Path(out.at(MANIFEST)).unlink()
    _write_weights(Path(out.at(WEIGHTS)), items)
    out.write_table("items.parquet", _item_table(items))
    _write_facts(out, small, items)
    out.replace_bytes("config.json", json.dumps({**small.config, "items": items}).encode())
    log("the index")
    made = write_index(out, Scorer.for_service(Bundle.read(out, Manifest(files=[]))))
    out.write_json("metrics.json", {"index": None if made is None else made.model_dump()})
    out.write_manifest(KIND, {**small.manifest.facts, "version": version_of(out, {})})
    return out.path


def _directions(rows: int, mean: float, seed: int) -> NDArray[np.float32]:
    """(rows, D) vectors of length 1."""
    rng = np.random.default_rng(seed)
    found = rng.standard_normal((rows, DIM), dtype=np.float32) * SPECTRUM.astype(np.float32)
    found[:, 0] += mean * np.sqrt(np.square(SPECTRUM).sum())
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    return found


def _user_vectors(rows: int, seed: int) -> NDArray[np.float32]:
    return _directions(rows, USER_MEAN, seed)


def _item_vectors(items: int) -> Iterator[NDArray[np.float32]]:
    """(I, D) in blocks."""
    for first in range(0, items, BLOCK):
        rows = min(BLOCK, items - first)
        norm = np.interp(np.random.default_rng((1, first)).random(rows), NORMS_AT, NORMS)
        yield _directions(rows, ITEM_MEAN, 2 + first) * norm[:, None].astype(np.float32)


def _write_weights(path: Path, items: int) -> None:
    shape = [items, DIM]
    one = {"dtype": "F32", "shape": shape, "data_offsets": [0, 4 * items * DIM]}
    header = json.dumps({"item_vectors.weight": one}).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for block in _item_vectors(items):
            file.write(block.tobytes())


def _item_table(items: int) -> pa.Table:
    """schema.ITEMS; each year has as many items."""
    ids = pa.array(np.arange(items))
    years = np.random.default_rng(3).integers(0, YEARS, items).astype(np.int32) + FIRST_YEAR
    title = pc.binary_join_element_wise("A Film of Some Length", ids.cast(pa.string()), " ")
    codes = pa.array(
        (np.arange(2 * items) // 2 + np.arange(2 * items) % 2) % len(GENRES), pa.int8()
    )
    names = pa.DictionaryArray.from_arrays(codes, list(GENRES)).cast(pa.string())
    genres = pa.ListArray.from_arrays(np.arange(0, 2 * items + 1, 2, dtype=np.int32), names)
    return pa.table(
        {
            "item": ids,
            "raw_item": pa.array(np.arange(1, items + 1)),
            "title": title,
            "year": years,
            "genres": genres,
            "imdb": pa.nulls(items, pa.string()),
            "tmdb": pa.nulls(items, pa.int64()),
        }
    )


def _write_facts(out: Folder, small: Bundle, items: int) -> None:
    """What follows from all users, whose items are the first ones."""
    found = service_facts.ServiceFacts.read(small.folder, FEW_ITEMS)
    tensors = {name: getattr(found, name) for name in vars(found)}
    for name in ("popularity", "trained_popularity", "item_bias"):
        tensors[name] = torch.nn.functional.pad(tensors[name], (0, items - FEW_ITEMS))
    out.write_bytes(service_facts.FILE, safetensors.torch.save(tensors))
