"""Promotions are compare-and-swap: of two that read the same pointer one alone succeeds."""

import itertools
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from recray.errors import RecrayError, StorageError
from recray.serving import promotions, registry
from recray.serving.promotions import CLAIMS, PROMOTIONS, Overtaken, Pointer, Promotions
from recray.storage import Folder

from .s3_store import s3_store

A, B, C = (Pointer(version=12 * letter, before=[]) for letter in "abc")


@pytest.fixture(params=["disk", "store"])
def folder(request, tmp_path, monkeypatch):
    """A registry's folder, on a disk and in a store."""
    if request.param == "disk":
        yield Folder(str(tmp_path / "registry"))
        return
    with s3_store(monkeypatch):
        yield Folder(f"s3://data/{tmp_path.name}")  # the store's content outlives the test


@pytest.fixture
def store(tmp_path, monkeypatch):
    with s3_store(monkeypatch):
        yield Folder(f"s3://data/{tmp_path.name}")


@pytest.fixture
def versions(make_bundle):
    """Paths of three bundles with one version each."""
    epochs = [f"train.epochs={count}" for count in (1, 2, 3)]
    return [make_bundle(f"b{n}", changes=[epochs[n]]).folder.path for n in range(3)]


def test_the_newest_promotion_counts(folder):
    reader, writer = Promotions(folder), Promotions(folder)
    assert reader.read() == (0, Pointer(version=None, before=[]))
    for number, pointer in enumerate([A, B, C], 1):
        writer.write(number, pointer)
        assert reader.read() == Promotions(folder).read() == (number, pointer)


def test_a_number_is_written_once(folder):
    one, two = Promotions(folder), Promotions(folder)
    number = one.read()[0] + 1
    assert two.read()[0] + 1 == number
    one.write(number, A)
    with pytest.raises(Overtaken, match="nothing was changed"):
        two.write(number, B)
    assert two.read() == (1, A)
    two.write(2, B)
    assert one.read() == (2, B)


def test_one_of_many_at_once_succeeds(folder, monkeypatch):
    monkeypatch.setattr(promotions, "CLAIM_SECONDS", 0.01)
    together = threading.Barrier(6)

    def write(place):
        pointer = Pointer(version=f"{place:012}", before=[])
        together.wait()
        try:
            Promotions(folder).write(1, pointer)
        except RecrayError:
            return None
        return pointer

    with ThreadPoolExecutor(6) as threads:
        written = [pointer for pointer in threads.map(write, range(6)) if pointer is not None]
    assert len(written) <= 1
    assert Promotions(folder).read()[1] == (written or [Pointer(version=None, before=[])])[0]
    assert folder.child(CLAIMS).files() == []
    assert folder.child(PROMOTIONS).files() == ["000001.json"] * len(written)


def test_a_promotion_during_the_comparison_is_not_lost(tmp_path, versions, monkeypatch):
    made = registry.Registry(str(tmp_path / "registry"))
    first, second, third = map(made.add, versions)
    made.promote(first)

    def compare(_candidate, _live):
        registry.Registry(made.folder.path).promote(third, force=True)
        return "better"

    monkeypatch.setattr(registry, "check_not_worse", compare)
    with pytest.raises(Overtaken, match="meanwhile"):
        made.promote(second)
    assert made.pointer() == (third, [first])
    assert made.rollback().version == first


def test_two_rollbacks_at_once_go_back_one_step(tmp_path, versions, monkeypatch):
    made = registry.Registry(str(tmp_path / "registry"))
    added = [made.add(path) for path in versions]
    for version in added:
        made.promote(version, force=True)
    number, pointer = Promotions(made.folder).read()
    monkeypatch.setattr(Promotions, "read", lambda _self: (number, pointer))
    registry.Registry(made.folder.path).rollback()
    with pytest.raises(Overtaken):
        registry.Registry(made.folder.path).rollback()
    monkeypatch.undo()
    assert made.pointer() == (added[1], added[:1])


def test_a_registry_of_before_goes_on(folder):
    folder.write_json("current.json", B.model_dump())
    reader = Promotions(folder)
    assert reader.read() == (0, B)
    Promotions(folder).write(1, A)
    assert reader.read() == (1, A)


def test_a_registry_that_was_deleted_and_restored_is_read_anew(tmp_path):
    folder = Folder(str(tmp_path / "registry"))
    for number, pointer in enumerate([A, B], 1):
        Promotions(folder).write(number, pointer)
    reader = Promotions(folder)
    assert reader.read() == (2, B)
    shutil.rmtree(folder.path)
    assert reader.read()[1].version is None
    Promotions(folder).write(1, C)
    assert reader.read() == (1, C)


