"""A sweep in MLflow: a run a trial below one of the sweep, every epoch a step.

Exported again, a sweep adds the trials that have ended since, and touches no other.
"""

import math
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recray.errors import RecrayError
from recray.storage import Folder, is_uri
from recray.tuning.request import FIXED_OPTIONS
from recray.tuning.results import TrialResult
from recray.tuning.store import SweepFolder, SweepMetadata

BATCH = 1000
"""Metrics that MLflow takes at once."""
PARENT, KEY = "mlflow.parentRunId", "recray.trial"
STATUS: dict[str, str] = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
LONGEST = 500
"""Characters of a value that every store of MLflow takes."""


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
    records = sweep.trials()
    mlflow = _import_mlflow()
    name = experiment or f"{metadata.dataset}-{metadata.settings['preset']}"
    try:
        target = _Target.open(mlflow, store, name)
        return target.add(sweep, metadata, records)
    except (mlflow.exceptions.MlflowException, OSError) as error:
        line = str(error).splitlines()[0][:200]
        raise RecrayError(f"MLflow at {store} does not take the sweep: {line}") from error


def _import_mlflow() -> Any:
    try:
        import mlflow.entities
        import mlflow.tracking
    except ImportError as error:
        raise RecrayError(
            "the export needs the package mlflow-skinny: pip install 'recray[mlflow]'"
        ) from error
    return mlflow


@dataclass(frozen=True)
class _Target:
    """An experiment of an MLflow store.

    Args:
        mlflow: The package.
        client: What writes.
        store: Where it writes.
        experiment: The name.
        id: MLflow's id of the experiment.
    """

    mlflow: Any
    client: Any
    store: str
    experiment: str
    id: str

    @classmethod
    def open(cls, mlflow: Any, store: str, experiment: str) -> "_Target":
        if not is_uri(store):
            store = os.path.abspath(store)
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # a folder has to be allowed
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # its 7 take minutes
        client = mlflow.tracking.MlflowClient(store)
        found = client.get_experiment_by_name(experiment)
        identity = found.experiment_id if found else client.create_experiment(experiment)
        return cls(mlflow, client, store, experiment, identity)

    def add(
        self, sweep: SweepFolder, metadata: SweepMetadata, records: list[TrialResult]
    ) -> dict[str, Any]:
        """Write the sweep's run and those trials that are not there."""
        parent = self._find(f"tags.`recray.sweep` = '{sweep.folder.path}'")
        if parent is None:
            tags = {"recray.sweep": sweep.folder.path, "recray.dataset": metadata.dataset}
            made = self.client.create_run(self.id, tags=tags, run_name=sweep.folder.name)
            parent = str(made.info.run_id)
        options = {name: getattr(metadata, name) for name in FIXED_OPTIONS}
        self._params(parent, options | {f"search {n}": v for n, v in metadata.space.items()})
        added = 0
        for record in records:
            wanted = f"tags.`{PARENT}` = '{parent}' and tags.`{KEY}` = '{record.key}'"
            if self._find(wanted) is None:
                self._trial(parent, record)
                added += 1
        self._finish(parent, sweep.folder)
        return {
            "experiment": self.experiment,
            "store": self.store,
            "run": parent,
            "trials": len(records),
            "added": added,
        }

    def _find(self, wanted: str) -> str | None:
        runs = self.client.search_runs([self.id], wanted, max_results=1)
        return str(runs[0].info.run_id) if runs else None

    def _params(self, run: str, values: dict[str, Any]) -> None:
        for name, value in values.items():
            self.client.log_param(run, name, str(value)[:LONGEST])

    def _trial(self, parent: str, record: TrialResult) -> None:
        tags: dict[str, str] = {"recray.status": record.status}
        if record.error:
            tags["recray.error"] = record.error[:LONGEST]
        made = self.client.create_run(
            self.id, tags={PARENT: parent, **tags}, run_name=f"trial {record.number}"
        )
        run = str(made.info.run_id)
        self._params(run, record.point)
        when, metric = int(made.info.start_time), self.mlflow.entities.Metric
        metrics = [metric(name, value, when, epoch) for name, value, epoch in _metrics(record)]
        for first in range(0, len(metrics), BATCH):
            self.client.log_batch(run, metrics=metrics[first : first + BATCH])
        self.client.set_tag(run, KEY, record.key)  # last: without it the trial is added again
        self.client.set_terminated(run, STATUS[record.status])

    def _finish(self, parent: str, folder: Folder) -> None:
        """What describes the sweep as a whole, as it is now."""
        result = SweepFolder(folder.path).summary()
        if result is not None:
            self.client.log_metric(parent, mlflow_name(f"best {result.metric}"), result.best_value)
        with tempfile.TemporaryDirectory(prefix="recray-mlflow-") as local:
            for file in folder.files():
                if file in ("best.yaml", "results.parquet") or file.startswith("pictures/"):
                    target = Path(local) / file
                    target.parent.mkdir(exist_ok=True)
                    target.write_bytes(folder.read_bytes(file))
            self.client.log_artifacts(parent, local)
        self.client.set_terminated(parent)


def _metrics(record: TrialResult) -> Iterator[tuple[str, float, int]]:
    """(name, value, epoch) of all that was measured."""
    for entry in record.history:
        for name, value in entry.items():
            if name != "epoch" and math.isfinite(value):
                yield mlflow_name(name), float(value), int(entry["epoch"])


def mlflow_name(metric: str) -> str:
    """A metric as MLflow lets it be called: ndcg@10 is ndcg_at_10."""
    return metric.replace("@", "_at_")
