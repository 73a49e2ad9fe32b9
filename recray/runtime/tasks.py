"""RAY DATA as a way to call one function many times: each stage of ingest is such a map."""

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import pyarrow as pa

from recray.errors import RecrayError, StorageError
from recray.runtime.nodes import scale_up
from recray.runtime.ray_private import quieten

T = TypeVar("T")


@dataclass(frozen=True)
class _Failure:
    """An error for the user; the exception itself would end the whole map with Ray's own words."""

    message: str
    storage: bool


def map_tasks(function: Callable[[int], T], count: int) -> list[T]:
    """Call function(i) for i in 0..count-1 as Ray Data tasks, one task for each i.

    Args:
        function: What is called; Ray sends it to the workers. It returns something small, such as
            counts: all results come to this process.
        count: How many calls.

    Returns:
        The results in order of i.

    Raises:
        RecrayError: What the first failing call, by i, raised for the user.
    """
    import ray.data

    def call(batch: pa.Table) -> pa.Table:
        results = []
        for number in batch["id"].to_pylist():
            try:
                value: T | _Failure = function(number)
            except RecrayError as error:
                value = _Failure(str(error), isinstance(error, StorageError))
            results.append(pickle.dumps(value))
        # Arrow has a schema for bytes, whatever it is that a function returns.
        return batch.append_column("result", pa.array(results, pa.binary()))

    scale_up(1)
    ray.data.DataContext.get_current().enable_progress_bars = False
    quieten()
    tasks = ray.data.range(count, override_num_blocks=count)
    rows = tasks.map_batches(call, batch_size=None, batch_format="pyarrow").take_all()
    results = [pickle.loads(row["result"]) for row in sorted(rows, key=lambda row: row["id"])]
    for result in results:
        if isinstance(result, _Failure):
            raise (StorageError if result.storage else RecrayError)(result.message)
    return results
