"""A service follows its registry: swaps, refusals, rollback; no reply mixes versions."""

import asyncio
import gc
import json
import threading
import weakref
from pathlib import Path

import httpx2
import pytest
import torch
from fastapi.testclient import TestClient

from recray.errors import RecrayError
from recray.inference import fits
from recray.inference.recommender import Recommender
from recray.serving.app import build_app
from recray.serving.hot_swap import (
    RETRY_SECONDS,
    ModelHolder,
    RegistryWatcher,
    load_and_warm_up,
    open_holder,
)
from recray.serving.promotions import PROMOTIONS
from recray.serving.registry import Registry

from .conftest import ITEMS, USERS, raw


@pytest.fixture
def bundles(make_bundle):
    """Two versions that believe the opposite of each other."""
    return make_bundle("one"), make_bundle("two", flip=True)


@pytest.fixture
def registry(bundles, tmp_path):
    """Both versions; the first is current."""
    made = Registry(str(tmp_path / "registry"))
    for bundle in bundles:
        made.add(bundle.folder.path)
    made.promote(bundles[0].version)
    return made


@pytest.fixture
def holder(registry):
    return open_holder(registry.folder.path)


class Clock:
    """Stands still until it is set."""

    now = 0.0

    def __call__(self):
        return self.now


def damage(registry, version):
    path = Path(registry.folder_of(version).path) / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_a_promoted_version_answers_and_a_rollback_brings_back_the_one_before(
    registry, bundles, holder
):
    one, two = (bundle.version for bundle in bundles)
    watcher = RegistryWatcher(holder)
    watcher.poll()
    assert (holder.model.version, holder.swaps) == (one, 0)
    registry.promote(two, force=True)
    watcher.poll()
    assert (holder.model.version, holder.swaps, holder.status().stale) == (two, 1, False)
    registry.rollback()
    watcher.poll()
    assert (holder.model.version, holder.swaps) == (one, 2)


def test_a_damaged_version_is_refused_and_the_old_one_answers(registry, bundles, holder, capfd):
    one, two = (bundle.version for bundle in bundles)
    damage(registry, two)
    registry.promote(two, force=True)
    client, before = TestClient(build_app(holder)), holder.model
    RegistryWatcher(holder).poll()
    assert holder.model is before
    ready = client.get("/readyz")
    assert ready.status_code == 200
    said = ready.json()
    assert (said["model_version"], said["wanted_version"], said["stale"]) == (one, two, True)
    assert said["refused"]["version"] == two
    assert "damaged" in said["refused"]["reason"]
    assert registry.folder.path not in ready.text
    assert client.get(f"/v1/users/{raw(0)}/recommendations").json()["model_version"] == one
    line = json.loads(capfd.readouterr().err)
    assert (line["event"], line["version"], line["answers"]) == ("model_refused", two, one)
    assert registry.folder.path in line["reason"]


def test_a_refused_version_is_tried_again_later_and_longer_each_time(registry, bundles, holder):
    two, tries, clock = bundles[1].version, [], Clock()

    def broken(path):
        tries.append(path)
        raise RecrayError("the store is away")

    registry.promote(two, force=True)
    watcher = RegistryWatcher(holder, broken, clock)
    for now, expected in ((0, 1), (4, 1), (5, 2), (14, 2), (15, 3), (34, 3), (35, 4)):
        clock.now = now * RETRY_SECONDS / 5
        watcher.poll()
        assert len(tries) == expected, now
    assert holder.refusals == 4


def test_what_was_refused_is_forgotten_when_the_old_version_is_wanted_again(
    registry, bundles, holder
):
    damage(registry, bundles[1].version)
    registry.promote(bundles[1].version, force=True)
    watcher = RegistryWatcher(holder)
    watcher.poll()
    registry.rollback()
    watcher.poll()
    assert holder.status().refused is None
    assert not holder.status().stale


def test_a_replica_that_starts_takes_the_last_version_that_can_be_used(registry, bundles):
    one, two = (bundle.version for bundle in bundles)
    damage(registry, two)
    registry.promote(two, force=True)
    holder = open_holder(registry.folder.path)
    assert (holder.model.version, holder.target, holder.refused.version) == (one, two, two)
    damage(registry, one)
    with pytest.raises(RecrayError, match="damaged"):
        open_holder(registry.folder.path)


def test_an_unreadable_registry_is_told_and_changes_nothing(registry, holder):
    before, watcher = holder.model, RegistryWatcher(holder)
    newest = f"{PROMOTIONS}/000002.json"
    good = registry.folder.read_bytes(f"{PROMOTIONS}/000001.json")
    for content in (b"{", b"[]", b'{"version": "../../etc", "before": []}'):
        registry.folder.write_bytes(newest, content)
        watcher.poll()
        assert holder.status().registry not in (None, "followed")
        assert holder.model is before
    registry.folder.write_bytes(newest, good)
    watcher.poll()
    assert holder.status().registry == "followed"


def test_a_bundle_without_a_registry_stays(bundles):
    holder = open_holder(bundles[0].folder.path)
    assert (holder.registry, holder.status().registry) == (None, None)
    with pytest.raises(ValueError, match="no registry"):
        RegistryWatcher(holder)


