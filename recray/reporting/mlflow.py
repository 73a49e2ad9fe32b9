"""MLflow: the epochs of a run as they come, and the trials of a finished sweep.

A sweep is one run of MLflow with a run below it for each trial, in which every epoch is a step.
Exported again, a sweep adds the trials that have ended since, and touches no other.
"""

import contextlib
import json
import logging
import math
import os
import socket
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from pydantic import BaseModel

from recray.errors import RecrayError
from recray.runtime.loopback import not_proxied
from recray.storage import Folder, is_uri
from recray.training.callbacks import LoggerFactory, tagged
from recray.training.run_metadata import EpochEntry, RunMetadata
from recray.tuning.request import FIXED_OPTIONS
from recray.tuning.store import SweepFolder, SweepMetadata, TrialResult

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

MAX_CHARACTERS = 500
"""Characters of a value that every store of MLflow takes."""
MAX_METRICS = 1000
"""Metrics that MLflow takes at once."""
CONNECT_TIMEOUT_S = 3
RUN_FILE, RUN_EXPERIMENT = "mlflow.json", "recray"
"""The file in which a run remembers its name in MLflow, and the experiment of all runs."""
PARENT, KEY = "mlflow.parentRunId", "recray.trial"
STATUS: dict[str, str] = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


def require_mlflow() -> type["MlflowClient"]:
    """Load MLflow's client.

    Raises:
        RecrayError: MLflow is not installed.
    """
    try:
        import mlflow.tracking
    except ImportError as error:
        raise RecrayError(
            "MLflow needs the package mlflow-skinny: pip install 'recray[mlflow]'"
        ) from error
    found: type[MlflowClient] = mlflow.tracking.MlflowClient
    return found


@contextlib.contextmanager
def mlflow_errors(message: str) -> Iterator[None]:
    """Turn what MLflow raises inside the block into one line that begins with `message`.

    Raises:
        RecrayError: MLflow or its store refuses.
    """
    require_mlflow()
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, ImportError, OSError) as error:
        raise RecrayError(f"{message}: {str(error).splitlines()[0][:200]}") from error


