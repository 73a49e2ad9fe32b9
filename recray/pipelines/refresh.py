"""Training again with what was rated meanwhile, from the model that answers now."""

from dataclasses import dataclass
from typing import Any

from recray.config import Settings, build_settings
from recray.data.dataset import Prepared, Ratings
from recray.data.feedback_log import RatingsLog
from recray.data.feedback_source import with_log
from recray.data.source import Source
from recray.errors import CheckFailed, RecrayError
from recray.evaluation.bootstrap import Comparison
from recray.evaluation.holdout_gate import (
    NotComparable,
    check_holdout_unseen,
    compare_on_holdout,
)
from recray.inference.bundle import Bundle
from recray.pipelines import stages as pipeline
from recray.progress import Log
from recray.runtime.nodes import wait_for_capacity
from recray.runtime.session import LOCAL, session
from recray.serving.registry import Registry
from recray.storage import Folder
from recray.training.checkpoint import RunFolder
from recray.training.loop import LOWER_IS_BETTER

WARM, FULL = "the warm start", "training from nothing"


@dataclass(frozen=True)
class Order:
    """What is wanted of a refresh.

    Args:
        registry: Whose current version is refreshed, and where the new one goes.
        out: Folder of the prepared data, the runs and the bundles.
        ratings_log: Folder of the log; None: the registry's own.
        full: Whether to train from nothing as well, to say what starting warm is worth.
        force: Promote even what is worse.
        workers: Training processes.
        address: Ray cluster.
    """

    registry: str
    out: str
    ratings_log: str | None = None
    full: bool = True
    force: bool = False
    workers: int = 1
    address: str = LOCAL


def live_settings(registry: str) -> Settings:
    """The settings of the version that answers now: a refresh uses the same ones.

    Raises:
        RecrayError: There is no registry, or nothing in it has been promoted.
    """
    return Bundle.open(Registry(registry).current().path).settings


def refresh(given: Source, order: Order, log: Log = print) -> dict[str, Any]:
    """Train on the source and the log, compare on the live version's hold-out, and promote.

    Args:
        given: The source that the live version was prepared from; it may have grown.
        order: What is wanted.
        log: Receives what happens, one line at a time.

    Returns:
        {"registry", "before", "version", "promoted", "verdict", "log", "taken", "gain",
        "against_full", "saved"}: gain, of the model that is taken, over the live one, and
        against_full, of the warm start over training from nothing, are {"metric", "value", "low",
        "high", "verdict"}; against_full and saved are None without a full training, gain and
        against_full where `force` goes on without a hold-out. A version that is worse than the
        live one is kept in the registry and not promoted.

    Raises:
        RecrayError: There is no live version or no log, the log is of another data set, or the
            data train on some of the live version's hold-out.
    """
    registry = Registry(order.registry)
    live = Bundle.open(registry.current().path)
    if live.config["dataset"] != given.name:
        raise RecrayError(
            f"{order.registry} answers for {live.config['dataset']}, the source is {given.name}"
        )
    ratings_log = RatingsLog.open(order.ratings_log or Folder(order.registry).child("ratings").path)
    given, told = with_log(given, ratings_log)
    log(f"{ratings_log.folder}: {told['ratings']:,} ratings of {told['users']:,} users")
    for name in told["damaged_parts"]:
        log(f"{ratings_log.folder}/{name} is damaged and left out")
    with session(order.address):
        wait_for_capacity(order.workers)
        prepared = _stages(order, live.settings, log).prepare(given)
        comparable = _comparable(prepared, live, order, log)
        warm = _train(order, _from_live(live), prepared, "warm", log)
        full = _train(order, _cold(live), prepared, "full", log) if order.full else None
    chosen, name = _better(warm, full, live.settings.metric)
    log(f"refresh: {name} is taken, by its best value on the validation split")
    other = f"the live version {live.version}"
    result: dict[str, Any] = {
        "registry": order.registry,
        "before": live.version,
        "log": told,
        "taken": name,
        "gain": _plain(compare_on_holdout(chosen.bundle, live, live), other)
        if comparable
        else None,
        "against_full": None,
        "saved": None,
    }
    if comparable:
        result["gain"] = _plain(compare_on_holdout(chosen.bundle, live, live), other)
    if full is not None:
        if comparable:
            against = compare_on_holdout(warm.bundle, full.bundle, live)
            result["against_full"] = _plain(against, FULL)
        result["saved"] = saved(warm.epochs, full.epochs, live.settings.metric)
    version = registry.add(chosen.bundle.folder.path)
    try:
        verdict = registry.promote(version, order.force).verdict
    except CheckFailed as error:
        return result | {"version": version, "promoted": False, "verdict": str(error)}
    return result | {"version": version, "promoted": True, "verdict": verdict}


