"""RAY SERVE: the app of api.py as one deployment, the model inside the ingress."""

import contextlib
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

from recray.errors import RecrayError
from recray.inference.bundle import Bundle
from recray.runtime.session import LOCAL, session
from recray.serving.guard import Protection, load_keys, refuse_open_door
from recray.serving.metrics import Tally
from recray.serving.options import Beside
from recray.serving.registry import resolve_bundle
from recray.serving.serve_config import DEPLOYMENT, PRODUCTION_ENVIRONMENT, AppArgs
from recray.storage import Folder

if TYPE_CHECKING:
    from fastapi import FastAPI
    from ray.serve import Application

    from recray.serving.current_model import Live

NAME = DEPLOYMENT
EXPORT_SECONDS = 1.0
SECONDS_BUCKETS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0]
SHARE_BUCKETS = [0.1 * tenth for tenth in range(1, 11)]
DRIFT_BUCKETS = [0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0]
Profile = Literal["laptop", "production"]


def _builder(
    path: str, protection: Callable[[], Protection], beside: Beside
) -> "Callable[[], FastAPI]":
    """What builds the app on the replica, so that only the path and the settings travel there.

    Serve takes a plain function for a builder, and any other callable for an app.
    """

    def build() -> "FastAPI":
        import torch

        from recray.serving.app import build_app
        from recray.serving.hot_swap import Follower, open_live

        torch.set_num_threads(1)
        live, tally = open_live(path), Tally()
        if live.source is not None:
            Follower(live).start()
        feedback = beside.open_feedback(path, live.take())
        if feedback is not None:
            feedback.start()
        _export(live, tally)
        arms = beside.open_arms(live.take(), tally)
        return build_app(live, protection(), tally, arms, feedback)

    return build


def _export(live: "Live", tally: "Tally") -> None:
    """Hand what is counted to Ray's metrics again and again, beside the requests."""
    from ray.serve.metrics import Counter, Gauge, Histogram

    seconds_of_arm = Histogram(
        "recray_arm_seconds", "Time of a user's list.", SECONDS_BUCKETS, ("model_version",)
    )
    overlap = Histogram("recray_shadow_overlap", "Share of a list in both.", SHARE_BUCKETS)
    drift = Histogram("recray_shadow_drift", "Mean difference of scores.", DRIFT_BUCKETS)
    uncompared = Counter("recray_shadow_left_out", "Lists nothing was compared with.")
    tags: dict[str, Any] = {  # Ray declares tuples of one, and takes any
        "requests": ("endpoint", "method", "status"),
        "lists": ("source", "model_version"),
    }
    requests = Counter("recray_requests", "Requests.", tags["requests"])
    answers = Counter("recray_lists", "Lists by what made them.", tags["lists"])
    seconds = Histogram(
        "recray_request_seconds", "Time in the replica.", SECONDS_BUCKETS, ("endpoint",)
    )
    serving = Gauge("recray_model", "1 for the version that answers.", ("model_version",))
    swaps = Gauge("recray_model_swaps", "Models replaced since the replica began.")
    refusals = Gauge("recray_model_refusals", "Versions refused since the replica began.")
    stale = Gauge("recray_model_stale", "1 while an older version answers than is wanted.")

    def once(before: str) -> str:
        counts, version = tally.drain(), live.take().version
        for (route, method, status), count in counts.requests.items():
            requests.inc(count, {"endpoint": route, "method": method, "status": str(status)})
        for (source, made_by), count in counts.answers.items():
            answers.inc(count, {"source": source, "model_version": made_by})
        for route, value in counts.seconds:
            seconds.observe(value, {"endpoint": route})
        for made_by, value in counts.arms:
            seconds_of_arm.observe(value, {"model_version": made_by})
        for result in counts.compared:
            overlap.observe(result.overlap, {})
            if result.drift == result.drift:  # not nan
                drift.observe(result.drift, {})
        if counts.uncompared:
            uncompared.inc(counts.uncompared, {})
        if before not in ("", version):
            serving.set(0, {"model_version": before})
        serving.set(1, {"model_version": version})
        for gauge, number in (
            (swaps, live.swaps),
            (refusals, live.refusals),
            (stale, live.wanted != version),
        ):
            gauge.set(float(number), {})
        return version

    def run() -> None:
        version, pause = "", threading.Event()
        while not pause.wait(EXPORT_SECONDS):
            version = once(version)

    threading.Thread(target=run, name="recray-metrics", daemon=True).start()


def _application(
    path: str, protection: Callable[[], Protection], beside: Beside, **options: Any
) -> "Application":
    """The one deployment; its options may be changed by a Serve config."""
    from ray import serve
    from ray.serve.schema import LoggingConfig

    quiet = LoggingConfig(enable_access_log=False, log_level="WARNING")
    deployment = serve.deployment(
        name=NAME,
        max_surge_percent=100,  # a new replica answers before an old one stops
        ray_actor_options={"num_cpus": 0.25},
        logging_config=quiet,
        **options,
    )
    return deployment(serve.ingress(_builder(path, protection, beside))()).bind()


