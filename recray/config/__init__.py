"""Settings: frozen, checked when built, unknown and ineffective keys refused."""

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
from recray.config.settings import (
    EFFECTIVE_UNDER,
    MODEL_SETTINGS,
    Settings,
    build_settings,
    effective,
    known_keys,
    without_effect,
)

__all__ = [
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
