"""What a data set says of its users, age and gender: evaluation puts their groups side by side."""

# Shape letter: U = users of the data set.

from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recray.data.dataset import Prepared
from recray.inference.checked_tables import read_table
from recray.storage import Folder

FILE = "users.parquet"
COLUMNS = ("age", "gender")
TYPES = {"age": (pa.int32(),), "gender": (pa.string(),)}
UNKNOWN_AGE = -1


@dataclass(frozen=True)
class UserFeatures:
    """What is known of users.

    Args:
        age: (U,) int64 years; UNKNOWN_AGE where unknown.
        gender: (U,) text objects as the data set has them; None where unknown.
    """

    age: NDArray[np.int64]
    gender: NDArray[np.object_]

    @classmethod
    def read(cls, folder: Folder) -> Self | None:
        """Read those of a bundle; None where its data set says nothing of users."""
        if not folder.exists(FILE):
            return None
        table = read_table(folder, FILE, TYPES)
        age = table["age"].combine_chunks().fill_null(UNKNOWN_AGE).to_numpy().astype(np.int64)
        return cls(age, np.array(table["gender"].to_pylist(), object))


def write_user_features(folder: Folder, prepared: Prepared) -> None:
    """Write what a data set says of its users into a bundle; nothing where it says nothing."""
    table: pa.Table = prepared.user_table()
    if not set(COLUMNS) <= set(table.column_names):  # an earlier version wrote it
        return
    chosen = table.select(list(COLUMNS))
    if any(column.null_count < len(table) for column in chosen.columns):
        folder.write_table(FILE, chosen, dictionary=["gender"])
