"""Folders that appear whole or not at all."""

import errno
import json
import os
import time

import pyarrow as pa
import pytest

from recray.errors import RecrayError, StorageError
from recray.storage import (
    MANIFEST,
    PROBE,
    UNFINISHED,
    Folder,
    current_of,
    files,
    publish,
    remove_stale,
    storage_errors,
)


def write(path, replace=False, **contents):
    """Publish a folder of kind `thing` with these files."""
    with publish(Folder(str(path)), replace) as folder:
        for name, content in contents.items():
            folder.write_bytes(f"sub/{name}", content)
        folder.write_manifest("thing", {"size": 7})
    return Folder(str(path))


def left(path):
    return sorted(f.name for f in path.iterdir())


def test_a_folder_appears_only_when_the_block_has_ended(tmp_path):
    target = tmp_path / "deep" / "out"
    with publish(Folder(str(target))) as folder:
        folder.write_bytes("a", b"1")
        folder.write_manifest("thing", {})
        assert not target.exists()
    assert left(target) == ["a", MANIFEST]
    assert left(target.parent) == ["out"]


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_nothing(tmp_path, kind):
    def fail():
        with publish(Folder(str(tmp_path / "out"))) as folder:
            folder.write_bytes("a", b"1")
            raise kind

    with pytest.raises(kind):
        fail()
    assert left(tmp_path) == []


def test_a_finished_folder_is_not_overwritten_by_chance(tmp_path):
    out = write(tmp_path / "out", a=b"old")
    with pytest.raises(RecrayError, match="exists already"):
        write(tmp_path / "out", a=b"new")
    assert out.read_bytes("sub/a") == b"old"


def test_replacing_swaps_the_whole_folder(tmp_path):
    write(tmp_path / "out", a=b"old", b=b"old")
    out = write(tmp_path / "out", replace=True, a=b"new")
    assert out.files() == [MANIFEST, "sub/a"]
    assert out.read_bytes("sub/a") == b"new"
    assert left(tmp_path) == ["out"]


def test_a_replaced_folder_is_there_at_every_moment(tmp_path, monkeypatch):
    write(tmp_path / "out", a=b"old")
    rename, seen = os.rename, []

    def watched(*names):
        try:
            rename(*names)
        finally:
            seen.append((tmp_path / "out" / MANIFEST).exists())

    monkeypatch.setattr(os, "rename", watched)
    write(tmp_path / "out", replace=True, a=b"new")
    assert seen
    assert all(seen), "on a filesystem that cannot exchange names, there is a moment without"


@pytest.mark.parametrize("can_exchange", [True, False])
def test_what_is_replaced_goes_whether_names_can_be_exchanged_or_not(
    tmp_path, monkeypatch, can_exchange
):
    if not can_exchange:
        monkeypatch.setattr(files, "_exchanged", lambda _one, _other: False)
    write(tmp_path / "out", a=b"old")
    assert write(tmp_path / "out", replace=True, a=b"new").read_bytes("sub/a") == b"new"
    assert left(tmp_path) == ["out"]


def test_a_replacement_that_fails_leaves_the_old_folder(tmp_path):
    out = write(tmp_path / "out", a=b"old")

    def fail():
        with publish(out, replace=True) as folder:
            folder.write_bytes("sub/a", b"new")
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        fail()
    assert out.verify().facts["size"] == 7
    assert out.read_bytes("sub/a") == b"old"
    assert left(tmp_path) == ["out"]


@pytest.mark.parametrize("replace", [False, True])
def test_what_is_not_ours_is_never_replaced(tmp_path, replace):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years")
    (tmp_path / "file").write_text("years")
    with pytest.raises(RecrayError, match="is not empty and not recray's"):
        write(tmp_path / "home", replace=replace)
    with pytest.raises(RecrayError, match="is a file; give a folder"):
        write(tmp_path / "file", replace=replace)
    assert left(tmp_path / "home") == ["thesis.txt"]
    assert left(tmp_path) == ["file", "home"]


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_check_that_was_killed_leaves_the_folder_to_the_next_writer(tmp_path, scheme):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / f"{PROBE}1").write_bytes(b"")
    assert write(f"{scheme}{tmp_path}/out", a=b"1").published()


def test_a_folder_by_its_uri_is_replaced_and_who_has_opened_it_reads_on(tmp_path):
    out = write(f"file://{tmp_path}/out", a=b"1")
    opened, manifest = out.current()
    first = write(str(out), replace=True, a=b"2").current()[0]
    assert first.read_bytes("sub/a") == b"2"
    opened.compare(manifest)
    assert opened.read_bytes("sub/a") == b"1"
    second = write(str(out), replace=True, a=b"3").current()[0]
    assert left(tmp_path / "out") == sorted([first.generation, second.generation, MANIFEST])
    assert opened.files() == []


