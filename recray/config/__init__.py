"""Settings: frozen, checked when built, unknown keys refused.

Resolved as preset < YAML file < `--set key=value`.
"""

from collections.abc import Iterable
from copy import deepcopy
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from recray.errors import RecrayError, unknown_name

Fraction = Annotated[float, Field(ge=0, lt=1)]


class Group(BaseModel):
    """A group of settings."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,  # the texts below the fields, for docs/settings.md
    )


class DataSettings(Group):
    """Which ratings are used; applied in this order, before the split."""

    columns: dict[Literal["user", "item", "rating", "timestamp"], str] | None = None
    """Names of columns that are not the usual ones; places from 1 in a file without a header."""
    ids: Literal["auto", "integer", "text"] = "auto"
    """What raw ids are; auto: text where most of the first are no integers."""
    max_rejected: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Largest share of rows that may be unreadable; above it the run fails."""
    min_year: int | None = None
    """Keep films of this year and later (a film without a year is dropped)."""
    merge_titles: bool = False
    """Make films of one title one item; repeated ratings are averaged."""
    duplicates: Literal["mean", "last"] = "last"
    """What several ratings of one user for one item become; the last by time, then by file."""
    min_rating: float | None = None
    """Keep ratings of this many stars and more."""
    core: Annotated[int, Field(ge=1)] | None = None
    """Keep users and items with at least this many ratings each, repeatedly until all have."""


class SplitSettings(Group):
    """How ratings are divided; a pure function of the data and the seed."""

    kind: Literal[
        "random",
        "per-user-random",
        "per-item-random",
        "per-user-ratio",
        "leave-one-out",
        "temporal",
        "kfold",
        "held-out-users",
        "given",
    ] = "per-user-random"
    """Which ratings test and validate; docs/data.md has a line on each kind."""
    test: Fraction = 0.1
    """Share of the ratings (held-out-users: of the users); not for leave-one-out, kfold, given."""
    valid: Fraction = 0.1
    """The same; with kfold and given of those outside the test split; 0: no validation split."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Of the hash that divides ratings at random, and orders those of one time."""
    folds: Annotated[int, Field(ge=2, le=1000)] = 5
    """kfold: number of equal parts."""
    fold: Annotated[int, Field(ge=0)] = 0
    """kfold: which part is the test split, from 0."""
    fold_in: Annotated[float, Field(gt=0, lt=1)] | Annotated[int, Field(ge=1)] = 0.8
    """held-out-users: share or number of a held-out user's ratings that are known."""
    train_file: str | None = None
    """given: the file of the training ratings inside the source, such as u1.base."""
    test_file: str | None = None
    """given: the file of the test ratings, such as u1.test."""

    @model_validator(mode="after")
    def _something_left_to_train(self) -> Self:
        if self.fold >= self.folds:
            raise ValueError(f"fold={self.fold} must be below folds={self.folds}")
        if self.test + self.valid >= 1:
            raise ValueError(
                f"test + valid is {self.test + self.valid:g}; it must be below 1 to leave any"
            )
        return self


class ModelSettings(Group):
    """Which network, and its size."""

    kind: str = "dot"
    """dot, dot-bias, mf-normalised, hybrid, gmf, mlp, neumf, softmax-dnn, posterior-dot, or what is
    added to the registry of recray.models.
    """
    dim: Annotated[int, Field(ge=1, le=4096)] = 64
    """Length of the user and item vectors."""
    output: Literal["raw", "sigmoid"] = "raw"
    """raw: the sum itself; sigmoid: squeezed between the lowest and the highest rating."""
    mlp_dim: Annotated[int, Field(ge=1, le=4096)] = 64
    """Length of the vectors that the layers of mlp and neumf take."""
    layers: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (128, 64, 32)
    """Widths of the ReLU layers, first to last."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of each layer's values that training drops."""
    levels: tuple[float, ...] | None = None
    """softmax-dnn: the ratings that are classes; null: all that the training ratings have."""
    product: bool = False
    """softmax-dnn: the layers also see the two vectors multiplied number by number."""
    item_features: tuple[str, ...] | None = None
    """hybrid: names of genres and decades, genre:Drama, decade:1990; null: all of the data."""

    @field_validator("layers", "levels", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, (int, float)) else value


