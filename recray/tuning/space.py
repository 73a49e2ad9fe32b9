"""Search spaces in YAML: which settings a search changes, and between which values.

    search:
      train.lr: {loguniform: [0.0003, 0.03]}
      train.l2: {uniform: [0, 0.1]}
      model.dim: {int: [16, 128]}               # log: true for a log scale
      objective.sampling: {choice: [uniform, popularity]}

`points: N` beside a range is the number of its values in a grid; the default is 3.
"""

import inspect
import math
from collections.abc import Collection
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import JsonValue

from recray.config import Settings, refuse_renamed_setting, without_effect
from recray.errors import RecrayError, did_you_mean, unknown_name
from recray.models import model_class
from recray.tuning.results import Point

RANGES = ("uniform", "loguniform", "int")
GRID_POINTS = 3


@dataclass(frozen=True)
class Parameter:
    """A searched setting with the values that it may take.

    Args:
        setting: Its name, such as `train.lr`.
        kind: uniform, loguniform, int or choice.
        low: Lowest value of a range.
        high: Highest value of a range, which is part of it.
        log: Whether the range is on a log scale.
        choices: The values of a choice.
        points: How many values of a range a grid takes.
    """

    setting: str
    kind: str
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    choices: tuple[JsonValue, ...] = ()
    points: int = GRID_POINTS

    def sample(self, u: float) -> JsonValue:
        """The value at u in [0, 1] of the range, on its scale; floats have 4 significant digits."""
        if self.kind == "choice":
            return self.choices[min(int(u * len(self.choices)), len(self.choices) - 1)]
        if self.kind == "int":
            # Without the halves the two bounds would be drawn half as often as other numbers.
            value = round(self._at(u, self.low - 0.5, self.high + 0.5))
            return int(min(max(value, self.low), self.high))
        return self.rounded(self._at(u, self.low, self.high))

    def _at(self, u: float, low: float, high: float) -> float:
        """The number at u in [0, 1] between two others, on the scale of the range."""
        if self.log:
            return math.exp(math.log(low) + u * (math.log(high) - math.log(low)))
        return low + u * (high - low)

    def rounded(self, value: float) -> float:
        """The value with 4 significant digits, still inside the range."""
        return min(max(float(f"{value:.4g}"), self.low), self.high)

    def grid(self) -> list[JsonValue]:
        """The values that a grid takes, each once, lowest first."""
        if self.kind == "choice":
            return list(self.choices)
        if self.kind == "int" and self.high - self.low < self.points:
            return list(range(int(self.low), int(self.high) + 1))
        if self.points == 1:
            return [self.sample(0.5)]
        places = (n / (self.points - 1) for n in range(self.points))
        values = [self._at(u, self.low, self.high) for u in places]
        whole = self.kind == "int"
        return list(dict.fromkeys(round(v) if whole else self.rounded(v) for v in values))

    def bounds(self) -> list[JsonValue]:
        """Every choice, or the two ends of the range."""
        if self.kind == "choice":
            return list(self.choices)
        return [int(end) if self.kind == "int" else end for end in (self.low, self.high)]

    def plain(self) -> dict[str, JsonValue]:
        """The parameter as it stands in the YAML file."""
        if self.kind == "choice":
            return {"choice": list(self.choices)}
        extra: dict[str, JsonValue] = {"log": True} if self.kind == "int" and self.log else {}
        return {self.kind: self.bounds(), **extra, "points": self.points}


SearchSpace = tuple[Parameter, ...]


# ------------------------------------------------------------------------------- reading a space


