"""Requests a second and latency of the service, beside an empty deployment of the same Serve."""

# Ray is imported here for the empty deployment alone, which recray is compared with.

import asyncio
import json
import socket
import tempfile
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recray import cluster
from recray.benchmarks.harness import machine
from recray.bundle import Bundle, write_bundle
from recray.config import load_settings
from recray.data import ingest
from recray.data.prepared import Prepared
from recray.data.source import recognise
from recray.models import build_model
from recray.recommender import GivenRatings, Recommender
from recray.serving.deployment import serving
from recray.training.checkpoint import Checkpoint, Progress

Say = Callable[[str], None]
USERS, ITEMS, PER_USER = 6040, 3706, 50
CONNECTIONS = 16
BATCH = 1000
RATINGS = 20
HOST = "127.0.0.1"


def run(quick: bool, say: Say) -> dict[str, Any]:
    """Peaks by a closed loop, taking turns; latency by an open one at half of the peak."""
    turns, seconds = (2, 2.0) if quick else (5, 4.0)
    with tempfile.TemporaryDirectory(prefix="recray-benchmark-") as folder, cluster.session():
        say(f"a bundle of {USERS:,} users and {ITEMS:,} items")
        bundle = make_bundle(Path(folder))
        port = _free_port()
        with serving(bundle.folder.path, HOST, port):
            _serve_empty()
            say(f"requests of {CONNECTIONS} connections, in {turns} turns of {seconds:g} s")
            rows = asyncio.run(_measure(bundle, port, turns, seconds, say))
    rows.append(_fold_in(bundle))
    say(f"load {machine()['load']}")
    return {"figures": _figures(rows), "rows": rows}


def _figures(rows: list[dict[str, Any]]) -> dict[str, float]:
    by = {row["what"]: row for row in rows}
    steady = by["open loop"]
    return {
        "over_empty_3706": by["recommend"]["per_second"] / by["empty"]["per_second"],
        "batch_users_per_s": by["batch"]["per_second"],
        "fold_in_ms_p95": by["fold in"]["p95_ms"],
        "p99_over_p50": steady["p99_ms"] / steady["p50_ms"],
    }


def make_bundle(folder: Path) -> Bundle:
    """A bundle of the preset `ranking` with 64 random numbers a vector: made, not trained."""
    rng = np.random.default_rng(0)
    path = folder / "ratings.csv"
    with path.open("w") as stream:
        stream.write("userId,movieId,rating,timestamp\n")
        for user in range(USERS):
            own = set(rng.integers(0, ITEMS, PER_USER).tolist()) | {user % ITEMS}
            stream.writelines(f"{user + 1},{item + 1},4,{item}\n" for item in sorted(own))
    settings = load_settings("ranking", None, ["split.kind=random", "split.test=0.01"])
    ingest.prepare(recognise(str(path), settings), str(folder / "prepared"), settings)
    prepared = Prepared.open(str(folder / "prepared"))
    torch.manual_seed(0)
    model = build_model(settings, prepared.users, prepared.items)
    history = [{"epoch": 1, "loss": 1.0, "seconds": 0.0}]
    checkpoint = Checkpoint(model.state_dict(), {}, Progress(1, 1, None, history))
    out, created = str(folder / "bundle"), "2026-01-01T00:00:00+00:00"
    return write_bundle(out, prepared, checkpoint, settings, created, lambda _bundle: {})


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _serve_empty() -> None:
    from fastapi import FastAPI
    from ray import serve

    app = FastAPI()

    @app.get("/")
    async def nothing() -> dict[str, str]:
        return {}

    deployment = serve.deployment(
        name="empty", max_ongoing_requests=128, ray_actor_options={"num_cpus": 0.25}
    )
    serve.run(
        deployment(serve.ingress(app)(type("Empty", (), {}))).bind(),
        name="empty",
        route_prefix="/empty",
    )


# ----------------------------------------------------------------------------------- client


class Connection:
    """One kept-alive connection.

    Args:
        port: Of this machine.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, path: str, body: bytes = b"") -> bytes:
        """The body of a reply, which must be 200."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(HOST, self.port, limit=1 << 24)
        reader, writer = self._streams
        method = "POST" if body else "GET"
        writer.write(
            f"{method} {path} HTTP/1.1\r\nhost: {HOST}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n\r\n".encode()
            + body
        )
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        size = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
        content = await reader.readexactly(size)
        if not head.startswith(b"http/1.1 200"):
            raise RuntimeError(f"{path}: {head.splitlines()[0]!r} {content[:200]!r}")
        return content


