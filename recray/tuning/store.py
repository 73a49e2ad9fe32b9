"""A sweep on disk: the trials that have ended, the table of reports, the best settings.

    SWEEP/sweep.json              what this sweep is: data, settings, space, searcher; written first
    SWEEP/trials/KEY.json         one finished, stopped or failed trial, named by its settings
    SWEEP/results.parquet         one row a report
    SWEEP/best.yaml               settings of the best trial, for `recray train --config`

A trial's file appears whole, the moment the trial ends. So after a kill all that had ended is kept,
whatever Ray had or had not saved.
"""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import pyarrow as pa
import yaml

from recray.config import Settings, build_settings, current_name, effective, translated
from recray.errors import RecrayError
from recray.storage import Folder
from recray.tuning.space import Point

TRIALS = "trials"
GROUPS = ("model", "objective", "train", "evaluate")

Status = Literal["finished", "stopped", "failed", "lost"]
"""stopped: by the scheduler; failed: it raised; lost: its process died, so no file is written and a
resumed sweep tries it again."""


@dataclass(frozen=True)
class Record:
    """A trial that has ended.

    Args:
        number: 0 for the settings' own values, then 1, 2, ...
        key: 12 hex digits of its settings.
        point: The values of what is searched.
        settings: All of its settings, as plain values.
        status: How it ended.
        history: One entry an epoch, as a run has.
        error: Why it failed, in one line.
    """

    number: int
    key: str
    point: Point
    settings: dict[str, Any]
    status: Status
    history: list[dict[str, Any]] = field(default_factory=list)
    error: str = ""


@dataclass(frozen=True)
class Goal:
    """What is compared.

    Args:
        metric: A validation metric.
        lower: Whether lower values are better.
    """

    metric: str
    lower: bool

    def better(self, value: float, than: float | None) -> bool:
        """Whether the value beats another; nothing beats with nan."""
        if not math.isfinite(value):
            return False
        return than is None or (value < than if self.lower else value > than)

    def best(self, history: list[dict[str, Any]]) -> tuple[int, float] | None:
        """(epoch, value) of the first best epoch, None where nothing was measured."""
        found: tuple[int, float] | None = None
        for entry in history:
            value = float(entry.get(self.metric, math.nan))
            if self.better(value, found[1] if found else None):
                found = (int(entry["epoch"]), value)
        return found

    def so_far(self, history: list[dict[str, Any]]) -> list[float]:
        """The best value up to each epoch; nan before the first."""
        out = []
        for count in range(1, len(history) + 1):
            best = self.best(history[:count])
            out.append(best[1] if best else math.nan)
        return out

    def winner(self, records: list[Record]) -> Record | None:
        """The best trial that ran to its end, or the best stopped one where none did; the lower
        number of equals.
        """
        for status in ("finished", "stopped"):
            found, value = None, None
            for record in sorted(records, key=lambda r: r.number):
                best = self.best(record.history) if record.status == status else None
                if best is not None and self.better(best[1], value):
                    found, value = record, best[1]
            if found is not None:
                return found
        return None


def key_of(settings: Settings) -> str:
    """12 hex digits of all settings that training depends on."""
    values = {group: settings.plain()[group] for group in GROUPS}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


