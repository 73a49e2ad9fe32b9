"""One Ray for all tests of this folder: the only tests that start it."""

import os
import socket
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in Path(item.path).parents:
            item.add_marker(pytest.mark.ray)


@pytest.fixture(scope="session")
def ray_session():
    from recray.runtime.session import session

    with session():
        yield


@pytest.fixture(scope="session")
def port() -> int:
    # Below the ports that the system gives to connections: one of those could be taken by the time
    # that a later test listens. Processes that were started one after another look ten apart.
    for number in range(20_000 + os.getpid() % 1_000 * 10, 32_000):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", number)):
                return number
    raise RuntimeError("no free port")


@pytest.fixture(scope="session")
def movielens() -> Path:
    """Folder of real MovieLens zips."""
    folder = os.environ.get("RECRAY_TEST_DATA")
    if not folder:
        pytest.skip("RECRAY_TEST_DATA is not set: no real MovieLens files here")
    return Path(folder)