def load_space(settings: Settings, path: str | None = None) -> SearchSpace:
    """Load the search space of a file, or the one that recray has for the model.

    Raises:
        RecrayError: There is no such file, the space does not fit the settings, or these choose
            among several models.
    """
    if settings.train.choose_from:
        presets = ", ".join(settings.train.choose_from)
        raise RecrayError(
            f"a search is of one model, and {settings.preset} chooses among several: give --preset "
            f"with one of {presets}"
        )
    if path is None:
        return parse_space(_default(settings), settings)
    if not Path(path).is_file():
        raise RecrayError(f"no such file: {path}")
    try:
        values = yaml.safe_load(Path(path).read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecrayError(f"{path} is not YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(values, dict) or set(values) != {"search"}:
        raise RecrayError(f"{path} must hold one section, `search:`, of settings and their values")
    return parse_space(values["search"], settings)


def _default(settings: Settings) -> Any:
    """The space of the objective, else that of the ranking model, else that of the model."""
    kind = settings.model.kind
    model_class(kind)
    folder = resources.files("recray.config") / "presets" / "search"
    names = [settings.objective.kind, f"{kind}-ranking" if settings.ranks else kind, kind]
    for name in names:
        file = folder / f"{name}.yaml"
        if file.is_file():
            return yaml.safe_load(file.read_text())["search"]
    raise RecrayError(f"model.kind={kind} has no search space of its own; give --space FILE")


def parse_space(section: Any, settings: Settings) -> SearchSpace:
    """Check a `search:` section against the settings that it starts from.

    Raises:
        RecrayError: A setting is unknown or without effect, or its values are not allowed.
    """
    if not isinstance(section, dict) or not section:
        raise RecrayError(
            "the search space is empty; write `search: {train.lr: {uniform: [a, b]}}`"
        )
    known = searchable(settings, section)
    space: list[Parameter] = []
    for setting, values in section.items():
        refuse_renamed_setting(str(setting))
        if setting not in known:
            raise _unknown(str(setting), known, settings)
        space.append(_parameter(str(setting), values))
    for parameter in space:
        for bound in parameter.bounds():
            _check_value(parameter, bound, settings)
    return tuple(space)


COMPARED = ("metric", "seed", "fit_on", "init_from")
"""Settings of `train` that decide what is compared."""
COST = ("device", "precision", "compile", "local_sgd_steps", "max_rows_in_memory")
"""Settings of `train` that decide what a run costs."""


def searchable(settings: Settings, searched: Collection[str]) -> list[str]:
    """The settings that change what is trained, where those that are searched take every value."""
    groups = {"model": settings.model, "objective": settings.objective, "train": settings.train}
    names = {f"{group}.{key}" for group, keys in groups.items() for key in type(keys).model_fields}
    names -= {"model.levels", *(f"train.{key}" for key in (*COMPARED, *COST))}
    if "model.kind" not in searched:
        takes = {"kind", *inspect.signature(model_class(settings.model.kind)).parameters}
        names -= {f"model.{key}" for key in type(settings.model).model_fields if key not in takes}
    return sorted(name for name in names if not without_effect(settings, name, searched))


def _unknown(setting: str, known: list[str], settings: Settings) -> RecrayError:
    hint = did_you_mean(setting, known)
    return RecrayError(
        f"search space: {setting} is no setting that a {settings.model.kind} model with "
        f"objective.kind={settings.objective.kind} is trained by: {hint}known are "
        f"{', '.join(known)}"
    )


def _parameter(setting: str, section: Any) -> Parameter:
    where = f"search space: {setting}"
    if not isinstance(section, dict):
        raise RecrayError(
            f"{where}={section!r}: write {{uniform: [low, high]}} or {{choice: [...]}}"
        )
    kinds = [name for name in section if name not in ("log", "points")]
    if len(kinds) != 1:
        raise RecrayError(f"{where}: give exactly one of {', '.join((*RANGES, 'choice'))}")
    kind = str(kinds[0])
    if kind not in (*RANGES, "choice"):
        raise unknown_name(f"distribution of {setting}", kind, (*RANGES, "choice"))
    values = section[kind]
    if kind == "choice":
        return _choice(where, setting, values, set(section))
    points, log = section.get("points", GRID_POINTS), section.get("log", kind == "loguniform")
    if not _is_pair(values, int if kind == "int" else (int, float)):
        what = "whole numbers" if kind == "int" else "numbers"
        raise RecrayError(f"{where}: {kind} takes two {what} [low, high], not {values!r}")
    low, high = values
    if low >= high:
        raise RecrayError(f"{where}: the lower bound {low:g} must be below the upper {high:g}")
    if not isinstance(log, bool) or ("log" in section and kind != "int"):
        raise RecrayError(f"{where}: log is true or false, and of int only; use loguniform")
    if log and low <= 0:
        raise RecrayError(f"{where}: a log scale from {low:g} to {high:g}: low must be above 0")
    if not isinstance(points, int) or isinstance(points, bool) or points < 1:
        raise RecrayError(f"{where}: points={points!r} must be a whole number of 1 or more")
    return Parameter(setting, kind, float(low), float(high), log, (), points)


def _is_pair(values: Any, kind: Any) -> bool:
    pair = isinstance(values, list) and len(values) == 2
    return pair and all(
        isinstance(v, kind) and not isinstance(v, bool) and math.isfinite(v) for v in values
    )


def _choice(where: str, setting: str, values: Any, names: set[str]) -> Parameter:
    if names != {"choice"}:
        raise RecrayError(f"{where}: {', '.join(sorted(names - {'choice'}))} is not of choice")
    if not isinstance(values, list) or not values:
        raise RecrayError(f"{where}: choice takes a list of values, not {values!r}")
    if any(a == b for n, a in enumerate(values) for b in values[:n]):
        raise RecrayError(f"{where}: a value occurs twice in {values!r}")
    return Parameter(setting, "choice", choices=tuple(values))


def _check_value(parameter: Parameter, value: JsonValue, settings: Settings) -> None:
    """Refuse a value that the setting cannot take, whatever the other settings are."""
    refuse_renamed_setting(parameter.setting, value)
    group, name = parameter.setting.split(".")
    try:
        type(getattr(settings, group)).model_validate({name: value})
    except ValueError:
        try:
            apply(settings, {parameter.setting: value})
        except RecrayError as error:
            raise RecrayError(f"search space: {error}") from error
    if parameter.setting == "model.kind":
        model_class(str(value))


def apply(settings: Settings, point: Point) -> Settings:
    """Put the values of a point into the settings.

    Raises:
        RecrayError: A value is not allowed, or does not go with another.
    """
    groups: dict[str, Point] = {}
    for setting, value in point.items():
        group, name = setting.split(".")
        groups.setdefault(group, {})[name] = value
    return settings.changed(**groups)


def default_point(space: SearchSpace, settings: Settings) -> Point:
    """The point of trial 0: the values that the settings have already."""
    values = settings.plain()
    names = [parameter.setting for parameter in space]
    return {name: values[name.split(".")[0]][name.split(".")[1]] for name in names}