def app_builder(args: AppArgs) -> "Application":
    """What `import_path` of a Serve config names; see cluster/serve-production.yaml.

    The keys are read on each replica, where their file or secret is.
    """
    return _application(
        args.bundle,
        args.protection,
        args.beside(),
        max_ongoing_requests=2 * args.queue,
        graceful_shutdown_timeout_s=args.timeout + 10,
    )


def deploy(
    path: str, protection: Protection, replicas: int = 1, beside: Beside | None = None
) -> None:
    """Have the running Serve answer for a bundle or a registry; returns when it does.

    Called again, it replaces the replicas one after another, without a request that fails.

    Raises:
        RecrayError: It does not start.
    """
    from ray import serve

    app = _application(
        path,
        lambda: protection,
        beside or Beside(),
        num_replicas=replicas,
        # Above the app's own limit, so that its answer is the one that people see.
        max_ongoing_requests=2 * protection.queue,
        graceful_shutdown_timeout_s=protection.timeout + 10,
    )
    try:
        serve.run(app, name=NAME, route_prefix="/")
    except RuntimeError as error:
        raise RecrayError(f"the service did not start: {error}") from error


def _try_out(path: str, beside: Beside) -> None:
    """Open everything once.

    Raises:
        RecrayError: Something is missing, damaged, or of another data set.
    """
    from recray.inference.recommender import Recommender

    recommender = Recommender(Bundle.open(resolve_bundle(path)))
    beside.open_feedback(path, recommender)
    beside.open_arms(recommender, Tally())


def refuse_taken_port(host: str, port: int) -> None:
    """Refuse a port that something listens on; Serve alone would go on and never answer.

    Raises:
        RecrayError: The port is taken, or the host is not one of this machine's.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise RecrayError(
                f"cannot listen on {host}:{port}: {error.strerror}; give another --port"
            ) from error


def _refuse_other_service(host: str, port: int) -> None:
    """A Serve that runs on the cluster keeps its own door, and its app of this name.

    Raises:
        RecrayError: It listens elsewhere, or has such an app.
    """
    from ray import serve
    from ray.serve.context import _get_global_client, _set_global_client

    # Serve keeps its client after ray.shutdown() and knows it again by the number of the job,
    # which is the same in every new Ray on this machine: an old client must be forgotten first.
    _set_global_client(None)
    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        return
    if NAME in serve.status().applications:
        raise RecrayError(
            f"the cluster serves an app called {NAME} already; end it first (`serve shutdown`), "
            "promote to its registry, or `serve deploy` a file with a new args.revision"
        )
    there = client.http_config
    if (there.host, there.port) != (host, port):
        raise RecrayError(
            f"the cluster's Serve listens on {there.host}:{there.port} already; give "
            f"--host {there.host} --port {there.port}, or end it first (`serve shutdown`)"
        )


@contextlib.contextmanager
def serving(
    bundle: str,
    host: str = "127.0.0.1",
    port: int = 8000,
    replicas: int = 1,
    address: str = LOCAL,
    protection: Protection | None = None,
    profile: Profile = "laptop",
    beside: Beside | None = None,
) -> Iterator[str]:
    """Serve a bundle, or what is current in a registry, while the block runs.

    Args:
        bundle: A bundle's folder that the replicas can read, or a registry that they follow.
        host: Interface to bind.
        port: HTTP port.
        replicas: Processes that answer.
        address: Ray cluster.
        protection: Keys and limits; by default the keys of the environment.
        profile: production has HAProxy in place of Ray's own proxy, which binds every interface;
            a Ray that runs already keeps the one it was started with.
        beside: A ratings log and a second model; by default a registry's own log.

    Yields:
        The service's address; it answers.

    Raises:
        RecrayError: The port is taken, the bundle is missing or damaged, or the host lets other
            machines in and there are no keys.
    """
    protection = protection or Protection(keys=load_keys(None))
    bundle = Folder(bundle).path  # replicas have working folders of their own
    refuse_open_door("0.0.0.0" if profile == "production" else host, protection)
    beside = beside or Beside()
    _try_out(bundle, beside)  # here, where the user sees it, not in a replica's log
    if address == LOCAL:
        refuse_taken_port(host, port)
    if profile == "production":
        os.environ.update(PRODUCTION_ENVIRONMENT)
    with session(address):
        from ray import serve
        from ray.serve.config import HTTPOptions, ProxyLocation
        from ray.serve.schema import LoggingConfig

        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        _refuse_other_service(host, port)
        serve.start(
            proxy_location=ProxyLocation.HeadOnly,
            http_options=HTTPOptions(host=host, port=port),
            logging_config=LoggingConfig(enable_access_log=False, log_level="WARNING"),
        )
        try:
            deploy(bundle, protection, replicas, beside)
            yield f"http://{host}:{port}"
        finally:
            serve.delete(NAME)
