"""What reading and writing in a store costs in requests, and files that change meanwhile."""

import json

import pyarrow as pa
import pytest

from recray.errors import DamagedFile, RecrayError, StorageError
from recray.inference.bundle import Bundle
from recray.storage import (
    Folder,
    Pause,
    PolledFile,
    files,
    open_input,
    publish,
    range_reader,
    whole,
    write_from,
)
from tests.counted_store import counted_store

KB, MB = 1 << 10, 1 << 20


@pytest.fixture
def store(monkeypatch):
    monkeypatch.setattr(files, "TORN_SECONDS", 0.0)
    monkeypatch.setattr(files, "STORE_RETRY_SECONDS", 0.0)
    with counted_store(monkeypatch) as counted:
        yield counted


@pytest.fixture
def folder(store):
    return Folder("s3://data/x")


@pytest.mark.parametrize("size", [0, 5, 3 * MB])
def test_a_file_is_read_by_its_size_and_one_get(store, folder, size):
    store.put("x/a", b"y" * size)
    assert folder.read_bytes("a") == b"y" * size
    assert store.taken() == ["HEAD"] + ["GET"] * (size > 0)


@pytest.mark.parametrize("name", ["a b", "a#1", "a%20b", "100%", "ü", "[x]{y}|z", "a+b&c=d:e@f"])
def test_a_name_in_a_bucket_is_what_is_written(store, name):
    folder = Folder(f"s3://data/{name}")
    folder.write_bytes(name, b"1")
    listed = store.client.list_objects_v2(Bucket="data")["Contents"]
    assert [one["Key"] for one in listed] == [f"{name}/{name}"]
    assert folder.files() == [name]
    with open_input(folder.at(name)) as stream:
        assert stream.read() == b"1"


def test_a_large_file_comes_by_ranges_in_their_order(store, folder, monkeypatch):
    monkeypatch.setattr(whole, "ONE_READ_BYTES", 64 * KB)
    monkeypatch.setattr(whole, "RANGE_BYTES", 16 * KB)
    content = bytes(range(256)) * 4 * 65 + b"the end"
    store.put("x/a", content)
    assert folder.read_bytes("a") == content
    assert sorted(store.taken()) == ["GET"] * 5 + ["HEAD"]
    read = range_reader(folder, "a")
    assert bytes(read(1, 65 * KB)) == content[1 : 65 * KB + 1]
    assert bytes(read(len(content) - 3, 99)) == b"end"
    assert bytes(read(len(content) + 3, 99)) == b""


def test_a_missing_file_is_one_line(store, folder):
    with pytest.raises(RecrayError, match=r"cannot read s3://data/x/a: there is no such file"):
        folder.read_bytes("a")
    assert folder.find("a") is None
    assert set(store.taken()) == {"HEAD"}


@pytest.mark.parametrize("size", [0, 9, 6 * MB])
def test_every_way_to_write_a_small_file_is_one_put(store, folder, size):
    content = b"z" * size
    table = pa.table({"n": [1, 2]})

    def stream():
        with folder.write_stream("c") as out:
            out.write(content)

    for write in (
        lambda: folder.write_bytes("deep/a", content),
        lambda: folder.replace_bytes("b", content),
        stream,
        lambda: write_from(folder, "d", lambda sink: sink.write(content)),
        lambda: folder.write_json("e", {"n": 1}),
        lambda: folder.write_table("f", table),
    ):
        store.taken()
        write()
        assert store.taken() == ["PUT"]
    assert folder.read_bytes("c") == folder.read_bytes("d") == content


def test_what_a_write_returns_is_what_the_manifest_says(store, folder):
    known = [folder.write_bytes("sub/a", b"1"), folder.write_json("b", [2])]
    store.taken()
    folder.write_manifest("thing", {"n": 3}, known)
    assert store.taken() == ["GET", "PUT"]  # the list of names, and the manifest
    folder.write_bytes("c", b"of a task that handed no entry in")
    folder.write_manifest("thing", {"n": 3}, known)
    assert [entry.name for entry in folder.verify().files] == ["b", "c", "sub/a"]


def test_a_manifest_is_read_by_one_get(store, folder):
    store.put("x/manifest.json", b'{"kind": "thing", "files": []}')
    assert folder.manifest().kind == "thing"
    assert store.taken() == ["HEAD", "GET"]


# ------------------------------------------------------------------------ files that are replaced


def replaced_between(store, key, content):
    """Replace the file when its size has been told and its content has not yet been asked for."""

    def before(method, path):
        if method == "GET" and path == f"/data/{key}" and content:
            store.before = lambda *_: None
            store.client.put_object(Bucket="data", Key=key, Body=content)

    store.before = before


