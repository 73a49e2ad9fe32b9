"""What a run is, in which way another one differs from it, and the summary of its end."""

from pydantic import BaseModel, ConfigDict, JsonValue

from recray.config import Settings
from recray.evaluation.report import Interval
from recray.storage import moved

RUN_FORMAT = 1
"""Version of run folders and checkpoints; another number is refused, not guessed at."""
EpochEntry = dict[str, int | float]
"""An epoch's number, loss, validation metrics, and how long it took (schema.TIMINGS)."""


class WorkerChange(BaseModel):
    """From which epoch on a run had how many workers.

    Args:
        epoch: Epochs done before.
        workers: Workers from then on.
    """

    epoch: int
    workers: int


class RunMetadata(BaseModel):
    """What a run is: the content of run.json.

    Args:
        format: Version of the folder.
        dataset: Name of the data set.
        prepared: Folder of the prepared data set; run.json names it from the run's own folder.
        fingerprint: Hash of the ratings that the run trains on and is validated with.
        settings: Resolved settings.
        workers: Number of workers now.
        changes: The number at the start and each change of it; empty where it never changed.
    """

    model_config = ConfigDict(frozen=True)

    format: int = RUN_FORMAT
    dataset: str
    prepared: str
    fingerprint: str
    settings: Settings
    workers: int
    changes: tuple[WorkerChange, ...] = ()

    def stored(self, folder: str) -> dict[str, JsonValue]:
        """The content of run.json in a folder; `changes` only where there were some."""
        values = self.model_dump(mode="json", exclude=None if self.changes else {"changes"})
        return values | moved.named(folder, "prepared", self.prepared)

    def difference(self, now: "RunMetadata") -> str:
        """Say in which data or settings another run differs; an empty text where they agree."""
        if self.dataset != now.dataset:
            return f"data: {self.dataset} (now {now.dataset})"
        if self.fingerprint != now.fingerprint:
            return f"data: {self.dataset} has changed since it began"
        changed = changed_values(*(flat_settings(run.settings.plain()) for run in (self, now)))
        return f"settings: {changed}" if changed else ""


class ComparedModel(BaseModel):
    """A model among which training chose, on the validation users.

    Args:
        name: Its folder in RUN/candidates: its preset, with a number where that is tried again.
        settings: What train.choose_from says of it.
        value: The metric; None where it was not trained.
        against: The best one before it; None for the first.
        gain: The metric less that of the best one before it, with the paired 95 % interval.
        seconds: How long its epochs took.
        left_out: Why it was not trained; None where it was.
    """

    name: str
    settings: str
    value: Interval | None = None
    against: str | None = None
    gain: Interval | None = None
    seconds: float | None = None
    left_out: str | None = None


class ModelSelection(BaseModel):
    """Which model training chose among several, and what each gained over those before it.

    Args:
        metric: What they are compared by.
        users: Validation users.
        taken: The name of the one that is the run.
        models: All of them, in the order in which they were tried.
    """

    metric: str
    users: int
    taken: str
    models: list[ComparedModel]


class RunSummary(BaseModel):
    """The end of a run.

    Args:
        run: Folder of the run.
        epochs: Epochs trained.
        best_epoch: The epoch with the best validation metric.
        best: Its entry in the history.
        stopped_early: Whether patience ran out.
        already_finished: Whether nothing was left to train when this command began.
        selection: How the model was chosen, where there were several (train.choose_from).
    """

    run: str
    epochs: int
    best_epoch: int
    best: EpochEntry
    stopped_early: bool
    already_finished: bool = False
    selection: ModelSelection | None = None


def changed_values(before: dict[str, JsonValue], now: dict[str, JsonValue]) -> str:
    """Name every value that differs, such as `train.l2=0.0 (now 0.5)`."""
    changed = (name for name in sorted({*before, *now}) if before.get(name) != now.get(name))
    return ", ".join(f"{n}={before.get(n)!r} (now {now.get(n)!r})" for n in changed)


def flat_settings(plain: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """{"train.lr": 0.1, "preset": ...} of {"train": {"lr": 0.1}, "preset": ...}."""
    flat: dict[str, JsonValue] = {}
    for group, values in plain.items():
        if isinstance(values, dict):
            flat |= {f"{group}.{name}": value for name, value in values.items()}
        else:
            flat[group] = values
    return flat