def write_two(out, replace):
    with publish(out, replace) as slow, publish(out, replace) as fast:
        for writer, content in ((slow, b"slow"), (fast, b"fast")):
            writer.write_bytes("a", content)
            writer.write_manifest("thing", {})
        assert not out.published()


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_of_two_that_publish_at_once_the_later_one_is_refused(tmp_path, scheme):
    out = Folder(f"{scheme}{tmp_path}/out")
    with pytest.raises(RecrayError, match="exists already"):
        write_two(out, replace=False)
    out.verify()
    now = out.current()[0]
    assert now.read_bytes("a") == b"fast"
    assert left(tmp_path) == ["out"]
    assert len(left(tmp_path / "out")) == 2


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_two_that_replace_at_once_mix_no_files(tmp_path, scheme):
    out = Folder(f"{scheme}{tmp_path}/out")
    write_two(out, replace=True)
    out.verify()
    assert out.current()[0].read_bytes("a") == b"slow"


def outcome_of_publishing(path, is_flat, publishings, last, monkeypatch):
    """Publish where the store answers so many requests and no more, then look at it and go on.

    Returns:
        Whether it was published, what was there before and after, and whether all were answered.
    """
    for number in range(publishings):
        write(path if is_flat else f"file://{path}", replace=True, old=b"%d" % number)
    out = Folder(f"file://{path}")
    opened = out.current() if publishings else None
    answered = 0

    def answer(_path, work):
        nonlocal answered
        answered += 1
        if answered > last:
            raise OSError("AWS Error ACCESS_DENIED")
        return work()

    with monkeypatch.context() as patch:
        patch.setattr("recray.storage.folder.retry", answer)
        patch.setattr("recray.storage.reading.retry", answer)
        try:
            write(str(out), replace=True, new=b"new")
            ended = True
        except StorageError:
            ended = False
    now = out.verify().files[0].name if ended or publishings else None
    if opened is not None:
        opened[0].compare(opened[1])
    write(str(out), replace=True, newer=b"newer")
    assert out.verify().files[0].name == "sub/newer"
    return ended, now, answered <= last


@pytest.mark.parametrize(
    ("is_flat", "publishings"), [(False, 0), (False, 1), (False, 2), (True, 1)]
)
def test_a_store_that_dies_at_any_request_leaves_one_whole_version(
    tmp_path, is_flat, publishings, monkeypatch
):
    seen, last, done = [], 0, False
    while not done:
        path = tmp_path / str(last)
        ended, now, done = outcome_of_publishing(path, is_flat, publishings, last, monkeypatch)
        seen.append((ended, now))
        last += 1
    before = "sub/old" if publishings else None
    assert set(seen) == {(False, before), (True, "sub/new")}
    assert seen == sorted(seen, key=lambda one: one[0])  # no request after the last one that counts
    assert len(seen) > 5


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_writer_whose_files_were_removed_publishes_nothing(tmp_path, scheme):
    def lose():
        with publish(Folder(f"{scheme}{tmp_path}/out")) as new:
            new.write_bytes("sub/a", b"1")
            new.delete("sub/a")
            new.write_manifest("thing", {})

    with pytest.raises(StorageError, match="somebody has removed sub/a"):
        lose()
    assert not Folder(f"{scheme}{tmp_path}/out").published()


def test_what_killed_writers_have_left_goes_once_nobody_can_own_it(tmp_path):
    out = Folder(f"file://{tmp_path}/out")
    dead, living = "generation-0123456789ab", "generation-ba9876543210"
    for name in (dead, living):
        out.write_bytes(f"{name}/sub/a", b"1")
    day = 24 * 3600
    os.utime(tmp_path / "out" / dead / "sub" / "a", (time.time() - day - 60,) * 2)
    os.utime(tmp_path / "out" / living / "sub" / "a", (time.time() - day + 600,) * 2)
    now = write(str(out), a=b"1").current()[0].generation
    assert left(tmp_path / "out") == sorted([living, now, MANIFEST])


