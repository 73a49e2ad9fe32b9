"""Train again with the ratings that came in since, starting from the live version."""

from dataclasses import dataclass, replace

from pydantic import BaseModel, JsonValue

from recray.config import Settings
from recray.data.dataset import Prepared, Ratings
from recray.data.feedback import LogSummary, snapshot_while, with_log
from recray.data.feedback_log import RatingsLog
from recray.data.source import Source
from recray.errors import RecrayError
from recray.evaluation.promotion import (
    NotComparable,
    check_holdout_unseen,
    compare_on_holdout,
)
from recray.inference.bundle import Bundle
from recray.pipelines.stages import Stages
from recray.progress import Log
from recray.reporting.terminal import table
from recray.runtime.nodes import wait_for_capacity
from recray.runtime.session import LOCAL, session, workers_at
from recray.runtime.worker_range import WorkerRange
from recray.serving.forgotten import refuse_forgotten
from recray.serving.registry import Registry
from recray.storage import Folder
from recray.training.checkpoint import RunFolder
from recray.training.export import Fits
from recray.training.loop import LOWER_IS_BETTER
from recray.training.run_metadata import EpochEntry

WARM, FULL = "the warm start", "training from nothing"


@dataclass(frozen=True)
class RefreshRequest:
    """Which registry to refresh, and how.

    Args:
        registry: Whose current version is refreshed, and where the new one goes.
        out: Folder of the prepared data, the runs and the bundles.
        ratings_log: Folder of the log; None: the registry's own.
        full: Whether to train from nothing as well, to compare the warm start with it.
        force: Promote even what is worse.
        workers: Training processes, or a range of them.
        address: Ray cluster.
        final_fit: Whether what is released is fitted again on all ratings.
    """

    registry: str
    out: str
    ratings_log: str | None = None
    full: bool = True
    force: bool = False
    workers: int | WorkerRange = 1
    address: str = LOCAL
    final_fit: bool = True


class Difference(BaseModel):
    """One model compared with another on the live version's hold-out."""

    metric: str
    value: float
    low: float
    high: float
    verdict: str

    def cells(self) -> list[str]:
        """The difference, its interval and the verdict as cells of a table."""
        words = self.verdict.split(": ", 1)[1].split(" (", 1)[0]
        return [f"{self.value:+.4f}", f"{self.low:+.4f} to {self.high:+.4f}", words]


class WarmStart(BaseModel):
    """Epochs and seconds until each training was as good as the full training's best epoch.

    Those of the warm start are None where it never was.
    """

    metric: str
    warm_epochs: int | None
    full_epochs: int
    warm_seconds: float | None
    full_seconds: float

    def text(self) -> str:
        """What the warm start saved, in one line."""
        cold = f"{self.full_epochs} epochs ({self.full_seconds:.1f} s)"
        if self.warm_epochs is None or self.warm_seconds is None:
            return f"warm start: never as good on validation as from nothing after {cold}"
        warm = f"{self.warm_epochs} epochs ({self.warm_seconds:.1f} s)"
        return f"warm start: as good on validation after {warm} as from nothing after {cold}"


class Refreshed(BaseModel):
    """What a refresh did.

    Args:
        registry: Folder of the versions.
        before: The version that was live.
        log: What the ratings log added.
        version: The new version; it stays in the registry where it is not promoted.
        promoted: Whether it is the live version now.
        verdict: Why, in words.
        taken: Which training gave the new version.
        gain: The new version against the live one; None where they cannot be compared.
        against_full: The warm start against training from nothing, where both were done.
        saved: What the warm start saved.
    """

    registry: str
    before: str
    log: LogSummary
    taken: str
    gain: Difference | None
    against_full: Difference | None
    saved: WarmStart | None
    version: str
    promoted: bool
    verdict: str

    def text(self) -> str:
        """What a refresh gained, and what its warm start saved."""
        lines = []
        if self.gain is not None:
            rows = [[self.taken, "the live version", *self.gain.cells()]]
            if self.against_full is not None:
                against = self.against_full.cells()
                rows.append(["the warm start", "training from nothing", *against])
            title = f"{self.version} on the hold-out of {self.before}, {self.gain.metric}"
            columns = ["of", "against", "difference", "95 % interval", "verdict"]
            lines.append(table(title, columns, rows))
        if self.saved is not None:
            lines.append(self.saved.text())
        done = "promoted" if self.promoted else "NOT promoted"
        lines.append(f"{done} in {self.registry}: {self.version}")
        return "\n".join(lines)


