"""What listens on this machine is asked directly, whatever proxy the environment names."""

import contextlib
import http.server
import json
import os
import threading
import urllib.error
import urllib.request

import pytest
import requests

from recray.errors import RecrayError
from recray.pipelines.node_facts import asks_for_token
from recray.results import Service
from recray.runtime.loopback import is_loopback, not_proxied, open_url

NOWHERE = "http://127.0.0.1:9"
"""A proxy that nobody runs."""


class Echo(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"path": self.path}).encode()
        self.send_response(404 if self.path == "/missing" else 200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def url(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, NOWHERE)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_a_proxy_is_not_asked_for_this_machine(url):
    with pytest.raises(urllib.error.URLError):
        urllib.request.build_opener().open(url)  # urlopen keeps the proxies of its first call
    with open_url(f"{url}/x", 5) as reply:
        assert json.load(reply) == {"path": "/x"}
    assert asks_for_token(url) is False


def test_a_proxy_is_asked_for_others(url):
    with pytest.raises(OSError, match="refused"):
        open_url("http://example.invalid/", 5)


def test_a_service_is_asked_directly(url):
    service = Service(url, None, contextlib.ExitStack())
    assert service.get("/v1/x", k=5, genres=["a", "b"]) == {"path": "/v1/x?k=5&genres=a&genres=b"}
    with pytest.raises(urllib.error.HTTPError, match="404"):
        service.get("/missing")
    gone = Service(NOWHERE, None, contextlib.ExitStack())
    with pytest.raises(RecrayError, match=r"^http://127.0.0.1:9 does not answer: [^\n]*refused"):
        gone.get("/v1/x")


def test_requests_is_kept_from_the_proxy_for_a_while(url, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "example.com")
    with pytest.raises(requests.exceptions.ProxyError):
        requests.get(url, timeout=5)
    with not_proxied(url):
        assert requests.get(url, timeout=5).ok
        assert os.environ["no_proxy"].startswith("example.com,")
    assert (os.environ.get("no_proxy"), os.environ["NO_PROXY"]) == (None, "example.com")


@pytest.mark.parametrize(
    ("url", "own"),
    [
        ("http://localhost:8000", True),
        ("http://127.8.0.1/x", True),
        ("http://[::1]:8265", True),
        ("http://10.0.0.1:8000", False),
        ("http://localhost.example.com", False),
    ],
)
def test_what_is_this_machine(url, own):
    assert is_loopback(url) is own
