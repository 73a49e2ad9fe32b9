"""The groups of settings: their names, types, limits and defaults.

The texts below the fields become docs/settings.md (`make docs`).
"""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Duplicates = Literal["last", "mean", "sum", "count", "max"]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Group(BaseModel):
    """A group of settings."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,  # the texts below the fields become descriptions
    )


class DataSettings(Group):
    """Which ratings are used. The steps are applied in this order, before the split."""

    columns: dict[Literal["user", "item", "rating", "timestamp", "title"], str] | None = None
    """Names of columns that are not the usual ones; in a file without a header, numbers from 1.
    They hold for the list of items, too, and title is of that list alone.
    """
    ids: Literal["auto", "integer", "text"] = "auto"
    """What raw ids are. auto: text where one of the first ids is no plain integer, as 007 or -7."""
    scale: tuple[float, float] | None = None
    """Lowest and highest allowed rating, as 1,10; rows with others are rejected. null: any."""
    max_rejected: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Largest fraction of rows that may be unreadable; above it the run fails."""
    min_year: int | None = None
    """Keep items of this year and later; an item without a year is dropped."""
    merge_titles: bool = False
    """Make items with the same title one item; repeated ratings are averaged, unless duplicates is
    sum, count or max.
    """
    duplicates: Duplicates = "last"
    """What several ratings of one user for one item become, those of a ratings log included. last:
    by time, then by file order; mean, sum or max of the ratings; count: how many they are.
    """
    min_rating: float | None = None
    """Keep ratings that are this high or higher."""
    core: Annotated[int, Field(ge=1)] | None = None
    """Keep users and items with at least this many ratings each; repeated until all have them."""
    order: Literal["hash", "file"] | None = None
    """What orders a user's ratings of the same time. hash: a hash of the ids, whatever the order of
    the file; file: the order of the rows in the source, which is then part of the data; null: file
    for split.kind=next, else hash.
    """
    half_life: Annotated[float, Field(gt=0)] | None = None
    """ials: days before the latest training rating after which a rating weighs half; null: each
    weighs as much as its value says.
    """

    @field_validator("scale", mode="before")
    @classmethod
    def _two_numbers(cls, value: object) -> object:
        return value.split(",") if isinstance(value, str) else value

    @field_validator("scale")
    @classmethod
    def _low_before_high(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and value[0] >= value[1]:
            raise ValueError("the lowest rating comes before the highest one, as in 1,10")
        return value

    @property
    def rating_columns(self) -> dict[str, str] | None:
        """Role to column of the ratings, without what is told of the list of items."""
        told = {role: name for role, name in (self.columns or {}).items() if role != "title"}
        return {str(role): name for role, name in told.items()} or None


class SplitSettings(Group):
    """How ratings are divided. The result depends on the data and the seed alone."""

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
        "next",
    ] = "per-user-random"
    """Which ratings are for test and validation; docs/data.md explains each kind."""
    test: Fraction = 0.1
    """Fraction of ratings (held-out-users: of users); unused by leave-one-out, kfold, given and
    next.
    """
    valid: Fraction = 0.1
    """The same for validation; kfold, given: of what is not in the test split; 0: no validation."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the hash that divides ratings at random and orders ratings of the same time."""
    folds: Annotated[int, Field(ge=2, le=1000)] = 5
    """kfold: number of equal parts."""
    fold: Annotated[int, Field(ge=0)] = 0
    """kfold: number of the part that is the test split, from 0."""
    fold_in: Annotated[float, Field(gt=0, lt=1)] | Annotated[int, Field(ge=1)] = 0.8
    """held-out-users: fraction or number of a held-out user's ratings that are known."""
    train_file: str | None = None
    """given: the file of the training ratings inside the source, such as u1.base."""
    test_file: str | None = None
    """given: the file of the test ratings, such as u1.test."""
    cut: Annotated[float, Field(gt=0, lt=1)] | None = None
    """next: the share of the ratings, by time, before a cut; only ratings after it are targets.
    null: every user has one.
    """

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
    """Which model is trained, and its size."""

    kind: str = "dot"
    """dot, dot-bias, mf-normalised, hybrid, gmf, mlp, neumf, softmax-dnn, bpmf, markov, next-ridge,
    ease, item-knn, recent-popular, sequence, or the name of a model that was added to the registry
    in recray.models.
    """
    dim: Annotated[int, Field(ge=1, le=4096)] | Literal["auto"] = 64
    """Length of the user and item vectors; auto: 64, and 96 where users times
    items of the training are 8 million or more.
    """
    output: Literal["raw", "sigmoid"] = "raw"
    """dot-bias: raw: the sum itself; sigmoid: squeezed between the lowest and highest rating."""
    mlp_dim: Annotated[int, Field(ge=1, le=4096)] = 64
    """mlp, neumf: length of the user and item vectors that the layers take."""
    layers: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (128, 64, 32)
    """mlp, neumf, softmax-dnn: widths of the ReLU layers, first to last."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """mlp, neumf, softmax-dnn, sequence: fraction of each layer's values that training drops."""
    blocks: Annotated[int, Field(ge=1, le=64)] = 2
    """sequence: blocks of attention and a network, one after another."""
    heads: Annotated[int, Field(ge=1, le=64)] = 2
    """sequence: heads of the attention; model.dim is a multiple of it."""
    length: Annotated[int, Field(ge=1, le=10_000)] = 200
    """sequence: items at the end of a history that are read; a longer one is cut."""
    time: bool = False
    """sequence: whether attention depends on the time between two items, and on when the list is
    asked for.
    """
    levels: tuple[float, ...] | None = None
    """softmax-dnn: the ratings that are classes; null: all ratings that occur in training."""
    product: bool = False
    """softmax-dnn: whether the layers also see the element-wise product of the two vectors."""
    item_features: tuple[str, ...] | None = None
    """hybrid: genres and decades, such as genre:Drama or decade:1990; null: all in the data."""
    window: Annotated[int, Field(ge=1, le=200)] = 20
    """markov, next-ridge: how many places apart two items of a history may stand to be counted."""
    decay: Annotated[float, Field(gt=0, le=1)] = 0.85
    """The same: weight of a pair that stands one place farther apart."""
    ahead: Annotated[int, Field(ge=1, le=200)] = 1
    """next-ridge: how many of the items that came next are predicted."""
    ahead_decay: Annotated[float, Field(gt=0, le=1)] = 0.5
    """next-ridge: weight of an item that came one place later."""
    recent: Annotated[int, Field(ge=1, le=1000)] = 50
    """markov, next-ridge: how many of the last items of a history make its scores."""
    recent_decay: Annotated[float, Field(gt=0, le=1)] = 0.8
    """The same: weight of an item one place earlier."""
    row_power: Annotated[float, Field(ge=0, le=2)] = 0.9
    """markov: 1: what follows an item shares a weight of 1; 0: frequent items say more."""
    popularity_power: Annotated[float, Field(ge=0, le=2)] = 0.2
    """markov, next-ridge: scores are divided by an item's ratings to this power."""
    ridge: Annotated[float, Field(gt=0)] = 300.0
    """next-ridge, ease: weight of the squared item-item weights, in ratings and in users."""
    neighbours: Annotated[int, Field(ge=1, le=10_000)] = 200
    """item-knn: similar items that each item keeps."""
    shrink: Annotated[float, Field(ge=0)] = 10.0
    """item-knn: users added to the divisor of a similarity, so that few in common say little."""
    days: Annotated[int, Field(ge=1, le=100_000)] = 30
    """recent-popular: length of the window of time."""

    @field_validator("layers", "levels", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: object) -> object:
        return (value,) if isinstance(value, (int, float)) else value


