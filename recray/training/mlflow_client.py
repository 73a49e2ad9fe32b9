"""Runs, parameters and metrics in MLflow: the one way for the epochs of a run and for a sweep."""

import contextlib
import logging
import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlparse

from recray.errors import RecrayError
from recray.storage import is_uri

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

MAX_CHARACTERS = 500
"""Characters of a value that every store of MLflow takes."""
MAX_METRICS = 1000
"""Metrics that MLflow takes at once."""
CONNECT_TIMEOUT_S = 3


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
        self.store, self.name, self.client = store, name, client(tracking_uri=store)
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
