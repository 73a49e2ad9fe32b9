"""The users of bundles that earlier versions wrote: their ids and interactions in tables."""

# Shape letter: R = rows.

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recray import schema
from recray.data.dataset import Ratings
from recray.data.ids import IdMap
from recray.data.split import TEST, TRAIN
from recray.errors import DamagedFile
from recray.inference.checked_tables import NUMBERS, PART, check_rows, read_table, refuse_nulls
from recray.inference.interactions import joined_parts
from recray.storage import Folder

IDS, INTERACTIONS = "ids.parquet", "interactions.parquet"
BEFORE_THESE = ("history.parquet", "holdout.parquet")
"""Files of still older bundles: train, valid and fold_in in the first, test in the second."""
ID_COLUMNS: Mapping[str, tuple[Any, ...]] = {
    "kind": (pa.string(),), "raw": (pa.int64(),), "text": (pa.string(),)
}  # fmt: skip


def read_ids(folder: Folder, items: int) -> tuple[IdMap, IdMap]:
    """Raw and dense ids of users and of items; they do not say which of them the model knows.

    Raises:
        DamagedFile: An id is missing, or the items are not those of items.parquet.
    """
    ids = read_table(folder, IDS, ID_COLUMNS)
    refuse_nulls(ids, ["kind"], f"{folder}/{IDS}")
    maps = []
    for kind in ("user", "item"):
        own = ids.filter(pc.equal(ids["kind"], kind))
        if own["raw"].null_count and own["text"].null_count:
            raise DamagedFile(f"{folder}/{IDS} is damaged: a {kind} has no id")
        maps.append(IdMap.of(own["text" if own["raw"].null_count else "raw"], len(own)))
    if items != len(maps[1]):
        raise DamagedFile(
            f"{folder}/items.parquet has {items:,} rows, {IDS} {len(maps[1]):,} items"
        )
    return maps[0], maps[1]


def read_interactions(folder: Folder, users: int, items: int) -> tuple[Ratings, NDArray[np.int8]]:
    """All interactions, sorted as Ratings are, and (R,) codes of schema.INTERACTION_PARTS.

    Raises:
        DamagedFile: A row has an id that there is not, or the file is damaged.
    """
    if folder.exists(INTERACTIONS):
        path = f"{folder}/{INTERACTIONS}"
        table = read_table(folder, INTERACTIONS, NUMBERS | PART)
        refuse_nulls(table, [*NUMBERS.keys() - {"timestamp"}], path)
        part = table["part"].combine_chunks().dictionary_encode()
        names = part.dictionary.cast(pa.string())
        code = pc.index_in(names, pa.array(schema.INTERACTION_PARTS))
        if code.null_count or part.null_count:
            raise DamagedFile(f"{path} is damaged: a row has an unknown part")
        rows = Ratings.of(table)
        codes = code.to_numpy().astype(np.int8)[part.indices.to_numpy()]
    else:
        before, test = (Ratings.of(read_table(folder, name, NUMBERS)) for name in BEFORE_THESE)
        # Such a bundle does not say which rows validated, and takes all for training rows.
        rows, codes = joined_parts({TRAIN: before, TEST: test})
    check_rows(rows, users, items, f"{folder}/{INTERACTIONS}")
    return rows, codes