async def peak(port: int, paths: list[str], seconds: float) -> float:
    """Requests a second of a closed loop; right for peaks only."""
    end, done = time.perf_counter() + seconds, 0

    async def loop(number: int) -> None:
        nonlocal done
        connection = Connection(port)
        while time.perf_counter() < end:
            await connection.ask(paths[(number + done) % len(paths)])
            done += 1

    begin = time.perf_counter()
    await asyncio.gather(*map(loop, range(CONNECTIONS)))
    return done / (time.perf_counter() - begin)


async def steady(port: int, paths: list[str], rate: float, seconds: float) -> list[float]:
    """Seconds that each request took since it was due; an open loop, so queueing is in it."""
    free: list[Connection] = []
    begin = time.perf_counter() + 0.05

    async def one(number: int) -> float:
        due = begin + number / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        connection = free.pop() if free else Connection(port)
        await connection.ask(paths[number % len(paths)])
        free.append(connection)
        return time.perf_counter() - due

    requests: list[Coroutine[Any, Any, float]] = [one(n) for n in range(int(rate * seconds))]
    return await asyncio.gather(*requests)


async def _measure(
    bundle: Bundle, port: int, turns: int, seconds: float, say: Say
) -> list[dict[str, Any]]:
    users = bundle.user_ids.raw.tolist()
    paths = {
        "empty": ["/empty/"],
        "recommend": [f"/v1/users/{user}/recommendations?k=10" for user in users],
    }
    found: dict[str, list[float]] = {what: [] for what in paths}
    for what in paths:
        await peak(port, paths[what], 0.5)  # warm
    for _ in range(turns):
        for what, own in paths.items():
            found[what].append(await peak(port, own, seconds))
    rows: list[dict[str, Any]] = [
        {"what": what, "per_second": float(np.median(v)), "low": min(v), "high": max(v)}
        for what, v in found.items()
    ]
    rate = float(np.median(found["recommend"])) / 2
    say(f"an open loop of {rate:.0f} requests a second, then batches of {BATCH:,}")
    taken = await steady(port, paths["recommend"], rate, turns * seconds)
    rows.append({"what": "open loop", "per_second": rate, **_percentiles(taken)})
    rows.append(await _batches(port, users, 2 * turns))
    return rows


async def _batches(port: int, users: list[int], times: int) -> dict[str, Any]:
    connection, speeds = Connection(port), []
    for number in range(times + 1):
        first = number * BATCH % (len(users) - BATCH)
        askers = [{"user": user} for user in users[first : first + BATCH]]
        body = json.dumps({"askers": askers}).encode()
        begin = time.perf_counter()
        reply = await connection.ask("/v1/recommendations:batch", body)
        speeds.append(BATCH / (time.perf_counter() - begin))
        if reply.count(b'"score"') != 10 * BATCH:
            raise RuntimeError("a batch did not answer everybody")
    speeds = speeds[1:]
    return {
        "what": "batch",
        "per_second": float(np.median(speeds)),
        "low": min(speeds),
        "high": max(speeds),
    }


def _fold_in(bundle: Bundle) -> dict[str, Any]:
    """The computation for somebody new, without HTTP."""
    torch.set_num_threads(1)  # as on a replica
    recommender, rng = Recommender(bundle), np.random.default_rng(0)
    raw, taken = bundle.item_ids.raw[: bundle.item_ids.known], []
    for _ in range(220):
        ratings: GivenRatings = [
            (int(item), 4.0) for item in rng.choice(raw, RATINGS, replace=False)
        ]
        begin = time.perf_counter()
        recommender.recommend_from(ratings, 10)
        taken.append(time.perf_counter() - begin)
    return {"what": "fold in", **_percentiles(taken[20:])}


def _percentiles(seconds: list[float]) -> dict[str, float]:
    values = np.percentile(np.array(seconds) * 1000, [50, 95, 99])
    return {f"p{p}_ms": float(v) for p, v in zip((50, 95, 99), values, strict=True)}