class ObjectiveSettings(Group):
    """What training minimises."""

    kind: Literal[
        "mse",
        "bce",
        "classes",
        "ials",
        "logistic",
        "bpr",
        "item-softmax",
        "unobserved-class",
        "bpmf",
        "closed-form",
        "next-item",
    ] = "mse"
    """mse, bce, classes and bpmf predict ratings, the others rank; see docs/training.md.
    closed-form: markov, next-ridge, ease, item-knn, recent-popular, whose weights are counted.
    next-item: sequence, by a softmax over what comes next.
    """
    preference: Literal["graded", "binary"] = "graded"
    """ials, logistic, bpr, item-softmax, ALS pretraining: what a rating says of liking. graded: as
    much as its value on the scale; binary: any rating is a like.
    """
    scale: Literal["auto", "stars", "sign", "position", "counts"] = "auto"
    """graded: what ratings mean. stars: 4 and more are likes; sign: below 0 is a dislike; position:
    likes from 0.75 of the range on; counts: plays, each a like, the surer the more. auto: chosen
    from the lowest and highest rating. docs/training.md has the table.
    """
    unobserved_weight: Annotated[float, Field(gt=0)] = 0.1
    """ials, logistic against all items, ALS pretraining: weight of the pairs without a rating."""
    unobserved_power: Annotated[float, Field(ge=0, le=1)] = 0.0
    """ials: how that weight grows with the number n of an item's ratings, as (n + 1) to this power
    over its mean. 0: the same for all; more: lists show more of the catalogue and hit less.
    """
    negatives: Annotated[int, Field(ge=1)] | Literal["all", "auto"] = 4
    """logistic, bpr, item-softmax, unobserved-class: items drawn for each rating in each epoch.
    all: every item is a negative (logistic, item-softmax, next-item). next-item: items drawn by
    popularity for each step; auto: all up to 20,000 items, else 4,096 (next-item alone).
    """
    sampling: Literal["uniform", "popularity"] = "uniform"
    """How negatives are drawn. popularity: by their number of ratings to the power of 0.75."""
    reject_seen: bool = False
    """Whether items that the user has rated are never drawn as negatives."""
    factors: Annotated[int, Field(ge=1, le=1024)] = 32
    """bpmf: length of the vectors in one sample; at most model.dim, the length in their mean."""
    side_rank: Annotated[int, Field(ge=1, le=1024)] = 128
    """bpmf: rank of the SVD of who rated what; its factors say where the vectors are expected."""
    samples_per_epoch: Annotated[int, Field(ge=1)] = 10
    """bpmf: Gibbs samples in an epoch."""
    burn_in: Annotated[int, Field(ge=0)] = 2
    """bpmf: number of first epochs whose samples are not used."""

    @model_validator(mode="after")
    def _all_items_where_that_is_possible(self) -> Self:
        if self.negatives == "all" and self.kind in ("bpr", "unobserved-class"):
            raise ValueError(f"kind={self.kind} draws negatives: negatives must be a number")
        if self.negatives == "auto" and self.kind != "next-item":
            raise ValueError("negatives=auto goes with kind=next-item; give a number")
        return self