def _comparable(prepared: Prepared, live: Bundle, order: Order, log: Log) -> bool:
    """Whether what is trained on the data can be compared with the live version, found out before
    it is trained.

    Raises:
        NotComparable: It cannot, and nobody said that it need not.
    """
    known = Ratings.concatenate([prepared.load(split) for split in ("train", "valid", "fold_in")])
    try:
        check_holdout_unseen(str(prepared.folder), known, prepared, live)
    except NotComparable as error:
        if not order.force:
            raise
        log(f"refresh: {error}; goes on, as --force says")
        return False
    return True


@dataclass(frozen=True)
class Trained:
    """A measured bundle, and the epochs that led to it."""

    bundle: Bundle
    epochs: list[dict[str, Any]]


def _stages(order: Order, settings: Settings, log: Log, name: str = "") -> pipeline.Stages:
    folder = Folder(order.out)
    where = folder.child(name) if name else folder
    return pipeline.Stages(where, settings, order.workers, order.address, log)


def _train(order: Order, settings: Settings, prepared: Prepared, name: str, log: Log) -> Trained:
    stages = _stages(order, settings, log, name)
    run = stages.train(prepared)
    return Trained(stages.export(run, prepared), RunFolder(run).folder.read_json("epochs.json"))


def _cold(live: Bundle) -> Settings:
    """The live version's settings without what it started from."""
    values = live.settings.plain()
    values["train"]["init_from"] = []
    return build_settings(values)


def _from_live(live: Bundle) -> Settings:
    """The same, starting from the live version."""
    values = live.settings.plain()
    values["train"]["init_from"] = [live.folder.path]
    return build_settings(values)


def _better(warm: Trained, full: Trained | None, metric: str) -> tuple[Trained, str]:
    """The one that validates better, and its name; the warm one where that does not tell.

    A live version that stopped early, before its solves had settled, is a start past its best.
    """
    if full is None or not _validated(warm.epochs, full.epochs, metric):
        return warm, WARM
    best, other = (max(_worth(e, metric) for e in t.epochs) for t in (warm, full))
    return (warm, WARM) if best >= other else (full, FULL)


def _validated(warm: list[dict[str, Any]], full: list[dict[str, Any]], metric: str) -> bool:
    return all(metric in epoch for epoch in (*warm, *full))


def _worth(epoch: dict[str, Any], metric: str) -> float:
    """The validation metric of an epoch, larger where it is better."""
    return float(epoch[metric]) * (-1 if metric in LOWER_IS_BETTER else 1)


def _plain(comparison: Comparison, other: str) -> dict[str, Any]:
    return {
        "metric": comparison.metric,
        "value": comparison.difference,
        "low": comparison.low,
        "high": comparison.high,
        "verdict": comparison.words(other),
    }


def saved(
    warm: list[dict[str, Any]], full: list[dict[str, Any]], metric: str
) -> dict[str, Any] | None:
    """What starting warm saved: epochs and seconds until it was as good as the full training.

    Args:
        warm: The epochs of the run that started from the live version.
        full: Those of the one that started from nothing.
        metric: What picks the best epoch on the validation split.

    Returns:
        {"metric", "warm_epochs", "full_epochs", "warm_seconds", "full_seconds"}, until the full
        training's best value; warm_epochs and warm_seconds are None if it was never reached. None
        where nothing was validated.
    """
    if not _validated(warm, full, metric):
        return None
    best = max(full, key=lambda epoch: _worth(epoch, metric))
    reached = next((e for e in warm if _worth(e, metric) >= _worth(best, metric)), None)
    return {
        "metric": metric,
        "warm_epochs": reached["epoch"] if reached else None,
        "full_epochs": best["epoch"],
        "warm_seconds": _until(warm, reached["epoch"]) if reached else None,
        "full_seconds": _until(full, best["epoch"]),
    }


def _until(epochs: list[dict[str, Any]], last: int) -> float:
    return round(sum(e["seconds"] for e in epochs if e["epoch"] <= last), 3)
