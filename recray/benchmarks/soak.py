"""Many minutes of a mixed load, ratings and swaps of models: nothing fails, no memory grows."""

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from recray.benchmarks.client import HOST, free_port
from recray.benchmarks.harness import Figures, Row, load_now
from recray.benchmarks.mixed_load import Outcome, mixed_requests, send_steadily
from recray.benchmarks.overload import replica_memory
from recray.inference.bundle import Bundle
from recray.progress import Log
from recray.serving.deployment import serving
from recray.serving.registry import Registry

RATE = 15.0
"""Requests a second."""
REPLICAS = 2
SWAPS_APART = 60.0
SAMPLES_APART = 1.0
"""Seconds between two swaps, and between two looks at the memory."""
WARM = 0.25
"""Share of the time whose memory does not count: caches fill, and the first swap comes."""


class Soak(Row):
    """A mixed load for so many minutes; `how` counts what failed by status, 0 without an answer.

    Memory is that of all replicas: at the beginning and at the end of what counts, each the median
    of a fifth of it; and the slope of a straight line through all of it.
    """

    what: str
    minutes: float
    asked: int
    failed: int
    how: str
    swaps: int
    p50_ms: float
    p99_ms: float
    begin_mb: float
    end_mb: float
    mb_per_hour: float


class Sample(NamedTuple):
    """Memory of the replicas so many seconds after the begin."""

    seconds: float
    mb: float


def soak(bundle: Bundle, registry: Registry, seconds: float, log: Log) -> tuple[Figures, Soak]:
    """Send a mixed load, and make the registry's versions current in turn.

    Args:
        bundle: Its users and items are asked for; each version has them.
        registry: Has two versions or more, and keeps ratings.
        seconds: How long.
        log: Receives what happens.
    """
    versions, port = [entry.version for entry in registry.versions()], free_port()
    swaps = int(seconds / SWAPS_APART) or 1
    samples: list[Sample] = []

    async def swap() -> None:
        for number in range(swaps):
            await asyncio.sleep(seconds / (swaps + 1))
            await asyncio.to_thread(registry.promote, versions[number % len(versions)], True)

    async def watch() -> None:
        begin = asyncio.get_running_loop().time()
        while (now := asyncio.get_running_loop().time() - begin) < seconds:
            samples.append(Sample(now, await asyncio.to_thread(replica_memory) / 1e6))
            await asyncio.sleep(SAMPLES_APART)

    async def all_at_once() -> Sequence[Outcome]:
        sending = send_steadily(port, mixed_requests(bundle), RATE, range(int(RATE * seconds)))
        outcomes, _, _ = await asyncio.gather(sending, swap(), watch())
        return outcomes

    log(f"{RATE:g} requests a second for {seconds:g} s with {swaps} swaps")
    with serving(registry.folder.path, HOST, port, replicas=REPLICAS):
        outcomes = asyncio.run(all_at_once())
    log(f"load {load_now()}")
    row = _row(outcomes, samples, swaps, seconds)
    figures: Figures = {"soak_failed": row.failed, "soak_mb_per_hour": row.mb_per_hour}
    return figures, row


def _row(outcomes: Sequence[Outcome], samples: list[Sample], swaps: int, seconds: float) -> Soak:
    p50, p99 = np.percentile([one.seconds * 1000 for one in outcomes], [50, 99])
    failed = [one.status for one in outcomes if one.failed]
    begin, end, slope = growth([one for one in samples if one.seconds >= WARM * seconds])
    return Soak(
        what="soak",
        minutes=seconds / 60,
        asked=len(outcomes),
        failed=len(failed),
        how=", ".join(f"{failed.count(status)} x {status}" for status in sorted(set(failed))),
        swaps=swaps,
        p50_ms=float(p50),
        p99_ms=float(p99),
        begin_mb=begin,
        end_mb=end,
        mb_per_hour=slope,
    )


def growth(samples: Sequence[Sample]) -> tuple[float, float, float]:
    """MB at the begin and at the end, the medians of a fifth; MB an hour of a line through all.

    Raises:
        ValueError: There are fewer than two samples.
    """
    if len(samples) < 2:
        raise ValueError(f"a slope needs two samples, got {len(samples)}")
    seconds, mb = np.array(samples).T
    fifth = max(1, len(samples) // 5)
    slope = float(np.polyfit(seconds, mb, 1)[0])
    return float(np.median(mb[:fifth])), float(np.median(mb[-fifth:])), slope * 3600
