"""The result of a search as types; the dump of each is the JSON that is stored."""

import math
from typing import Literal

from pydantic import BaseModel, JsonValue, SerializerFunctionWrapHandler, model_serializer

from recray.evaluation.report import Interval

Values = dict[str, JsonValue]
"""JSON values by name, such as the settings of a trial."""
Point = dict[str, JsonValue]
"""One value of each searched setting, such as `train.lr`, by its name."""
Entry = dict[str, float]
"""One epoch of a trial: `epoch`, the loss, the validation metrics and the seconds."""
Status = Literal["finished", "stopped", "failed", "lost"]
"""`stopped` trials were stopped by the scheduler and `failed` ones raised an error. The process of
a `lost` trial died: no file is written for it, so a resumed sweep tries it again."""


class TrialSummary(BaseModel):
    """One trial as the result of a search shows it.

    Args:
        sd: Sample standard deviation of the best value over folds, None without folds.
        settings: The values of the searched settings.
    """

    trial: int
    status: Status
    value: float | None
    sd: float | None
    best_epoch: int | None
    epochs: int
    settings: Point
    error: str


class SeedScore(BaseModel):
    """The metric of one training, on the validation and the test split."""

    valid: float
    test: float


class TestScore(BaseModel):
    """A trial's settings, trained anew with several seeds.

    Args:
        valid: Mean of the validation metric over the seeds.
        test: Each user's mean over the seeds, and then the mean over users.
        each: One score per seed.
    """

    trial: int
    valid: float
    test: Interval
    each: list[SeedScore]


class FinalTest(BaseModel):
    """The winner and trial 0 on the test split.

    Args:
        preset: Trial 0; absent where it won, or could not be trained.
        difference: Winner less preset, absent where there is nothing to compare.
        verdict: What the search was worth, in words.
    """

    metric: str
    seeds: int
    winner: TestScore
    preset: TestScore | None = None
    difference: Interval | None = None
    verdict: str = ""

    @model_serializer(mode="wrap")
    def _leave_out_absent(self, dump: SerializerFunctionWrapHandler) -> Values:
        return {name: value for name, value in dump(self).items() if value is not None}


class TuneResult(BaseModel):
    """The result of a search, stored as summary.json.

    Args:
        sweep: Folder of the sweep.
        best: Number of the winning trial.
        best_config: File with the winner's settings.
        results: File with one row per report.
        pictures: Files of the pictures that were drawn.
        test: None where the test split was not opened.
    """

    sweep: str
    dataset: str
    preset: str
    metric: str
    lower_is_better: bool
    searcher: str
    scheduler: str
    folds: int
    workers: int
    space: dict[str, Values]
    trials: list[TrialSummary]
    best: int
    best_config: str
    results: str
    pictures: list[str] = []
    test: FinalTest | None = None

    def in_folder(self, sweep: str) -> "TuneResult":
        """The same of a sweep that may have been moved since: its files lie in this folder."""
        return self.model_copy(
            update={
                "sweep": sweep,
                "best_config": f"{sweep}{self.best_config.removeprefix(self.sweep)}",
                "results": f"{sweep}{self.results.removeprefix(self.sweep)}",
                "pictures": [f"{sweep}{p.removeprefix(self.sweep)}" for p in self.pictures],
            }
        )

    @property
    def winner(self) -> TrialSummary:
        """The winning trial."""
        return next(trial for trial in self.trials if trial.trial == self.best)

    @property
    def best_value(self) -> float:
        """The winner's metric on the validation split."""
        return math.nan if self.winner.value is None else self.winner.value
