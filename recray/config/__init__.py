"""Settings: frozen, checked when built, unknown and ineffective keys refused."""

from recray.config.effects import EFFECTIVE_UNDER, MODEL_SETTINGS, effective, without_effect
from recray.config.groups import (
    DataSettings,
    Duplicates,
    EvaluateSettings,
    Group,
    ModelSettings,
    ObjectiveSettings,
    SplitSettings,
    TrainSettings,
)
from recray.config.load import (
    RENAMED,
    candidates,
    current_name,
    load_settings,
    overridden,
    preset_names,
    refuse_renamed_setting,
    translated,
)
from recray.config.settings import CPU_ONLY, Settings, build_settings, known_keys

__all__ = [
    "CPU_ONLY",
    "EFFECTIVE_UNDER",
    "MODEL_SETTINGS",
    "RENAMED",
    "DataSettings",
    "Duplicates",
    "EvaluateSettings",
    "Group",
    "ModelSettings",
    "ObjectiveSettings",
    "Settings",
    "SplitSettings",
    "TrainSettings",
    "build_settings",
    "candidates",
    "current_name",
    "effective",
    "known_keys",
    "load_settings",
    "overridden",
    "preset_names",
    "refuse_renamed_setting",
    "translated",
    "without_effect",
]
