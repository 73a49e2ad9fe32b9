"""Work is priced before it begins, ends when nobody waits, and callers take turns."""

import asyncio
import json
import threading
from concurrent.futures import wait

import pytest
from fastapi.testclient import TestClient

from recray.inference.costs import Costs
from recray.inference.recommender import Recommender
from recray.serving import user_routes, work
from recray.serving.app import build_app
from recray.serving.auth import new_key, parse_key
from recray.serving.http_errors import HTTPError
from recray.serving.options import ServiceLimits
from recray.serving.work import FairThreads, GivenUp, Waiting, Workers

from .conftest import ITEMS, USERS, raw

LONG = 2 * work.SHORT_SECONDS


@pytest.fixture
def recommender(make_bundle):
    made = Recommender(make_bundle())
    made.costs = Costs(ITEMS, known=0.25, new=0.5, without=0.0)  # as of a model that is slow
    return made


def error_of(reply):
    return reply.status_code, reply.json()["error"]["code"], reply.json()["error"]["message"]


# ------------------------------------------------------------------------------- threads


def test_callers_take_turns():
    threads, gate, order = FairThreads(1, "test"), threading.Event(), []
    first = threads.submit("a", gate.wait)
    rest = [
        threads.submit(caller, lambda caller=caller: order.append(caller))
        for caller in ["a", "a", "a", "b", "b", "c"]
    ]
    gate.set()
    wait([first, *rest])
    assert order == ["a", "b", "c", "a", "b", "a"]


def test_what_is_cancelled_before_its_turn_is_not_begun():
    threads, gate, begun = FairThreads(1, "test"), threading.Event(), []
    first = threads.submit("a", gate.wait)
    second, third = (threads.submit("a", lambda n=n: begun.append(n)) for n in (2, 3))
    assert second.cancel()
    gate.set()
    wait([first, third])
    assert begun == [3]


def test_an_error_of_the_work_is_the_callers():
    async def go():
        await Workers(1.0, 10.0).run("", 0.0, lambda _waiting: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        asyncio.run(go())


def test_long_work_does_not_keep_short_work_waiting():
    workers, gate = Workers(1.0, 10.0), threading.Event()

    async def go():
        long = [
            asyncio.create_task(workers.run("a", LONG, lambda _waiting: gate.wait(10)))
            for _ in range(8)
        ]
        await asyncio.sleep(0)
        try:
            async with asyncio.timeout(5):
                return await workers.run("a", work.SHORT_SECONDS, lambda _waiting: "done")
        finally:
            gate.set()
            await asyncio.gather(*long)

    assert asyncio.run(go()) == "done"


def test_work_that_nobody_waits_for_ends():
    workers, begun, ended = Workers(1.0, 10.0), threading.Event(), threading.Event()

    def until_nobody_waits(waiting):
        begun.set()
        try:
            while not ended.wait(0.001):
                waiting.check()
        except GivenUp:
            ended.set()
            raise

    async def go():
        task = asyncio.create_task(workers.run("a", LONG, until_nobody_waits))
        await asyncio.to_thread(begun.wait, 5)
        task.cancel()  # as a timeout does, and a client that goes away
        with pytest.raises(asyncio.CancelledError):
            await task
        return await asyncio.to_thread(ended.wait, 5)

    assert asyncio.run(go())
    assert not workers._held


def test_one_caller_holds_so_much_at_once_and_others_are_not_refused():
    workers, gate = Workers(1.0, 20.0), threading.Event()  # 2 s at once

    async def go():
        held = [
            asyncio.create_task(workers.run("a", 0.9, lambda _waiting: gate.wait(10)))
            for _ in range(2)
        ]
        await asyncio.sleep(0)
        with pytest.raises(HTTPError, match=r"requests that wait take 1\.8 s .* 2 s are") as no:
            await workers.run("a", 0.9, lambda _waiting: None)
        other = asyncio.create_task(workers.run("b", 0.9, lambda _waiting: "b"))
        await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(*held)
        again = await workers.run("a", 0.9, lambda _waiting: "a")
        return no.value, await other, again

    refused, other, again = asyncio.run(go())
    assert (refused.status, refused.code) == (429, "too_much_at_once")
    assert refused.headers == {"retry-after": "2"}
    assert (other, again) == ("b", "a")


# ------------------------------------------------------------------------------ over HTTP


def test_a_request_above_the_budget_is_refused_with_the_limit(recommender, monkeypatch):
    monkeypatch.setattr(recommender, "recommend_many", None)  # nothing is computed
    client = TestClient(build_app(recommender, ServiceLimits(budget=1.2)))
    askers = [{"user": int(raw(user))} for user in range(5)]
    status, code, message = error_of(
        client.post("/v1/recommendations:batch", json={"askers": askers})
    )
    assert (status, code) == (422, "too_much")
    assert "1.3 s of a processor, 1.2 s are allowed (--budget)" in message


def test_what_the_budget_allows_is_answered_as_before(recommender):
    client = TestClient(build_app(recommender, ServiceLimits(budget=1.3)))
    askers = [{"user": int(raw(user))} for user in (0, 1, 2)] + [{"ratings": []}]
    reply = client.post("/v1/recommendations:batch", json={"askers": askers, "k": 3})
    assert reply.status_code == 200
    expected = recommender.recommend_many([int(raw(user)) for user in (0, 1, 2)] + [[]], 3)
    shown = [[item["item"] for item in entry["items"]] for entry in reply.json()["results"]]
    assert shown == [[item.item for item in answer.items] for answer in expected]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/recommendations", {"ratings": [{"item": int(raw(0)), "rating": 5}]}),
        ("/v1/scores", {"pairs": [{"user": int(raw(USERS)), "item": 1}]}),
    ],
)
def test_every_priced_route_has_the_budget(recommender, path, body):
    recommender.costs = Costs(ITEMS, known=9.0, new=9.0, without=0.0)
    client = TestClient(build_app(recommender))
    assert error_of(client.post(path, json=body))[:2] == (422, "too_much")


