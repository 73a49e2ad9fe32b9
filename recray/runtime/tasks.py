"""RAY DATA as a way to call one function many times: each stage of ingest is such a map."""

import json
from collections.abc import Callable
from typing import Any

from recray.errors import RecrayError, StorageError
from recray.runtime.nodes import scale_up
from recray.runtime.ray_private import quieten


def map_tasks(function: Callable[..., dict[str, Any]], count: int, *arguments: Any) -> list[Any]:
    """Call function(i, *arguments) for i in 0..count-1 as Ray Data tasks; results in order of i.

    Results are small, such as counts; they travel as JSON, so that one schema serves every map.

    Raises:
        RecrayError: What the first failing call, by i, raised for the user.
    """
    import ray.data

    scale_up(1)

    def call(batch: dict[str, Any]) -> dict[str, list[str]]:
        results = []
        for number in batch["id"]:
            try:
                value = function(int(number), *arguments)
            except RecrayError as error:
                value = {"error": str(error), "storage": isinstance(error, StorageError)}
            results.append(json.dumps({"id": int(number)} | value))
        return {"result": results}

    ray.data.DataContext.get_current().enable_progress_bars = False
    quieten()
    tasks = ray.data.range(count, override_num_blocks=count)
    mapped = tasks.map_batches(call, batch_size=None)  # type: ignore[arg-type]  # numpy in, lists out
    rows = mapped.take_all()
    results = sorted((json.loads(row["result"]) for row in rows), key=lambda r: r["id"])
    for result in results:
        if "error" in result:
            raise (StorageError if result["storage"] else RecrayError)(result["error"])
    return results
