"""A search and its final test: the winner is trained anew and measured once on the test split.

The settings that the search started from are trained and measured in the same way.
"""

import statistics
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime

import numpy as np

from recray.config import build_settings
from recray.data.dataset import Prepared
from recray.evaluation.comparison import Comparison, compare, summarise
from recray.evaluation.evaluator import Evaluator
from recray.evaluation.fold_in import choose_fold_in
from recray.evaluation.metrics import PerUserMetrics
from recray.evaluation.report import Interval
from recray.inference.bundle_writer import write_bundle
from recray.progress import Log
from recray.runtime.session import session
from recray.training import trainer
from recray.training.checkpoint import RunFolder
from recray.tuning import tuner
from recray.tuning.driver import OnUpdate
from recray.tuning.request import ValidatedSearch
from recray.tuning.results import FinalTest, SeedScore, TestScore, TrialSummary, TuneResult
from recray.tuning.store import TrialResult

PRESET_VALUES = "the preset's own values"

Draw = Callable[[TuneResult], list[str]]
"""Draws plots of a search; returns their files."""


def tune(
    search: ValidatedSearch,
    log: Log = print,
    on_update: OnUpdate | None = None,
    draw: Draw | None = None,
) -> TuneResult:
    """Search, measure the winner on the test split, and write summary.json.

    Args:
        search: A search that was checked.
        log: Receives what happens after the search, one line at a time.
        on_update: Called with each report and each end of a trial.
        draw: Called with the result before the final test, which may take long.

    Raises:
        RecrayError: What the user can fix.
    """
    with session(search.request.address):
        trials = tuner.run(search, on_update)
        winner = search.metric.winner(trials)
        if winner is None:
            raise ValueError("a search without a winner came to its end")
        result = _result(search, trials, winner)
        if draw is not None:
            result.pictures = draw(result)
        if search.request.seeds:
            result.test = _final_test(search, trials, winner, log)
    search.sweep.write_summary(result)
    return result


def _result(search: ValidatedSearch, trials: list[TrialResult], winner: TrialResult) -> TuneResult:
    folder, request = search.sweep.folder, search.request
    return TuneResult(
        sweep=folder.path,
        dataset=search.data.manifest["dataset"],
        preset=search.settings.preset,
        metric=search.metric.name,
        lower_is_better=search.metric.lower_is_better,
        searcher=request.searcher,
        scheduler=request.scheduler,
        folds=request.folds,
        workers=request.workers,
        space={p.setting: p.plain() for p in search.space},
        trials=[_summary(search, trial) for trial in trials],
        best=winner.number,
        best_config=f"{folder.path}/best.yaml",
        results=f"{folder.path}/results.parquet",
    )


def _summary(search: ValidatedSearch, trial: TrialResult) -> TrialSummary:
    best = search.metric.best(trial.history)
    entry = next((e for e in trial.history if best and e["epoch"] == best[0]), {})
    return TrialSummary(
        trial=trial.number,
        status=trial.status,
        value=best[1] if best else None,
        sd=entry.get(f"{search.metric.name} sd"),
        best_epoch=best[0] if best else None,
        epochs=len(trial.history),
        settings=trial.point,
        error=trial.error,
    )


def _final_test(
    search: ValidatedSearch, trials: list[TrialResult], winner: TrialResult, log: Log
) -> FinalTest | None:
    """Measure the winner and trial 0; here the files of the test split are opened first."""
    if not search.data.manifest["splits"]["test"]["rows"]:
        log("the data set has no test split to measure on")
        return None
    metric = search.metric.name
    score, table = _retrain(search, winner, "winner", log)
    test = FinalTest(metric=metric, seeds=search.request.seeds, winner=score)
    comparison, preset = None, next((t for t in trials if t.number == 0 and _trained(t)), None)
    if preset is not None and preset is not winner:
        test.preset, preset_table = _retrain(search, preset, "preset", log)
        comparison = compare(table, preset_table, metric)
        low, high = comparison.low, comparison.high
        test.difference = Interval(value=comparison.difference, low=low, high=high)
    test.verdict = verdict(comparison, preset is winner)
    return test


def _trained(trial: TrialResult) -> bool:
    return trial.status != "failed" and bool(trial.history)


def verdict(comparison: Comparison | None, preset_won: bool) -> str:
    """Say in words what the search was worth."""
    if preset_won:
        return f"the search found nothing better than {PRESET_VALUES}"
    if comparison is None:
        return f"{PRESET_VALUES} could not be trained: there is nothing to compare the winner with"
    words = f"on test, {comparison.words(PRESET_VALUES)}"
    return words if comparison.sign else f"{words}: the search gained nothing distinguishable"


def _retrain(
    search: ValidatedSearch, trial: TrialResult, name: str, log: Log
) -> tuple[TestScore, PerUserMetrics]:
    """Train the trial's settings with each seed; measure on the validation and the test split."""
    metric, request = search.metric.name, search.request
    settings = build_settings(trial.settings)
    first = settings.train.seed
    scores, tables = [], []
    for seed in range(first, first + request.seeds):
        folder = search.sweep.folder.child("final").child(f"{name}-{trial.key}-seed-{seed}")
        summary = trainer.run(
            settings.changed(train={"seed": seed}),
            request.prepared,
            folder.path,
            request.workers,
            resume=True,
            address=request.address,
        )
        tables.append(_measure(search, RunFolder(folder.path)))
        test = summarise(tables[-1], [metric])[metric].value
        scores.append(SeedScore(valid=summary.best[metric], test=test))
        values = f"valid {scores[-1].valid:.4f} test {test:.4f}"
        log(f"trial {trial.number}, seed {seed}: {metric} {values}")
    mean = mean_over_seeds(tables)
    score = TestScore(
        trial=trial.number,
        valid=statistics.fmean(score.valid for score in scores),
        test=summarise(mean, [metric])[metric],
        each=scores,
    )
    return score, mean


def _measure(search: ValidatedSearch, run: RunFolder) -> PerUserMetrics:
    """Measure the best epoch of a run on each user of the test split."""
    prepared, settings = Prepared.open(search.request.prepared), run.metadata().settings
    created = datetime.now(UTC).isoformat(timespec="seconds")
    with tempfile.TemporaryDirectory(prefix="recray-tune-") as folder:
        bundle = write_bundle(
            f"{folder}/bundle",
            prepared,
            choose_fold_in(prepared, run.trained_model(), settings),
            settings,
            created,
            lambda _: {},
        )
        evaluator = Evaluator(bundle)
        blocks = range(len(evaluator.blocks))
        return PerUserMetrics.join(evaluator.measure_block(b)["model"] for b in blocks)


def mean_over_seeds(tables: list[PerUserMetrics]) -> PerUserMetrics:
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
