"""Every request that is refused, and what the log says of it."""

import asyncio
import contextlib
import json
import stat
import urllib.error
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from fastapi.responses import Response
from fastapi.testclient import TestClient

from recray import results
from recray.cli import cli
from recray.errors import RecrayError
from recray.inference.recommender import Recommender
from recray.serving.app import build_app
from recray.serving.auth import (
    KEYS_VARIABLE,
    add_line,
    is_loopback,
    load_keys,
    new_key,
    parse_key,
    require_keys,
)
from recray.serving.guard import (
    WRITE_BUFFER,
    SecurityMiddleware,
)
from recray.serving.http_errors import error_body
from recray.serving.options import ServiceLimits, limits_with_own_key
from recray.serving.rate import RateLimiter
from recray.serving.verify import verify

from .conftest import raw
from .test_app import serve  # noqa: F401 - a fixture

LIST = f"/v1/users/{raw(0)}/recommendations"


@pytest.fixture
def recommender(make_bundle):
    return Recommender(make_bundle())


@pytest.fixture
def guarded(recommender):
    """A client of the bundle's app with these limits."""

    def make(**limits) -> TestClient:
        app = build_app(recommender, ServiceLimits(**limits))
        return TestClient(app, raise_server_exceptions=False)

    return make


def code(reply) -> tuple[int, str]:
    assert set(reply.json()) == {"error"}
    assert set(reply.json()["error"]) == {"code", "message"}
    return reply.status_code, reply.json()["error"]["code"]


# ------------------------------------------------------------------------------------- keys


@pytest.fixture
def keys():
    """Two secrets and their keys."""
    made = [new_key(name) for name in ("shop", "lab")]
    return [secret for secret, _ in made], tuple(parse_key(line, "here") for _, line in made)


def test_each_key_opens_and_no_other_does(guarded, keys):
    secrets, known = keys
    client = guarded(keys=known)
    for secret in secrets:
        assert client.get(LIST, headers={"authorization": f"Bearer {secret}"}).status_code == 200
        assert client.get(LIST, headers={"x-api-key": secret}).status_code == 200
    none = client.get(LIST)
    assert code(none) == (401, "no_key")
    assert none.headers["www-authenticate"] == "Bearer"
    for wrong in ("x", secrets[0][:-1], known[0].digest, secrets[0] + "x"):
        reply = client.get(LIST, headers={"authorization": f"Bearer {wrong}"})
        assert code(reply) == (403, "wrong_key")
    assert code(client.get(LIST, headers={"authorization": "Basic eDp5"})) == (401, "no_key")
    assert code(client.get(LIST + f"?key={secrets[0]}")) == (401, "no_key")


def test_nothing_but_health_and_documentation_is_open(guarded, keys):
    client = guarded(keys=keys[1])
    for path in ("/healthz", "/readyz", "/docs", "/openapi.json"):
        assert client.get(path).status_code == 200
    for path in ("/v1/model", "/v1/items?query=x", "/v2", "/healthz/", "/docs/x", "/metrics"):
        assert client.get(path).status_code == 401
    assert client.post("/v1/scores", json={}).status_code == 401


def test_a_key_is_kept_as_its_hash_in_a_file_of_its_owners(tmp_path, monkeypatch):
    file = tmp_path / "keys"
    secret, line = new_key("shop")
    add_line(str(file), line)
    add_line(str(file), "# a remark")
    add_line(str(file), new_key("lab")[1])
    assert secret not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [key.name for key in load_keys(str(file))] == ["shop", "lab"]
    assert len({new_key("shop")[0] for _ in range(20)}) == 20
    monkeypatch.delenv(KEYS_VARIABLE, raising=False)
    assert load_keys(None) == ()
    monkeypatch.setenv(KEYS_VARIABLE, f"{line}, {new_key('lab')[1]}")
    assert [key.name for key in load_keys(None)] == ["shop", "lab"]


@pytest.mark.parametrize(
    "line", ["secret", "shop secret", "shop sha256:12", "../x sha256:" + "a" * 64]
)
def test_a_line_that_is_no_key_is_refused_and_not_repeated(tmp_path, line):
    file = tmp_path / "keys"
    file.write_text(line)
    with pytest.raises(RecrayError) as refusal:
        load_keys(str(file))
    assert "secret" not in str(refusal.value)


