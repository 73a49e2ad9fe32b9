"""Reading settings: preset < YAML file < `--set key=value`, and names of before."""

from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path

import yaml
from pydantic import JsonValue

from recray.config.effects import OF_EVERY_CANDIDATE, shown, without_effect
from recray.config.settings import (
    CPU_ONLY,
    GRADED_OBJECTIVES,
    Settings,
    build_settings,
)
from recray.errors import RecrayError, unknown_name

Values = dict[str, JsonValue]

RENAMED = {
    "model.kind=posterior-dot": "model.kind=bpmf",
    "objective.kind=bayes": "objective.kind=bpmf",
    "objective.kind=unrated-class": "objective.kind=unobserved-class",
    "objective.kind=whole-data": "objective.kind=ials",
    "objective.alpha0": "objective.unobserved_weight",
    "objective.exclude_known": "objective.reject_seen",
    "objective.sweeps": "objective.samples_per_epoch",
    "objective.tastes": "objective.side_rank",
    "train.average_every": "train.local_sgd_steps",
    "train.merge_alpha": "train.neumf_alpha",
    "train.pretrain": "train.als_pretrain_epochs",
    "train.pretrain_l2": "train.als_pretrain_l2",
    "train.resident_rows": "train.max_rows_in_memory",
    "train.rows": "train.fit_on",
    "train.start_from": "train.init_from",
}
"""Settings, and values of settings, that had another name in earlier versions."""


def preset_names() -> list[str]:
    """Names of the recipes that come with recray."""
    folder = resources.files("recray.config") / "presets"
    return sorted(
        f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")
    )


def load_settings(
    preset: str | None = None, config: str | None = None, overrides: Iterable[str] = ()
) -> Settings:
    """Resolve settings: preset, then a YAML file, then `key=value` overrides.

    A `preset:` in the file names the recipe that it starts from, unless `preset` is given; the
    default is `ranking`.

    Raises:
        RecrayError: The preset or a key is unknown, or a value is not allowed or changes nothing.
    """
    chosen = read_yaml(config) if config is not None else {}
    named = chosen.pop("preset", "ranking")
    preset = str(named) if preset is None else preset
    if preset not in preset_names():
        raise unknown_name("preset", preset, preset_names())
    text = (resources.files("recray.config") / "presets" / f"{preset}.yaml").read_text()
    recipe = build_settings({"preset": preset, **yaml.safe_load(text)})
    _merge(chosen, parse_overrides(overrides))
    return _changed(recipe, chosen)


def overridden(settings: Settings, overrides: Iterable[str]) -> Settings:
    """The settings after `key=value` overrides.

    Raises:
        RecrayError: A key is unknown, or a value is not allowed or changes nothing.
    """
    return _changed(settings, parse_overrides(overrides))


def _changed(recipe: Settings, chosen: Values) -> Settings:
    """The recipe with what a user has chosen, by group."""
    for setting, value in _flat(chosen).items():
        refuse_renamed_setting(setting, value)
    values = recipe.plain()
    _merge(values, chosen)
    settings = build_settings(values)
    _refuse_without_effect(settings, recipe, chosen)
    candidates(settings)
    return settings


def candidates(settings: Settings) -> dict[str, Settings]:
    """The recipes among which training chooses, by name, in the order in which they are tried.

    They have the data, the split, the measurement and the seed of these settings in common.

    Raises:
        RecrayError: A preset is unknown, chooses itself, or has settings that cannot be its own.
    """
    found: dict[str, Settings] = {}
    for text in settings.train.choose_from:
        preset, *overrides = text.split() or [""]
        recipe = load_settings(preset, None, overrides)
        if recipe.train.choose_from:
            raise RecrayError(f"train.choose_from: {preset} chooses itself; name its presets")
        for shared in ("data", "split", "evaluate"):
            if shared in parse_overrides(overrides):
                raise RecrayError(
                    f"train.choose_from: {text}: {shared} is the same for all, set it beside"
                )
        own = ("device",) if recipe.train.optimizer in CPU_ONLY else ()
        train = settings.train.model_dump(mode="json", include={*OF_EVERY_CANDIDATE} - {*own})
        groups = settings.model_dump(mode="json", include={"data", "split", "evaluate"})
        number = 1 + sum(before.preset == preset for before in found.values())
        name = preset if number == 1 else f"{preset}-{number}"
        found[name] = recipe.changed(**groups, train={**train, "choose_from": []})
    return found


