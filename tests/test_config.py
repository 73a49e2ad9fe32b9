"""Settings: preset < file < --set, and every mistake named."""

from importlib import resources

import pytest
import yaml
from pydantic import ValidationError

from recray.config import (
    EFFECTIVE_UNDER,
    RENAMED,
    Settings,
    build_settings,
    effective,
    load_settings,
    overridden,
    preset_names,
    translated,
    without_effect,
)
from recray.errors import RecrayError
from recray.training.checkpoint import RunFolder
from recray.tuning.store import SweepMetadata


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
        ("objective.kind=ials", "ials needs alternating"),
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
        ("rating", "train.lr=0.5", "bpmf"),
        ("rating", "train.l2=0.1", "bpmf"),
        ("rating", "train.batch_size=64", "bpmf"),
        ("ranking", "train.lr=0.5", "ials"),
        ("ranking", "objective.factors=8", "ials"),
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


# For each setting that may change nothing: a preset, changes under which it changes nothing, a
# value, and the reason that the error names.
MSE, KIND = "objective.kind=mse", "model.kind=dot"
SOFTMAX = ["objective.kind=item-softmax", "objective.negatives=all"]
BINARY = "objective.preference=binary"
WITHOUT_EFFECT = [
    ("dot-mse", ["model.kind=mlp"], "model.dim=8", "model.kind=mlp"),
    ("dot-mse", [], "model.output=sigmoid", KIND),
    ("dot-mse", [], "model.mlp_dim=8", KIND),
    ("dot-mse", [], "model.layers=[8]", KIND),
    ("dot-mse", [], "model.dropout=0.5", KIND),
    ("dot-mse", [], "model.blocks=3", KIND),
    ("dot-mse", [], "model.heads=4", KIND),
    ("dot-mse", [], "model.length=50", KIND),
    ("dot-mse", [], "model.time=true", KIND),
    ("dot-mse", [], "model.levels=[1.0, 2.0]", KIND),
    ("dot-mse", [], "model.product=true", KIND),
    ("dot-mse", [], 'model.item_features=["genre:Drama"]', KIND),
    *(
        ("dot-mse", [], f"model.{key}=0.25", KIND)
        for key in ("decay", "ahead_decay", "recent_decay", "row_power", "popularity_power")
    ),
    *(
        (
            "dot-mse",
            [],
            f"model.{key}=7.0" if key in ("ridge", "shrink") else f"model.{key}=7",
            KIND,
        )
        for key in ("window", "ahead", "recent", "ridge", "neighbours", "shrink", "days")
    ),
    ("dot-mse", [], "objective.preference=binary", f"{MSE} and train.als_pretrain_epochs=0"),
    ("dot-mse", [], "objective.scale=sign", f"{MSE} and train.als_pretrain_epochs=0"),
    ("ranking", ["objective.preference=binary"], "objective.scale=stars", BINARY),
    ("dot-mse", [], "objective.unobserved_weight=5.0", f"{MSE} and train.als_pretrain_epochs=0"),
    (
        "dot-mse",
        ["objective.kind=logistic", "objective.negatives=3"],
        "objective.unobserved_weight=5.0",
        "objective.kind=logistic and objective.negatives=3 and train.als_pretrain_epochs=0",
    ),
    ("dot-mse", [], "objective.unobserved_power=0.5", MSE),
    ("dot-mse", [], "objective.negatives=9", MSE),
    ("dot-mse", [], "objective.sampling=popularity", MSE),
    ("dot-mse", SOFTMAX, "objective.sampling=popularity", "objective.negatives=all"),
    ("neumf-ranking", [], "objective.sampling=popularity", "objective.negatives=all"),
    ("neumf-ranking", [], "objective.reject_seen=true", "objective.negatives=all"),
    ("ranking", [], "objective.factors=8", "objective.kind=ials"),
    ("ranking", [], "objective.side_rank=8", "objective.kind=ials"),
    ("dot-mse", [], "objective.samples_per_epoch=3", MSE),
    ("dot-mse", [], "objective.burn_in=3", MSE),
    ("rating", [], "train.batch_size=64", "objective.kind=bpmf"),
    ("ranking", [], "train.lr=0.5", "objective.kind=ials"),
    ("dot-mse", [], "train.solver=cg", "train.optimizer=auto"),
    ("rating", [], "train.l2=0.1", "objective.kind=bpmf"),
    ("markov", [], "train.l2=0.1", "objective.kind=closed-form"),
    ("markov", [], 'train.init_from=["runs/a"]', "objective.kind=closed-form"),
    ("ranking", [], "train.weight_decay=0.1", "objective.kind=ials"),
    ("dot-mse", ["train.optimizer=sgd"], "train.weight_decay=0.1", "train.optimizer=sgd"),
    ("ranking", [], "train.local_sgd_steps=4", "objective.kind=ials"),
    ("ranking", [], "train.precision=bf16", "objective.kind=ials"),
    ("rating", [], "train.compile=true", "objective.kind=bpmf"),
    ("sequence", [], "train.compile=true", "objective.kind=next-item"),
    ("sequence", [], "train.l2=0.1", "objective.kind=next-item"),
    ("neumf-ranking", [], "train.compile=true", "objective.kind=item-softmax and objective.negat"),
    ("dot-mse", ["train.fit_on=train+valid"], "train.patience=7", "train.fit_on=train+valid"),
    ("dot-mse", [], "train.als_pretrain_epochs=3", KIND),
    ("neumf-ranking", ["train.init_from=[a]"], "train.als_pretrain_epochs=3", "train.init_from="),
    ("neumf", [], "train.als_pretrain_l2=0.5", "train.als_pretrain_epochs=0"),
    ("gmf", ["train.init_from=[a, b]"], "train.neumf_alpha=0.25", "model.kind=gmf"),
    ("neumf", ["train.init_from=[a]"], "train.neumf_alpha=0.25", "train.init_from="),
]


