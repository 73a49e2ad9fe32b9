"""The end of a search: its winner, trained anew with several seeds and measured on test, once.

Beside it stand the settings that the search started from.
"""

import statistics
import tempfile
from datetime import UTC, datetime
from typing import Any

import numpy as np

import recray.reporting.plots.search as pictures
from recray.config import build_settings
from recray.data.dataset import Prepared
from recray.evaluation.bootstrap import Comparison, compare, summarise
from recray.evaluation.evaluator import Evaluator
from recray.evaluation.per_user import PerUserMetrics
from recray.inference.bundle import Bundle, write_bundle
from recray.progress import Log
from recray.runtime.session import session
from recray.training import trainer
from recray.training.checkpoint import RunFolder
from recray.tuning import tuner
from recray.tuning.driver import OnEvent
from recray.tuning.request import Search
from recray.tuning.store import Record, seeded
from recray.tuning.trial_queue import Plan

FINAL = "final"
PICTURES = "pictures"
OWN = "the preset's own values"


def tune(search: Search, log: Log = print, on_event: OnEvent | None = None) -> dict[str, Any]:
    """Search, draw it, then measure the winner on test.

    Args:
        search: A checked search.
        log: Receives what happens, one line at a time.
        on_event: Told of each report of a trial.

    Returns:
        {"sweep", "dataset", "preset", "metric", "lower_is_better", "searcher", "scheduler",
        "folds", "workers", "space", "trials": [{"trial", "status", "value", "sd", "best_epoch",
        "epochs", "settings", "error"}], "best": trial, "best_config", "results", "pictures",
        "test": None or {"metric", "winner", "preset", "difference", "verdict"}}

    Raises:
        RecrayError: What the user can fix.
    """
    with session(search.order.address):
        plan = tuner.run(search, on_event)
        winner = search.goal.winner(list(plan.records.values()))
        if winner is None:
            raise ValueError("a search without a winner came to its end")
        result = _result(search, plan, winner)
        result["pictures"] = _draw(search, result)
        result["test"] = _judge(search, plan, winner, log) if search.order.seeds else None
    search.sweep.folder.write_json("summary.json", result)
    return result


def _result(search: Search, plan: Plan, winner: Record) -> dict[str, Any]:
    folder = search.sweep.folder
    return {
        "sweep": folder.path,
        "dataset": search.data.manifest["dataset"],
        "preset": search.settings.preset,
        "metric": search.goal.metric,
        "lower_is_better": search.goal.lower,
        "searcher": search.order.searcher,
        "scheduler": search.order.scheduler,
        "folds": search.order.folds,
        "workers": search.order.workers,
        "space": {d.setting: d.plain() for d in search.space},
        "trials": [_row(search, record) for record in sorted(plan.records.values(), key=_number)],
        "best": winner.number,
        "best_config": f"{folder.path}/best.yaml",
        "results": f"{folder.path}/results.parquet",
    }


def _draw(search: Search, result: dict[str, Any]) -> list[str]:
    folder = search.sweep.folder.child(PICTURES)
    for name, content in pictures.render(result).items():
        folder.replace_bytes(name, content)
    return [f"{folder.path}/{name}" for name in folder.files()]


def _number(record: Record) -> int:
    return record.number


def _row(search: Search, record: Record) -> dict[str, Any]:
    best = search.goal.best(record.history)
    entry = next((e for e in record.history if best and e["epoch"] == best[0]), {})
    return {
        "trial": record.number,
        "status": record.status,
        "value": best[1] if best else None,
        "sd": entry.get(f"{search.goal.metric} sd"),
        "best_epoch": best[0] if best else None,
        "epochs": len(record.history),
        "settings": record.point,
        "error": record.error,
    }