def test_weights_that_are_no_numbers_are_refused(make_bundle, monkeypatch):
    path = make_bundle().folder.path
    load = fits.tensors_in

    def spoilt(content):
        return load(content) | {"item_vectors.weight": torch.full((ITEMS, 2), torch.nan)}

    monkeypatch.setattr(fits, "tensors_in", spoilt)
    with pytest.raises(RecrayError, match=r"item_vectors\.weight"):
        load_and_warm_up(path)


def test_a_bundle_that_opens_and_cannot_answer_is_refused(make_bundle, monkeypatch):
    path = make_bundle().folder.path
    monkeypatch.setattr(Recommender, "recommend_many", lambda *_, **_given: 1 / 0)
    with pytest.raises(RecrayError, match="ZeroDivisionError"):
        load_and_warm_up(path)


@pytest.mark.parametrize(
    ("preset", "changes"),
    [
        ("mf-normalised", []),
        ("rating", []),
        ("neumf", []),
        ("softmax-dnn", ["model.levels=[1,2,3,4,5]"]),
    ],
)
def test_every_kind_of_model_is_warmed(make_bundle, preset, changes):
    bundle = make_bundle(preset=preset, changes=changes)
    assert load_and_warm_up(bundle.folder.path).version == bundle.version


def test_no_request_waits_while_a_version_is_opened(registry, bundles, holder):
    begun, go = threading.Event(), threading.Event()

    def slow(path):
        begun.set()
        assert go.wait(20)
        return load_and_warm_up(path)

    registry.promote(bundles[1].version, force=True)
    client, watcher = TestClient(build_app(holder)), RegistryWatcher(holder, slow)
    watcher.start()
    assert begun.wait(20)
    assert client.get("/readyz").json()["loading"] == bundles[1].version
    path = f"/v1/users/{raw(0)}/recommendations"
    assert client.get(path).json()["model_version"] == bundles[0].version
    go.set()
    while holder.model.version != bundles[1].version:
        pass
    watcher.stop()
    assert client.get(path).json()["model_version"] == bundles[1].version


def test_no_reply_mixes_versions_under_load(bundles):
    recommenders = [Recommender(bundle) for bundle in bundles]
    users = [int(raw(user)) for user in range(USERS)]
    asked = {"askers": [{"user": user} for user in users], "k": 4}
    expected = {
        r.version: [answer.plain()["items"] for answer in r.recommend_many(users, 4)]
        for r in recommenders
    }
    holder = ModelHolder(recommenders[0])
    transport = httpx2.ASGITransport(build_app(holder))
    replies = []

    async def ask(client, number):
        for turn in range(25):
            place = (number + turn) % USERS
            one = await client.get(f"/v1/users/{users[place]}/recommendations?k=4")
            many = await client.post("/v1/recommendations:batch", json=asked)
            replies.append(([one.json()["items"]], one.json()["model_version"], [place]))
            lists = [entry["items"] for entry in many.json()["results"]]
            replies.append((lists, many.json()["model_version"], range(USERS)))

    async def all_at_once():
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            asking = asyncio.gather(*(ask(client, number) for number in range(8)))
            turn = 0
            while not asking.done():
                holder.replace(recommenders[(turn := turn + 1) % 2])
                await asyncio.sleep(0.003)
            await asking

    asyncio.run(all_at_once())
    for lists, version, places in replies:
        assert lists == [expected[version][place] for place in places]
    assert {version for _, version, _ in replies} == set(expected)
    assert holder.swaps > 10


def test_a_version_of_another_data_set_is_refused(registry, bundles, holder, monkeypatch):
    registry.promote(bundles[1].version, force=True)

    def other(path):
        found = load_and_warm_up(path)
        found.bundle.config["dataset"] = "elsewhere"
        return found

    RegistryWatcher(holder, other).poll()
    assert holder.model.version == bundles[0].version
    assert "is of elsewhere, what answers is of tiny" in holder.status().refused.reason


@pytest.mark.parametrize(
    ("reason", "shown"),
    [
        ("cannot read s3://KEY:SECRET@bucket/registry/x: gone", "cannot read x: gone"),
        ("s3://KEY:SECRET@bucket is away", "s3://...@bucket is away"),
        ("/srv/my reg/versions/a/model.safetensors: its digest", "versions/a/model.safetensors: "),
        ("'/srv/own/a/x' and/or (/srv/own/a/y) of 3 / 4", "'x' and/or (y) of 3 / 4"),
    ],
)
def test_readiness_tells_neither_credentials_nor_folders(holder, reason, shown):
    holder.registry = "/srv/my reg"
    holder.reject("0" * 12, reason)
    holder.registry_error = "cannot read s3://KEY:SECRET@bucket/registry/current.json"
    text = holder.status().model_dump_json()
    assert "SECRET" not in text
    assert "srv" not in text
    assert holder.status().refused.reason.startswith(shown)


def test_a_model_that_was_replaced_is_freed_at_once(make_bundle):
    path = make_bundle().folder.path
    first = load_and_warm_up(path)
    first.catalog.find("the", 3)
    before, table = weakref.ref(first.bundle.model), weakref.ref(first.items.raw)
    holder = ModelHolder(first)
    del first
    gc.disable()  # what waits for it would be a third version's memory during the next swap
    try:
        holder.replace(load_and_warm_up(path))
        assert before() is None
        assert table() is None
    finally:
        gc.enable()