@pytest.mark.parametrize("content", [None, "", "# nothing\n", b"\xff\xfe"])
def test_a_file_without_keys_is_refused(tmp_path, content):
    file = tmp_path / "keys"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RecrayError, match="keys"):
        load_keys(str(file))


@pytest.mark.parametrize(
    ("host", "safe"),
    [
        ("127.0.0.1", True), ("127.1.2.3", True), ("::1", True), ("localhost", True),
        ("0.0.0.0", False), ("::", False), ("10.0.0.5", False),
        ("shop.example", False), ("", False),
    ],
)  # fmt: skip
def test_other_machines_are_let_in_with_keys_alone(host, safe, keys):
    assert is_loopback(host) == safe
    require_keys(host, keys[1])
    if safe:
        require_keys(host, ())
    else:
        with pytest.raises(RecrayError, match="--api-keys"):
            require_keys(host, ())


@pytest.mark.parametrize("command", ["serve", "up"])
def test_the_command_refuses_an_open_door_in_one_line(command, tmp_path, monkeypatch):
    monkeypatch.delenv(KEYS_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    source = "sample" if command == "up" else "bundle"
    done = CliRunner().invoke(cli, [command, source, "--host", "0.0.0.0", "--port", "1024"])
    assert done.exit_code == 2
    assert "lets other machines in" in done.stderr
    assert done.stderr.strip().count("\n") == 0
    assert not (tmp_path / "recray-out").exists()


def test_a_guarded_service_is_verified_with_its_key(recommender, serve, keys):  # noqa: F811
    url = serve(build_app(recommender, ServiceLimits(keys=keys[1])))
    assert verify(url, recommender, key=keys[0][1]).verified
    for wrong in (None, "x"):
        with pytest.raises(RecrayError, match="RECRAY_API_KEY"):
            verify(url, recommender, key=wrong)


def test_the_python_client_sends_its_key(recommender, serve, monkeypatch):  # noqa: F811
    monkeypatch.setenv("RECRAY_API_KEYS", f"shop sha256:{'0' * 64}")
    key, limits = limits_with_own_key("127.0.0.1", "own")
    url = serve(build_app(recommender, limits))
    model, nothing = SimpleNamespace(recommender=recommender), contextlib.ExitStack()
    service = results.Service(url, model, nothing, key)
    assert service.get("/v1/model")["model_version"] == recommender.version
    assert service.verify()["verified"]
    with pytest.raises(urllib.error.HTTPError, match="401"):
        results.Service(url, model, nothing).get("/v1/model")


def test_a_message_that_no_encoding_has_is_written_all_the_same():
    assert json.loads(error_body("invalid", "no \ud800"))["error"]["message"] == "no ?"


# ----------------------------------------------------------------------------------- limits


async def hello(scope, receive, send):
    """An app that reads the body and says how long it was."""
    size, more = 0, scope["method"] == "POST"
    while more:
        message = await receive()
        size += len(message["body"])
        more = message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps({"size": size}).encode()})


def ask(guard, method="POST", chunks=(b"",), headers=(), path="/v1/x", pause=0.0):
    """One request straight to the guard: status, headers, JSON, and the chunks it took."""

    async def go():
        sent, left, taken = [], list(chunks), []

        async def receive():
            await asyncio.sleep(pause)
            if not left:
                return {"type": "http.disconnect"}
            taken.append(left.pop(0))
            return {"type": "http.request", "body": taken[-1], "more_body": bool(left)}

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "method": method, "path": path, "headers": list(headers)}
        await guard(scope, receive, send)
        body = b"".join(m.get("body", b"") for m in sent)
        return sent[0]["status"], dict(sent[0]["headers"]), json.loads(body), taken

    return asyncio.run(go())


def test_a_body_is_counted_as_it_comes():
    guard = SecurityMiddleware(hello, ServiceLimits(max_body=10))
    assert ask(guard, chunks=[b"12345", b"67890"])[2] == {"size": 10}
    status, _, reply, taken = ask(guard, chunks=[b"12345"] * 100)
    assert (status, reply["error"]["code"]) == (413, "too_large")
    assert len(taken) == 3  # and no more was read
    lies = [(b"content-length", b"3")]
    assert ask(guard, chunks=[b"12345"] * 3, headers=lies)[0] == 413
    said = ask(guard, chunks=[b"12345"] * 3, headers=[(b"content-length", b"15")])
    assert (said[0], said[3]) == (413, [])
    assert guard.running == 0


