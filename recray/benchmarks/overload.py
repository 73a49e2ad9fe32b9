"""The worst requests that the service allows, at once: what others notice, and its memory."""

import asyncio
import contextlib
import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from pydantic import JsonValue

from recray.benchmarks.client import HOST, REPLICA, Client, Request, free_port
from recray.benchmarks.harness import SAMPLE_SECONDS, Figures, Row, own_memory, processes_named
from recray.inference.bundle import Bundle
from recray.inference.catalog import Filters
from recray.inference.costs import price_of_lists
from recray.inference.recommender import Recommender
from recray.progress import Log
from recray.serving.deployment import serving
from recray.serving.options import ServiceLimits
from recray.serving.schemas.requests import (
    MAX_BATCH,
    MAX_K,
    MAX_RATINGS,
    BatchQuery,
    BatchRequest,
)
from recray.serving.user_routes import MAX_LISTED, make_batch
from recray.serving.work import Waiting

AT_ONCE = 20
OTHERS_RATE = 15.0
"""Other requests a second."""
OF_BUDGET = 0.9
"""A replica measures for itself, and its prices are a little different from those here."""


class Overload(Row):
    """So many of the worst requests at once, and other requests beside them at a steady rate.

    Milliseconds of the others are since they were due; `mb` is what the replica grew by.
    """

    what: str
    at_once: int
    answered: int
    refused: int
    failed: int
    others: int
    others_failed: int
    p50_ms: float
    p99_ms: float
    mb: float


class Price(Row):
    """What a request took of a processor, and its price."""

    what: str
    lists: int
    cpu_s: float
    price_over_cpu: float


def overload(bundle: Bundle, seconds: float, log: Log) -> tuple[Figures, Sequence[Row]]:
    """Send them, each again as soon as it is answered, for some seconds."""
    recommender, port = Recommender(bundle), free_port()
    prices = [price_over_cpu(recommender, name, options) for name, options in SHAPES.items()]
    worst = [request for name in SHAPES for request in worst_requests(recommender, name)]
    others = other_requests(recommender)
    rows: list[Row] = [*prices]
    with serving(bundle.folder.path, HOST, port):
        asyncio.run(_others(port, others, 3.0, Counter()))  # warm
        log(f"{AT_ONCE} of the worst requests at once, for {seconds:g} s")
        quiet = _measured("without them", port, [], others, seconds)
        loaded = _measured("the worst", port, worst, others, seconds)
    ratios = [row.price_over_cpu for row in prices]
    figures: Figures = {
        "worst_p99_s": loaded.p99_ms / 1000,
        "worst_5xx": loaded.failed + loaded.others_failed,
        "worst_mb": loaded.mb,
        "price_over_cpu_low": min(ratios),
        "price_over_cpu_high": max(ratios),
    }
    return figures, [*rows, quiet, loaded]


# ------------------------------------------------------------------------------- requests

