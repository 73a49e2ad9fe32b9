"""How soon somebody new has a list who posts 200 ratings over HTTP."""

import asyncio
import json
import time

import numpy as np

from recray.benchmarks.client import HOST, Client, free_port
from recray.benchmarks.harness import Row
from recray.inference.bundle import Bundle
from recray.serving.auth import new_key, parse_key
from recray.serving.deployment import Profile, serving
from recray.serving.options import ServiceLimits

LENGTH, ASKED, WARM = 200, 220, 20
PROFILES: tuple[Profile, ...] = ("laptop", "production")
"""On a laptop the proxy of Ray, in Python, takes most of the time of a single request."""


class FoldIn(Row):
    """Milliseconds until the list of somebody new, one after another, from one thread."""

    figure: str
    data: str
    model: str
    profile: str
    ratings: int
    p50_ms: float
    p95_ms: float
    p99_ms: float


def fold_in_200(bundle: Bundle, data: str) -> list[FoldIn]:
    """Post histories of 200 items, each another one, to one replica, in each profile."""
    rng = np.random.default_rng(0)
    raw = bundle.item_ids.raw[: bundle.item_ids.known]
    length = min(LENGTH, len(raw) - 20)
    bodies = []
    for _ in range(ASKED):
        items = rng.choice(raw, length, replace=False).tolist()
        rated = [{"item": item, "rating": 4.0} for item in items]
        bodies.append(json.dumps({"ratings": rated, "k": 10}).encode())
    rows = []
    for profile in PROFILES:
        p50, p95, p99 = _percentiles(bundle.folder.path, profile, bodies)
        row = FoldIn(
            figure="fold_in_200_p95_ms", data=data, model=bundle.settings.model.kind,
            profile=profile, ratings=length, p50_ms=p50, p95_ms=p95, p99_ms=p99,
        )  # fmt: skip
        rows.append(row)
    return rows


def _percentiles(bundle: str, profile: Profile, bodies: list[bytes]) -> list[float]:
    secret, line = new_key("benchmark")
    limits, port = ServiceLimits(keys=(parse_key(line, "here"),)), free_port()
    with serving(bundle, HOST, port, limits=limits, profile=profile):
        headers = f"authorization: Bearer {secret}\r\n"
        seconds = asyncio.run(_ask(port, bodies, headers))[WARM:]
    values = np.percentile(np.array(seconds) * 1000, [50, 95, 99])
    return [float(value) for value in values]


async def _ask(port: int, bodies: list[bytes], headers: str) -> list[float]:
    taken = []
    async with Client(port) as client:
        for body in bodies:
            begin = time.perf_counter()
            await client.ask("/v1/recommendations", body, headers)
            taken.append(time.perf_counter() - begin)
    return taken