class SweepFolder:
    """A sweep on disk.

    Args:
        path: Local path or URI.
    """

    def __init__(self, path: str) -> None:
        self.folder = Folder(path)
        self.trials_folder = self.folder.child(TRIALS)

    def check(self, facts: dict[str, Any], resume: bool) -> None:
        """Make sure that the folder is free for a sweep, or holds this very one; writes nothing.

        Raises:
            RecrayError: It holds something else, or a sweep and `resume` is not set.
        """
        before = self.before()
        if before is None:
            if self.folder.files():
                raise RecrayError(
                    f"{self.folder} is not empty and holds no sweep; give another folder"
                )
            return
        if not resume:
            raise RecrayError(
                f"{self.folder} holds a sweep already; give --resume to continue it, "
                "or another folder"
            )
        for name, now in json.loads(json.dumps(facts)).items():
            if before.get(name) != now:
                raise RecrayError(f"{self.folder} is a sweep with {_words(name, before, now)}")

    def claim(self, facts: dict[str, Any]) -> None:
        """Make the folder this sweep's; again is fine."""
        if self.before() != json.loads(json.dumps(facts)):
            self.folder.write_json("sweep.json", facts)

    def before(self) -> dict[str, Any] | None:
        """What sweep.json says; None where there is no sweep."""
        if not self.folder.exists("sweep.json"):
            return None
        facts: dict[str, Any] = self.folder.read_json("sweep.json")
        space = {current_name(name)[0]: values for name, values in facts["space"].items()}
        for name, values in space.items():
            if "choice" in values:
                values["choice"] = [current_name(name, value)[1] for value in values["choice"]]
        return facts | {"settings": translated(facts["settings"]), "space": space}

    def save(self, record: Record) -> None:
        """Write the trial's own file; it appears whole."""
        content = json.dumps(asdict(record), ensure_ascii=False).encode()
        self.trials_folder.replace_bytes(f"{record.key}.json", content)

    def find(self, key: str) -> Record | None:
        """The trial with these settings, if it has ended."""
        name = f"{key}.json"
        if not self.trials_folder.exists(name):
            return None
        return _record(self.trials_folder.read_json(name))

    def records(self) -> list[Record]:
        """All trials that have ended, by number."""
        folder = self.trials_folder
        found = [_record(folder.read_json(name)) for name in folder.content()]
        return sorted(found, key=lambda record: record.number)

    def write_results(self, records: list[Record], goal: Goal, searcher: str) -> None:
        """results.parquet: one row a report, one for a trial without any."""
        rows = [row for record in records for row in _rows(record, goal, searcher)]
        names = list(dict.fromkeys(name for row in rows for name in row))
        columns = {name: _column([row.get(name) for row in rows]) for name in names}
        self.folder.write_table("results.parquet", pa.table(columns))

    def write_best(self, winner: Record, goal: Goal) -> None:
        """best.yaml: `recray train --config` of it gives the trial's validation digits."""
        best = goal.best(winner.history)
        if best is None:
            raise ValueError(f"trial {winner.number} has no {goal.metric}: it won nothing")
        plain = effective(build_settings(winner.settings))
        values = {"preset": plain["preset"], **{group: plain[group] for group in GROUPS}}
        if winner.status == "stopped":  # the same digits need the same end
            values["train"] = values["train"] | {"epochs": len(winner.history), "patience": None}
        lines = [
            f"# Trial {winner.number}: validation {goal.metric} {best[1]!r} in epoch {best[0]}.",
            yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=100),
        ]
        self.folder.replace_bytes("best.yaml", "\n".join(lines).encode())


def _record(stored: dict[str, Any]) -> Record:
    """A stored trial, with today's names of its settings."""
    point = dict(current_name(name, value) for name, value in stored["point"].items())
    return Record(**stored | {"point": point, "settings": translated(stored["settings"])})


def _words(name: str, before: dict[str, Any], now: Any) -> str:
    """What differs between the sweep on disk and the one asked for."""
    if name in ("settings", "space"):
        old = before[name]
        if name == "settings" and old["preset"] != now["preset"]:
            return f"preset {old['preset']} (now {now['preset']}); give another folder"
        flat = [_flat(values) if name == "settings" else values for values in (old, now)]
        changed = [
            f"{key}={flat[0].get(key)!r} (now {flat[1].get(key)!r})"
            for key in sorted({*flat[0], *flat[1]})
            if flat[0].get(key) != flat[1].get(key)
        ]
        return f"another {name.rstrip('s')}: {', '.join(changed)}; give another folder"
    if name == "fingerprint":
        return f"data that have changed since: {before['dataset']}; give another folder"
    option = {"folds": "--kfold", "workers": "--workers-per-trial"}.get(name, name)
    return f"{option} {before.get(name)} (now {now}); give another folder"


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        f"{group}.{key}": value
        for group, values in settings.items()
        if isinstance(values, dict)
        for key, value in values.items()
    }


def _rows(record: Record, goal: Goal, searcher: str) -> list[dict[str, Any]]:
    facts = {
        "trial": record.number,
        "key": record.key,
        "source": searcher if record.number else "preset",
        "status": record.status,
        "error": record.error or None,
    }
    so_far = goal.so_far(record.history)
    reports: list[dict[str, Any]] = [
        {**entry, "best": best} for entry, best in zip(record.history, so_far, strict=True)
    ]
    return [{**facts, **report, **record.point} for report in reports or [{}]]


def _column(values: list[Any]) -> pa.Array:
    """Numbers as they are; anything else, a list for one, as text."""
    given = [value for value in values if value is not None]
    for kind in (int, (int, float), str):
        if all(isinstance(v, kind) and not isinstance(v, bool) for v in given):
            return pa.array(values)
    return pa.array([None if v is None else json.dumps(v) for v in values], pa.string())


def seeded(settings: dict[str, Any], seed: int) -> Settings:
    """The settings of a record with another training seed."""
    return build_settings(settings).changed(train={"seed": seed})
