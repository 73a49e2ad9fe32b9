"""A real Chromium and a service on loopback, without Ray. Without Chromium the tests skip."""

import contextlib
import dataclasses
import shutil
import threading

import pyarrow as pa
import pytest
import uvicorn

from recray.inference.recommender import Recommender
from recray.serving.app import build_app

TITLES = [
    "Toy Story (1995)",
    "Amélie (Fabuleux destin d'Amélie Poulain, Le) (2001)",
    "Shawshank Redemption, The (1994)",
    "Matrix, The (1999)",
    "Godfather, The (1972)",
    "Alien (1979)",
    "Fargo (1996)",
    "Heat (1995)",
    "Good, the Bad and the Ugly, The (1966)",
    "Vertigo (1958)",
    "Nosferatu (1922)",
]
YEARS = [1995, 2001, 1994, 1999, 1972, 1979, 1996, 1995, 1966, 1958, 1922]
PATIENCE_S = 60
"""How long the page may take: on a busy machine a browser without a GPU draws slowly."""
FLAGS = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()


def of_films(bundle):
    """The bundle with films that people know; item 9 has no ids elsewhere."""
    table = bundle.item_table
    columns = {
        "title": pa.array(TITLES),
        "year": pa.array(YEARS, pa.int32()),
        "imdb": pa.array([None if i == 9 else f"tt{i:07d}" for i in range(len(TITLES))]),
        "tmdb": pa.array([None if i == 9 else i for i in range(len(TITLES))], pa.int64()),
    }
    for name, column in columns.items():
        table = table.set_column(table.column_names.index(name), name, column)
    metrics = {
        "metrics": {
            "ndcg@10": {"value": 0.25, "low": 0.23, "high": 0.27},
            "recall@10": {"value": 0.175, "low": 0.158, "high": 0.192},
        },
        "baselines": {"popularity": {"ndcg@10": {"value": 0.12, "low": 0.11, "high": 0.13}}},
        "verdict": "ndcg@10: better than popularity (+0.1300, 95% +0.1200 to +0.1400)",
    }
    return dataclasses.replace(bundle, item_table=table, metrics=metrics)


@pytest.fixture(scope="package")
def chromium():
    """A browser for these tests alone: while Playwright runs, asyncio.run() refuses to."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("chromium is not installed: the page is not tried in a browser")
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=1000 * PATIENCE_S)
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@contextlib.contextmanager
def running(app):
    """Serve an app on a free port of this machine; gives its address."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture
def films(make_bundle):
    return Recommender(of_films(make_bundle()))


@pytest.fixture
def visit(chromium):
    """Open the page of an app. At the end nothing may have failed or asked another host."""
    with contextlib.ExitStack() as stack:
        seen, wrong = [], []

        def open_page(app, width=1280, path="/", expect_errors=False, **options):
            url = stack.enter_context(running(app))
            context = chromium.new_context(viewport={"width": width, "height": 800}, **options)
            stack.callback(context.close)
            page = context.new_page()
            page.set_default_timeout(1000 * PATIENCE_S)
            page.on("request", lambda request: seen.append((url, request.url)))
            page.on("pageerror", lambda error: wrong.append(str(error)))
            if not expect_errors:
                page.on("console", lambda m: m.type == "error" and wrong.append(m.text))
            page.goto(url + path)
            return page

        yield open_page
        assert not wrong
        elsewhere = [to for url, to in seen if not to.startswith((url, "data:"))]
        assert not elsewhere, "the page asks nobody but its own service"
        assert seen


@pytest.fixture
def page(visit, films):
    return visit(build_app(films))
