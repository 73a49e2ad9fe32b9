"""Versions: added whole, promoted through a gate, rolled back."""

import numpy as np
import pytest

from recray.data.split import TRAIN
from recray.errors import RecrayError
from recray.evaluation.promotion import check_not_worse
from recray.serving.registry import Registry, resolve_bundle
from recray.storage import publish


@pytest.fixture
def registry(tmp_path):
    return Registry(str(tmp_path / "registry"))


def test_add_promote_and_roll_back(registry, make_bundle):
    bad, good = (
        registry.add(make_bundle(n, flip=f).folder.path) for n, f in (("b", True), ("g", False))
    )
    registry.promote(bad)
    promoted = registry.promote(good)
    assert "better than the live version" in promoted.verdict
    assert registry.current().name == good
    assert [v.version for v in registry.versions() if v.current] == [good]
    assert registry.rollback().model_dump() == {"version": bad, "before": good}
    assert registry.current().name == bad


def test_adding_twice_is_fine(registry, make_bundle):
    bundle = make_bundle()
    assert registry.add(bundle.folder.path) == registry.add(bundle.folder.path)
    assert len(registry.versions()) == 1


def test_adding_twice_at_once_is_fine(registry, make_bundle, monkeypatch):
    path, others = make_bundle().folder.path, [Registry(registry.folder.path)]

    def slow(target):
        if others:
            others.pop().add(path)
        return publish(target)

    monkeypatch.setattr("recray.serving.registry.publish", slow)
    version = registry.add(path)
    registry.folder_of(version).verify()


def test_a_worse_version_is_refused_unless_forced(registry, make_bundle):
    good, bad = (
        registry.add(make_bundle(n, flip=f).folder.path) for n, f in (("g", False), ("b", True))
    )
    registry.promote(good)
    with pytest.raises(RecrayError, match="worse than the live version"):
        registry.promote(bad)
    assert registry.current().name == good
    assert registry.promote(bad, force=True).version == bad


def test_a_version_that_was_trained_on_the_hold_out_is_refused(make_bundle):
    import dataclasses

    live, candidate = make_bundle("live"), make_bundle("candidate")
    rows = live.holdout
    interactions = dataclasses.replace(
        candidate.interactions, rows=rows, part=np.full(len(rows), TRAIN, np.int8)
    )
    leaky = dataclasses.replace(candidate, interactions=interactions)
    with pytest.raises(RecrayError, match="knows 15 ratings of the hold-out"):
        check_not_worse(leaky, live)


def test_an_unknown_version_is_named(registry, make_bundle):
    registry.add(make_bundle().folder.path)
    with pytest.raises(RecrayError, match="unknown version"):
        registry.promote("nonsense")


def test_there_is_nothing_to_roll_back_to_at_first(registry, make_bundle):
    registry.promote(registry.add(make_bundle().folder.path))
    with pytest.raises(RecrayError, match="no earlier version"):
        registry.rollback()


def test_a_registry_stands_for_its_current_bundle(registry, make_bundle):
    bundle = make_bundle()
    version = registry.add(bundle.folder.path)
    with pytest.raises(RecrayError, match="no current version"):
        resolve_bundle(registry.folder.path)
    registry.promote(version)
    assert resolve_bundle(registry.folder.path).endswith(version)
    assert resolve_bundle(bundle.folder.path) == bundle.folder.path


def test_there_is_no_registry_where_there_is_none(tmp_path):
    with pytest.raises(RecrayError, match="no registry at"):
        Registry(str(tmp_path / "none")).versions()


def test_a_damaged_bundle_is_not_added(registry, make_bundle):
    bundle = make_bundle()
    with open(f"{bundle.folder.path}/items.parquet", "ab") as stream:
        stream.write(b"x")
    with pytest.raises(RecrayError, match=r"items\.parquet"):
        registry.add(bundle.folder.path)


@pytest.mark.parametrize("name", ["../out.txt", "/etc/x", "a/../../b", "a//b", "..\\x"])
def test_a_manifest_that_names_files_elsewhere_is_refused(registry, make_bundle, name):
    bundle = make_bundle()
    manifest = bundle.folder.read_json("manifest.json")
    manifest["files"][0]["name"] = name
    bundle.folder.write_json("manifest.json", manifest)
    with pytest.raises(RecrayError, match="names a file outside"):
        registry.add(bundle.folder.path)
    assert not registry.folder.exists()


@pytest.mark.parametrize("version", ["../../escaped", "aaaaaaaaaaaa", None])
def test_a_version_that_is_not_the_contents_is_refused(registry, make_bundle, version):
    bundle = make_bundle()
    manifest = bundle.folder.read_json("manifest.json") | {"version": version}
    bundle.folder.write_json("manifest.json", manifest)
    with pytest.raises(RecrayError, match="its content is"):
        registry.add(bundle.folder.path)
    assert not registry.folder.exists()


def test_both_versions_are_measured_with_the_live_ones_settings(make_bundle):
    import dataclasses

    live, same = make_bundle("live"), make_bundle("same")
    strict = same.settings.model_copy(
        update={"evaluate": same.settings.evaluate.model_copy(update={"relevant_from": 4.5})}
    )
    assert "+0.0000" in check_not_worse(dataclasses.replace(same, settings=strict), live)


def test_bundles_of_different_data_are_not_compared(make_bundle):
    import dataclasses

    live, other = make_bundle("live"), make_bundle("other")
    other = dataclasses.replace(other, config=other.config | {"dataset": "elsewhere"})
    with pytest.raises(RecrayError, match="cannot be compared"):
        check_not_worse(other, live)


FAULTS = {
    "no JSON": b"{",
    "another kind": b'{"kind": "run", "format": 1, "files": []}',
    "facts of the wrong type": None,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_version_that_cannot_be_read_is_listed_with_its_reason(registry, make_bundle, fault):
    good, other, broken = (
        registry.add(make_bundle(name, changes=[f"train.seed={seed}"]).folder.path)
        for seed, name in enumerate(("good", "other", "broken"))
    )
    folder = registry.folder_of(broken)
    if FAULTS[fault] is None:
        folder.write_json("manifest.json", folder.read_json("manifest.json") | {"dataset": [7]})
    else:
        folder.write_bytes("manifest.json", FAULTS[fault])
    listed = {entry.version: entry.unreadable for entry in registry.versions()}
    assert list(listed)[-1] == broken
    assert listed.pop(broken)
    assert listed == {good: None, other: None}
    assert registry.promote(good).version == good
    assert registry.promote(other, force=True).before == good
    assert registry.rollback().version == good
    with pytest.raises(RecrayError, match=f"{broken} cannot be read: "):
        registry.promote(broken, force=True)
