"""The service under load, beside an empty deployment of the same Serve; swaps; memory."""

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recray.benchmarks import feedback_memory
from recray.benchmarks.ann import ann
from recray.benchmarks.client import (
    CONNECTIONS,
    HOST,
    Client,
    Latency,
    Production,
    Rate,
    SteadyLoad,
    Swaps,
    free_port,
    peak,
    percentiles,
    rate_of,
    steady,
)
from recray.benchmarks.deaths import deaths
from recray.benchmarks.empty_service import serve_empty
from recray.benchmarks.harness import Figures, Measurement, Row, apart, load_now
from recray.benchmarks.many_users import many_users
from recray.benchmarks.overload import overload
from recray.benchmarks.soak import soak
from recray.benchmarks.synthetic import make_bundle
from recray.data.ids import RawId
from recray.errors import unknown_name
from recray.inference.bundle import Bundle
from recray.inference.raw_ratings import RawRating
from recray.inference.recommender import Recommender
from recray.progress import Log
from recray.serving.auth import new_key, parse_key
from recray.serving.deployment import Profile, deploy, serving
from recray.serving.options import ServiceLimits
from recray.serving.registry import Registry

SMALL, LARGE = (6040, 3706, 50), (2000, 60_000, 50)
"""Users, items, and ratings of each user."""
BATCH = 1000
RATINGS = 20
SWAP_RATE = 50.0
WARM_UPS = 5


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Args:
        turns: How often recray and the empty deployment take turns.
        seconds: Of one turn.
        swap_seconds: Of the load while models are swapped.
        overload_seconds: Of the worst requests at once.
        death_requests: Around each kill of a process.
        soak_seconds: Of a mixed load with swaps, in which memory must not grow.
        many: Users and items of a bundle with more users than a replica may hold.
        indexed: Items of a catalogue with an index.
    """

    turns: int
    seconds: float
    swap_seconds: float
    overload_seconds: float
    death_requests: int
    soak_seconds: float
    many: tuple[int, int]
    indexed: int


FULL = Sizes(5, 4.0, 30.0, 30.0, 1000, 1200.0, (10_000_000, 1_000_000), 10_000_000)
QUICK = Sizes(2, 2.0, 12.0, 10.0, 300, 30.0, (200_000, 100_000), 250_000)


def run(sizes: Sizes, log: Log, only: str | None = None) -> Measurement:
    """Peaks by a closed loop, taking turns with the empty one; all else by an open one.

    Args:
        sizes: How much is measured.
        log: Receives what happens, one line at a time.
        only: ann, a large catalogue with an index; None for all.

    Raises:
        RecrayError: There is no such part.
    """
    if only not in (None, "ann"):
        raise unknown_name("part", only, ["ann"])
    with tempfile.TemporaryDirectory(prefix="recray-benchmark-") as name:
        of_index, index_rows = ann(Path(name), sizes.indexed, sizes.turns, sizes.seconds, log)
    if only == "ann":
        return Measurement(of_index, index_rows)
    rest = _of_small_catalogues(sizes, log)
    return Measurement(rest.figures | of_index, [*rest.rows, *index_rows])


def _of_small_catalogues(sizes: Sizes, log: Log) -> Measurement:
    turns, seconds = sizes.turns, sizes.seconds
    with tempfile.TemporaryDirectory(prefix="recray-benchmark-") as name:
        folder = Path(name)
        log(f"bundles of {SMALL[1]:,} and {LARGE[1]:,} items")
        small = make_bundle(folder / "small", *SMALL)
        large = make_bundle(folder / "large", *LARGE)
        empty, recommend, load, batch = _small(small, turns, seconds, log)
        empty_large, recommend_large = _large(large, turns, seconds)
        swapped = swaps(small, folder, sizes.swap_seconds, log)
        of_stress, stress_rows = _stress(small, folder, sizes, log)
        log("the production profile, in a Ray of its own")
        fast = Production.model_validate_json(
            apart("recray.benchmarks.serve", "production", small.folder.path, str(turns * seconds))
        )
        new = _fold_in(small)
        of_memory, memory_rows = _memory(folder, sizes, log)
    log(f"load {load_now()}")
    figures: Figures = {
        "over_empty_3706": recommend.per_second / empty.per_second,
        "over_empty_60000": recommend_large.per_second / empty_large.per_second,
        "production_over_default": fast.per_second / recommend.per_second,
        "batch_users_per_s": batch.per_second,
        "p99_over_p50": load.p99_ms / load.p50_ms,
        "swap_failed": swapped.failed,
        "swap_mixed": swapped.mixed,
        "fold_in_ms_p95": new.p95_ms,
    }
    rows = [empty, recommend, load, batch, empty_large, recommend_large, swapped, fast, new]
    return Measurement(figures | of_stress | of_memory, [*rows, *stress_rows, *memory_rows])


def _stress(bundle: Bundle, folder: Path, sizes: Sizes, log: Log) -> tuple[Figures, list[Row]]:
    """The worst requests, processes that die, and many minutes of everything."""
    figures, rows = overload(bundle, sizes.overload_seconds, log)
    of_deaths, death_rows = deaths(bundle, folder, sizes.death_requests, log)
    of_soak, soaked = soak(bundle, Registry(str(folder / "registry")), sizes.soak_seconds, log)
    return figures | of_deaths | of_soak, [*rows, *death_rows, soaked]


def _memory(folder: Path, sizes: Sizes, log: Log) -> tuple[Figures, list[Row]]:
    """What a replica's process grows by for a large bundle, and for a large ratings log."""
    log("memory of a replica with {:,} users and {:,} items".format(*sizes.many))
    many = many_users(folder / "many", *sizes.many)
    log(f"a replica's feedback of {feedback_memory.RATINGS:,} ratings")
    kept = feedback_memory.feedback()
    figures: Figures = {
        "many_users_mb_over_items": many.over_items_mb,
        "feedback_5m_mb": kept.mb,
        "feedback_5m_start_s": kept.start_s,
    }
    return figures, [many, kept]