def test_a_folder_copied_to_a_store_is_replaced_as_any_other(tmp_path):
    opened, manifest = write(tmp_path / "out", a=b"1", b=b"1").current()
    (tmp_path / "out" / "notes.txt").write_text("of somebody")
    now = write(f"file://{tmp_path}/out", replace=True, a=b"2").current()[0]
    assert now.files() == [MANIFEST, "sub/a"]
    assert Folder(str(tmp_path / "out")).current()[0].read_bytes("sub/a") == b"2"
    opened.compare(manifest)  # who has opened it reads on until the next one
    write(f"file://{tmp_path}/out", replace=True, a=b"3")
    left_flat = [name for name in Folder(str(tmp_path / "out")).files() if name[0] != "g"]
    assert left_flat == [MANIFEST, "notes.txt"]


def test_a_folder_copied_to_a_store_is_whole_while_a_new_one_is_written_there(tmp_path):
    out = write(tmp_path / "out", a=b"1")
    with publish(Folder(f"file://{tmp_path}/out"), replace=True) as new:
        new.write_bytes("a", b"2")
        assert out.content() == ["sub/a"]
        new.write_manifest("thing", {})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"generation": "../home"}, "generation: String should match"),
        ({"generation": "generation-0123456789ab"}, "sub/a is not in generation-0123456789ab"),
        ({"before": "generation-/../../home"}, "before: String should match"),
        ({"flat": ["../home/thesis.txt"]}, "names a file outside: '../home/thesis.txt'"),
    ],
)
def test_a_manifest_that_names_another_folder_is_damaged(tmp_path, change, reason):
    out = write(f"file://{tmp_path}/out", a=b"1")
    out.write_json(MANIFEST, out.read_json(MANIFEST) | change)
    with pytest.raises(RecrayError, match=reason):
        out.current()


def test_an_empty_folder_may_be_filled(tmp_path):
    (tmp_path / "out").mkdir()
    assert write(tmp_path / "out", a=b"1").published()


