"""All settings of one recipe: cross checks, and the sizes that follow from the data."""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import JsonValue, ValidationError, model_validator
from pydantic_core import ErrorDetails

from recray.config.groups import (
    DataSettings,
    EvaluateSettings,
    Group,
    ModelSettings,
    ObjectiveSettings,
    SplitSettings,
    TrainSettings,
)
from recray.errors import RecrayError, did_you_mean

RATING_OBJECTIVES = ("mse", "bce", "classes", "bpmf")
SAMPLED_OBJECTIVES = ("logistic", "bpr", "item-softmax", "unobserved-class")
GRADED_OBJECTIVES = ("ials", "logistic", "bpr", "item-softmax")
"""Those that take from a rating what it says of liking: objective.preference."""
SOLVERS = {"alternating": "ials", "gibbs": "bpmf", "closed-form": "closed-form"}
"""Optimizers that take no gradient steps, and the only objective of each."""
CPU_ONLY = ("gibbs", "closed-form")
"""Optimizers that do not run on a GPU."""

AUTO_L2 = 0.013
"""train.l2 = auto of ials where there are AUTO_L2_CELLS pairs of a user and an item. It falls with
their fourth root: so do the best values of ml-100k, ml-latest-small and ml-1m, by validation.
"""
AUTO_L2_CELLS = 1_500_000
AUTO_L2_RANGE = (0.001, 0.02)
FULL_SOFTMAX_ITEMS, DRAWN_ITEMS = 20_000, 4096
"""objective.negatives = auto: up to so many items all take part; of more, so many are drawn."""
LARGE_CELLS = 8_000_000
"""So many pairs of a user and an item from which on model.dim = auto is 96; below it is 64."""


class Settings(Group):
    """All settings of one recipe."""

    preset: str = "ranking"
    data: DataSettings = DataSettings()
    split: SplitSettings = SplitSettings()
    model: ModelSettings = ModelSettings()
    objective: ObjectiveSettings = ObjectiveSettings()
    train: TrainSettings = TrainSettings()
    evaluate: EvaluateSettings = EvaluateSettings()

    @model_validator(mode="after")
    def _optimizer_fits_objective(self) -> Self:
        train, kind = self.train, self.objective.kind
        if train.choose_from:  # each of those is checked in its place
            return self
        mismatch = f"train.optimizer={train.optimizer} does not go with "
        for optimizer, objective in SOLVERS.items():
            if (train.optimizer == optimizer) != (kind == objective):
                raise ValueError(
                    f"{mismatch}objective.kind={kind}; {objective} needs {optimizer}, and only it"
                )
        if kind == "closed-form" and train.epochs > 1:
            raise ValueError(
                f"train.epochs={train.epochs} does not go with objective.kind=closed-form, "
                "which is fitted once; give train.epochs=1"
            )
        if train.optimizer in CPU_ONLY and train.device == "cuda":
            raise ValueError(
                f"train.device=cuda does not go with train.optimizer={train.optimizer}, "
                "which runs on the CPU alone; give cpu or auto"
            )
        if train.optimizer not in ("adagrad", "lazy-adam"):
            return self
        if self.ranks and (self.objective.negatives == "all" or kind == "next-item"):
            of = "kind=next-item" if kind == "next-item" else "negatives=all"
            raise ValueError(
                f"{mismatch}objective.{of}: it updates the rows in its batch, "
                "and then every item is in the batch; use adam"
            )
        if train.compile:
            raise ValueError(
                f"train.compile=true does not go with train.optimizer={train.optimizer}, "
                "whose batches differ in shape; use adam"
            )
        return self

    @property
    def ranks(self) -> bool:
        """Whether training aims at ranking; otherwise it predicts ratings."""
        return self.objective.kind not in RATING_OBJECTIVES

    @property
    def tie_order(self) -> Literal["hash", "file"]:
        """What orders a user's ratings of the same time."""
        return self.data.order or ("file" if self.split.kind == "next" else "hash")

    @property
    def is_ordered(self) -> bool:
        """Whether the data set keeps the place of each rating among those of its user."""
        return self.tie_order == "file" or self.split.kind == "next"

    @property
    def metric(self) -> str:
        """The validation metric that picks the best epoch."""
        if self.train.metric != "auto":
            return self.train.metric
        return f"ndcg@{self.evaluate.k[0]}" if self.ranks else "rmse"

    def value(self, setting: str) -> object:
        """The value of a setting that is named as group.key."""
        group, key = setting.split(".")
        value: object = getattr(getattr(self, group), key)
        return value

    def sized(self, users: int, items: int) -> "Settings":
        """The settings with numbers where model.dim, train.l2 or objective.negatives is auto.

        Args:
            users: Users of the training split.
            items: Its items.
        """
        cells = max(users * items, 1)
        dim = 96 if cells >= LARGE_CELLS else 64
        lowest, highest = AUTO_L2_RANGE
        l2 = min(max(AUTO_L2 * (AUTO_L2_CELLS / cells) ** 0.25, lowest), highest)
        strength = round(l2, 4) if self.objective.kind == "ials" else 0.0
        every = items <= FULL_SOFTMAX_ITEMS
        drawn = {"negatives": "all" if every else DRAWN_ITEMS}
        return self.changed(
            objective=drawn if self.objective.negatives == "auto" else {},
            model={"dim": dim} if self.model.dim == "auto" else {},
            train={"l2": strength} if self.train.l2 == "auto" else {},
        )

    def plain(self) -> dict[str, Any]:
        """Return the settings as JSON-ready values."""
        return self.model_dump(mode="json")

    def changed(self, **groups: Mapping[str, JsonValue]) -> "Settings":
        """Return the settings with other values in some groups, such as train={"epochs": 3}.

        Raises:
            RecrayError: A value is not allowed, or does not go with another.
        """
        values = self.plain()
        changes = {group: {**values[group], **keys} for group, keys in groups.items()}
        return build_settings(values | changes)


def build_settings(values: Mapping[str, JsonValue]) -> Settings:
    """Check plain values and freeze them.

    Raises:
        RecrayError: A key is unknown or a value is not allowed.
    """
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        # A setting that may have several types fails once for each; the first failure is enough.
        first = {e["loc"][:2]: e for e in reversed(error.errors())}
        raise RecrayError("; ".join(_explain(e) for e in reversed(first.values()))) from error


def known_keys() -> list[str]:
    """Every setting as group.key."""
    groups = {name: field.annotation for name, field in Settings.model_fields.items()}
    return [
        f"{group}.{key}"
        for group, kind in groups.items()
        if isinstance(kind, type) and issubclass(kind, Group)
        for key in kind.model_fields
    ]


def _explain(error: ErrorDetails) -> str:
    """One pydantic error as one line, in the words of the settings file."""
    parts = [str(p) for p in error["loc"] if not str(p).startswith(("constrained-", "literal["))]
    key = ".".join(parts[:2])
    if error["type"] == "extra_forbidden":
        names = known_keys()
        same_group = [n for n in names if n.startswith(key.split(".")[0] + ".")] or names
        hint = did_you_mean(key, names)
        return f"unknown setting {key}: {hint}known are {', '.join(same_group)}"
    message = error["msg"].removeprefix("Value error, ")
    if not key:
        return message
    return f"setting {key}={error['input']!r}: {message[0].lower()}{message[1:]}"
