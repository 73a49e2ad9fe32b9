"""Releases: fetched once, and never kept when they are not the official archive."""

import functools
import hashlib
import http.server
import threading

import pytest

from recray.data import movielens as catalog
from recray.data.movielens import RELEASES, Release, cache_folder, fetch
from recray.data.source import detect_source
from recray.errors import RecrayError

CONTENT = b"the official archive"


@pytest.fixture
def places(tmp_path, monkeypatch):
    """A mirror folder that holds tiny.zip, and an empty cache folder."""
    digest = hashlib.sha256(CONTENT).hexdigest()
    monkeypatch.setattr(
        catalog, "RELEASES", {"tiny": Release("tiny", len(CONTENT), 3, 1, 1, digest)}
    )
    mirror, cache = tmp_path / "mirror", tmp_path / "deep" / "cache"
    mirror.mkdir()
    (mirror / "tiny.zip").write_bytes(CONTENT)
    return mirror, cache


def test_the_official_archive_is_kept_and_not_fetched_twice(places):
    mirror, cache = places
    path = fetch("tiny", str(mirror), cache)
    assert path == cache / "tiny.zip"
    (mirror / "tiny.zip").unlink()
    assert fetch("tiny", str(mirror), cache).read_bytes() == CONTENT
    assert [f.name for f in cache.iterdir()] == ["tiny.zip"]


def test_a_wrong_checksum_is_refused_and_leaves_nothing(places):
    mirror, cache = places
    (mirror / "tiny.zip").write_bytes(CONTENT[:-1] + b"E")
    with pytest.raises(RecrayError, match=r"tiny.zip from .*mirror has sha256 .*the official"):
        fetch("tiny", str(mirror), cache)
    assert list(cache.iterdir()) == []


def test_a_damaged_archive_in_the_cache_is_fetched_again(places):
    mirror, cache = places
    cache.mkdir(parents=True)
    (cache / "tiny.zip").write_bytes(CONTENT[:5])
    assert fetch("tiny", f"{mirror}/", cache).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("name", "mirror", "message"),
    [
        ("tyni", None, "unknown release 'tyni': did you mean 'tiny'"),
        ("tiny", "/no/such/folder", "no such file: /no/such/folder/tiny.zip"),
        ("tiny", "http://localhost/x", "give a folder or an https:// address"),
    ],
)
def test_what_cannot_be_fetched_is_refused(places, name, mirror, message):
    _, cache = places
    with pytest.raises(RecrayError, match=message):
        fetch(name, mirror, cache)
    assert not cache.exists() or not list(cache.iterdir())


def test_the_cache_folder_can_be_chosen(monkeypatch, tmp_path):
    monkeypatch.setenv("RECRAY_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("RECRAY_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "recray"


def test_every_release_has_a_checksum_of_its_own():
    digests = {release.sha256 for release in RELEASES.values()}
    assert len(digests) == len(RELEASES)
    assert all(len(bytes.fromhex(digest)) == 32 for digest in digests)
    assert all(name == release.name for name, release in RELEASES.items())


# ------------------------------------------------------------------------- files of one's own


@pytest.fixture
def web(tmp_path):
    """Serves a folder on loopback; its address and what was asked for."""
    root = tmp_path / "web"
    root.mkdir()
    (root / "own.csv").write_bytes(b"user,item\n1,2\n")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=root)
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield root, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_file_on_the_web_is_a_source_and_kept_until_it_changes(web, tmp_path, monkeypatch):
    root, address = web
    monkeypatch.setenv("RECRAY_CACHE", str(tmp_path / "cache"))
    first = detect_source(f"{address}/own.csv")
    assert (first.name, len(first.ranges)) == ("own", 1)
    assert detect_source(f"{address}/own.csv").identity == first.identity
    assert len(list((tmp_path / "cache" / "downloads").iterdir())) == 1
    (root / "own.csv").write_bytes(b"user,item\n1,2\n3,4\n")
    assert detect_source(f"{address}/own.csv").identity != first.identity


def test_a_file_that_is_not_on_the_web_is_one_line(web, tmp_path, monkeypatch):
    monkeypatch.setenv("RECRAY_CACHE", str(tmp_path / "cache"))
    with pytest.raises(RecrayError, match=r"cannot download .*/no.csv: .*ound"):
        detect_source(f"{web[1]}/no.csv")
    assert not (tmp_path / "cache").exists()
