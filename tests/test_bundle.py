"""Bundles: whole, versioned by content, and without pickled code."""

from pathlib import Path

import numpy as np
import pytest
import torch

from recray.errors import RecrayError
from recray.inference.bundle import Bundle
from recray.inference.recommender import Recommender

from .conftest import USERS, raw
from .of_before import write_before

FILES = [
    "weights.safetensors",
    "items.parquet",
    "users.json",
    "users/part-00000.safetensors",
    "facts.safetensors",
    "config.json",
    "metrics.json",
    "training.json",
]


def test_what_was_written_is_what_opens(make_bundle):
    made = make_bundle()
    opened = Bundle.open(made.folder.path)
    assert opened.version == made.version
    assert torch.equal(opened.model.user_vectors.weight, made.model.user_vectors.weight)
    assert opened.user_ids.raw.tolist() == made.user_ids.raw.tolist()
    assert len(opened.interactions.before_test) == 12 * 4 + 1
    assert opened.settings.preset == "ranking"


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_byte_in_any_file_is_refused_by_name(make_bundle, name):
    bundle = make_bundle()
    with open(f"{bundle.folder.path}/{name}", "r+b") as stream:
        first = stream.read(1)
        stream.seek(0)
        stream.write(bytes([first[0] ^ 1]))
    with pytest.raises(RecrayError, match=name):
        Bundle.open(bundle.folder.path)


def test_the_version_follows_from_the_content(make_bundle):
    assert make_bundle("a").version == make_bundle("b").version
    assert make_bundle("c", flip=True).version != make_bundle("a2").version


def test_a_file_that_the_manifest_does_not_list_is_refused(make_bundle):
    bundle = make_bundle()
    (Path(bundle.folder.path) / "more.json").write_text("{}")
    with pytest.raises(RecrayError, match=r"holds more\.json, which its manifest does not list"):
        Bundle.open(bundle.folder.path)


def test_a_bundle_holds_nothing_that_runs_code_when_opened(make_bundle):
    assert sorted(make_bundle().folder.files()) == sorted([*FILES, "manifest.json"])


def test_a_folder_of_another_kind_is_no_bundle(prepared):
    with pytest.raises(RecrayError, match="not a bundle"):
        Bundle.open(prepared.folder.path)


def test_a_bundle_is_not_written_over(make_bundle):
    make_bundle("a")
    with pytest.raises(RecrayError, match="exists already"):
        make_bundle("a")


@pytest.mark.parametrize("with_interactions", [True, False])
def test_a_bundle_that_an_earlier_version_wrote_opens(make_bundle, tmp_path, with_interactions):
    bundle = make_bundle()
    opened = write_before(bundle, tmp_path / "before", with_interactions)
    assert opened.version != bundle.version
    for part in ("known", "withheld", "before_test"):
        old, new = getattr(opened.interactions, part), getattr(bundle.interactions, part)
        assert all(np.array_equal(vars(old)[name], vars(new)[name]) for name in vars(new))
    every = [raw(user) for user in range(USERS)]
    answering = Bundle.open_to_answer(opened.folder.path)
    assert answering.stored is None
    made = (Recommender(one).recommend_many(every, 3) for one in (bundle, opened, answering))
    for new, old, again in zip(*made, strict=True):
        assert (new.item, new.score) == (old.item, old.score) == (again.item, again.score)


def test_a_bundle_that_holds_names_of_before_opens(make_bundle):
    bundle = make_bundle()
    folder, config = bundle.folder, dict(bundle.config)
    objective = config["settings"]["objective"]
    weight = objective.pop("unobserved_weight")
    config["settings"]["objective"] = objective | {"kind": "whole-data", "alpha0": weight}
    folder.write_json("config.json", config)
    assert Bundle.read(folder, folder.manifest()).settings == bundle.settings


@pytest.mark.parametrize("preset", ["ranking", "gmf", "neumf"])
def test_opening_draws_no_random_numbers_and_gives_the_weights_that_were_written(
    make_bundle, preset
):
    made = make_bundle(preset=preset)
    state = torch.get_rng_state()
    opened = Bundle.open(made.folder.path)
    assert torch.equal(torch.get_rng_state(), state)
    weights = opened.model.state_dict()
    for name, weight in made.model.state_dict().items():
        assert torch.equal(weights[name], weight)
    assert all(weight.requires_grad for weight in opened.model.parameters())


@pytest.mark.parametrize("name", ["measured/config.json", "measured/weights.safetensors"])
def test_a_fit_that_is_read_later_is_of_the_bundle_that_was_opened(make_bundle, name):
    made = make_bundle("one", final=True)
    opened = Bundle.open(made.folder.path)
    content = made.folder.read_bytes(name)
    made.folder.write_bytes(name, content[:-1] + b" ")
    with pytest.raises(RecrayError, match=f"{name} is damaged"):
        opened.measured  # noqa: B018
    made.folder.delete(name)
    with pytest.raises(RecrayError, match=f"lacks {name}"):
        opened.measured  # noqa: B018
    made.folder.write_bytes(name, content)
    assert opened.measured.settings.train.fit_on == "train"
