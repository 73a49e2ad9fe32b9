"""Features of items, made of what a list says of them: genres and decades."""

# Shape letters: I = items, F = features.

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def _features_of(table: pa.Table) -> list[list[str]]:
    """The names of each item's features."""
    return [
        [f"genre:{genre}" for genre in genres] + ([f"decade:{year // 10 * 10}"] if year else [])
        for genres, year in zip(table["genres"].to_pylist(), table["year"].to_pylist(), strict=True)
    ]


def feature_names(table: pa.Table) -> list[str]:
    """The features that occur, sorted: genre:Drama, decade:1990.

    Args:
        table: schema.ITEMS.
    """
    return sorted({name for names in _features_of(table) for name in names})


def feature_matrix(table: pa.Table, names: Sequence[str]) -> NDArray[np.float32]:
    """(I, F) weights: 1 / sqrt(n) for each of an item's n features, so that rows have length 1.

    Args:
        table: schema.ITEMS.
        names: The features; others are left out.
    """
    place = {name: number for number, name in enumerate(names)}
    matrix = np.zeros((len(table), len(names)), np.float32)
    for row, own in enumerate(_features_of(table)):
        known = [place[name] for name in own if name in place]
        matrix[row, known] = len(known) ** -0.5 if known else 0.0
    return matrix
