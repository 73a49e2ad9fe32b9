"""Trials and the sweep on disk: the trials that have ended, the table of reports, the best one.

    SWEEP/sweep.json              what this sweep is: data, settings, space, searcher; written first
    SWEEP/trials/KEY.json         one finished, stopped or failed trial, named by its settings
    SWEEP/results.parquet         one row per report
    SWEEP/best.yaml               settings of the best trial, for `recray train --config`
    SWEEP/summary.json            the result of the search; written last

The file of a trial appears whole, the moment the trial ends. A killed search therefore loses no
trial that had ended, whatever Ray had or had not saved.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated

import pyarrow as pa
import yaml
from pydantic import AfterValidator, BaseModel, JsonValue, ValidationError

from recray.config import Settings, build_settings, current_name, effective, translated
from recray.errors import RecrayError
from recray.storage import Folder, moved, refuse_taken
from recray.training.run_metadata import changed_values, flat_settings
from recray.tuning.results import Entry, Point, Status, TuneResult, Values

METADATA, SUMMARY = "sweep.json", "summary.json"
SETTINGS_GROUPS = ("model", "objective", "train", "evaluate")
"""The groups of settings that training depends on; the others belong to the data set."""


def settings_key(settings: Settings) -> str:
    """12 hex digits of all settings that training depends on."""
    plain = settings.plain()
    return hash_key({group: plain[group] for group in SETTINGS_GROUPS})


def hash_key(values: Values) -> str:
    """12 hex digits of JSON values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class TrialSpec:
    """A trial that is about to run.

    Args:
        number: 0 for the values that the search starts from, then 1, 2, ...
        key: 12 hex digits of its settings.
        point: The values of the searched settings.
        settings: All of its settings, as JSON values.
    """

    number: int
    key: str
    point: Point
    settings: Values

    def ended(
        self, status: Status, history: Iterable[Entry] = (), error: str = ""
    ) -> "TrialResult":
        """The result of this trial."""
        return TrialResult(**vars(self), status=status, history=list(history), error=error)


@dataclass(frozen=True)
class TrialResult(TrialSpec):
    """A trial that has ended; its fields are the keys of its file.

    Args:
        status: How it ended.
        history: One entry per epoch, as a run has.
        error: Why it failed, in one line.
    """

    status: Status
    history: list[Entry] = field(default_factory=list)
    error: str = ""


@dataclass(frozen=True)
class Metric:
    """The validation metric that trials are compared by.

    Args:
        name: Its name, such as ndcg@10.
        lower_is_better: Whether lower values are better.
    """

    name: str
    lower_is_better: bool

    def better(self, value: float, than: float | None) -> bool:
        """Whether a value beats another one; a nan or infinite value beats nothing."""
        if not math.isfinite(value):
            return False
        return than is None or (value < than if self.lower_is_better else value > than)

    def best(self, history: Iterable[Entry]) -> tuple[int, float] | None:
        """(epoch, value) of the first best epoch, None where nothing was measured."""
        found: tuple[int, float] | None = None
        for entry in history:
            value = float(entry.get(self.name, math.nan))
            if self.better(value, found[1] if found else None):
                found = (int(entry["epoch"]), value)
        return found

    def best_so_far(self, history: list[Entry]) -> list[float]:
        """The best value up to each epoch; nan before the first measured one."""
        best = [self.best(history[:count]) for count in range(1, len(history) + 1)]
        return [found[1] if found else math.nan for found in best]

    def winner(self, results: Iterable[TrialResult]) -> TrialResult | None:
        """The best trial that ran to its end, or the best stopped trial where none did.

        The trial with the lower number wins among equals.
        """
        ordered = sorted(results, key=lambda result: result.number)
        for status in ("finished", "stopped"):
            winner, value = None, None
            for result in ordered:
                best = self.best(result.history) if result.status == status else None
                if best is not None and self.better(best[1], value):
                    winner, value = result, best[1]
            if winner is not None:
                return winner
        return None


# ---------------------------------------------------------------------------- the sweep on disk


class SweepOptions(BaseModel):
    """The options of a sweep that may change when it is resumed; no value depends on them."""

    prepared: str
    trials: int
    concurrent: int | None
    seeds: int
    gpus: float


def _translate_space(stored: dict[str, Values]) -> dict[str, Values]:
    """A search space with today's names of its settings and of their values."""
    space = {current_name(name)[0]: values for name, values in stored.items()}
    for name, values in space.items():
        choices = values.get("choice")
        if isinstance(choices, list):
            values["choice"] = [current_name(name, choice)[1] for choice in choices]
    return space


class SweepMetadata(BaseModel):
    """What sweep.json says. A resumed sweep must agree on everything but `order`.

    Args:
        dataset: Name of the data set.
        fingerprint: Hash of its training and validation ratings and of its ids.
        settings: The settings that the search starts from.
        space: The search space, as in its YAML file.
        order: The options that may change.
    """

    dataset: str
    fingerprint: str
    settings: Annotated[Values, AfterValidator(translated)]
    space: Annotated[dict[str, Values], AfterValidator(_translate_space)]
    searcher: str
    scheduler: str
    folds: int
    workers: int
    order: SweepOptions

    def check_same(self, now: "SweepMetadata", folder: str) -> None:
        """Refuse to resume this sweep with other data, settings, space or options.

        Raises:
            RecrayError: Something differs; the message says what.
        """
        for name in SweepMetadata.model_fields:
            before, after = getattr(self, name), getattr(now, name)
            if name == "order" or before == after:
                continue
            if name == "fingerprint":
                words = f"data that have changed since: {self.dataset}"
            elif name == "settings" and before["preset"] != after["preset"]:
                words = f"preset {before['preset']} (now {after['preset']})"
            elif name == "settings":
                changes = changed_values(flat_settings(before), flat_settings(after))
                words = f"another setting: {changes}"
            elif name == "space":
                words = f"another space: {changed_values(before, after)}"
            else:
                option = {"folds": "--kfold", "workers": "--workers-per-trial"}.get(name, name)
                words = f"{option} {before} (now {after})"
            raise RecrayError(f"{folder} is a sweep with {words}; give another folder")