class TrainSettings(Group):
    """How a model is trained."""

    choose_from: tuple[str, ...] = ()
    """Presets, the simplest first, each with settings of its own if need be, as `sequence
    train.epochs=20`. All are trained; a later one is the run where it is better on validation than
    what was best before by the paired 95 % interval. Empty: these settings are trained themselves.
    """
    epochs: Annotated[int, Field(ge=1)] = 20
    """Most passes over the training ratings; bpmf: each is objective.samples_per_epoch samples."""
    batch_size: Annotated[int, Field(ge=1)] | Literal["all"] = 8192
    """Ratings per step over all workers, or users where negatives are all items, or windows of
    histories with next-item; all: one step an epoch.
    """
    optimizer: Literal[
        "auto", "adam", "lazy-adam", "adagrad", "sgd", "alternating", "gibbs", "closed-form"
    ] = "auto"
    """adam: every step updates every row; lazy-adam, adagrad: a step updates the rows in its batch;
    auto: adam where a batch has more pairs than 0.39 x (users + items), or these are fewer than
    16,384; lazy-adam elsewhere.
    alternating: exact solves of users, then items (ials only); gibbs: random draws of them from
    the posterior (bpmf only); closed-form: fitted once (closed-form only).
    """
    solver: Literal["exact", "cg"] = "exact"
    """alternating: exact; cg: after an exact first epoch, 2 conjugate gradient steps a vector."""
    lr: Annotated[float, Field(gt=0)] = 0.001
    """Learning rate of the gradient steps. next-item: the highest; it rises over the first 5 % of
    train.epochs and falls to nothing by the last.
    """
    l2: Annotated[float, Field(ge=0)] | Literal["auto"] = 0.0
    """Weight of the squared vectors and biases of the rows in a batch, for each rating; auto: for
    ials 0.013 x (1.5 million / (users times items))^0.25, from 0.001 to 0.02; else 0.
    """
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """A step shrinks a vector by lr times this fraction (decoupled, as in AdamW): every vector with
    adam, the vectors in the batch with lazy-adam and adagrad; sgd does not use it.
    """
    local_sgd_steps: Annotated[int, Field(ge=1)] = 1
    """1, exact: workers sum their gradients in every step. Above 1, approximate (local SGD): each
    worker takes this many steps alone, then workers average items and layers.
    """
    device: Literal["auto", "cpu", "cuda"] = "cpu"
    """cuda: a GPU for each worker, which holds its ratings; not for Gibbs samples and closed forms.
    auto: cuda where each worker has one, else cpu.
    """
    precision: Literal["float32", "tf32", "bf16"] = "float32"
    """Precision of matrix products: tf32 on a GPU; bf16 with weights and sums in float32."""
    compile: bool = False
    """Compile the loss with torch.compile, on a GPU with CUDA graphs. It pays for small batches of
    layers; it needs a C++ compiler, a minute at first, and an optimizer that updates all rows.
    """
    patience: Annotated[int, Field(ge=1)] | None = None
    """Stop after this many epochs without a better validation metric; null: run all epochs."""
    metric: str = "auto"
    """Validation metric that picks the best epoch: rmse, mae, or a ranking metric like ndcg@10."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the first weights, the order of ratings, negatives, dropout and Gibbs samples."""
    max_rows_in_memory: Annotated[int, Field(ge=1)] | None = None
    """Ratings that a worker holds; one with more reads its files in another order each epoch (see
    recray.training.streaming). null: no limit."""
    fit_on: Literal["train", "train+valid", "all"] = "train"
    """The splits that are trained on. train+valid, and all with test: for all epochs, without
    validation, with settings that an earlier run has chosen.
    """
    init_from: tuple[str, ...] = ()
    """Finished runs whose best weights the model starts from; a gmf and an mlp make a neumf. Or a
    bundle, also one of earlier data: users and items that it knows keep their rows.
    """
    als_pretrain_epochs: Annotated[int, Field(ge=0)] = 0
    """gmf, mlp, neumf, softmax-dnn: the vectors (of a neumf, those of its product) start from this
    many epochs of ALS on the ials loss, with objective.unobserved_weight and als_pretrain_l2.
    init_from replaces it.
    """
    als_pretrain_l2: Annotated[float, Field(ge=0)] = 0.02
    """The l2 of the ALS epochs of als_pretrain_epochs."""
    neumf_alpha: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Weight of the gmf where a neumf starts from two runs; the mlp has 1 - neumf_alpha."""


class EvaluateSettings(Group):
    """How ranking is measured."""

    k: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (10,)
    """Lengths of the measured lists; ranking presets pick the best epoch by ndcg at the first."""
    relevant_from: float | None = None
    """Lowest held-out rating that counts as relevant; null: every rating does."""

    @field_validator("k", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: object) -> object:
        return (value,) if isinstance(value, int) else value