@pytest.mark.parametrize(("preset", "changes", "override", "reason"), WITHOUT_EFFECT)
def test_a_setting_without_effect_is_refused(preset, changes, override, reason):
    load_settings(preset, None, changes)
    with pytest.raises(RecrayError) as caught:
        load_settings(preset, None, [*changes, override])
    assert str(caught.value).startswith(f"{override} changes nothing with {reason}")
    assert "\n" not in str(caught.value)
    group, key = override.partition("=")[0].split(".")
    assert key not in effective(unchecked(preset, [*changes, override]))[group]


def unchecked(preset, changes):
    values = load_settings(preset).plain()
    for change in changes:
        setting, _, value = change.partition("=")
        group, key = setting.split(".")
        values[group][key] = yaml.safe_load(value)
    return build_settings(values)


def test_every_entry_of_the_table_has_an_example():
    assert {case[2].partition("=")[0] for case in WITHOUT_EFFECT} == EFFECTIVE_UNDER.keys()


@pytest.mark.parametrize(
    ("preset", "changes"),
    [
        ("ranking", ["objective.unobserved_weight=5", "objective.scale=sign"]),
        ("neumf-ranking", ["objective.unobserved_weight=5", "train.als_pretrain_l2=0.5"]),
        ("dot-mse", ["objective.kind=logistic", "objective.negatives=all",
                     "objective.unobserved_weight=5"]),
        ("dot-mse", ["objective.kind=bpr", "objective.sampling=popularity",
                     "objective.reject_seen=true", "train.compile=true"]),
        ("dot-mse", ["train.weight_decay=0.1", "train.compile=true", "train.local_sgd_steps=2"]),
        ("neumf", ["train.init_from=[a, b]", "train.neumf_alpha=0.25", "model.dropout=0.5"]),
        ("rating", ["objective.side_rank=8", "objective.burn_in=1", "model.dim=32"]),
        ("softmax-dnn", ["model.levels=[1, 2]", "model.product=true"]),
    ],
)  # fmt: skip
def test_a_setting_with_an_effect_is_accepted(preset, changes):
    load_settings(preset, None, changes)


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_sets_nothing_that_changes_nothing(name):
    text = (resources.files("recray.config") / "presets" / f"{name}.yaml").read_text()
    for group, keys in yaml.safe_load(text).items():
        for key in keys:
            assert not without_effect(load_settings(name), f"{group}.{key}"), f"{group}.{key}"


