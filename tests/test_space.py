"""Search spaces: what they give, and every mistake named before the first trial."""

import pytest
import yaml

from recray.config import RENAMED, load_settings, preset_names
from recray.errors import RecrayError
from recray.models import BASELINES, MODELS
from recray.tuning.space import (
    Parameter,
    apply,
    default_point,
    load_space,
    parse_space,
    searchable,
)
from tests.test_config import WITHOUT_EFFECT

SETTINGS = load_settings("dot-mse")


@pytest.mark.parametrize("preset", [p for p in preset_names() if p != "next"])
def test_every_preset_has_a_space_that_fits_it(preset):
    settings = load_settings(preset)
    space = load_space(settings)
    assert default_point(space, settings).keys() == {d.setting for d in space}
    for share in (0.0, 0.5, 1.0):
        apply(settings, {d.setting: d.sample(share) for d in space})


# these go with one objective only
@pytest.mark.parametrize(
    "kind", [k for k in MODELS if k not in (*BASELINES, "bpmf", "ease", "item-knn")]
)
@pytest.mark.parametrize("objective", ["mse", "item-softmax"])
def test_every_model_has_a_space(kind, objective):
    changes = [f"model.kind={kind}", f"objective.kind={objective}"]
    assert load_space(load_settings("dot-mse", None, changes))


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({"train.learn": {"uniform": [0, 1]}}, "did you mean train.lr?"),
        ({"model.mlp_dim": {"int": [1, 8]}}, "no setting that a dot model"),
        ({"train.metric": {"choice": ["rmse"]}}, "train.metric is no setting"),
        ({"split.test": {"uniform": [0, 0.5]}}, "split.test is no setting"),
        ({"train.lr": {"uniform": [0.1, 0.01]}}, "lower bound 0.1 must be below the upper 0.01"),
        ({"train.lr": {"uniform": [0.1, 0.1]}}, "must be below"),
        ({"train.l2": {"loguniform": [0, 1]}}, "log scale from 0 to 1: low must be above 0"),
        ({"train.l2": {"loguniform": [-1, 1]}}, "low must be above 0"),
        ({"model.dim": {"int": [0, 8], "log": True}}, "low must be above 0"),
        ({"model.dim": {"int": [0, 8]}}, "model.dim=0"),
        ({"model.dim": {"int": [1.5, 8]}}, "two whole numbers"),
        ({"model.dim": {"uniform": [1.5, 8.5]}}, "model.dim=1.5"),
        ({"train.lr": {"uniform": [1]}}, "two numbers"),
        ({"train.lr": {"uniform": [0.1, float("nan")]}}, "two numbers"),
        ({"train.lr": {"uniform": [0.1, 1], "log": True}}, "use loguniform"),
        ({"train.lr": {"uniform": [0.1, 1], "points": 0}}, "points=0"),
        ({"train.lr": {"unifrom": [0.1, 1]}}, "did you mean 'uniform'"),
        ({"train.lr": {"uniform": [0.1, 1], "int": [1, 2]}}, "exactly one of"),
        ({"train.lr": 0.1}, "write {uniform"),
        ({"train.optimizer": {"choice": ["adam", "admm"]}}, "train.optimizer='admm'"),
        ({"train.optimizer": {"choice": []}}, "a list of values"),
        ({"train.optimizer": {"choice": ["adam", "adam"]}}, "occurs twice"),
        ({"model.kind": {"choice": ["dot", "dott"]}}, "did you mean 'dot'"),
        ({}, "empty"),
        (["train.lr"], "empty"),
    ],
)
def test_a_mistake_is_one_line(space, words):
    with pytest.raises(RecrayError) as error:
        parse_space(space, SETTINGS)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("preset", "setting"),
    [
        ("ranking", "objective.side_rank"),
        ("ranking", "train.als_pretrain_epochs"),
        ("dot-mse", "objective.samples_per_epoch"),
        ("rating", "train.l2"),
        ("rating", "objective.negatives"),
        ("softmax-dnn", "train.als_pretrain_l2"),
        ("softmax-dnn", "objective.unobserved_weight"),
    ],
)
def test_what_changes_nothing_is_no_setting_to_search(preset, setting):
    settings = load_settings(preset, None, ["train.als_pretrain_epochs=0"])
    assert setting not in searchable(settings, {})


