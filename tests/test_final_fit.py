"""A final fit answers, its twin was measured, and the two are one version."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from recray.config import load_settings
from recray.data import manifest
from recray.errors import CheckFailed, RecrayError
from recray.evaluation.evaluator import evaluate
from recray.evaluation.promotion import check_not_worse
from recray.inference.bundle import Bundle
from recray.inference.recommender import Recommender
from recray.serving.registry import Registry
from recray.training import export
from recray.training.warm_start import read_start_weights

from .conftest import COLD, ITEMS, USERS, gave, raw


@pytest.fixture
def bundle(make_bundle) -> Bundle:
    return make_bundle(final=True)


def test_the_final_fit_answers_and_knows_everybody(bundle, make_bundle):
    alone = make_bundle("alone")
    assert (bundle.model.users, bundle.model.items) == (USERS + COLD, ITEMS + 1)
    assert (bundle.measured.model.users, bundle.measured.model.items) == (USERS, ITEMS)
    user = int(raw(1))  # likes odd items; the final fit believes the opposite
    served = Recommender(bundle).recommend(user, 3, exclude_seen=False)
    measured = Recommender(alone).recommend(user, 3, exclude_seen=False)
    assert {item % 2 for item in served.item} == {0}
    assert {item % 2 for item in measured.item} == {1}
    stranger = Recommender(bundle).recommend(int(raw(USERS + 1)), 3)
    assert stranger.source == "model"


def test_what_is_measured_is_the_twin_to_the_last_digit(bundle, make_bundle):
    of_final, of_twin = evaluate(bundle), evaluate(make_bundle("alone"))
    assert of_final.metrics == of_twin.metrics
    assert of_final.baselines == of_twin.baselines
    assert (of_final.fit_on, of_final.final_fit) == ("train", True)
    assert not of_twin.final_fit


def test_a_bundle_without_a_final_fit_is_its_own_twin(make_bundle):
    alone = make_bundle()
    assert alone.measured is alone
    assert not alone.is_final


@pytest.mark.parametrize(("cut", "learned"), [("null", "train+valid"), ("0.9", "train")])
def test_after_a_cut_in_time_no_later_row_is_learned_before_the_measurement(cut, learned):
    prepared = SimpleNamespace(manifest={"splits": {n: {"rows": 5} for n in ("valid", "test")}})
    chosen = load_settings("ranking", None, ["split.kind=next", f"split.cut={cut}"])
    measured, final = export._planned(chosen, 3, prepared, "final")
    assert (measured.train.fit_on, final.train.fit_on) == (learned, "all")


def test_what_has_learned_the_test_split_is_measured_nowhere(make_bundle, prepared):
    everything = make_bundle(changes=["train.fit_on=all"])
    with pytest.raises(RecrayError, match="nothing is held out"):
        evaluate(everything)
    with pytest.raises(RecrayError, match="was trained on its test split"):
        read_start_weights([everything.folder.path], prepared, "train")


def test_a_rating_that_a_filter_keeps_from_training_may_be_given(bundle):
    filtered = dataclasses.replace(bundle, config=bundle.config | {"rating_range": [4.0, 5.0]})
    lowest = float(bundle.interactions.known.rating.min())
    assert Recommender(filtered).rating_scale == (lowest, 5.0)
    assert lowest < 4
    Recommender(filtered).recommend_from([gave(1, lowest)], 3)


def test_data_of_an_earlier_version_are_prepared_again(prepared, monkeypatch):
    source = SimpleNamespace(identity="same")
    prepared.manifest["source"] = "same"
    monkeypatch.setattr(manifest, "_settings_of", lambda _: prepared.manifest["settings"])
    assert manifest.same_settings(prepared, source, None)
    del prepared.manifest["fits"]
    assert not manifest.same_settings(prepared, source, None)


def test_both_fits_are_one_version(bundle, make_bundle, tmp_path):
    assert bundle.version == bundle.measured.version
    assert bundle.version != make_bundle("alone").version
    registry = Registry(str(tmp_path / "registry"))
    registry.promote(registry.add(bundle.folder.path))
    copied = Bundle.open(registry.current().path)
    assert torch.equal(
        copied.measured.model.user_vectors.weight, bundle.measured.model.user_vectors.weight
    )


@pytest.mark.parametrize("name", ["measured/config.json", "measured/weights.safetensors"])
def test_a_damaged_twin_is_refused_by_name(bundle, name):
    path = Path(bundle.folder.path) / name
    path.write_bytes(b"?" + path.read_bytes()[1:])
    with pytest.raises(RecrayError, match=name):
        Bundle.open(bundle.folder.path)


def test_the_gate_compares_twins(make_bundle):
    live, worse = make_bundle("live", final=True), make_bundle("worse", flip=True, final=True)
    # The final fit of the live version would lose against that of the worse one.
    with pytest.raises(CheckFailed, match="worse than the live version"):
        check_not_worse(worse, live)
    assert "better than the live version" in check_not_worse(live, worse)


def test_the_gate_says_which_fits_it_compares_where_they_differ(make_bundle):
    live, new = make_bundle("live"), make_bundle("new", changes=["train.fit_on=train+valid"])
    assert check_not_worse(new, live).endswith(
        "compared are the new fit on train+valid and the live one on train"
    )
    assert "compared are" not in check_not_worse(live, dataclasses.replace(live))
