"""How soon somebody new has a list who posts 200 ratings over HTTP."""

import asyncio
import json
import time

import numpy as np

from recray.benchmarks.client import HOST, Client, free_port
from recray.benchmarks.harness import Row
from recray.inference.bundle import Bundle
from recray.serving.deployment import serving

LENGTH, ASKED, WARM = 200, 220, 20


class FoldIn(Row):
    """Milliseconds until the list of somebody new, one after another, from one thread."""

    figure: str
    data: str
    model: str
    ratings: int
    p50_ms: float
    p95_ms: float
    p99_ms: float


def fold_in_200(bundle: Bundle, data: str) -> FoldIn:
    """Post histories of 200 items, each another one, to one replica."""
    rng = np.random.default_rng(0)
    raw = bundle.item_ids.raw[: bundle.item_ids.known]
    length = min(LENGTH, len(raw) - 20)
    bodies = []
    for _ in range(ASKED):
        items = rng.choice(raw, length, replace=False).tolist()
        rated = [{"item": item, "rating": 4.0} for item in items]
        bodies.append(json.dumps({"ratings": rated, "k": 10}).encode())
    port = free_port()
    with serving(bundle.folder.path, HOST, port):
        seconds = asyncio.run(_ask(port, bodies))[WARM:]
    p50, p95, p99 = (float(p) for p in np.percentile(np.array(seconds) * 1000, [50, 95, 99]))
    kind = bundle.settings.model.kind
    return FoldIn(
        figure="fold_in_200_p95_ms", data=data, model=kind, ratings=length,
        p50_ms=p50, p95_ms=p95, p99_ms=p99,
    )  # fmt: skip


async def _ask(port: int, bodies: list[bytes]) -> list[float]:
    taken = []
    async with Client(port) as client:
        for body in bodies:
            begin = time.perf_counter()
            await client.ask("/v1/recommendations", body)
            taken.append(time.perf_counter() - begin)
    return taken