def test_a_list_in_an_address_has_the_budget(recommender):
    recommender.costs = Costs(ITEMS, known=9.0, new=9.0, without=0.0)
    client = TestClient(build_app(recommender))
    path = f"/v1/users/{raw(0)}/recommendations?explain=true"
    for _ in range(2):  # the second comes by the checked query
        assert error_of(client.get(path))[:2] == (422, "too_much")


def test_a_reply_lists_so_many_items_at_most(recommender, monkeypatch):
    monkeypatch.setattr(user_routes, "MAX_LISTED", 8)
    client = TestClient(build_app(recommender))
    askers = [{"user": int(raw(user))} for user in range(3)]
    reply = client.post("/v1/recommendations:batch", json={"askers": askers, "k": 3})
    status, code, message = error_of(reply)
    assert (status, code) == (422, "too_much")
    assert "3 lists of 3 items are more than 8 items" in message


def test_a_batch_ends_between_its_lists(recommender, monkeypatch):
    monkeypatch.setattr(user_routes, "PART_SECONDS", 0.31)
    waiting, made = Waiting(), []
    make = recommender.recommend_many

    def note(users, *rest):
        made.append(len(users))
        if len(made) == 2:
            waiting.end()
        return make(users, *rest)

    monkeypatch.setattr(recommender, "recommend_many", note)
    body = user_routes.requests.BatchRequest(askers=[{"user": int(raw(user))} for user in range(6)])
    with pytest.raises(GivenUp):
        user_routes.make_batch(
            recommender, body, lambda _user: [], [0.1, 0.2, 0.3, 0.4, 0.1, 0.1], waiting
        )
    assert made == [2, 1]


def test_a_batch_stops_when_its_timeout_is_over(recommender, monkeypatch):
    monkeypatch.setattr(user_routes, "PART_SECONDS", 0.0)
    make, made, late = recommender.recommend_many, [], threading.Event()

    def slow(users, *rest):
        made.append(len(users))
        late.wait(0.2)
        return make(users, *rest)

    monkeypatch.setattr(recommender, "recommend_many", slow)
    app = build_app(recommender, ServiceLimits(timeout=0.05, budget=9.0))
    with TestClient(app) as client:
        askers = [{"user": int(raw(0))}] * 9
        reply = client.post("/v1/recommendations:batch", json={"askers": askers})
        assert error_of(reply)[:2] == (504, "timeout")
        after = client.post("/v1/recommendations:batch", json={"askers": askers[:1]})
        assert error_of(after)[:2] == (504, "timeout")
    assert len(made) <= 2  # the first ended after one list, and the second is one


def test_a_key_that_asks_for_much_leaves_room_for_others(recommender, monkeypatch):
    """One key's batches wait for each other; another key's batch comes after the running one."""
    (loud, line), (quiet, other) = new_key("loud"), new_key("quiet")
    limits = ServiceLimits(keys=(parse_key(line, "x"), parse_key(other, "x")), timeout=20)
    order, gate = [], threading.Event()

    def note(users, *_rest):
        gate.wait(10)
        order.append(len(users))
        return []

    monkeypatch.setattr(recommender, "recommend_many", note)
    monkeypatch.setattr(user_routes, "PART_SECONDS", 9.0)
    app = build_app(recommender, limits)

    async def go():
        async def post(key, askers):
            body = {"askers": [{"user": int(raw(0))}] * askers}
            return await asgi_post(app, "/v1/recommendations:batch", body, key)

        loud_ones = [asyncio.create_task(post(loud, 1)) for _ in range(4)]
        while len(app.state.service.workers._long._queues.get("loud", ())) < 3:
            await asyncio.sleep(0.01)
        later = asyncio.create_task(post(quiet, 2))
        while "quiet" not in app.state.service.workers._long._queues:
            await asyncio.sleep(0.01)
        gate.set()
        return await asyncio.gather(later, *loud_ones)

    assert set(asyncio.run(go())) == {200}
    assert order.index(2) <= 2


async def asgi_post(app, path, body, key):
    """Status of one POST to an app, in this loop."""
    content, status = json.dumps(body).encode(), []
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(content)).encode()),
        (b"authorization", f"Bearer {key}".encode()),
        (b"host", b"127.0.0.1"),
    ]
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": headers,
        "scheme": "http",
        "server": ("127.0.0.1", 80),
        "client": ("127.0.0.1", 1),
        "http_version": "1.1",
        "root_path": "",
    }
    messages = [{"type": "http.request", "body": content}]

    async def receive():
        if not messages:
            await asyncio.Event().wait()
        return messages.pop()

    async def send(message):
        status.append(message.get("status"))

    await app(scope, receive, send)
    return status[0]
