"""A user who is forgotten is in no file and in no reply."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from click.testing import CliRunner
from fastapi.testclient import TestClient

from recray.cli import cli
from recray.data.feedback_events import LoggedRating
from recray.data.feedback_log import LogWriter, RatingsLog
from recray.errors import RecrayError
from recray.inference.bundle import KIND, Bundle, current_bundle, version_of
from recray.inference.bundle_without import write_without
from recray.inference.recommender import Recommender
from recray.inference.user_parts import part_file
from recray.serving import forget as forgetting
from recray.serving.app import build_app
from recray.serving.feedback_service import FeedbackService
from recray.serving.forget import forget
from recray.serving.forgotten import Forgotten
from recray.serving.hot_swap import RegistryWatcher, open_holder
from recray.serving.registry import Registry
from recray.storage import Folder, publish

from .conftest import COLD, ITEMS, USERS, raw

RARE = 987_654_321_012
"""The id of the user who is forgotten: no other number looks like it."""
PLACE = USERS - 1  # so that ids still ascend
OTHERS = [int(raw(user)) for user in range(USERS + COLD) if user != PLACE]


def rare(bundle):
    """The bundle, in which the user of PLACE has the id RARE."""
    folder = bundle.folder
    name = part_file(0)
    tensors = safetensors.torch.load(folder.read_bytes(name))
    tensors["raw"][PLACE] = RARE
    folder.write_bytes(name, safetensors.torch.save(tensors))
    facts = {k: v for k, v in bundle.manifest.facts.items() if k != "version"}
    folder.write_manifest(KIND, facts | {"version": version_of(folder, {})})
    return Bundle.open(folder.path)


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(forgetting, "LOCAL_PAUSE_SECONDS", 0.5)


@pytest.fixture
def bundles(make_bundle):
    return [rare(make_bundle("old", flip=True)), rare(make_bundle("new", final=True))]


@pytest.fixture
def registry(bundles, tmp_path):
    """Two releases and a log; in each of them is the user."""
    made = Registry(str(tmp_path / "registry"))
    for bundle in bundles:
        made.promote(made.add(bundle.folder.path), force=True)
    log = RatingsLog.of(f"{made.folder.path}/ratings", "tiny", (False, False))
    for writer in (LogWriter(log), LogWriter(log)):
        for n in range(3):
            own = LoggedRating(RARE, int(raw(n)), 5.0, f"{writer.name}-{n}", n + 1)
            other = LoggedRating(OTHERS[n], int(raw(n)), 4.0, f"{writer.name}-o{n}", n + 1)
            writer.append([own, other])
    log.folder.child("snapshots").write_table("x.parquet", pa.table({"user": [RARE]}))
    return made


def found(folder):
    """Files in which the id is: as text, as eight bytes, or in a cell of a table."""
    names = []
    for path in sorted(Path(folder).rglob("*")):
        if not path.is_file():
            continue
        content = path.read_bytes()
        plain = str(RARE).encode() in content or RARE.to_bytes(8, "little") in content
        if path.suffix == ".parquet":
            plain = plain or str(RARE) in str(pq.read_table(path).to_pydict())
        if plain:
            names.append(str(path.relative_to(folder)))
    return names


def test_the_id_is_in_no_file_and_in_no_reply(registry):
    folder = registry.folder.path
    before = found(folder)
    assert {name.split("/")[0] for name in before} == {"versions", "ratings"}
    kept = FeedbackService(RatingsLog.open(f"{folder}/ratings"))
    kept.start()
    holder = open_holder(folder)
    client = TestClient(build_app(holder, feedback=kept))
    path = f"/v1/users/{RARE}"
    assert client.get(f"{path}/recommendations").status_code == 200
    old = registry.pointer()
    done = forget(folder, str(RARE))
    RegistryWatcher(holder).poll()
    assert found(folder) == []
    assert (done.ratings, set(done.versions)) == (6, {old[0], *old[1]})
    assert client.get(path).status_code == 404
    assert client.get(f"{path}/recommendations").status_code == 404
    assert str(RARE) not in client.get("/v1/model").text
    assert kept.ratings_of(RARE) == []
    assert len(kept.ratings_of(OTHERS[0])) == 1, "nobody else is forgotten"
    kept.stop()
    assert {event.user for event in RatingsLog.open(f"{folder}/ratings").read().ratings} == set(
        OTHERS[:3]
    )


def test_one_can_go_back_to_earlier_releases_none_of_which_knows_the_user(registry):
    new, (old,) = registry.pointer()
    done = forget(registry.folder.path, str(RARE))
    assert registry.pointer() == (done.versions[new], [done.versions[old]])
    assert {entry.version for entry in registry.versions()} == set(done.versions.values())
    registry.rollback()
    live = Recommender.open(registry.current().path)
    with pytest.raises(KeyError):
        live.recommend(RARE)


def test_everybody_else_gets_what_they_got_before(registry, bundles):
    before = Recommender(bundles[1])
    done = forget(registry.folder.path, str(RARE))
    after = Recommender.open(registry.current().path)
    assert after.version == done.versions[bundles[1].version]
    for user in OTHERS:
        old, new = before.recommend(user, 5), after.recommend(user, 5)
        assert [e.item for e in old.items] == [e.item for e in new.items]
        assert old.source == new.source
        assert old.score == new.score
        assert before.user(user).ratings == after.user(user).ratings


def test_hold_out_twin_and_counts_are_without_the_user(registry, bundles):
    forget(registry.folder.path, str(RARE))
    old, new = bundles[1], Bundle.open(registry.current().path)
    own = (old.interactions.rows.user == PLACE).sum()
    assert len(new.interactions.rows) == len(old.interactions.rows) - own
    assert len(new.holdout) == len(old.holdout) - (old.holdout.user == PLACE).sum()
    assert new.user_ids.raw.tolist() == [u for u in old.user_ids.raw.tolist() if u != RARE]
    assert new.config["users"] == old.config["users"] - 1
    for name in ("train", "valid", "test"):
        rows = old.config["splits"][name]["rows"] - new.config["splits"][name]["rows"]
        assert rows == {"train": 3, "valid": 1, "test": 1}[name]
    rest = [n for n in range(USERS) if n != PLACE]
    twin, other = (b.measured.model.user_vectors.weight for b in (old, new))
    assert torch.equal(twin[rest], other)
    assert np.array_equal(new.item_ids.raw, old.item_ids.raw)
    assert len(new.item_ids) == ITEMS + 1


def test_the_user_does_not_come_back_with_the_next_release(registry, bundles):
    forget(registry.folder.path, str(RARE))
    with pytest.raises(RecrayError, match="holds 1 of the users whom"):
        registry.add(bundles[0].folder.path)
    again = forget(registry.folder.path, str(RARE))
    assert (again.ratings, again.versions) == (0, {}), "to forget twice is fine"


def test_a_user_whom_nobody_knows_is_one_line(registry):
    for user, reason in (("5", "no user '5' in"), ("anna", "no user 'anna': the users of")):
        asked = CliRunner().invoke(cli, ["forget", user, registry.folder.path])
        assert (asked.exit_code, asked.stderr.count("\n")) == (2, 1)
        assert reason in asked.stderr


def test_the_command_says_what_it_has_removed(registry):
    asked = CliRunner().invoke(cli, ["forget", str(RARE), registry.folder.path, "--json"])
    said = json.loads(asked.stdout)
    assert (said["ratings"], len(said["versions"])) == (6, 2)
    assert found(registry.folder.path) == []


# -------------------------------------------------------------------- at the same time, and killed


def without_log(registry):
    """The registry, whose log is gone, so that nothing waits for replicas."""
    Folder(f"{registry.folder.path}/ratings").delete()
    return registry


class Killed(BaseException):
    """Ends a process in the middle."""


def test_what_was_killed_while_it_deleted_a_release_is_ended_by_the_next_one(
    registry, monkeypatch, tmp_path
):
    whole, ended, kills = without_log(registry).folder.path, False, 0
    delete = Folder.delete
    while not ended:
        path = str(tmp_path / f"copy{kills}")
        shutil.copytree(whole, path)
        left = kills

        def killed(folder, name=""):
            nonlocal left
            if "versions" in folder.path:
                left -= 1
                if left < 0:
                    raise Killed
            delete(folder, name)

        with monkeypatch.context() as patch:
            patch.setattr(Folder, "delete", killed)
            try:
                forget(path, str(RARE))
                ended = True
            except Killed:
                kills += 3  # each third deletion, for the time that it takes
        forget(path, str(RARE))
        assert found(path) == []
        assert len(Registry(path).versions()) == 2
        assert Registry(path).current().published()
    assert kills > 10


def test_of_two_who_are_forgotten_at_once_nobody_stays(registry, monkeypatch):
    path, others, write = without_log(registry).folder.path, [str(OTHERS[0])], write_without

    def slow(*given):
        made = write(*given)
        if others:
            forget(path, others.pop())
        return made

    monkeypatch.setattr(forgetting, "write_without", slow)
    forget(path, str(RARE))
    for entry in registry.versions():
        assert not {RARE, OTHERS[0]} & {
            *Bundle.open(registry.folder_of(entry.version).path).user_ids.raw.tolist()
        }
    assert registry.current().published()
    assert Forgotten(registry.folder).among([RARE, OTHERS[0]]) == 2


def test_who_is_forgotten_while_a_bundle_is_added_does_not_come_back(
    registry, bundles, monkeypatch
):
    path = without_log(registry).folder.path
    version = bundles[0].version
    registry.promote(bundles[1].version, force=True)
    registry.folder_of(version).delete()

    def slow(target):
        forget(path, str(RARE))
        return publish(target)

    monkeypatch.setattr("recray.serving.registry.publish", slow)
    with pytest.raises(RecrayError, match="holds 1 of the users whom"):
        registry.add(bundles[0].folder.path)
    assert found(path) == []


def test_the_users_who_are_looked_for_are_those_of_the_files_that_are_added(
    registry, bundles, tmp_path, monkeypatch
):
    forget(without_log(registry).folder.path, str(RARE))
    given = f"file://{tmp_path}/given"
    other = registry.current()

    def put(source, replace):
        with publish(Folder(given), replace) as new:
            for name in source.content():
                new.write_bytes(name, source.read_bytes(name))
            new.write_manifest(KIND, source.manifest().facts)

    def replaced(path):
        now = current_bundle(path)
        if path.path == given and not path.generation:
            put(other, replace=True)
        return now

    put(bundles[0].folder, replace=False)
    monkeypatch.setattr("recray.serving.registry.current_bundle", replaced)
    with pytest.raises(RecrayError, match="holds 1 of the users whom"):
        registry.add(given)


def test_nobody_is_forgotten_while_a_version_cannot_be_read(registry):
    registry.folder_of(registry.versions()[0].version).write_bytes("manifest.json", b"{")
    with pytest.raises(RecrayError, match="cannot be read, and may hold the user: repair it"):
        forgetting.forget(registry.folder.path, str(RARE))
    assert not registry.folder.exists("forgotten.json")