SHAPES: dict[str, dict[str, JsonValue]] = {
    "many": {"k": MAX_LISTED // MAX_BATCH},
    "long": {"k": MAX_K},
    "reasons": {"k": MAX_K, "explain": True},
    "varied": {"k": MAX_K, "diversity": 0.5},
    "new": {"k": 10},
    "new, reasons": {"k": MAX_K, "explain": True},
}
"""Options of batches by what is much in them."""


def askers_of(recommender: Recommender, name: str, count: int) -> list[dict[str, JsonValue]]:
    """Users of the data, or new ones with as many ratings as are allowed."""
    if not name.startswith("new"):
        users = itertools.cycle(recommender.users.first(len(recommender.users)))
        return [{"user": user} for user in itertools.islice(users, count)]
    raw = recommender.items.raw[: recommender.items.known][:MAX_RATINGS].tolist()
    return [{"ratings": [{"item": item, "rating": 4} for item in raw]}] * count


def priced(recommender: Recommender, name: str, options: dict[str, JsonValue], most: float) -> int:
    """As many askers as a price, the reply and the body allow."""
    k = recommender.at_most(int(str(options["k"])))
    filters = Filters(
        explain=bool(options.get("explain")), diversity=float(str(options.get("diversity", 0)))
    )
    (asker,) = askers_of(recommender, name, 1)
    query = BatchQuery.model_validate(asker)
    user = query.ratings or [] if query.user is None else query.user
    (price,) = price_of_lists(recommender, [user], k, filters)
    in_body = int(OF_BUDGET * ServiceLimits().max_body) // len(json.dumps(asker))
    return max(1, min(MAX_BATCH, MAX_LISTED // k, int(most / price), in_body))


def worst_requests(recommender: Recommender, name: str) -> list[Request]:
    """A batch as large as the budget allows."""
    count = priced(recommender, name, SHAPES[name], OF_BUDGET * ServiceLimits().budget)
    body = {"askers": askers_of(recommender, name, count), **SHAPES[name]}
    return [Request("/v1/recommendations:batch", json.dumps(body).encode())]


def other_requests(recommender: Recommender) -> list[Request]:
    """What a page asks for: searches, lists, what is like an item, a list of somebody new."""
    user, item = (ids.first(4)[3] for ids in (recommender.users, recommender.items))
    rated = [{"item": i, "rating": 4} for i in recommender.items.raw[:20].tolist()]
    return [
        Request("/v1/items?query=film"),
        Request(f"/v1/users/{user}/recommendations?k=10"),
        Request("/v1/recommendations", json.dumps({"ratings": rated}).encode()),
        Request(f"/v1/items/{item}/similar"),
        Request("/v1/scores", json.dumps({"pairs": [{"user": user, "item": item}]}).encode()),
        Request(f"/v1/users/{user}/recommendations?k=10&explain=true"),
        Request("/v1/model"),
        Request(f"/v1/users/{user}"),
    ]


def price_over_cpu(recommender: Recommender, name: str, options: dict[str, JsonValue]) -> Price:
    """Make a batch of a third of the budget in this thread."""
    count = priced(recommender, name, options, ServiceLimits().budget / 3)
    askers = askers_of(recommender, name, count)
    body = BatchRequest.model_validate({"askers": askers, **options})
    given = [q.user if q.user is not None else q.ratings or [] for q in body.askers]
    k = recommender.at_most(body.k)
    prices = price_of_lists(recommender, given, k, body.as_filters())
    begin = time.thread_time()
    make_batch(recommender, body, lambda _user: [], prices, Waiting())
    taken = time.thread_time() - begin
    return Price(what=name, lists=count, cpu_s=taken, price_over_cpu=sum(prices) / taken)


# ------------------------------------------------------------------------------------ load


def _measured(
    what: str, port: int, worst: list[Request], others: list[Request], seconds: float
) -> Overload:
    count = AT_ONCE if worst else 0
    statuses: Counter[int] = Counter()
    of_others: Counter[int] = Counter()

    async def both() -> list[float]:
        taken, _ = await asyncio.gather(
            _others(port, others, seconds, of_others),
            _again_and_again(port, worst, count, seconds, statuses),
        )
        return taken

    with replica_growth() as growth:
        taken = asyncio.run(both())
    p50, p99 = np.percentile(np.array(taken) * 1000, [50, 99])
    failed = {status for status in statuses | of_others if not 200 <= status < 500}
    return Overload(
        what=what,
        at_once=count,
        answered=statuses[200],
        refused=sum(n for status, n in statuses.items() if 400 <= status < 500),
        failed=sum(statuses[status] for status in failed),
        others=len(taken),
        others_failed=sum(n for status, n in of_others.items() if status != 200),
        p50_ms=float(p50),
        p99_ms=float(p99),
        mb=growth(),
    )


async def _others(
    port: int, requests: list[Request], seconds: float, statuses: Counter[int]
) -> list[float]:
    """Seconds that each took since it was due, at a steady rate."""
    begin = time.perf_counter() + 0.05

    async def one(number: int) -> float:
        due = begin + number / OTHERS_RATE
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        status, _ = await client.exchange(*requests[number % len(requests)])
        statuses[status] += 1
        return time.perf_counter() - due

    async with Client(port) as client:
        return await asyncio.gather(*map(one, range(int(OTHERS_RATE * seconds))))


async def _again_and_again(
    port: int, requests: list[Request], at_once: int, seconds: float, statuses: Counter[int]
) -> None:
    """Keep so many requests open; one that is refused comes again a second later."""
    end = time.perf_counter() + seconds

    async def loop(number: int) -> None:
        for request in itertools.islice(itertools.cycle(requests), number, None):
            if time.perf_counter() >= end:
                return
            status, _ = await client.exchange(*request)
            statuses[status] += 1
            if status != 200:
                await asyncio.sleep(1.0)

    async with Client(port) as client:
        await asyncio.gather(*map(loop, range(at_once)))


@contextlib.contextmanager
def replica_growth() -> Iterator[Callable[[], float]]:
    """Watch the replicas' memory; gives the most by which it has grown, in MB."""
    held: list[int] = [replica_memory()]
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(SAMPLE_SECONDS):
            held.append(replica_memory())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield lambda: (max(held) - held[0]) / 1e6
    finally:
        stop.set()
        thread.join()


def replica_memory() -> int:
    """Bytes of all replicas that no file backs."""
    total = 0
    for process in processes_named(REPLICA):
        with contextlib.suppress(OSError, RuntimeError):  # it ended meanwhile
            total += own_memory("RssAnon", str(process))
    return total