class SweepFolder:
    """A sweep on disk.

    Args:
        path: Local path or URI.
    """

    def __init__(self, path: str) -> None:
        self.folder = Folder(path)
        self.trials_folder = self.folder.child("trials")

    def validate(self, metadata: SweepMetadata, resume: bool) -> None:
        """Make sure that the folder is free for a sweep, or holds this very one; write nothing.

        Raises:
            RecrayError: It holds something else, or a sweep and `resume` is not set.
        """
        before = self.metadata()
        refuse_taken(self.folder, before is not None, "sweep", resume)
        if before is not None:
            before.check_same(metadata, str(self.folder))

    def reserve(self, metadata: SweepMetadata) -> None:
        """Make the folder the home of this sweep; calling it again does no harm."""
        if self.metadata() != metadata:
            stored = metadata.model_dump()
            stored["order"] |= moved.named(self.folder.path, "prepared", metadata.order.prepared)
            self.folder.write_json(METADATA, stored)

    def metadata(self) -> SweepMetadata | None:
        """What sweep.json says; None where there is no sweep.

        Raises:
            RecrayError: The file is not that of a sweep.
        """
        if not self.folder.exists(METADATA):
            return None
        content = self.folder.read_json(METADATA)
        try:
            read = SweepMetadata.model_validate(content)
        except ValidationError as error:
            raise RecrayError(
                f"{self.folder}/{METADATA} is damaged: {error.errors()[0]}"
            ) from error
        prepared = moved.found(self.folder.path, "prepared", content["order"])
        order = read.order.model_copy(update={"prepared": prepared})
        return read.model_copy(update={"order": order})

    def save(self, result: TrialResult) -> None:
        """Write the trial's own file; it appears whole."""
        content = json.dumps(asdict(result), ensure_ascii=False).encode()
        self.trials_folder.replace_bytes(f"{result.key}.json", content)

    def find(self, key: str) -> TrialResult | None:
        """The trial with these settings, if it has ended."""
        name = f"{key}.json"
        return self._read(name) if self.trials_folder.exists(name) else None

    def trials(self) -> list[TrialResult]:
        """All trials that have ended, by number."""
        found = [self._read(name) for name in self.trials_folder.content()]
        return sorted(found, key=lambda result: result.number)

    def _read(self, name: str) -> TrialResult:
        """Read a trial, with today's names of its settings."""
        stored = TrialResult(**self.trials_folder.read_json(name))
        point = dict(current_name(name, value) for name, value in stored.point.items())
        return replace(stored, point=point, settings=translated(stored.settings))

    def write_results(self, results: list[TrialResult], metric: Metric, searcher: str) -> None:
        """Write results.parquet: one row per report, and one for a trial without any report."""
        rows = [row for result in results for row in _rows(result, metric, searcher)]
        names = list(dict.fromkeys(name for row in rows for name in row))
        columns = {name: _column([row.get(name) for row in rows]) for name in names}
        self.folder.write_table("results.parquet", pa.table(columns))

    def write_best(self, winner: TrialResult, metric: Metric) -> None:
        """Write best.yaml; `recray train --config` of it gives the trial's validation metrics."""
        best = metric.best(winner.history)
        if best is None:
            raise ValueError(f"trial {winner.number} has no {metric.name}: it won nothing")
        plain = effective(build_settings(winner.settings))
        values = {name: plain[name] for name in ("preset", *SETTINGS_GROUPS)}
        if winner.status == "stopped":
            # A training with these settings gives the same metrics only if it ends where the
            # scheduler stopped the trial.
            values["train"] |= {"epochs": len(winner.history), "patience": None}
        lines = [
            f"# Trial {winner.number}: validation {metric.name} {best[1]!r} in epoch {best[0]}.",
            yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=100),
        ]
        self.folder.replace_bytes("best.yaml", "\n".join(lines).encode())

    def write_summary(self, result: TuneResult) -> None:
        """Write summary.json."""
        self.folder.write_json(SUMMARY, result.model_dump())

    def summary(self) -> TuneResult | None:
        """What summary.json says; None where the sweep has not ended."""
        if not self.folder.exists(SUMMARY):
            return None
        result = TuneResult.model_validate(self.folder.read_json(SUMMARY))
        return result.in_folder(self.folder.path)


def _rows(result: TrialResult, metric: Metric, searcher: str) -> Iterator[Values]:
    trial: Values = {
        "trial": result.number,
        "key": result.key,
        "source": searcher if result.number else "preset",
        "status": result.status,
        "error": result.error or None,
    }
    best = metric.best_so_far(result.history)
    for entry, best_value in zip(result.history, best, strict=True):
        yield {**trial, **entry, "best": best_value, **result.point}
    if not result.history:
        yield {**trial, **result.point}


def _column(values: list[JsonValue]) -> pa.Array:
    """Numbers and texts as they are; anything else, such as lists, as JSON text."""
    present = [value for value in values if value is not None]
    for kind in (int, (int, float), str):
        if all(isinstance(v, kind) and not isinstance(v, bool) for v in present):
            return pa.array(values)
    return pa.array([None if v is None else json.dumps(v) for v in values], pa.string())