def test_json_that_grows_while_it_is_read_is_read_again(store, folder):
    store.put("x/run.json", b'{"epochs": [1]}')
    replaced_between(store, "x/run.json", b'{"epochs": [1, 2, 3]}')
    assert folder.read_json("run.json") == {"epochs": [1, 2, 3]}


def test_json_that_is_damaged_is_said_after_a_few_attempts(store, folder):
    store.put("x/run.json", b'{"epochs": [1')
    with pytest.raises(DamagedFile, match=r"x/run\.json is damaged"):
        folder.read_json("run.json")
    assert store.taken() == ["HEAD", "GET"] * files.TORN_ATTEMPTS


def test_a_look_at_a_file_that_stays_is_one_head(store, folder):
    polled = PolledFile(folder, "current", json.loads)
    assert polled.read() is None
    store.put("x/current", b"[1]")
    assert [polled.read() for _ in range(3)] == [[1]] * 3
    assert store.taken() == ["HEAD", "GET", "HEAD", "HEAD"]
    store.put("x/current", b"[2]")  # as long as before, and within the same second
    replaced_between(store, "x/current", b"[2, 3]")
    assert polled.read() == [2, 3]
    assert polled.read() == [2, 3]


def test_on_a_disk_a_look_sees_what_was_swapped_in(tmp_path):
    folder = Folder(str(tmp_path))
    polled = PolledFile(folder, "current", json.loads)
    assert polled.read() is None
    for value in ([1], [2], {"n": 3}):
        folder.write_json("current", value)
        assert polled.read() == value
    (tmp_path / "current").write_text("{")
    with pytest.raises(DamagedFile, match="current is damaged"):
        polled.read()


def test_pauses_grow_in_a_store_until_something_changes():
    pause = Pause("s3://data/x", first=1.0, longest=1.5)
    assert [pause.after(False), pause.after(False), pause.after(True)] == [1.25, 1.5, 1.0]
    pause = Pause("/disk", first=1.0, longest=1.5)
    assert pause.after(False) == 1.0


# ---------------------------------------------------------------------- stores that do not answer


def test_a_store_that_is_gone_is_one_line_with_exit_code_3(monkeypatch):
    monkeypatch.setattr(files, "STORE_RETRY_SECONDS", 0.0)
    for name, value in {"URL": "http://127.0.0.1:9", "REGION": "us-east-1"}.items():
        monkeypatch.setenv("AWS_ENDPOINT_URL" if name == "URL" else "AWS_DEFAULT_REGION", value)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setattr(files, "STORE_ATTEMPTS", 1)
    folder = Folder("s3://data/x")
    with pytest.raises(
        StorageError, match=r"cannot read s3://data/x/a: the store does not answer: .*"
    ):
        folder.read_bytes("a")


def test_a_bucket_that_is_missing_says_so_without_a_second_attempt(store):
    with pytest.raises(StorageError, match="NO_SUCH_BUCKET"), publish(Folder("s3://no/x")):
        pass
    with pytest.raises(StorageError, match="NO_SUCH_BUCKET"):
        Folder("s3://no/x").write_bytes("a", b"1")
    assert store.taken().count("PUT") <= 2


# ------------------------------------------------------------------------------ whole folders


def publish_thing(content, replace=False):
    with publish(Folder("s3://data/x"), replace) as new:
        new.write_bytes("sub/a", content)
        if content == b"old":
            new.write_bytes("only-old", b"0")
        new.write_manifest("thing", {"says": content.decode()})


def test_a_folder_is_published_without_reading_what_it_wrote(store, folder):
    publish_thing(b"old")
    assert not [path for method, path in store.requests if method == "GET" and "list" not in path]
    assert len(store.taken()) <= 10
    assert folder.verify().facts["says"] == "old"


def test_a_finished_folder_stays_until_the_new_one_is_whole(store, folder):
    publish_thing(b"old")
    opened, manifest = folder.current()

    def fail():
        with publish(folder, replace=True) as new:
            new.write_bytes("sub/a", b"new")
            assert folder.verify().facts["says"] == "old"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert folder.verify().facts["says"] == "old"
    publish_thing(b"new", replace=True)
    opened.compare(manifest)
    now = folder.current()[0]
    assert now.files() == ["manifest.json", "sub/a"]
    assert now.read_bytes("sub/a") == b"new"


def test_a_bundle_is_opened_by_one_get_for_each_file(store, make_bundle):
    made = make_bundle()
    for name in made.folder.files():
        store.put(f"b/{name}", made.folder.read_bytes(name))
    opened = Bundle.open("s3://data/b")
    assert opened.version == made.version
    gets = [path for method, path in store.requests if method == "GET"]
    assert len(gets) == len(made.manifest.files) + 2  # the manifest, and the list of names
    assert len(set(gets)) == len(gets)
