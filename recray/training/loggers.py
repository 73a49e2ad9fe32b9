"""Logbooks of other tools: TensorBoard event files in the run's folder, and MLflow."""

import json
import logging
import math
import re
import socket
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from recray.errors import RecrayError
from recray.schema import TIMINGS
from recray.storage import Folder, is_uri
from recray.training.callbacks import Entry, OpenLogbook

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

EVENTS = "tensorboard"
PATIENCE_S = 2.0
"""TensorBoard takes half a second to load; a run that is shorter than this waits for it once."""
MLFLOW_RUN = "mlflow.json"
EXPERIMENT = "recray"


def _groups(entry: Entry) -> dict[str, float]:
    """The numbers of an entry as train/loss, valid/rmse, speed/seconds."""
    groups = {"loss": "train"} | dict.fromkeys(TIMINGS, "speed")
    numbers = {k: v for k, v in entry.items() if k != "epoch" and math.isfinite(v)}
    return {f"{groups.get(name, 'valid')}/{name}": value for name, value in numbers.items()}


class TensorBoard:
    """Event files in RUN/tensorboard, by torch's writer.

    They are written anew when a run is continued, so that no epoch is there twice or lacking.

    Args:
        folder: The run's folder; in an object store the files come when the run ends.
        facts: What the run is.
        history: Epochs done before.
    """

    name = "tensorboard"

    def __init__(self, folder: Folder, facts: dict[str, Any], history: list[Entry]) -> None:
        self.folder, self.facts, self.pending = folder.child(EVENTS), facts, list(history)
        self.begin = time.monotonic()
        self.writer: SummaryWriter | None = None
        self.local = self.folder.path
        if is_uri(folder.path):
            self.scratch = tempfile.TemporaryDirectory(prefix="recray-events-")
            self.local = self.scratch.name

    def epoch(self, entry: Entry) -> None:
        """Take the next epoch's metrics."""
        self.pending.append(entry)
        if time.monotonic() - self.begin > PATIENCE_S:
            self._write()

    def close(self, finished: bool) -> None:
        """Write what is left."""
        if self.pending:
            self._write()
        if self.writer is not None:
            self.writer.close()
        if is_uri(self.folder.path):
            for path in Path(self.local).iterdir():
                self.folder.write_bytes(path.name, path.read_bytes())
            self.scratch.cleanup()

    def _write(self) -> None:
        if self.writer is None:
            self.folder.delete()
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(self.local)
            settings = json.dumps(self.facts["settings"], indent=1)
            self.writer.add_text("settings", f"```\n{settings}\n```")
        for entry in self.pending:
            for name, value in _groups(entry).items():
                self.writer.add_scalar(name, value, entry["epoch"])
        self.writer.flush()
        self.pending.clear()


def mlflow(uri: str) -> OpenLogbook:
    """A logbook in MLflow: parameters once, metrics each epoch; a continued run goes on in its own.

    Args:
        uri: Tracking server or store, such as http://127.0.0.1:5000 or sqlite:///mlflow.db.

    Raises:
        RecrayError: MLflow is not installed.
    """
    try:
        from mlflow.tracking import MlflowClient  # noqa: F401
    except ImportError as error:
        raise RecrayError(
            "--mlflow needs the package mlflow-skinny: pip install 'recray[mlflow]'"
        ) from error
    return lambda folder, facts, history: Mlflow(uri, folder, facts, history)


class Mlflow:
    """A run of the experiment "recray".

    Args:
        uri: Tracking server or store.
        folder: The run's folder; it remembers MLflow's name for the run.
        facts: What the run is.
        history: Epochs done before, which MLflow has been told of.

    Raises:
        RecrayError: Nothing answers there, or it refuses.
    """

    name = "mlflow"

    def __init__(
        self, uri: str, folder: Folder, facts: dict[str, Any], history: list[Entry]
    ) -> None:
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        _refuse_unreachable(uri)
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        try:
            self.client = MlflowClient(tracking_uri=uri)
            before = self._continued(uri, folder)
            self.run = before or self._begun(folder, facts)
            if before is None:
                folder.write_json(MLFLOW_RUN, {"uri": uri, "run": self.run})
            told = self.client.get_metric_history(self.run, "train/loss") if before else []
            last = max((metric.step for metric in told), default=0)
            for entry in history:  # also what a kill kept it from being told
                if entry["epoch"] > last:
                    self.epoch(entry)
        except (MlflowException, ImportError) as error:
            raise RecrayError(f"--mlflow {uri}: {str(error).splitlines()[0]}") from error

    def _continued(self, uri: str, folder: Folder) -> str | None:
        """MLflow's name for the run, if it has been there before."""
        if not folder.exists(MLFLOW_RUN):
            return None
        before = folder.read_json(MLFLOW_RUN)
        if before["uri"] != uri:
            return None
        self.client.update_run(before["run"], status="RUNNING")
        return str(before["run"])

    def _begun(self, folder: Folder, facts: dict[str, Any]) -> str:
        there = self.client.get_experiment_by_name(EXPERIMENT)
        experiment = there.experiment_id if there else self.client.create_experiment(EXPERIMENT)
        run: str = self.client.create_run(experiment, run_name=folder.name).info.run_id
        for group, values in facts["settings"].items():
            named = values if isinstance(values, dict) else {"": values}
            for key, value in named.items():
                self.client.log_param(run, f"{group}.{key}".rstrip("."), json.dumps(value)[:500])
        for name in ("dataset", "fingerprint", "workers"):
            self.client.log_param(run, name, facts[name])
        return run

    def epoch(self, entry: Entry) -> None:
        """Take the next epoch's metrics; "@" is not allowed in a name there."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [
            Metric(re.sub("@", "_at_", name), value, now, entry["epoch"])
            for name, value in _groups(entry).items()
        ]
        self.client.log_batch(self.run, metrics=metrics)

    def close(self, finished: bool) -> None:
        """Mark the run as finished or killed."""
        self.client.set_terminated(self.run, "FINISHED" if finished else "KILLED")


def _refuse_unreachable(uri: str) -> None:
    """MLflow would try for minutes what a connection shows at once.

    Raises:
        RecrayError: Nothing listens there.
    """
    place = urlparse(uri)
    if place.scheme not in ("http", "https"):
        return
    port = place.port or (443 if place.scheme == "https" else 80)
    try:
        socket.create_connection((place.hostname or "", port), timeout=3).close()
    except OSError as error:
        raise RecrayError(f"--mlflow {uri}: nothing answers there: {error}") from error
