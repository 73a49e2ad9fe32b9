"""By which names a service without keys is called: a page elsewhere cannot have it answer."""

import pytest
from fastapi.testclient import TestClient

from recray.errors import RecrayError
from recray.inference.recommender import Recommender
from recray.serving.app import build_app
from recray.serving.auth import new_key, parse_key
from recray.serving.hosts import MAX_REMEMBERED, AllowedHosts
from recray.serving.options import AppArgs, ServiceLimits

SECRET, LINE = new_key("shop")
KEYS = (parse_key(LINE, "here"),)


@pytest.fixture
def client(make_bundle):
    recommender = Recommender(make_bundle())
    return lambda **limits: TestClient(build_app(recommender, ServiceLimits(**limits)))


OURS = ["localhost", "LOCALHOST:8000", "127.0.0.1:8000", "127.9.9.9", "[::1]:8000", "a.localhost"]
FOREIGN = ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example"]
ODD = ["", "[::1", "a@127.0.0.1.x", "evil.example#localhost", "evil.example/localhost", "0x7f.1"]


@pytest.mark.parametrize("host", [*OURS, "192.0.2.2:8000", "[fd00::2]"])
def test_this_machine_and_addresses_in_numbers_are_let_in(client, host):
    for path in ("/v1/model", "/", "/readyz"):
        assert client().get(path, headers={"host": host}).status_code == 200


@pytest.mark.parametrize("host", [*FOREIGN, *ODD])
@pytest.mark.parametrize("path", ["/v1/model", "/v1/ratings", "/", "/readyz", "/nowhere"])
def test_another_name_is_421(client, host, path):
    for method in ("GET", "POST"):
        reply = client().request(method, path, headers={"host": host})
        assert (reply.status_code, reply.json()["error"]["code"]) == (421, "foreign_host")
        assert "--allow-host" in reply.json()["error"]["message"]


def test_a_name_that_was_given_is_let_in_and_no_other(client):
    named = client(hosts=("Shop.example",))
    for host, status in [("shop.example:443", 200), ("localhost", 200), ("evil.example", 421)]:
        assert named.get("/v1/model", headers={"host": host}).status_code == status
    every = client(hosts=("*",))
    assert every.get("/v1/model", headers={"host": "evil.example"}).status_code == 200


def test_where_keys_are_asked_for_any_name_will_do_unless_some_are_given(client):
    sent = {"host": "evil.example", "x-api-key": SECRET}
    assert client(keys=KEYS).get("/v1/model", headers=sent).status_code == 200
    named = client(keys=KEYS, hosts=("shop.example",))
    assert named.get("/v1/model", headers=sent).status_code == 421


def test_of_several_hosts_each_must_be_ours():
    hosts = AllowedHosts()
    assert hosts.allow([(b"accept", b"*/*")])
    assert not hosts.allow([(b"host", b"localhost"), (b"host", b"evil.example")])


def test_few_values_are_remembered():
    hosts = AllowedHosts()
    for port in range(2 * MAX_REMEMBERED):
        assert hosts.allow([(b"host", b"localhost:%d" % port)])
        assert not hosts.allow([(b"host", b"evil.example:%d" % port)])
    assert len(hosts._allowed) == MAX_REMEMBERED


@pytest.mark.parametrize("name", ["", "http://shop.example", "shop.example:80", "a b", "*.example"])
def test_what_is_no_name_is_refused(name):
    with pytest.raises(RecrayError, match=r"--allow-host.*write a name without a port"):
        ServiceLimits(hosts=(name,))


def test_a_serve_config_names_hosts_too():
    made = AppArgs(bundle="b", without_keys=True, hosts=("shop.example",)).limits()
    assert made.hosts == ("shop.example",)