def _paths(bundle: Bundle) -> list[str]:
    return [f"/v1/users/{user}/recommendations?k=10" for user in bundle.user_ids.raw.tolist()]


def _small(
    bundle: Bundle, turns: int, seconds: float, log: Log
) -> tuple[Rate, Rate, SteadyLoad, Rate]:
    """Laptop mode: peaks beside the empty deployment, an open loop, batches."""
    port = free_port()
    with serving(bundle.folder.path, HOST, port):
        serve_empty()
        log(f"peaks of {CONNECTIONS} connections, in {turns} turns of {seconds:g} s")
        empty, recommend = asyncio.run(_peaks(bundle, port, turns, seconds))
        rate = recommend.per_second / 2
        log(f"an open loop of {rate:.0f} requests a second, then batches of {BATCH:,}")
        taken = asyncio.run(steady(port, _paths(bundle), rate, turns * seconds))
        load = SteadyLoad(what="open loop", per_second=rate, **percentiles(taken))
        batch = asyncio.run(_batches(port, bundle.user_ids.raw.tolist(), 2 * turns))
    return empty, recommend, load, batch


def _large(bundle: Bundle, turns: int, seconds: float) -> list[Rate]:
    """Peaks alone."""
    port = free_port()
    with serving(bundle.folder.path, HOST, port):
        serve_empty()
        return asyncio.run(_peaks(bundle, port, turns, seconds))


async def _peaks(bundle: Bundle, port: int, turns: int, seconds: float) -> list[Rate]:
    """Of the empty deployment, then of recray."""
    items = bundle.item_ids.known
    paths = {f"empty {items}": ["/empty/"], f"recommend {items}": _paths(bundle)}
    found: dict[str, list[float]] = {what: [] for what in paths}
    for own in paths.values():
        await peak(port, own, 0.5)  # warm
    for _ in range(turns):
        for what, own in paths.items():
            found[what].append(await peak(port, own, seconds))
    return [rate_of(what, values) for what, values in found.items()]


# ----------------------------------------------------------------------------------- swaps


def swaps(small: Bundle, folder: Path, seconds: float, log: Log) -> Swaps:
    """Constant load while models are swapped and the replicas are replaced."""
    registry = Registry(str(folder / "registry"))
    other = make_bundle(folder / "small", *SMALL, seed=1)
    versions = [registry.add(bundle.folder.path) for bundle in (small, other)]
    registry.promote(versions[0])
    users = small.user_ids.raw[:200].tolist()
    right = {bundle.version: _lists(bundle, users) for bundle in (small, other)}
    limits, port = ServiceLimits(), free_port()
    log(f"{SWAP_RATE:g} requests a second for {seconds:g} s: three swaps, a rolling update")
    with serving(registry.folder.path, HOST, port, replicas=2, limits=limits):

        async def change() -> None:
            for version in (versions[1], versions[0], None, versions[1]):
                await asyncio.sleep(seconds / 7)
                if version is None:
                    await asyncio.to_thread(deploy, registry.folder.path, limits, 2)
                else:
                    await asyncio.to_thread(registry.promote, version, True)

        return asyncio.run(_watch(port, users, right, seconds, change()))


