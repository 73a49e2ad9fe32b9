"""Writes the file of an index, whose lists are filled in place on the disk; see item_index."""

# Shape letters: I = items, N = lists, D = length of a vector of the index, B = items of a block.

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recray.inference.item_index import ID_BYTES, IndexFacts
from recray.inference.top_k import Ids


@dataclass(frozen=True)
class Clusters:
    """The items in lists.

    Args:
        facts: index.json, its probes not known yet.
        centroid: (N, D) float32.
        reach: (N,) float32; see ItemIndex.
        nearest: (I,) int32 list of each item.
        low, width: (D,) float32 least value and range of each number.
    """

    facts: IndexFacts
    centroid: NDArray[np.float32]
    reach: NDArray[np.float32]
    nearest: NDArray[np.int32]
    low: NDArray[np.float32]
    width: NDArray[np.float32]

    @property
    def sizes(self) -> Ids:
        """(N,) items of each list."""
        return np.bincount(self.nearest, minlength=len(self.centroid))


def write_index_file(
    path: Path, made: Clusters, blocks: Iterable[tuple[int, NDArray[np.float32]]]
) -> None:
    """Write index.safetensors.

    Args:
        path: On this machine's disk.
        made: The items in lists.
        blocks: The vectors of all items, (B, D) at a time, with the first item of each.
    """
    dim, sizes = made.facts.dim, made.sizes
    arrays: dict[str, NDArray[Any]] = {
        "end": np.cumsum(sizes),
        "centroid": made.centroid,
        "low": made.low,
        "reach": made.reach,
        "width": made.width,
    }
    begin = _write_head(path, arrays, len(made.nearest) * (dim + ID_BYTES))
    lists = np.memmap(path, np.uint8, "r+", begin)
    items = lists.view(np.int64)
    start = (np.cumsum(sizes) - sizes) * (dim + ID_BYTES)
    filled = np.zeros(len(sizes), np.int64)
    step = np.where(made.width > 0, made.width, 1)
    for first, vectors in blocks:
        where = made.nearest[first : first + len(vectors)]
        place = filled[where] + _rank_among_equals(where)
        filled += np.bincount(where, minlength=len(filled))
        code = ((vectors - made.low) / step * 255).clip(0, 255).astype(np.uint8)
        lists[(start[where] + place * dim)[:, None] + np.arange(dim)] = code
        ids = start[where] + sizes[where] * dim + place * ID_BYTES
        items[ids // ID_BYTES] = np.arange(first, first + len(vectors))
    lists.flush()


def _write_head(path: Path, arrays: dict[str, NDArray[Any]], lists: int) -> int:
    """Write all but the lists, for which room is left; return where they begin."""
    kinds = {"int64": "I64", "float32": "F32"}
    header: dict[str, object] = {}
    at = 0
    for name, array in arrays.items():
        offsets, at = [at, at + array.nbytes], at + array.nbytes
        kind = kinds[array.dtype.name]
        header[name] = {"dtype": kind, "shape": array.shape, "data_offsets": offsets}
    at = -(-at // ID_BYTES) * ID_BYTES
    header["lists"] = {"dtype": "U8", "shape": [lists], "data_offsets": [at, at + lists]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % ID_BYTES)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in arrays.values():
            file.write(np.ascontiguousarray(array).tobytes())
        file.truncate(8 + len(text) + at + lists)
    return 8 + len(text) + at


def _rank_among_equals(values: NDArray[np.int32]) -> Ids:
    """(B,) how many of the same value stand before each."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    begin = np.flatnonzero(np.diff(ordered, prepend=-1))
    rank = np.empty(len(values), np.int64)
    counts = np.diff(begin, append=len(values))
    rank[order] = np.arange(len(values)) - np.repeat(begin, counts)
    return rank