def test_a_disk_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    def refuse(*_names):
        raise OSError(30, os.strerror(30))

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(StorageError, match=r"promotions: read-only$"):
        Promotions(Folder(str(tmp_path / "registry"))).write(1, A)
    assert os.listdir(tmp_path / "registry" / PROMOTIONS) == []


# ------------------------------------------------------------------ the lock of a store


def test_somebody_elses_claim_refuses_and_names_itself(store, monkeypatch):
    pauses = []
    monkeypatch.setattr(promotions.time, "sleep", pauses.append)
    store.child(CLAIMS).write_json("x.json", {"host": "elsewhere", "process": 7, "since": "now"})
    with pytest.raises(RecrayError, match=r"host elsewhere process 7 .*remove s3://.*/x\.json$"):
        Promotions(store).write(1, A)
    assert len(pauses) == promotions.CLAIM_ATTEMPTS
    assert store.child(CLAIMS).files() == ["x.json"]
    assert Promotions(store).read() == (0, Pointer(version=None, before=[]))
    store.child(CLAIMS).delete("x.json")
    Promotions(store).write(1, A)
    assert Promotions(store).read() == (1, A)


def test_a_write_that_may_still_arrive_keeps_its_claim(store, monkeypatch):
    write = Folder.write_bytes

    def lose(self, name, content):
        if self.name == PROMOTIONS:
            raise StorageError("cannot write: no answer")
        return write(self, name, content)

    with monkeypatch.context() as lost:
        lost.setattr(Folder, "write_bytes", lose)
        with pytest.raises(StorageError, match="may have arrived"):
            Promotions(store).write(1, A)
    assert len(store.child(CLAIMS).files()) == 1


class Turns:
    """Lets two threads take one step at a time, in a given order."""

    def __init__(self, order):
        self.order, self.done, self.changed = list(order), set(), threading.Condition()

    def step(self, me, work):
        with self.changed:
            self.changed.wait_for(lambda: self._next() in (me, None))
            if self.order:
                self.order.pop(0)
            try:
                return work()
            finally:
                self.changed.notify_all()

    def end(self, me):
        with self.changed:
            self.done.add(me)
            self.changed.notify_all()

    def _next(self):
        while self.order and self.order[0] in self.done:
            self.order.pop(0)
        return self.order[0] if self.order else None


class Stepped:
    """A folder of a store in memory; each request to it is a step of its thread."""

    path = "mem://registry"

    def __init__(self, turns, files, prefix=""):
        self.turns, self.of, self.prefix = turns, files, prefix
        self.me = None

    def child(self, name):
        made = Stepped(self.turns, self.of, f"{self.prefix}{name}/")
        made.me = self.me
        return made

    def _step(self, work):
        return self.turns.step(self.me, work)

    def exists(self, name):
        return self._step(lambda: self.prefix + name in self.of)

    def write_bytes(self, name, content):
        self._step(lambda: self.of.setdefault(self.prefix + name, []).append(content))

    write_json = write_bytes

    def files(self, recursive=False):
        return self._step(
            lambda: [n.removeprefix(self.prefix) for n in self.of if n.startswith(self.prefix)]
        )

    def delete(self, name):
        self._step(lambda: self.of.pop(self.prefix + name))

    def find_json(self, name):
        return None


def test_in_no_order_of_requests_do_two_succeed(monkeypatch):
    monkeypatch.setattr(promotions, "CLAIM_ATTEMPTS", 1)
    monkeypatch.setattr(promotions.time, "sleep", lambda _seconds: None)
    outcomes = set()
    for places in itertools.combinations(range(10), 5):  # five requests of each
        turns, files = Turns(int(n in places) for n in range(10)), {}

        def write(me, turns=turns, files=files):
            folder = Stepped(turns, files)
            folder.me = me
            try:
                Promotions(folder).write(1, [A, B][me])
                return True
            except RecrayError:
                return False
            finally:
                turns.end(me)

        with ThreadPoolExecutor(2) as threads:
            succeeded = sum(threads.map(write, (0, 1)))
        written = files.pop(f"{PROMOTIONS}/000001.json", [])
        assert len(written) == succeeded <= 1
        assert not files  # no claim stays
        outcomes.add(succeeded)
    assert outcomes == {0, 1}