class MLflowExperiment:
    """One experiment of an MLflow server or store; it is created where it does not exist.

    Args:
        store: A folder, or the URI of a tracking server or store.
        name: Name of the experiment.

    Raises:
        OSError: Nothing listens at the server's address.
    """

    def __init__(self, store: str, name: str) -> None:
        client = require_mlflow()
        if not is_uri(store):
            store = os.path.abspath(store)
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # a folder has to be allowed
        _check_reachable(store)
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        self.store, self.client = store, _DirectClient(client(tracking_uri=store), store)
        found = self.client.get_experiment_by_name(name)
        self.id = str(found.experiment_id if found else self.client.create_experiment(name))

    def create_run(self, name: str, tags: Mapping[str, str] | None = None) -> str:
        """Begin a run; returns MLflow's id of it."""
        run = self.client.create_run(self.id, tags=dict(tags or {}), run_name=name)
        return str(run.info.run_id)

    def find_run(self, condition: str) -> str | None:
        """Find the id of a run by a filter in MLflow's own words."""
        runs = self.client.search_runs([self.id], condition, max_results=1)
        return str(runs[0].info.run_id) if runs else None

    def log_params(self, run: str, values: Mapping[str, str]) -> None:
        """Write parameters, each cut to what every store takes."""
        for name, value in values.items():
            self.client.log_param(run, name, value[:MAX_CHARACTERS])

    def log_metrics(self, run: str, rows: Iterable[tuple[str, float, int]]) -> None:
        """Write (name, value, epoch) rows."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(mlflow_name(n), float(v), now, epoch) for n, v, epoch in rows]
        for first in range(0, len(metrics), MAX_METRICS):
            self.client.log_batch(run, metrics=metrics[first : first + MAX_METRICS])

    def last_step(self, run: str, metric: str) -> int:
        """Find the last epoch of which a run has the metric; 0 without any."""
        history = self.client.get_metric_history(run, metric)
        return max((int(entry.step) for entry in history), default=0)


class _DirectClient:
    """MLflow's client, which asks a server of this machine past the proxies of the environment.

    Args:
        client: The client.
        store: Its server or store.
    """

    def __init__(self, client: Any, store: str) -> None:
        self._client, self._store = client, store

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def call(*values: Any, **named: Any) -> Any:
            with not_proxied(self._store):
                return method(*values, **named)

        return call


def mlflow_name(metric: str) -> str:
    """A metric as MLflow lets it be called: ndcg@10 is ndcg_at_10."""
    return metric.replace("@", "_at_")


def _check_reachable(uri: str) -> None:
    """Connect once: MLflow itself would try for minutes what this shows at once.

    Raises:
        OSError: Nothing listens there.
    """
    place = urlparse(uri)
    if place.scheme not in ("http", "https"):
        return
    port = place.port or (443 if place.scheme == "https" else 80)
    address = place.hostname or "", port
    try:
        socket.create_connection(address, timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise OSError(f"nothing answers there: {error}") from error


# ------------------------------------------------------------------------------ epochs of a run


def mlflow_logger(uri: str) -> LoggerFactory:
    """Log to MLflow: parameters once, metrics each epoch; a continued run goes on in its own.

    Args:
        uri: Tracking server or store, such as http://127.0.0.1:5000 or sqlite:///mlflow.db.

    Raises:
        RecrayError: MLflow is not installed.
    """
    require_mlflow()
    return lambda folder, metadata, history: MLflowLogger(uri, folder, metadata, history)


class MLflowLogger:
    """A run of the experiment "recray".

    Args:
        uri: Tracking server or store.
        folder: The run's folder; it remembers MLflow's name for the run.
        metadata: What the run is.
        history: Epochs done before, which MLflow may have already.

    Raises:
        RecrayError: Nothing answers there, or it refuses.
    """

    name = "mlflow"

    def __init__(
        self, uri: str, folder: Folder, metadata: RunMetadata, history: list[EpochEntry]
    ) -> None:
        with mlflow_errors(f"--mlflow {uri}"):
            self.experiment = MLflowExperiment(uri, RUN_EXPERIMENT)
            before = self._continued(uri, folder)
            self.run = before or self._begin(folder, metadata)
            if before is None:
                folder.write_json(RUN_FILE, {"uri": uri, "run": self.run})
            last = self.experiment.last_step(self.run, "train/loss") if before else 0
            for entry in history:  # also what a kill kept back
                if entry["epoch"] > last:
                    self.epoch(entry)

    def _continued(self, uri: str, folder: Folder) -> str | None:
        """MLflow's name for the run, if it has been there before."""
        if not folder.exists(RUN_FILE):
            return None
        before = folder.read_json(RUN_FILE)
        if before["uri"] != uri:
            return None
        self.experiment.client.update_run(before["run"], status="RUNNING")
        return str(before["run"])

    def _begin(self, folder: Folder, metadata: RunMetadata) -> str:
        run = self.experiment.create_run(folder.name)
        params: dict[str, str] = {}
        for group, values in metadata.settings.plain().items():
            named = values if isinstance(values, dict) else {"": values}
            params |= {f"{group}.{k}".rstrip("."): json.dumps(v) for k, v in named.items()}
        params |= {"dataset": metadata.dataset, "fingerprint": metadata.fingerprint}
        self.experiment.log_params(run, params | {"workers": str(metadata.workers)})
        return run

    def epoch(self, entry: EpochEntry) -> None:
        """Take the next epoch's metrics."""
        rows = [(name, value, int(entry["epoch"])) for name, value in tagged(entry).items()]
        self.experiment.log_metrics(self.run, rows)

    def close(self, finished: bool) -> None:
        """Mark the run as finished or killed."""
        self.experiment.client.set_terminated(self.run, "FINISHED" if finished else "KILLED")


# ----------------------------------------------------------------------------- trials of a sweep


class SweepExport(BaseModel):
    """What an export has written.

    Args:
        experiment: Its name in MLflow.
        store: Folder, or URI of the tracking server.
        run: MLflow's id of the sweep's run.
        trials: Trials that have ended.
        added: Those of them that were not there before.
    """

    experiment: str
    store: str
    run: str
    trials: int
    added: int


def export_sweep(path: str, store: str, experiment: str | None = None) -> SweepExport:
    """Write the trials of a sweep that have ended to MLflow.

    Args:
        path: Folder of the sweep.
        store: A folder, or the URI of a tracking server.
        experiment: Its name; None takes the data set and the preset.

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
        added = sum(_add_trial(target, parent, trial) for trial in trials)
        _finish(target, parent, sweep)
    return SweepExport(
        experiment=name, store=target.store, run=parent, trials=len(trials), added=added
    )


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