def parse_overrides(overrides: Iterable[str]) -> Values:
    """Plain values of `group.key=value` texts; the last one of a key counts.

    Raises:
        RecrayError: A text is not of that form, or its value is not YAML.
    """
    values: Values = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or key.count(".") != 1:
            raise RecrayError(f"--set {text!r}: write group.key=value, such as train.epochs=5")
        group, name = key.split(".")
        try:
            _merge(values, {group.strip(): {name.strip(): yaml.safe_load(value)}})
        except yaml.YAMLError as error:
            raise RecrayError(f"--set {text!r}: the value is not YAML") from error
    return values


def read_yaml(path: str) -> Values:
    """Read a settings file.

    Raises:
        RecrayError: There is no such file, or it does not hold settings by group.
    """
    if not Path(path).is_file():
        raise RecrayError(f"no such file: {path}")
    try:
        values = yaml.safe_load(Path(path).read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        first = str(error).splitlines()[0]
        raise RecrayError(f"{path} is not YAML: {first}") from error
    if not isinstance(values, dict):
        raise RecrayError(f"{path} must hold settings by group, such as 'train: {{epochs: 5}}'")
    return values


def _merge(values: Values, more: Values) -> None:
    """Put values over others, group by group; a group that is no mapping replaces the other."""
    for key, value in more.items():
        below = values.get(key)
        if isinstance(value, dict) and isinstance(below, dict):
            _merge(below, value)
        else:
            values[key] = value


def _flat(values: Mapping[str, JsonValue]) -> Values:
    """{"train.lr": 0.1} of {"train": {"lr": 0.1}}."""
    groups = {group: keys for group, keys in values.items() if isinstance(keys, dict)}
    return {
        f"{group}.{key}": value for group, keys in groups.items() for key, value in keys.items()
    }


def _refuse_without_effect(settings: Settings, recipe: Settings, chosen: Values) -> None:
    """Refuse a chosen setting that changes nothing.

    What the recipe or the default says anyway may be repeated, so that all settings of a run are
    a file that can be given again.

    Raises:
        RecrayError: There is such a setting.
    """
    for setting in _flat(chosen):
        value = settings.value(setting)
        reasons = without_effect(settings, setting)
        if reasons and value not in (recipe.value(setting), Settings().value(setting)):
            raise RecrayError(
                f"{setting}={shown(value)} changes nothing with {' and '.join(reasons)}; "
                "leave it out"
            )


# ------------------------------------------------------------------------- names of before


def refuse_renamed_setting(setting: str, value: JsonValue = None) -> None:
    """Refuse a setting, or one of its values, by the name of earlier versions.

    Raises:
        RecrayError: It is such a name; the message has the new one.
    """
    for old in (setting, f"{setting}={value}"):
        if old in RENAMED:
            raise RecrayError(f"{old} is called {RENAMED[old]} now")


def current_name(setting: str, value: JsonValue = None) -> tuple[str, JsonValue]:
    """Today's name of a stored setting, and of its value."""
    renamed = RENAMED.get(f"{setting}={value}")
    if renamed is not None:
        name, _, new_value = renamed.partition("=")
        return name, new_value
    return RENAMED.get(setting, setting), value


def translated(stored: Mapping[str, JsonValue]) -> Values:
    """Stored settings, by group, with today's names.

    What was stored before objective.preference existed used no values of ratings: it is binary.
    """
    values: Values = {}
    for group, keys in stored.items():
        if isinstance(keys, dict):
            renamed = dict(current_name(f"{group}.{key}", value) for key, value in keys.items())
            values[group] = {name.partition(".")[2]: value for name, value in renamed.items()}
        else:
            values[group] = keys
    return values | _binary_before(values)


def _binary_before(values: Values) -> Values:
    """The objective of settings without objective.preference, where that has an effect."""
    objective, train = values.get("objective"), values.get("train")
    if not isinstance(objective, dict) or "preference" in objective:
        return {}
    pretrains = isinstance(train, dict) and train.get("als_pretrain_epochs")
    if objective.get("kind") not in GRADED_OBJECTIVES and not pretrains:
        return {}
    return {"objective": {**objective, "preference": "binary"}}