def test_what_takes_too_long_is_given_up():
    async def slow(scope, receive, send):
        await asyncio.sleep(5)

    guard = SecurityMiddleware(slow, ServiceLimits(timeout=0.05))
    status, _, reply, _ = ask(guard, "GET")
    assert (status, reply["error"]["code"]) == (504, "timeout")
    ignored = [(b"x-request-timeout-seconds", b"0"), (b"x-request-disconnect-disabled", b"?1")]
    assert ask(guard, "GET", headers=ignored)[0] == 504
    dribble = SecurityMiddleware(hello, ServiceLimits(timeout=0.05))
    assert ask(dribble, chunks=[b"1"] * 1000, pause=0.01)[0] == 504  # a body that never ends
    assert guard.running == dribble.running == 0


@pytest.mark.parametrize(("size", "given_up"), [(WRITE_BUFFER, False), (WRITE_BUFFER + 1, True)])
def test_a_reply_made_at_once_has_a_timeout_if_it_may_wait_for_the_client(size, given_up):
    """The client reads slowly; only a reply that fits the server's buffer is not waited for."""
    limits = ServiceLimits(timeout=0.05)
    guard = SecurityMiddleware(hello, limits, answer_at_once=lambda _: Response(b"x" * size))
    sent = []

    async def send(message):
        if message["type"] == "http.response.body":
            await asyncio.sleep(0.2)
        sent.append(message["type"])

    scope = {"type": "http", "path": "/v1/model", "method": "GET", "headers": []}
    asyncio.run(guard(scope, None, send))
    assert ("http.response.body" not in sent) == given_up
    assert guard.running == 0


def test_a_long_computation_is_given_up_too(guarded, recommender, monkeypatch):
    import time

    monkeypatch.setattr(recommender, "recommend_from", lambda *_: time.sleep(0.5))
    client = guarded(timeout=0.05)
    assert code(client.post("/v1/recommendations", json={})) == (504, "timeout")


def test_large_bodies_of_one_caller_wait_outside():
    async def go():
        gate, begun, statuses = asyncio.Event(), [], {}

        async def app(scope, receive, send):
            begun.append(len((await receive())["body"]))
            await gate.wait()
            await hello(scope, receive, send)

        guard = SecurityMiddleware(app, ServiceLimits(max_body=1 << 17))

        async def post(name, size):
            async def receive():
                return {"type": "http.request", "body": b"x" * size}

            async def send(message):
                statuses.setdefault(name, message.get("status"))

            headers = [(b"content-length", str(size).encode())]
            scope = {"type": "http", "method": "POST", "path": "/v1/x", "headers": headers}
            await guard(scope, receive, send)

        tasks = [asyncio.create_task(post("first", 1 << 17))]
        await asyncio.sleep(0)
        tasks += [asyncio.create_task(post(*each)) for each in (("again", 1 << 17), ("small", 99))]
        await asyncio.sleep(0.01)
        assert statuses == {"again": 429}  # and its body has not been read
        assert begun == [1 << 17, 99]
        gate.set()
        await asyncio.gather(*tasks)
        await post("later", 1 << 17)
        return statuses

    assert asyncio.run(go()) == {"again": 429, "first": 200, "small": 200, "later": 200}


def test_more_than_the_queue_holds_are_told_to_come_again():
    async def go():
        gate = asyncio.Event()

        async def wait(scope, receive, send):
            await gate.wait()
            await hello(scope, receive, send)

        guard, sent = SecurityMiddleware(wait, ServiceLimits(queue=2)), []

        async def one(path="/v1/x"):
            mine = []
            sent.append(mine)

            async def send(message):
                mine.append(message)

            await guard({"type": "http", "method": "GET", "path": path, "headers": []}, None, send)

        tasks = [asyncio.create_task(one()) for _ in range(3)]
        await asyncio.sleep(0.01)
        assert [len(mine) for mine in sent] == [0, 0, 2]
        gate.set()
        await asyncio.gather(*tasks)
        await one()
        return [(mine[0]["status"], dict(mine[0]["headers"])) for mine in sent]

    first, second, third, later = asyncio.run(go())
    assert [first[0], second[0], third[0], later[0]] == [200, 200, 503, 200]
    assert third[1][b"retry-after"] == b"1"


