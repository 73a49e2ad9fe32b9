"""The port of a service: refused while it is taken, waited for at the end."""

import socket
import threading

import pytest

from recray.errors import RecrayError
from recray.serving import ray_serve


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as opened:
        yield opened


def test_a_taken_port_is_refused(listener):
    host, port = listener.getsockname()
    with pytest.raises(RecrayError, match=f"cannot listen on {host}:{port}: .*give another --port"):
        ray_serve.refuse_taken_port(host, port)


def test_a_proxy_that_ends_late_is_waited_for(listener):
    host, port = listener.getsockname()
    threading.Timer(0.3, listener.close).start()
    ray_serve._wait_for_proxy_to_end(host, port)
    ray_serve.refuse_taken_port(host, port)


def test_a_port_that_stays_taken_is_not_waited_for_without_end(listener, monkeypatch):
    monkeypatch.setattr(ray_serve, "END_SECONDS", 0.2)
    ray_serve._wait_for_proxy_to_end(*listener.getsockname())