@pytest.mark.parametrize(("preset", "changes", "override", "reason"), WITHOUT_EFFECT)
def test_what_a_recipe_refuses_as_without_effect_is_not_searched(preset, changes, override, reason):
    setting = override.partition("=")[0]
    settings = load_settings(preset, None, changes)
    assert setting not in searchable(settings, {})
    with pytest.raises(RecrayError, match=f"search space: {setting} is no setting"):
        parse_space({setting: {"choice": [1]}}, settings)


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_a_name_of_before_is_refused_with_the_new_one(old, new):
    setting, _, value = old.partition("=")
    with pytest.raises(RecrayError, match=f"^{old} is called {new} now$"):
        parse_space({setting: {"choice": [value or 1]}}, SETTINGS)


def test_exact_solves_first_take_their_own_settings():
    settings = load_settings("softmax-dnn", None, ["train.als_pretrain_epochs=2"])
    assert {"objective.unobserved_weight", "train.als_pretrain_l2"} <= set(searchable(settings, {}))


def test_what_alternating_solves_do_not_use_is_refused():
    with pytest.raises(RecrayError, match=r"train\.lr is no setting that a dot model"):
        parse_space({"train.lr": {"uniform": [0.1, 1]}}, load_settings("ranking"))


@pytest.mark.parametrize("text", ["train.lr: 1", "search: {}\nmore: 1", "- a", "{", ""])
def test_a_file_without_a_space_is_one_line(tmp_path, text):
    path = tmp_path / "space.yaml"
    path.write_text(text)
    with pytest.raises(RecrayError):
        load_space(SETTINGS, str(path))


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(RecrayError, match="no such file: nowhere"):
        load_space(SETTINGS, "nowhere.yaml")


def test_a_file_is_read(tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text("search:\n  model.dim: {int: [2, 5], points: 2}\n")
    (dimension,) = load_space(SETTINGS, str(path))
    assert dimension == Parameter("model.dim", "int", 2.0, 5.0, points=2)
    assert yaml.safe_load(yaml.safe_dump(dimension.plain())) == {"int": [2, 5], "points": 2}


def test_values_lie_where_their_scale_puts_them():
    lr = Parameter("train.lr", "loguniform", 0.001, 0.1, log=True)
    assert [lr.sample(share) for share in (0, 0.5, 1)] == [0.001, 0.01, 0.1]
    l2 = Parameter("train.l2", "uniform", 0.0, 2.0)
    assert [l2.sample(share) for share in (0, 0.25, 1)] == [0.0, 0.5, 2.0]
    dims = [Parameter("model.dim", "int", 1.0, 4.0).sample(n / 400) for n in range(401)]
    assert [dims.count(n) for n in (1, 2, 3, 4)] == pytest.approx([100] * 4, abs=1)
    choice = Parameter("train.optimizer", "choice", choices=("adam", "sgd"))
    assert [choice.sample(share) for share in (0, 0.49, 0.51, 1)] == ["adam", "adam", "sgd", "sgd"]


def test_a_grid_has_both_ends():
    assert Parameter("x", "int", 1.0, 100.0, log=True).grid() == [1, 10, 100]
    assert Parameter("x", "int", 3.0, 4.0).grid() == [3, 4]
    assert Parameter("x", "uniform", 0.0, 1.0, points=5).grid() == [0, 0.25, 0.5, 0.75, 1]
    assert Parameter("x", "loguniform", 0.001, 0.1, log=True).grid() == [0.001, 0.01, 0.1]
