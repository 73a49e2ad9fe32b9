"""Clients of stores: what a URI says of them, what they share, and how long they wait."""

import re

import pytest
from click.testing import CliRunner

from recray.cli import cli
from recray.errors import RecrayError
from recray.storage import files, open_input
from recray.storage.clients import CHECK, Patience, connect


def test_what_a_uri_says_holds_over_the_environment(proxy, s3, monkeypatch):
    s3.put_object(Bucket="data", Key="x", Body=b"content")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    place = proxy.url.removeprefix("http://")
    uri = f"s3://data/x?endpoint_override={place}&scheme=http&region=eu-west-1"
    filesystem, path = connect(uri)
    assert (filesystem.region, path) == ("eu-west-1", "data/x")
    with open_input(uri) as stream:
        assert stream.read() == b"content"


def test_equal_stores_share_a_client(s3, monkeypatch):
    first = connect("s3://data/x")[0]
    assert connect("s3://other/y")[0] is first
    assert connect("s3://data/x", CHECK)[0] is not first
    assert connect("s3://data/x?region=eu-west-1")[0] is not first
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "renewed")
    assert connect("s3://data/x")[0] is not first


def test_equal_stores_of_google_share_a_client():
    first = connect("gs://anonymous@data/x")[0]
    assert connect("gs://anonymous@other/y")[0] is first
    assert connect("gs://anonymous@data/x", CHECK)[0] is not first
    assert connect("gs://anonymous@data/x?endpoint_override=127.0.0.1:9")[0] is not first


def test_a_silent_store_is_given_up(proxy):
    proxy.health = "silent"
    filesystem, path = connect("s3://data/x", Patience(silence_s=1.0, attempts=1, limit_s=1))
    with pytest.raises(OSError, match="Timeout was reached"):
        filesystem.open_input_file(path)


def test_no_attempt_begins_when_patience_is_at_an_end(proxy, monkeypatch):
    monkeypatch.setattr(files, "STORE_RETRY_SECONDS", 0.001)
    calls = []

    def fail() -> None:
        calls.append(0)
        raise OSError("AWS Error SLOW_DOWN during PutObject operation: slower")

    for patience_s, expected in ((60.0, files.STORE_ATTEMPTS), (0.0, 1)):
        calls.clear()
        monkeypatch.setattr(files, "STORE_PATIENCE_S", patience_s)
        with pytest.raises(OSError, match="SLOW_DOWN"):
            files.retry("s3://data/x", fail)
        assert len(calls) == expected


def test_what_is_no_uri_of_a_store_is_one_line():
    with pytest.raises(
        RecrayError, match=r"cannot open ftps?://a/b: .*; give a local path or a URI"
    ):
        files.locate("ftp://a/b")


# --------------------------------------------------------------------------- what commands say


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("train s3://absent/p --out /none/run", 2),
        ("tune s3://absent/p --out /none/sweep", 2),
        ("evaluate s3://absent/b", 2),
        ("recommend s3://absent/b --user 1", 2),
        ("serve s3://absent/registry", 2),
        ("export s3://absent/run --out /none/b", 2),
        ("prepare s3://absent/ratings.csv --out /none/p", 2),
        ("prepare sample --out s3://absent/p", 3),
    ],
)
def test_a_missing_bucket_is_one_line_of_every_command(proxy, words, code):
    with proxy.watch() as traffic:
        done = CliRunner().invoke(cli, words.split())
    assert done.exit_code == code, done.output
    assert "Traceback" not in done.output
    said = done.stderr.splitlines()[-1]  # before it stands what was begun
    pattern = r"Error: cannot (read|write) s3://absent/.*(no such bucket|NO_SUCH_BUCKET)"
    assert re.match(pattern, said)
    assert traffic.count() <= 4