def test_the_manifest_lists_every_other_file(tmp_path):
    out = write(tmp_path / "out", b=b"hello", a=b"")
    assert out.verify().model_dump() == {
        "kind": "thing",
        "size": 7,
        "files": [
            {
                "name": "sub/a",
                "bytes": 0,
                "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            },
            {
                "name": "sub/b",
                "bytes": 5,
                "sha256": "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824",
            },
        ],
    }


def test_verify_finds_a_flipped_byte_and_a_missing_file(tmp_path):
    out = write(tmp_path / "out", a=b"hello", b=b"there")
    out.write_bytes("sub/a", b"hellp")
    with pytest.raises(RecrayError, match="sub/a is damaged"):
        out.verify()
    (tmp_path / "out" / "sub" / "a").unlink()
    with pytest.raises(RecrayError, match="lacks sub/a"):
        out.verify()


def test_a_folder_of_another_kind_or_unfinished_is_refused(tmp_path):
    out = write(tmp_path / "out")
    assert current_of(out, "thing", "recray make")[1].facts["size"] == 7
    with pytest.raises(RecrayError, match="is a thing, not a bundle; make one with `recray pack`"):
        current_of(out, "bundle", "recray pack")
    (tmp_path / "out" / MANIFEST).write_text("{")
    with pytest.raises(RecrayError, match="is damaged"):
        out.manifest()
    (tmp_path / "out" / MANIFEST).unlink()
    with pytest.raises(RecrayError, match="is unfinished or not recray's"):
        out.manifest()
    with pytest.raises(RecrayError, match="no such folder"):
        Folder(str(tmp_path / "nowhere")).manifest()


def test_one_file_is_swapped_in_a_single_step(tmp_path, monkeypatch):
    folder = Folder(str(tmp_path / "out"))
    folder.write_bytes("current", b"one")
    seen = []
    replace = os.replace

    def watched(source, target):
        seen.append((folder.read_bytes("current"), source.read_bytes()))
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    folder.replace_bytes("current", b"two")
    assert seen == [(b"one", b"two")], "the old content stays until the new one is whole"
    assert folder.read_bytes("current") == b"two"
    assert folder.files() == ["current"]


def test_equal_tables_give_equal_bytes_and_come_back(tmp_path):
    folder = Folder(str(tmp_path))
    table = pa.table({"user": pa.array([1, 2, 3], pa.int32()), "title": ["a", None, "é"]})
    chunked = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    folder.write_table("one.parquet", table)
    folder.write_table("two.parquet", chunked)
    assert folder.read_bytes("one.parquet") == folder.read_bytes("two.parquet")
    assert folder.read_table("one.parquet").equals(table)
    assert folder.read_table("one.parquet", ["title"]).column_names == ["title"]
    folder.write_bytes("one.parquet", folder.read_bytes("one.parquet")[:-9])
    with pytest.raises(RecrayError, match=r"one.parquet is damaged"):
        folder.read_table("one.parquet")


def test_json_keeps_letters_as_they_are(tmp_path):
    folder = Folder(str(tmp_path))
    folder.write_json("x.json", {"title": "Amélie"})
    assert "Amélie".encode() in folder.read_bytes("x.json")
    assert json.loads(folder.read_bytes("x.json")) == folder.read_json("x.json")


@pytest.mark.parametrize(
    ("code", "reason"), [(errno.ENOSPC, "no space left"), (errno.EROFS, "read-only")]
)
def test_a_full_or_read_only_disk_is_one_line_with_exit_code_3(code, reason):
    with (
        pytest.raises(StorageError, match=f"cannot write /out: {reason}") as caught,
        storage_errors("/out"),
    ):
        raise OSError(code, "system words")
    assert caught.value.exit_code == 3


def test_only_old_leftovers_of_the_same_folder_are_swept(tmp_path):
    names = {"old": "out-1", "young": "out-2", "foreign": "other-1"}
    for age, name in names.items():
        path = tmp_path / f"{UNFINISHED}{name}"
        path.mkdir()
        if age != "young":
            os.utime(path, (0, 0))
    remove_stale(tmp_path / "out")
    assert left(tmp_path) == [f"{UNFINISHED}other-1", f"{UNFINISHED}out-2"]


def test_a_leftover_that_goes_meanwhile_stops_nobody(tmp_path):
    (tmp_path / f"{UNFINISHED}out-1").symlink_to(tmp_path / "gone")
    assert write(tmp_path / "out", a=b"1").published()


def test_a_link_to_a_folder_stays_one(tmp_path):
    write(tmp_path / "large_disk" / "out", a=b"1")
    (tmp_path / "out").symlink_to(tmp_path / "large_disk" / "out")
    write(tmp_path / "out", replace=True, a=b"2")
    assert (tmp_path / "out").is_symlink()
    assert left(tmp_path) == ["large_disk", "out"]
    assert Folder(str(tmp_path / "large_disk" / "out")).read_bytes("sub/a") == b"2"


def test_publishing_to_a_uri_refuses_a_foreign_folder(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years")
    with (
        pytest.raises(RecrayError),
        publish(Folder((tmp_path / "home").as_uri())) as folder,
    ):
        folder.write_bytes("a", b"1")
    assert (tmp_path / "home" / "thesis.txt").exists()


def test_a_folder_in_a_store_counts_as_finished_by_its_manifest(tmp_path):
    uri = (tmp_path / "out").as_uri()
    with publish(Folder(uri)) as folder:
        folder.write_bytes("a", b"1")
        assert not Folder(uri).published()
        folder.write_manifest("thing", {})
    assert Folder(uri).verify().kind == "thing"
    assert Folder(uri).child("x").name == "x"


# ---------------------------------------------------------------- a store that fails in passing


@pytest.fixture
def store(monkeypatch):
    """A bucket whose writes raise what is listed, one after the other, before they work."""
    failures: list[OSError] = []
    calls: list[str] = []

    def put(_folder, name, _content):
        calls.append(name)
        if failures:
            raise failures.pop(0)

    monkeypatch.setattr(Folder, "_put", put)
    monkeypatch.setattr("recray.storage.files.STORE_RETRY_SECONDS", 0.0)
    return Folder("s3://bucket/x"), failures, calls


def test_a_write_that_fails_in_passing_is_tried_again(store):
    folder, failures, calls = store
    failures += [OSError("AWS Error INTERNAL_FAILURE"), OSError("AWS Error SLOW_DOWN")]
    folder.write_bytes("a", b"1")
    with folder.write_stream("b") as stream:
        stream.write(b"2")
    assert calls == ["a", "a", "a", "b"]


@pytest.mark.parametrize(("reason", "tries"), [("SLOW_DOWN", 8), ("ACCESS_DENIED", 1)])
def test_a_write_that_goes_on_failing_is_one_line(store, reason, tries):
    folder, failures, calls = store
    failures += [OSError(f"AWS Error {reason}")] * 9
    with pytest.raises(StorageError, match=f"cannot write s3://bucket/x: .*{reason}"):
        folder.write_bytes("a", b"1")
    assert len(calls) == tries


def test_options_in_a_uri_are_refused_with_the_way_to_give_them():
    with pytest.raises(RecrayError, match="AWS_ENDPOINT_URL"):
        Folder("s3://bucket/out?endpoint_override=minio:9000")