def test_a_bucket_gives_its_burst_and_then_its_rate():
    now = [0.0]
    limiter = RateLimiter(2.0, 3, lambda: now[0])
    assert [limiter.acquire("shop") for _ in range(4)] == [0, 0, 0, 0.5]
    assert limiter.acquire("lab") == 0
    now[0] = 0.5
    assert [limiter.acquire("shop") for _ in range(2)] == [0, 0.5]
    now[0] = 100.0
    assert [limiter.acquire("shop") for _ in range(4)] == [0, 0, 0, 0.5]
    assert RateLimiter(0, 1).acquire("shop") == RateLimiter(0, 1).acquire("shop") == 0


def test_each_key_has_a_rate_of_its_own(guarded, keys):
    secrets, known = keys
    client = guarded(keys=known, rate=0.5, burst=2)
    replies = [client.get(LIST, headers={"x-api-key": secrets[0]}) for _ in range(3)]
    assert [reply.status_code for reply in replies] == [200, 200, 429]
    assert code(replies[2]) == (429, "too_fast")
    assert 1 <= int(replies[2].headers["retry-after"]) <= 3
    assert client.get(LIST, headers={"x-api-key": secrets[1]}).status_code == 200
    assert client.get("/healthz").status_code == 200


def test_pages_of_listed_origins_alone_may_read(guarded, keys):
    shop, other = {"origin": "https://shop.example"}, {"origin": "https://evil.example"}
    allow = "access-control-allow-origin"
    assert allow not in guarded().get(LIST, headers=shop).headers
    client = guarded(cors=("https://shop.example",), keys=keys[1])
    assert client.get(LIST, headers=shop).headers[allow] == "https://shop.example"
    assert allow not in client.get(LIST, headers=other).headers
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "x-api-key"}
    assert client.options(LIST, headers=shop | asked).status_code == 200
    assert client.options(LIST, headers=other | asked).status_code == 400


@pytest.mark.parametrize("origin", ["*", "shop.example", "https://shop.example/", "null"])
def test_what_is_no_origin_is_refused(origin):
    with pytest.raises(RecrayError, match="--cors"):
        ServiceLimits(cors=(origin,))


def test_every_reply_says_not_to_guess_or_keep(guarded):
    for reply in (guarded().get(LIST), guarded().get("/v2"), guarded(queue=1).get("/healthz")):
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["cache-control"] == "no-store"


# -------------------------------------------------------------------------------------- log


def test_the_log_has_no_user_unless_asked(guarded, keys, capfd):
    secrets, known = keys
    for log, seen in (("errors", None), ("requests", False), ("users", True)):
        client = guarded(keys=known, log=log)
        client.get(f"{LIST}?k=3", headers={"x-api-key": secrets[0]})
        text = capfd.readouterr().err
        if seen is None:
            assert text == ""
            continue
        line = json.loads(text)
        assert (line["method"], line["status"], line["key"]) == ("GET", 200, "shop")
        assert line["route"] == "/v1/users/{user:path}/recommendations"
        assert line["ms"] > 0
        assert (str(raw(0)) in text) == seen
        assert secrets[0] not in text


def test_a_refused_request_is_logged_without_its_path(guarded, keys, capfd):
    guarded(keys=keys[1], log="requests").get("/v1/users/12345")
    line = json.loads(capfd.readouterr().err)
    assert (line["status"], line["key"], line["route"]) == (401, None, None)
    assert "12345" not in json.dumps(line)


def test_new_keys_come_from_the_command(tmp_path):
    file = tmp_path / "keys"
    done = CliRunner().invoke(cli, ["key", "shop", "--add-to", str(file), "--json"])
    said = json.loads(done.stdout)
    assert load_keys(str(file)) == (parse_key(said["line"], "here"),)
    assert CliRunner().invoke(cli, ["key", "a b"]).exit_code == 2