def test_overrides_of_a_search_that_goes_on_are_checked_too():
    with pytest.raises(RecrayError, match=r"train\.lr=0\.5 changes nothing"):
        overridden(load_settings("ranking"), ["train.lr=0.5"])


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_a_name_of_before_is_refused_with_the_new_one_and_read_where_it_is_stored(old, new, config):
    setting, _, value = old.partition("=")
    group, key = setting.split(".")
    with pytest.raises(RecrayError, match=f"^{old} is called {new} now$"):
        load_settings("dot-mse", None, [f"{setting}={value or 1}"])
    with pytest.raises(RecrayError, match=f"^{old} is called {new} now$"):
        load_settings("dot-mse", config(f"{group}: {{{key}: {value or 1}}}\n"))
    today, _, value_today = new.partition("=")
    other = {"other": 2, "preference": "graded"}  # without the second it would be one of before
    stored = {"preset": "x", group: {key: value or 1, **other}}
    changed = {today.split(".")[1]: value_today or 1, **other}
    assert translated(stored) == {"preset": "x", group: changed}


def test_a_run_and_a_sweep_that_hold_names_of_before_open(tmp_path):
    settings = load_settings("neumf-ranking").plain()
    train, objective = settings["train"], settings["objective"]
    train["pretrain"], objective["alpha0"] = (
        train.pop("als_pretrain_epochs"),
        objective.pop("unobserved_weight"),
    )
    run = RunFolder(str(tmp_path))
    facts = {"format": 1, "dataset": "x", "prepared": "x", "fingerprint": "x", "workers": 1}
    run.folder.write_json("run.json", facts | {"settings": settings})
    assert run.metadata().settings == load_settings("neumf-ranking")

    space = {"train.pretrain": {"int": [1, 2]}, "objective.kind": {"choice": ["whole-data"]}}
    order = {"prepared": "x", "trials": 1, "concurrent": None, "seeds": 1, "gpus": 0}
    same = {"searcher": "random", "scheduler": "asha", "folds": 1, "workers": 1, "order": order}
    values = {"dataset": "x", "fingerprint": "x", "settings": settings, "space": space, **same}
    sweep = SweepMetadata.model_validate(values)
    assert build_settings(sweep.settings) == load_settings("neumf-ranking")
    assert sweep.space == {
        "train.als_pretrain_epochs": {"int": [1, 2]},
        "objective.kind": {"choice": ["ials"]},
    }


def test_all_settings_of_before_open_as_they_were():
    values = load_settings("rating").plain()
    before = {key: dict(keys) if isinstance(keys, dict) else keys for key, keys in values.items()}
    for old, new in RENAMED.items():
        (group, key), value = old.partition("=")[0].split("."), old.partition("=")[2]
        today, _, value_today = new.partition("=")
        if not value:
            before[group][key] = before[group].pop(today.split(".")[1])
        elif before[group][key] == value_today:
            before[group][key] = value
    assert before["objective"]["kind"] == "bayes"
    assert build_settings(translated(before)) == load_settings("rating")


# ------------------------------------------------------------------------- sizes by the data


@pytest.mark.parametrize("preset", ["ranking", "hybrid"])
def test_dim_and_l2_follow_from_users_and_items(preset):
    settings = load_settings(preset)
    assert (settings.model.dim, settings.train.l2) == ("auto", "auto")
    made = settings.sized(1000, 1500)
    assert (made.model.dim, made.train.l2) == (64, 0.013)
    assert made.sized(10**6, 10**6) == made, "a run keeps its numbers"
    assert settings.sized(16_000, 1500).train.l2 == 0.0065, "half at sixteen times as many pairs"
    assert settings.sized(10**6, 10**6).train.l2 == 0.001
    assert settings.sized(1, 1).train.l2 == 0.02
    dims = [settings.sized(users, 4000).model.dim for users in (10, 1000, 6000, 10**6)]
    assert dims == sorted(dims)
    assert len(set(dims)) > 1


def test_a_chosen_dim_or_l2_stays_and_the_other_follows_from_the_data():
    large = 10**6, 10**4
    auto = load_settings("ranking").sized(*large)
    made = load_settings("ranking", None, ["model.dim=8"]).sized(*large)
    assert (made.model.dim, made.train.l2) == (8, auto.train.l2)
    made = load_settings("ranking", None, ["train.l2=0.5"]).sized(*large)
    assert (made.model.dim, made.train.l2) == (auto.model.dim, 0.5)
    assert load_settings("dot-mse").sized(*large) == load_settings("dot-mse")


def test_auto_l2_is_none_for_gradient_steps():
    changes = ["objective.kind=bpr", "train.optimizer=adam"]
    assert load_settings("ranking", None, changes).sized(1000, 1500).train.l2 == 0
