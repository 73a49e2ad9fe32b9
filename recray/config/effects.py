"""Which settings change nothing under the others."""

import json
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from recray.config.groups import ModelSettings
from recray.config.settings import (
    GRADED_OBJECTIVES,
    SAMPLED_OBJECTIVES,
    SOLVERS,
    Settings,
    known_keys,
)


class Condition(NamedTuple):
    """What a setting must be so that another one changes something."""

    setting: str
    holds: Callable[[Any], bool]


def _is(setting: str, *values: object) -> Condition:
    return Condition(setting, lambda value: value in values)


def _is_not(setting: str, *values: object) -> Condition:
    return Condition(setting, lambda value: value not in values)


MODEL_SETTINGS = {
    "dot": ("dim",),
    "dot-bias": ("dim", "output"),
    "mf-normalised": ("dim",),
    "hybrid": ("dim", "item_features"),
    "gmf": ("dim",),
    "mlp": ("mlp_dim", "layers", "dropout"),
    "neumf": ("dim", "mlp_dim", "layers", "dropout"),
    "softmax-dnn": ("dim", "layers", "levels", "dropout", "product"),
    "bpmf": ("dim",),
    "sequence": ("dim", "blocks", "heads", "length", "dropout", "time"),
    "item-knn": ("neighbours", "shrink"),
    "ease": ("ridge",),
    "markov": (
        "window",
        "decay",
        "recent",
        "recent_decay",
        "row_power",
        "popularity_power",
    ),
    "next-ridge": (
        "window",
        "decay",
        "ahead",
        "ahead_decay",
        "recent",
        "recent_decay",
        "popularity_power",
        "ridge",
    ),
    "recent-popular": ("days",),
}
"""The settings that each model takes; a model that is not listed may take any."""

_BY_STEPS = _is_not("objective.kind", *SOLVERS.values())
_SAMPLED = _is("objective.kind", *SAMPLED_OBJECTIVES)
_DRAWN = (_SAMPLED, _is_not("objective.negatives", "all"))
_PRETRAINED = (_is_not("train.als_pretrain_epochs", 0), _is("train.init_from", ()))

_LIKING = (_is("objective.kind", *GRADED_OBJECTIVES),)
_GRADED = _is("objective.preference", "graded")

OF_EVERY_CANDIDATE = ("choose_from", "seed", "device", "metric", "max_rows_in_memory")
"""Settings of `train` that all presets of train.choose_from share, as they share data, split and
evaluate; each has its own model, its own objective and its own other settings of `train`.
"""

EFFECTIVE_UNDER: dict[str, tuple[tuple[Condition, ...], ...]] = {
    **{
        f"model.{key}": (
            (_is_not("model.kind", *(m for m, used in MODEL_SETTINGS.items() if key not in used)),),
        )
        for key in ModelSettings.model_fields
        if key != "kind"
    },
    "objective.preference": (_LIKING, _PRETRAINED),
    "objective.scale": ((_GRADED, *_LIKING), (_GRADED, *_PRETRAINED)),
    "objective.unobserved_weight": (
        (_is("objective.kind", "ials"),),
        (_is("objective.kind", "logistic"), _is("objective.negatives", "all")),
        _PRETRAINED,
    ),
    "objective.unobserved_power": ((_is("objective.kind", "ials"),),),
    "objective.negatives": ((_SAMPLED,), (_is("objective.kind", "next-item"),)),
    **dict.fromkeys(("objective.sampling", "objective.reject_seen"), (_DRAWN,)),
    **dict.fromkeys(
        [f"objective.{key}" for key in ("factors", "side_rank", "samples_per_epoch", "burn_in")],
        ((_is("objective.kind", "bpmf"),),),
    ),
    **dict.fromkeys(
        [f"train.{key}" for key in ("batch_size", "lr", "local_sgd_steps", "precision")],
        ((_BY_STEPS,),),
    ),
    "train.solver": ((_is("train.optimizer", "alternating"),),),
    "train.l2": ((_is_not("objective.kind", "bpmf", "closed-form", "next-item"),),),
    "train.init_from": ((_is_not("objective.kind", "closed-form"),),),
    "train.weight_decay": ((_BY_STEPS, _is_not("train.optimizer", "sgd")),),
    "train.compile": (
        (_is_not("objective.kind", *SOLVERS.values(), *SAMPLED_OBJECTIVES, "next-item"),),
        _DRAWN,
    ),
    "train.patience": ((_is("train.fit_on", "train"),),),
    "train.als_pretrain_epochs": (
        (
            _is_not("model.kind", "dot", "dot-bias", "mf-normalised", "hybrid", "bpmf"),
            _is("train.init_from", ()),
        ),
    ),
    "train.als_pretrain_l2": (_PRETRAINED,),
    "train.neumf_alpha": (
        (
            _is("model.kind", "neumf"),
            Condition("train.init_from", lambda runs: len(runs) == 2),
        ),
    ),
}
"""For each setting that may change nothing: when it has an effect.

It has one when all conditions of one of its alternatives hold. A setting that is not listed always
has an effect.
"""


def without_effect(
    settings: Settings, setting: str, searched: Collection[str] = ()
) -> tuple[str, ...]:
    """The settings, as `key=value`, because of which another one changes nothing.

    Args:
        settings: All settings.
        setting: The one that is asked about, as group.key.
        searched: Settings that take other values too, so that their conditions may hold.

    Returns:
        One failed condition of each alternative; nothing where the setting has an effect.
    """
    group, key = setting.split(".")
    if settings.train.choose_from and (
        group in ("model", "objective") or (group == "train" and key not in OF_EVERY_CANDIDATE)
    ):
        return (f"train.choose_from={shown(list(settings.train.choose_from))}",)
    reasons = []
    for conditions in EFFECTIVE_UNDER.get(setting, ()):
        failed = [
            condition.setting
            for condition in conditions
            if condition.setting not in searched
            and not condition.holds(settings.value(condition.setting))
        ]
        if not failed:
            return ()
        reasons.append(f"{failed[0]}={shown(settings.value(failed[0]))}")
    return tuple(dict.fromkeys(reasons))


def effective(settings: Settings) -> dict[str, Any]:
    """The plain settings without those that change nothing."""
    values = settings.plain()
    for setting in known_keys():
        if without_effect(settings, setting):
            group, key = setting.split(".")
            del values[group][key]
    return values


def shown(value: object) -> str:
    """A value as one writes it after --set."""
    return value if isinstance(value, str) else json.dumps(value)