def live_settings(registry: str) -> Settings:
    """The settings of the version that answers now: a refresh uses the same ones.

    Raises:
        RecrayError: There is no registry, or nothing in it has been promoted.
    """
    return Bundle.open(Registry(registry).current().path).run_settings


def refresh(source: Source, request: RefreshRequest, log: Log = print) -> Refreshed:
    """Train on the source and the log, compare on the live version's hold-out, and promote.

    Args:
        source: The source that the live version was prepared from; it may have grown.
        request: Which registry, and how.
        log: Receives what happens, one line at a time.

    Raises:
        RecrayError: There is no live version or no log, the log is of another data set, or the
            data train on some of the live version's hold-out.
    """
    registry = Registry(request.registry)
    live = Bundle.open(registry.current().path)
    source, added = _with_log(source, request, live, log)
    with session(request.address):
        wait_for_capacity(workers_at(request.workers, request.address).start)
        prepared = _prepared(source, live.run_settings, request, log)
        comparable = _comparable(prepared, live, request, log)
        warm = _train(request, live, prepared, "warm", log)
        full = _train(request, live, prepared, "full", log) if request.full else None
        chosen, name = _better(warm, full, live.settings.metric)
        log(f"refresh: {name} is taken, by its best value on the validation split")
        bundle = chosen.export(prepared, "final" if request.final_fit else "none")
        gain = against_full = None
        if comparable:
            gain = _compared(bundle, live, live, f"the live version {live.version}")
        if comparable and full is not None:
            other = full if chosen is warm else warm
            beside = other.export(prepared, "measured" if request.final_fit else "none")
            pair = (bundle, beside) if chosen is warm else (beside, bundle)
            against_full = _compared(*pair, live, FULL)
    promotion = registry.add_and_promote(bundle.folder.path, request.force)
    earned = full and saved(warm.epochs, full.epochs, live.settings.metric)
    return Refreshed(
        registry=request.registry, before=live.version, log=added, taken=name, gain=gain,
        against_full=against_full, saved=earned, version=promotion.version,
        promoted=promotion.promoted, verdict=promotion.verdict,
    )  # fmt: skip


def _prepared(source: Source, settings: Settings, request: RefreshRequest, log: Log) -> Prepared:
    """Prepare the source.

    Raises:
        RecrayError: It holds users whom the registry has forgotten.
    """
    with snapshot_while(source):
        prepared = _stages(request, settings, log).prepare(source)
    users, registry = prepared.user_ids.raw, Folder(request.registry)
    refuse_forgotten(registry, users.tolist, str(prepared.folder))
    return prepared


def _with_log(
    source: Source, request: RefreshRequest, live: Bundle, log: Log
) -> tuple[Source, LogSummary]:
    """Add the ratings log to the source of the live version's data set."""
    if live.config["dataset"] != source.name:
        raise RecrayError(
            f"{request.registry} answers for {live.config['dataset']}, the source is {source.name}"
        )
    folder = request.ratings_log or Folder(request.registry).child("ratings").path
    ratings_log = RatingsLog.open(folder)
    ratings_log.compact()
    source, added = with_log(source, ratings_log, live.run_settings.data.duplicates)
    log(f"{ratings_log.folder}: {added.ratings:,} ratings of {added.users:,} users")
    for name in added.damaged_parts:
        log(f"{ratings_log.folder}/{name} is damaged and left out")
    return source, added


