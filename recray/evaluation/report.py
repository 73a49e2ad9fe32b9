"""What an evaluation found, as types; `plain()` is the JSON that bundles and `--json` hold."""

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, JsonValue, field_serializer

from recray.data.ids import FitOn

Values = dict[str, float | None]
"""Metric to its mean; None where no user or item has anything relevant."""
Json = dict[str, JsonValue]


class Interval(BaseModel):
    """A mean over users with its 95 % bootstrap interval; nan where nobody could be measured."""

    model_config = ConfigDict(frozen=True)
    value: float
    low: float
    high: float


class ProtocolReport(BaseModel):
    """Among which items the held-out ones were ranked, and whether that measures honestly."""

    kind: str
    honest: bool
    words: str
    negatives: str | None = None
    next: str | None = None


class ComparisonReport(BaseModel):
    """The model against one other system on the same users.

    Args:
        other: A baseline or another bundle.
        metric: What is compared.
        difference: Mean of the model less mean of the other.
        low: Lower end of the paired 95 % interval over users.
        high: Upper end.
        p: p value of the paired randomisation test, two-sided; None where nothing was measured.
        p_holm: The same after Holm's correction for all comparisons of the report.
        verdict: better than, worse than or not distinguishable from, by p_holm.
    """

    other: str
    metric: str
    difference: float
    low: float
    high: float
    p: float | None = None
    p_holm: float | None = None
    verdict: str


class BaselineReport(BaseModel):
    """Metrics of a baseline or another bundle, each an extra field, and what its lists show."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Interval]
    catalogue: Values | None = None

    @property
    def metrics(self) -> dict[str, Interval]:
        """Metric to its mean and interval."""
        return self.__pydantic_extra__


class SplitReport(BaseModel):
    """The settings of the split, each an extra field, and the ratings in each part of it."""

    model_config = ConfigDict(extra="allow")
    kind: str
    rows: dict[str, int]


class Unseen(BaseModel):
    """How many users, items and ratings of the test split training does not know."""

    users: int
    items: int
    ratings: int


class Segment(BaseModel):
    """A group of users, or of held-out items; each system's metrics are an extra field."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Values]
    users: int | None = None
    ratings: int | None = None

    @property
    def systems(self) -> dict[str, Values]:
        """The model or baseline to its metrics."""
        return self.__pydantic_extra__


class Segments(BaseModel):
    """Groups of users, and of held-out items by their known ratings.

    Args:
        users: By the number of their known ratings.
        items: tail, middle and head.
        gender: Users by gender; None where the data set knows none.
        age: Users by age, in years.
    """

    users: dict[str, Segment]
    items: dict[str, Segment]
    gender: dict[str, Segment] | None = None
    age: dict[str, Segment] | None = None


class EvaluationReport(BaseModel):
    """The model and its baselines on the held-out ratings.

    Args:
        fit_on: The splits that the measured model was trained on.
        final_fit: Whether what is served is another fit with the same settings, on all ratings.
        metrics: The model's metrics, such as ndcg@10.
        coverage: Share of the catalogue that the lists of the first cut-off show; None where the
            protocol chooses what can be shown.
        catalogue: What the lists show at each cut-off, see docs/evaluation.md; what cannot be
            measured is left out.
        verdict: The model against the best baseline, and every other bundle, in words.
        comparisons: The model against each baseline and bundle, corrected together.
        bundles: Other bundles on the same targets, by preset and version.
        targets: Held-out items that were looked for one by one (`--next`).
    """

    dataset: str
    preset: str
    model_version: str
    protocol: ProtocolReport
    users: int
    split: SplitReport
    fit_on: FitOn = "train"
    final_fit: bool = False
    metrics: dict[str, Interval]
    baselines: dict[str, BaselineReport]
    verdict: str
    comparisons: list[ComparisonReport] = []
    bundles: dict[str, BaselineReport] = {}
    targets: int | None = None
    unseen: Unseen
    coverage: float | None = None
    catalogue: Values | None = None
    slices: Segments

    @property
    def others(self) -> dict[str, BaselineReport]:
        """All systems beside the model: other bundles, then baselines."""
        return self.bundles | self.baselines

    def plain(self) -> Json:
        """JSON-ready; fields that do not apply are left out."""
        return self.model_dump(exclude_none=True)


def parse_report(stored: Mapping[str, object]) -> EvaluationReport | None:
    """The evaluation that a bundle holds; None where it was measured on nothing."""
    return EvaluationReport.model_validate(stored) if stored else None


class Measured(BaseModel):
    """A result with an evaluation in it, which is `{}` in JSON where there is no test split."""

    evaluation: EvaluationReport | None

    @field_serializer("evaluation")
    def _plain(self, evaluation: EvaluationReport | None) -> Json:
        return evaluation.plain() if evaluation else {}


FEW_RATINGS = {"tail": "fewer than 5 ratings", "middle": "5 to 49 ratings"}
"""Groups of items with few known ratings, in words."""
HARDLY = 0.25
"""Share of the recall of items with many ratings below which a group is called hardly served."""


def who_is_not_served(slices: Segments) -> str:
    """Say in words how much lists find of the items with under 50 known ratings; "" without any."""
    items = slices.items
    few = {name: items[name] for name in FEW_RATINGS if name in items}
    if not few or "head" not in items:
        return ""
    metric = next(name for name in items["head"].systems["model"] if name.startswith("recall@"))
    found = {name: group.systems["model"].get(metric) or 0.0 for name, group in items.items()}
    words = " and ".join(f"{found[n]:.3f} of those with {FEW_RATINGS[n]}" for n in few)
    wanted = sum(group.ratings or 0 for group in few.values())
    every = sum(group.ratings or 0 for group in items.values())
    hardly = max(found[name] for name in few) < HARDLY * found["head"]
    less = any(found[name] < found["head"] for name in few)
    verdict = "hardly served" if hardly else "served less" if less else "served as well"
    return (
        f"Who is not served: {metric} is {found['head']:.3f} of the films with 50 ratings or more, "
        f"{words}. Whoever likes films with under 50 ratings, {wanted:,} of {every:,} held-out "
        f"ratings, is {verdict}."
    )