def _lists(bundle: Bundle, users: list[int]) -> list[list[RawId]]:
    recommender = Recommender(bundle)
    return [[item.item for item in recommender.recommend(user, 10).items] for user in users]


async def _watch(
    port: int,
    users: list[int],
    right: dict[str, list[list[RawId]]],
    seconds: float,
    change: Coroutine[Any, Any, None],
) -> Swaps:
    """Ask at a constant rate; count what failed, and lists that are not of their version."""
    found = {"asked": 0, "failed": 0, "mixed": 0}
    seen: set[str] = set()
    taken: list[float] = []
    begin = time.perf_counter() + 0.05

    async def one(number: int) -> None:
        due, place = begin + number / SWAP_RATE, number % len(users)
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        found["asked"] += 1
        try:
            path = f"/v1/users/{users[place]}/recommendations?k=10"
            reply = json.loads(await client.ask(path))
        except (OSError, RuntimeError):
            found["failed"] += 1
            return
        taken.append(time.perf_counter() - due)
        version = reply["model_version"]
        seen.add(version)
        found["mixed"] += [item["item"] for item in reply["items"]] != right[version][place]

    asking = [one(number) for number in range(int(SWAP_RATE * seconds))]
    async with Client(port) as client:
        await asyncio.gather(change, *asking)
    return Swaps(what="swaps", **found, versions=len(seen), **percentiles(taken))


# -------------------------------------------------------------- in a process of their own


def production(bundle: str, seconds: str) -> Production:
    """Requests a second with HAProxy and throughput settings."""
    secret, line = new_key("benchmark")
    guarded, port = ServiceLimits(keys=(parse_key(line, "here"),)), free_port()
    profile: Profile = "production"
    with serving(bundle, HOST, port, limits=guarded, profile=profile):
        serve_empty()
        headers = f"authorization: Bearer {secret}\r\n"
        paths, figures = _paths(Bundle.open(bundle)), {}
        for what, own in (("empty", ["/empty/"]), ("recommend", paths)):
            _warm_up(port, own, headers)
            figures[what] = asyncio.run(peak(port, own, float(seconds), headers))
    return Production(what="production", per_second=figures["recommend"], empty=figures["empty"])


def _warm_up(port: int, paths: list[str], headers: str) -> None:
    """A second of requests. HAProxy begins anew with each app and, on a busy machine late, ends the
    connections of the one before: then again.
    """
    for attempt in range(WARM_UPS):
        try:
            asyncio.run(peak(port, paths, 1.0, headers))
            return
        except OSError:
            if attempt == WARM_UPS - 1:
                raise
            time.sleep(1.0)


# ----------------------------------------------------------------- batches and new users


async def _batches(port: int, users: list[int], times: int) -> Rate:
    speeds = []
    async with Client(port) as client:
        for number in range(times + 1):
            first = number * BATCH % (len(users) - BATCH)
            askers = [{"user": user} for user in users[first : first + BATCH]]
            body = json.dumps({"askers": askers}).encode()
            begin = time.perf_counter()
            reply = await client.ask("/v1/recommendations:batch", body)
            speeds.append(BATCH / (time.perf_counter() - begin))
            if reply.count(b'"score"') != 10 * BATCH:
                raise RuntimeError("a batch did not answer everybody")
    return rate_of("batch", speeds[1:])


def _fold_in(bundle: Bundle) -> Latency:
    """The computation for somebody new, without HTTP."""
    torch.set_num_threads(1)  # as on a replica
    recommender, rng = Recommender(bundle), np.random.default_rng(0)
    raw, taken = bundle.item_ids.raw[: bundle.item_ids.known], []
    for _ in range(220):
        chosen = rng.choice(raw, RATINGS, replace=False)
        ratings = [RawRating(int(item), 4.0) for item in chosen]
        begin = time.perf_counter()
        recommender.recommend_from(ratings, 10)
        taken.append(time.perf_counter() - begin)
    return Latency(what="fold in", **percentiles(taken[20:]))


if __name__ == "__main__":
    print({"production": production}[sys.argv[1]](*sys.argv[2:]).model_dump_json())