def _compared(model: Bundle, other: Bundle, live: Bundle, name: str) -> Difference:
    """Compare a model with another, which the verdict names, on the live version's hold-out."""
    comparison = compare_on_holdout(model, other, live)
    return Difference(
        metric=comparison.metric,
        value=comparison.difference,
        low=comparison.low,
        high=comparison.high,
        verdict=comparison.words(name),
    )


def _comparable(prepared: Prepared, live: Bundle, request: RefreshRequest, log: Log) -> bool:
    """Whether what is trained on the data can be compared with the live version, found out before
    it is trained.

    Raises:
        NotComparable: It cannot, and nobody said that it need not.
    """
    known = Ratings.concatenate([prepared.load(split) for split in ("train", "valid", "fold_in")])
    try:
        check_holdout_unseen(str(prepared.folder), known, prepared, live)
    except NotComparable as error:
        if not request.force:
            raise
        log(f"refresh: {error}; goes on, as --force says")
        return False
    return True


@dataclass(frozen=True)
class Trained:
    """A run, its stages, and its epochs."""

    stages: Stages
    run: str
    epochs: list[EpochEntry]

    def export(self, prepared: Prepared, fits: Fits) -> Bundle:
        """Fit it again and measure it."""
        return replace(self.stages, fits=fits).export(self.run, prepared)


def _stages(request: RefreshRequest, settings: Settings, log: Log, name: str = "") -> Stages:
    folder = Folder(request.out)
    where = folder.child(name) if name else folder
    return Stages(where, settings, request.workers, request.address, log)


def _train(
    request: RefreshRequest, live: Bundle, prepared: Prepared, name: str, log: Log
) -> Trained:
    """Train with the live version's settings: "warm" from its weights, "full" from random ones."""
    start: list[JsonValue] = [live.folder.path] if name == "warm" else []
    stages = _stages(request, live.run_settings.changed(train={"init_from": start}), log, name)
    run = stages.train(prepared)
    return Trained(stages, run, RunFolder(run).history())


def _better(warm: Trained, full: Trained | None, metric: str) -> tuple[Trained, str]:
    """The one that validates better, and its name; the warm one where that does not tell.

    A live version that stopped early, before its solves had settled, is a start past its best.
    """
    if full is None or not _validated(warm.epochs, full.epochs, metric):
        return warm, WARM
    best, other = (max(_worth(e, metric) for e in t.epochs) for t in (warm, full))
    return (warm, WARM) if best >= other else (full, FULL)


def _validated(warm: list[EpochEntry], full: list[EpochEntry], metric: str) -> bool:
    return all(metric in epoch for epoch in (*warm, *full))


def _worth(epoch: EpochEntry, metric: str) -> float:
    """The validation metric of an epoch, larger where it is better."""
    return float(epoch[metric]) * (-1 if metric in LOWER_IS_BETTER else 1)


def saved(warm: list[EpochEntry], full: list[EpochEntry], metric: str) -> WarmStart | None:
    """Compare how soon both trainings were as good as the full one's best; None without validation.

    Args:
        warm: The epochs of the run that started from the live version.
        full: Those of the run that started from nothing.
        metric: The metric that picks the best epoch on the validation split.
    """
    if not _validated(warm, full, metric):
        return None
    best = max(full, key=lambda epoch: _worth(epoch, metric))
    reached = next((e for e in warm if _worth(e, metric) >= _worth(best, metric)), None)
    return WarmStart(
        metric=metric,
        warm_epochs=reached["epoch"] if reached else None,
        full_epochs=best["epoch"],
        warm_seconds=_until(warm, reached["epoch"]) if reached else None,
        full_seconds=_until(full, best["epoch"]),
    )


def _until(epochs: list[EpochEntry], last: float) -> float:
    return round(sum(e["seconds"] for e in epochs if e["epoch"] <= last), 3)