class ObjectiveSettings(Group):
    """What training minimises."""

    kind: Literal[
        "mse",
        "bce",
        "classes",
        "whole-data",
        "logistic",
        "bpr",
        "item-softmax",
        "unrated-class",
        "bayes",
    ] = "mse"
    """mse, bce, classes and bayes aim at the stars, the others at ranking; see docs/training.md."""
    alpha0: Annotated[float, Field(gt=0)] = 0.1
    """whole-data, and logistic against all items: weight of the pairs nobody rated."""
    negatives: Annotated[int, Field(ge=1)] | Literal["all"] = 4
    """logistic, bpr, item-softmax, unrated-class: items drawn for each rating, anew each epoch."""
    sampling: Literal["uniform", "popularity"] = "uniform"
    """popularity: negatives are drawn by the number of their ratings to the power of 0.75."""
    exclude_known: bool = False
    """Never draw what the user has rated."""
    factors: Annotated[int, Field(ge=1, le=1024)] = 32
    """bayes: length of the vectors of one sample; model.dim, of their mean, is no smaller."""
    tastes: Annotated[int, Field(ge=1, le=1024)] = 128
    """bayes: directions of who rated what that tell of vectors before any star does."""
    sweeps: Annotated[int, Field(ge=1)] = 10
    """bayes: samples in an epoch."""
    burn_in: Annotated[int, Field(ge=0)] = 2
    """bayes: first epochs, whose samples are forgotten."""

    @model_validator(mode="after")
    def _all_items_where_that_is_possible(self) -> Self:
        if self.negatives == "all" and self.kind in ("bpr", "unrated-class"):
            raise ValueError(f"kind={self.kind} draws negatives: negatives must be a number")
        return self