def _judge(search: Search, plan: Plan, winner: Record, log: Log) -> dict[str, Any] | None:
    """Winner and trial 0 on test; this is where its files are opened for the first time."""
    if not search.data.manifest["splits"]["test"]["rows"]:
        log("the data set has no test split to measure on")
        return None
    trained = (r for r in plan.records.values() if r.status != "failed" and r.history)
    own = next((r for r in trained if r.number == 0), None)
    names = {"winner": winner} if own in (None, winner) else {"winner": winner, "preset": own}
    tables: dict[str, PerUserMetrics] = {}
    out: dict[str, Any] = {"metric": search.goal.metric, "seeds": search.order.seeds}
    for name, record in names.items():
        if record is not None:
            out[name], tables[name] = _measured(search, record, name, log)
    comparison = None
    if "preset" in tables:
        comparison = compare(tables["winner"], tables["preset"], search.goal.metric)
        out["difference"] = {
            "value": comparison.difference,
            "low": comparison.low,
            "high": comparison.high,
        }
    out["verdict"] = verdict(comparison, own is winner)
    return out


def verdict(comparison: Comparison | None, own_won: bool) -> str:
    """What the search was worth, in words."""
    if own_won:
        return f"the search found nothing better than {OWN}"
    if comparison is None:
        return f"{OWN} could not be trained: there is nothing to compare the winner with"
    words = f"on test, {comparison.words(OWN)}"
    return words if comparison.sign else f"{words}: the search gained nothing distinguishable"


def _measured(
    search: Search, record: Record, name: str, log: Log
) -> tuple[dict[str, Any], PerUserMetrics]:
    """The trial's settings trained with each seed, on validation and on test."""
    metric, first = search.goal.metric, int(record.settings["train"]["seed"])
    valid, tables = [], []
    for seed in range(first, first + search.order.seeds):
        folder = search.sweep.folder.child(FINAL).child(f"{name}-{record.key}-seed-{seed}")
        summary = trainer.run(
            seeded(record.settings, seed),
            search.order.prepared,
            folder.path,
            search.order.workers,
            resume=True,
            address=search.order.address,
        )
        valid.append(float(summary["best"][metric]))
        tables.append(_on_test(search, RunFolder(folder.path)))
        value = summarise(tables[-1], [metric])[metric].value
        log(f"trial {record.number}, seed {seed}: {metric} valid {valid[-1]:.4f} test {value:.4f}")
    each = [summarise(table, [metric])[metric].value for table in tables]
    mean = mean_of(tables)
    facts = {
        "trial": record.number,
        "valid": statistics.fmean(valid),
        "test": summarise(mean, [metric])[metric].model_dump(),
        "each": [{"valid": v, "test": t} for v, t in zip(valid, each, strict=True)],
    }
    return facts, mean


def _on_test(search: Search, run: RunFolder) -> PerUserMetrics:
    """What the best epoch of a run shows each user, on test."""
    settings = build_settings(run.facts()["settings"])
    prepared = Prepared.open(search.order.prepared)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    with tempfile.TemporaryDirectory(prefix="recray-tune-") as folder:
        bundle = write_bundle(
            f"{folder}/bundle", prepared, run.trained_model(), settings, created, _unmeasured
        )
        evaluator = Evaluator(bundle)
        blocks = range(len(evaluator.blocks))
        return PerUserMetrics.join(evaluator.measure_block(b)["model"] for b in blocks)


def _unmeasured(_bundle: Bundle) -> dict[str, Any]:
    return {}


def mean_of(tables: list[PerUserMetrics]) -> PerUserMetrics:
    """Each user's mean over several runs of the same settings.

    Raises:
        ValueError: The tables are not about the same users.
    """
    first = tables[0]
    if any(not np.array_equal(first.user, table.user) for table in tables):
        raise ValueError("a mean over runs needs the same users in every table")
    values = {
        name: np.mean([table.values[name] for table in tables], axis=0) for name in first.values
    }
    return PerUserMetrics(first.user, values, np.sum([table.shown for table in tables], axis=0))
