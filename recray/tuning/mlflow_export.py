"""A sweep in MLflow: a run for each trial below one of the sweep, every epoch a step.

Exported again, a sweep adds the trials that have ended since, and touches no other.
"""

import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recray.errors import RecrayError
from recray.training.mlflow_client import (
    MAX_CHARACTERS,
    MLflowExperiment,
    mlflow_errors,
    mlflow_name,
)
from recray.tuning.request import FIXED_OPTIONS
from recray.tuning.results import TrialResult
from recray.tuning.store import SweepFolder, SweepMetadata

PARENT, KEY = "mlflow.parentRunId", "recray.trial"
STATUS: dict[str, str] = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


def export(path: str, store: str, experiment: str | None = None) -> dict[str, Any]:
    """Write the trials of a sweep that have ended to MLflow.

    Args:
        path: Folder of the sweep.
        store: A folder, or the URI of a tracking server.
        experiment: Its name; None takes the data set and the preset.

    Returns:
        {"experiment", "store", "run": id of the sweep's run, "trials", "added"}

    Raises:
        RecrayError: There is no such sweep, MLflow is not installed, or its store says no.
    """
    sweep = SweepFolder(path)
    metadata = sweep.metadata()
    if metadata is None:
        raise RecrayError(f"{path} holds no sweep; make one with `recray tune`")
    trials = sweep.trials()
    name = experiment or f"{metadata.dataset}-{metadata.settings['preset']}"
    with mlflow_errors(f"MLflow at {store} does not take the sweep"):
        target = MLflowExperiment(store, name)
        parent = _parent_run(target, sweep, metadata)
        added = [_add_trial(target, parent, trial) for trial in trials]
        _finish(target, parent, sweep)
    return {
        "experiment": target.name,
        "store": target.store,
        "run": parent,
        "trials": len(trials),
        "added": sum(added),
    }


def _parent_run(target: MLflowExperiment, sweep: SweepFolder, metadata: SweepMetadata) -> str:
    """Find the run of the sweep, or create it; its parameters are what was asked for."""
    parent = target.find_run(f"tags.`recray.sweep` = '{sweep.folder.path}'")
    if parent is None:
        tags = {"recray.sweep": sweep.folder.path, "recray.dataset": metadata.dataset}
        parent = target.create_run(sweep.folder.name, tags)
    asked = {name: getattr(metadata, name) for name in FIXED_OPTIONS}
    asked |= {f"search {name}": value for name, value in metadata.space.items()}
    target.log_params(parent, {name: str(value) for name, value in asked.items()})
    return parent


def _add_trial(target: MLflowExperiment, parent: str, trial: TrialResult) -> bool:
    """Write a trial unless it is there; returns whether it was added."""
    if target.find_run(f"tags.`{PARENT}` = '{parent}' and tags.`{KEY}` = '{trial.key}'"):
        return False
    tags: dict[str, str] = {PARENT: parent, "recray.status": trial.status}
    if trial.error:
        tags["recray.error"] = trial.error[:MAX_CHARACTERS]
    run = target.create_run(f"trial {trial.number}", tags)
    target.log_params(run, {name: str(value) for name, value in trial.point.items()})
    target.log_metrics(run, _metrics(trial))
    target.client.set_tag(run, KEY, trial.key)  # last: without it the trial is added again
    target.client.set_terminated(run, STATUS[trial.status])
    return True


def _finish(target: MLflowExperiment, parent: str, sweep: SweepFolder) -> None:
    """Write what describes the sweep as a whole, as it is now."""
    folder, result = sweep.folder, sweep.summary()
    if result is not None:
        name = mlflow_name(f"best {result.metric}")
        target.client.log_metric(parent, name, result.best_value)
    with tempfile.TemporaryDirectory(prefix="recray-mlflow-") as local:
        for file in folder.files():
            if file in ("best.yaml", "results.parquet") or file.startswith("pictures/"):
                copy = Path(local) / file
                copy.parent.mkdir(exist_ok=True)
                copy.write_bytes(folder.read_bytes(file))
        target.client.log_artifacts(parent, local)
    target.client.set_terminated(parent)


def _metrics(trial: TrialResult) -> Iterator[tuple[str, float, int]]:
    """Yield (name, value, epoch) of all that was measured."""
    for entry in trial.history:
        for name, value in entry.items():
            if name != "epoch" and math.isfinite(value):
                yield name, float(value), int(entry["epoch"])