class TrainSettings(Group):
    """How training goes."""

    epochs: Annotated[int, Field(ge=1)] = 20
    """Passes over the training ratings, at most; bayes: rounds of objective.sweeps samples."""
    batch_size: Annotated[int, Field(ge=1)] | Literal["all"] = 8192
    """Ratings per step over all workers, or users where negatives are all items; all: every one in
    one step."""
    optimizer: Literal["auto", "adam", "lazy-adam", "adagrad", "sgd", "alternating", "gibbs"] = (
        "auto"
    )
    """adam: of every row in every step; lazy-adam, adagrad: of the rows that a batch touches;
    auto: adam where a batch has more pairs than 0.39 x (users + items), or these are fewer than
    16,384; lazy-adam elsewhere.
    alternating: exact solves of users, then items (whole-data only); gibbs: random draws of them
    from the posterior (bayes only).
    """
    lr: Annotated[float, Field(gt=0)] = 0.001
    """Learning rate: how far a gradient step goes."""
    l2: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the squared vectors and biases of the rows in a batch, per rating."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Share of a vector that a step takes away, times lr (decoupled, as in AdamW): of every vector
    with adam, of those that the batch touches with lazy-adam and adagrad; none with sgd.
    """
    average_every: Annotated[int, Field(ge=1)] = 1
    """Above 1, approximate: workers go their own way and average items and layers after so many
    steps. 1: every step adds up their gradients, which is exact.
    """
    device: Literal["cpu", "cuda"] = "cpu"
    """cuda: the ratings stay in the memory of one GPU for each worker; gradient optimizers only."""
    precision: Literal["float32", "tf32", "bf16"] = "float32"
    """Of the layers' products: tf32, on a GPU; bf16, with weights and sums in float32."""
    compile: bool = False
    """Compile the loss with torch.compile; on a GPU with CUDA graphs. For small batches of layers;
    takes a C++ compiler, a minute before the first step, and an optimizer of all rows.
    """
    patience: Annotated[int, Field(ge=1)] | None = None
    """Stop after this many epochs without a better validation metric; null: run all epochs."""
    metric: str = "auto"
    """Picks the best epoch on the validation split: rmse, mae, or a ranking metric like ndcg@10."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Of the first weights, the order of the ratings, the negatives, dropout and samples."""
    resident_rows: Annotated[int, Field(ge=1)] | None = None
    """Most ratings that a worker holds in memory; of more, parts are read as they are needed, each
    epoch in another order (see recray.training.streaming). null: all of them."""
    rows: Literal["train", "train+valid"] = "train"
    """train+valid: train on both, as long as asked: for a last run whose settings are chosen."""
    start_from: tuple[str, ...] = ()
    """Finished runs whose best weights the model starts from; a gmf and an mlp make a neumf. Or a
    bundle, of earlier data too: known users and items keep their rows.
    """
    pretrain: Annotated[int, Field(ge=0)] = 0
    """gmf, mlp, neumf, softmax-dnn: the vectors start from so many epochs of exact solves of the
    whole-data loss, with objective.alpha0 and pretrain_l2; those of a neumf's product. Where there
    is a start_from, that is the start.
    """
    pretrain_l2: Annotated[float, Field(ge=0)] = 0.02
    """The l2 of the exact solves of pretrain."""
    merge_alpha: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Weight of the gmf where a neumf starts from two runs; the mlp has the rest."""


class EvaluateSettings(Group):
    """How ranking is measured."""

    k: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (10,)
    """Lengths of the lists measured; ranking presets pick the best epoch by ndcg at the first."""
    relevant_from: float | None = None
    """A held-out rating counts as relevant from this many stars; null: every one does."""

    @field_validator("k", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, int) else value


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
        if (self.train.optimizer == "alternating") != (self.objective.kind == "whole-data"):
            raise ValueError(
                f"train.optimizer={self.train.optimizer} does not go with "
                f"objective.kind={self.objective.kind}; whole-data needs alternating, and only it"
            )
        if self.train.optimizer in ("alternating", "gibbs") and self.train.device != "cpu":
            raise ValueError(
                f"train.device={self.train.device} does not go with "
                f"train.optimizer={self.train.optimizer}, which runs on the cpu"
            )
        if self.train.optimizer in ("adagrad", "lazy-adam") and (
            self.ranks and self.objective.negatives == "all"
        ):
            raise ValueError(
                f"train.optimizer={self.train.optimizer} changes the rows that a batch touches, "
                "and with objective.negatives=all it touches every item: use adam"
            )
        if self.train.optimizer in ("adagrad", "lazy-adam") and self.train.compile:
            raise ValueError(
                f"train.compile=true does not go with train.optimizer={self.train.optimizer}, "
                "whose batches differ in shape: use adam"
            )
        if (self.train.optimizer == "gibbs") != (self.objective.kind == "bayes"):
            raise ValueError(
                f"train.optimizer={self.train.optimizer} does not go with "
                f"objective.kind={self.objective.kind}; bayes needs gibbs, and only it"
            )
        return self

    @property
    def ranks(self) -> bool:
        """Whether training aims at ranking; otherwise it aims at the stars."""
        return self.objective.kind not in ("mse", "bce", "classes", "bayes")

    @property
    def metric(self) -> str:
        """The validation metric that picks the best epoch."""
        if self.train.metric != "auto":
            return self.train.metric
        return f"ndcg@{self.evaluate.k[0]}" if self.ranks else "rmse"

    def plain(self) -> dict[str, Any]:
        """The settings as JSON-ready values."""
        return self.model_dump(mode="json")

    def changed(self, **groups: dict[str, Any]) -> "Settings":
        """The settings with other values in some groups, such as train={"epochs": 3}.

        Raises:
            RecrayError: A value is not allowed, or does not go with another.
        """
        values = self.plain()
        return build_settings(values | {name: values[name] | own for name, own in groups.items()})


_BY_EXACT_SOLVES = ("train.batch_size", "train.lr", "train.weight_decay")
_OF_SAMPLES = tuple(f"objective.{name}" for name in ("factors", "tastes", "sweeps", "burn_in"))
_OF_NEGATIVES = tuple(f"objective.{name}" for name in ("negatives", "sampling", "exclude_known"))


def unused_settings(settings: Settings) -> tuple[str, ...]:
    """Keys of `train` and `objective` that change nothing under the settings' objective."""
    kind = settings.objective.kind
    if kind == "bayes":
        return (*_BY_EXACT_SOLVES, "train.l2", "objective.alpha0", *_OF_NEGATIVES)
    if kind == "whole-data":
        return (*_BY_EXACT_SOLVES, *_OF_NEGATIVES, *_OF_SAMPLES)
    return _OF_SAMPLES if settings.ranks else (*_OF_NEGATIVES, *_OF_SAMPLES)


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

    A `preset:` in the file names the recipe that it starts from, unless one is given; the default
    is `ranking`.

    Raises:
        RecrayError: The preset or a key is unknown, or a value is not allowed or changes nothing.
    """
    given = _read_yaml(config) if config is not None else {}
    named = given.pop("preset", "ranking")
    preset = str(named) if preset is None else preset
    if preset not in preset_names():
        raise unknown_name("preset", preset, preset_names())
    text = (resources.files("recray.config") / "presets" / f"{preset}.yaml").read_text()
    values = {"preset": preset, **yaml.safe_load(text)}
    recipe = deepcopy(values)
    _merge(values, given)
    for override in overrides:
        _merge(values, _parse_override(override))
    settings = build_settings(values)
    _refuse_unused(settings, values, recipe)
    return settings


def _refuse_unused(settings: Settings, values: dict[str, Any], recipe: dict[str, Any]) -> None:
    """Refuse what the user gives for a setting that the objective does not look at.

    Raises:
        RecrayError: There is such a setting, and its value is neither the recipe's nor the default.
    """
    plain, defaults = settings.plain(), Settings().plain()
    for key in unused_settings(settings):
        group, name = key.split(".")
        mine = (values.get(group) or {}).get(name)
        usual = (recipe.get(group, {}).get(name), defaults[group][name])
        if name in (values.get(group) or {}) and mine not in usual:
            raise RecrayError(
                f"{key}={plain[group][name]} changes nothing with "
                f"objective.kind={settings.objective.kind}; leave it out"
            )


def overridden(settings: Settings, overrides: Iterable[str]) -> Settings:
    """The settings after `key=value` overrides.

    Raises:
        RecrayError: A key is unknown, or a value is not allowed.
    """
    values = settings.plain()
    for override in overrides:
        _merge(values, _parse_override(override))
    return build_settings(values)


def build_settings(values: dict[str, Any]) -> Settings:
    """Check plain values, such as those of a manifest, and freeze them.

    Raises:
        RecrayError: A key is unknown or a value is not allowed.
    """
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        # A setting that may be of several kinds fails once for each: the first says enough.
        first = {e["loc"][:2]: e for e in reversed(error.errors())}
        raise RecrayError("; ".join(_explain(e) for e in reversed(first.values()))) from error


def _read_yaml(path: str) -> dict[str, Any]:
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


def _parse_override(text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or key.count(".") != 1:
        raise RecrayError(f"--set {text!r}: write group.key=value, such as train.epochs=5")
    group, name = key.split(".")
    try:
        return {group.strip(): {name.strip(): yaml.safe_load(value)}}
    except yaml.YAMLError as error:
        raise RecrayError(f"--set {text!r}: the value is not YAML") from error


def _merge(values: dict[str, Any], more: dict[str, Any]) -> None:
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(values.get(key), dict):
            _merge(values[key], value)
        else:
            values[key] = value


def known_keys() -> list[str]:
    """Every setting as group.key."""
    groups = {n: f.annotation for n, f in Settings.model_fields.items()}
    return [
        f"{group}.{key}"
        for group, kind in groups.items()
        if isinstance(kind, type) and issubclass(kind, Group)
        for key in kind.model_fields
    ]


def _explain(error: Any) -> str:
    """One pydantic error as one line, in the words of the settings file."""
    parts = [str(p) for p in error["loc"] if not str(p).startswith(("constrained-", "literal["))]
    key = ".".join(parts[:2])
    if error["type"] == "extra_forbidden":
        names = known_keys()
        near = get_close_matches(key, names, n=1, cutoff=0.3)
        same_group = [n for n in names if n.startswith(key.split(".")[0] + ".")] or names
        hint = f"did you mean {near[0]}? " if near else ""
        return f"unknown setting {key}: {hint}known are {', '.join(same_group)}"
    message = error["msg"].removeprefix("Value error, ")
    if not key:
        return message
    return f"setting {key}={error['input']!r}: {message[0].lower()}{message[1:]}"
