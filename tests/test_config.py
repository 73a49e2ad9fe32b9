"""Settings: preset < file < --set, and every mistake named."""

import pytest
import yaml
from pydantic import ValidationError

from recray.config import Settings, build_settings, load_settings, preset_names
from recray.errors import RecrayError


@pytest.fixture
def config(tmp_path):
    """Write a settings file and return its path."""

    def write(text):
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return str(path)

    return write


def test_a_file_goes_over_the_preset_and_set_goes_over_the_file(config):
    preset = load_settings("dot-mse")
    assert (preset.train.epochs, preset.train.batch_size, preset.model.dim) == (30, 512, 64)
    file = config("train: {epochs: 7, batch_size: 32}\n")
    from_file = load_settings("dot-mse", file)
    assert (from_file.train.epochs, from_file.train.batch_size) == (7, 32)
    final = load_settings("dot-mse", file, ["train.epochs=9", "train.epochs=10", "model.dim=8"])
    assert (final.train.epochs, final.train.batch_size, final.model.dim) == (10, 32, 8)
    assert final.train.patience == preset.train.patience, "what nobody names stays as preset"


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_loads_and_survives_a_round_trip(name):
    settings = load_settings(name)
    assert settings.preset == name
    assert build_settings(settings.plain()) == settings


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epoch=5", r"unknown setting train.epoch: did you mean train.epochs\?"),
        ("split.tests=0.2", r"unknown setting split.tests: did you mean split.test\?"),
        ("trian.lr=1", r"unknown setting trian: did you mean train.lr\?"),
    ],
)
def test_an_unknown_key_names_the_nearest(override, message):
    with pytest.raises(RecrayError, match=message):
        load_settings("dot-mse", None, [override])


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(RecrayError, match="unknown preset 'rankign': did you mean 'ranking'"):
        load_settings("rankign")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epochs=0", "setting train.epochs=0: input should be greater than or equal to 1"),
        ("train.epochs=many", "setting train.epochs='many': input should be a valid integer"),
        ("train.epochs=1.5", "setting train.epochs=1.5: "),
        ("train.lr=.nan", "setting train.lr=nan: input should be a finite number"),
        ("train.lr=0", "setting train.lr=0: input should be greater than 0"),
        ("split.kind=newest", "setting split.kind='newest': .*'leave-one-out'"),
        ("split.test=0.95", r"test \+ valid is 1.05; "),
        ("objective.kind=whole-data", "whole-data needs alternating"),
        ("evaluate.k=[]", "setting evaluate.k="),
        ("epochs=5", "--set 'epochs=5': write group.key=value"),
        ("train.epochs", "--set 'train.epochs': write group.key=value"),
        ("train.epochs=[", "the value is not YAML"),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(override, message):
    with pytest.raises(RecrayError, match=message):
        load_settings("dot-mse", None, [override])


def test_all_bad_values_are_named_at_once():
    with pytest.raises(RecrayError, match=r"model.dim=0.*; .*train.lr=-1") as caught:
        load_settings("dot-mse", None, ["train.lr=-1", "model.dim=0"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must hold settings by group"),
        ("- train\n", "must hold settings by group"),
        ("train: [\n", "is not YAML"),
        ("train: 5\n", "setting train=5"),
        ("train:\n", "setting train=None"),
        ("train: {epoch: 5}\n", "did you mean train.epochs"),
    ],
)
def test_a_wrong_file_is_refused(config, text, message):
    with pytest.raises(RecrayError, match=message):
        load_settings("dot-mse", config(text))


def test_a_missing_file_is_refused():
    with pytest.raises(RecrayError, match=r"no such file: /no/mine.yaml"):
        load_settings("dot-mse", "/no/mine.yaml")


def test_values_are_read_as_yaml():
    settings = load_settings(
        "dot-mse", None, ["train.lr=1e-3", "train.patience=null", "evaluate.k=[5, 20]"]
    )
    assert settings.train.lr == 0.001
    assert settings.train.patience is None
    assert settings.evaluate.k == (5, 20)


def test_settings_are_frozen():
    settings = Settings.model_validate({"train": {"optimizer": "adam"}})
    with pytest.raises(ValidationError, match="frozen"):
        settings.train = settings.train
    with pytest.raises(ValidationError, match="frozen"):
        settings.train.epochs = 3


def test_the_metric_follows_from_what_training_aims_at():
    assert load_settings("ranking").metric == "ndcg@10"
    assert load_settings("dot-mse").metric == "rmse"
    assert load_settings("dot-mse", None, ["train.metric=mae"]).metric == "mae"


def test_a_seed_beyond_64_bits_is_refused_as_a_setting():
    with pytest.raises(RecrayError, match="less than"):
        load_settings("dot-mse", None, ["split.seed=99999999999999999999"])


def test_a_preset_that_is_given_wins_over_the_files(config):
    path = config("preset: dot-mse\ntrain: {epochs: 3}\n")
    assert load_settings(None, path).preset == "dot-mse"
    assert load_settings("ranking", path).preset == "ranking"
    assert load_settings().preset == "ranking"


def test_one_cut_off_need_not_be_a_list():
    assert load_settings("ranking", None, ["evaluate.k=20"]).evaluate.k == (20,)


@pytest.mark.parametrize(
    ("preset", "override", "kind"),
    [
        ("rating", "train.lr=0.5", "bayes"),
        ("rating", "train.l2=0.1", "bayes"),
        ("rating", "train.batch_size=64", "bayes"),
        ("ranking", "train.lr=0.5", "whole-data"),
        ("ranking", "objective.factors=8", "whole-data"),
        ("dot-mse", "objective.negatives=9", "mse"),
    ],
)
def test_a_setting_that_would_change_nothing_is_refused(preset, override, kind):
    key, _, value = override.partition("=")
    words = f"^{key}={value} changes nothing with objective.kind={kind}; leave it out$"
    with pytest.raises(RecrayError, match=words):
        load_settings(preset, None, [override])


def test_what_the_recipe_or_the_default_says_anyway_may_be_said_again(config):
    path = config(yaml.safe_dump(load_settings("rating").plain()))
    assert load_settings(None, path, ["train.lr=0.001"]) == load_settings("rating")
