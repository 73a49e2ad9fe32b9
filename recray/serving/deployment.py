"""RAY SERVE: the app of app.py as one deployment, with the model inside the ingress."""

import contextlib
import math
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

from recray.errors import RecrayError
from recray.inference.bundle import Bundle
from recray.runtime.environment import switched
from recray.runtime.ray_switches import PRODUCTION_SWITCHES
from recray.runtime.session import LOCAL, ray_runs, session
from recray.serving.auth import load_keys, require_keys
from recray.serving.guard import ServiceMetrics
from recray.serving.log import log, replicas_shown
from recray.serving.options import DEPLOYMENT, AppArgs, ServiceLimits, ServiceOptions
from recray.serving.ray_serve import ray_serve, refuse_taken_port
from recray.serving.registry import resolve_bundle
from recray.storage import Folder

if TYPE_CHECKING:
    from fastapi import FastAPI
    from ray.serve import Application

    from recray.serving.hot_swap import ModelHolder

NAME = DEPLOYMENT
EXPORT_SECONDS = 1.0
SWITCH_SECONDS = 0.001
SECONDS_BUCKETS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0]
SHARE_BUCKETS = [0.1 * tenth for tenth in range(1, 11)]
SCORE_DIFF_BUCKETS = [0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0]
Profile = Literal["laptop", "production"]


def _builder(
    path: str, limits: Callable[[], ServiceLimits], options: ServiceOptions
) -> "Callable[[], FastAPI]":
    """Return the function that builds the app on a replica.

    Serve sends it to the replica, so it holds no model but the path of one. It must be a plain
    function: Serve takes any other callable for the app itself.
    """

    def build() -> "FastAPI":
        import torch

        from recray.serving.app import build_app
        from recray.serving.hot_swap import RegistryWatcher, open_holder

        torch.set_num_threads(1)
        # A long list in Python keeps a short request waiting so long each time that both want to go
        # on; by default 5 ms.
        sys.setswitchinterval(SWITCH_SECONDS)
        holder, metrics = open_holder(path), ServiceMetrics()
        if holder.registry is not None:
            RegistryWatcher(holder).start()
        feedback = options.open_feedback(path, holder.model)
        if feedback is not None:
            feedback.start()
        MetricsExporter(holder, metrics).start()
        ab_test = options.open_ab_test(holder.model, metrics)
        return build_app(holder, limits(), metrics, ab_test, feedback)

    return build


class MetricsExporter:
    """Hands the counters of a replica to Ray's metrics, in a thread beside the requests.

    Args:
        holder: Holds the model whose version is exported.
        metrics: The counters.
    """

    def __init__(self, holder: "ModelHolder", metrics: ServiceMetrics) -> None:
        from ray.serve.metrics import Counter, Gauge, Histogram

        self.holder, self.metrics = holder, metrics
        self._version = ""  # the version that was exported last
        # Ray's type hints allow tuples of one name alone; it takes any number of them.
        request_tags: Any = ("endpoint", "method", "status")
        list_tags: Any = ("source", "model_version")
        self.requests = Counter("recray_requests", "Requests.", request_tags)
        self.lists = Counter("recray_lists", "Lists by what made them.", list_tags)
        self.request_seconds = Histogram(
            "recray_request_seconds", "Time in the replica.", SECONDS_BUCKETS, ("endpoint",)
        )
        self.list_seconds = Histogram(
            "recray_arm_seconds", "Time of a user's list.", SECONDS_BUCKETS, ("model_version",)
        )
        self.overlap = Histogram("recray_shadow_overlap", "Share of a list in both.", SHARE_BUCKETS)
        self.score_diff = Histogram(
            "recray_shadow_drift", "Mean difference of scores.", SCORE_DIFF_BUCKETS
        )
        self.skipped = Counter("recray_shadow_left_out", "Lists nothing was compared with.")
        self.model = Gauge("recray_model", "1 for the version that answers.", ("model_version",))
        self.swaps = Gauge("recray_model_swaps", "Models replaced since the replica began.")
        self.refusals = Gauge("recray_model_refusals", "Versions refused since the replica began.")
        self.stale = Gauge("recray_model_stale", "1 while an older version answers than is wanted.")

    def start(self) -> None:
        """Export every second, until the replica ends."""
        threading.Thread(target=self._run, name="recray-metrics", daemon=True).start()

    def _run(self) -> None:
        pause = threading.Event()
        while not pause.wait(EXPORT_SECONDS):
            try:
                self.export()
            except Exception as error:  # Ray's metrics may work again at the next export
                log(event="metrics_not_exported", reason=f"{type(error).__name__}: {error}")

    def export(self) -> None:
        """Hand over what was counted since the last export, and the state of the model."""
        counts = self.metrics.flush()
        for (route, method, status), count in counts.requests.items():
            self.requests.inc(count, {"endpoint": route, "method": method, "status": str(status)})
        for (source, version), count in counts.lists.items():
            self.lists.inc(count, {"source": source, "model_version": version})
        for route, seconds in counts.request_seconds:
            self.request_seconds.observe(seconds, {"endpoint": route})
        for version, seconds in counts.list_seconds:
            self.list_seconds.observe(seconds, {"model_version": version})
        for comparison in counts.comparisons:
            self.overlap.observe(comparison.overlap, {})
            if not math.isnan(comparison.score_diff):
                self.score_diff.observe(comparison.score_diff, {})
        if counts.skipped_comparisons:
            self.skipped.inc(counts.skipped_comparisons, {})
        self._export_model()

    def _export_model(self) -> None:
        version = self.holder.model.version
        if self._version not in ("", version):
            self.model.set(0, {"model_version": self._version})
        self._version = version
        self.model.set(1, {"model_version": version})
        self.swaps.set(float(self.holder.swaps), {})
        self.refusals.set(float(self.holder.refusals), {})
        self.stale.set(float(self.holder.target != version), {})


def _application(
    path: str, limits: Callable[[], ServiceLimits], service: ServiceOptions, **options: Any
) -> "Application":
    """Make the one deployment; a Serve config may change its options."""
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
    return deployment(serve.ingress(_builder(path, limits, service))()).bind()


def app_builder(args: AppArgs) -> "Application":
    """Build the app of a Serve config, whose `import_path` names this function.

    See cluster/serve-production.yaml. Each replica reads the keys from its own file or secret.
    """
    return _application(
        args.bundle,
        args.limits,
        args.options(),
        max_ongoing_requests=2 * args.queue,
        graceful_shutdown_timeout_s=args.timeout + 10,
    )


def deploy(
    path: str, limits: ServiceLimits, replicas: int = 1, options: ServiceOptions | None = None
) -> None:
    """Deploy a bundle or a registry on the running Serve, and wait until it answers.

    A second call replaces the replicas one after another, and no request fails.

    Raises:
        RecrayError: It does not start.
    """
    from ray import serve
    from ray.exceptions import RayError

    app = _application(
        path,
        lambda: limits,
        options or ServiceOptions(),
        num_replicas=replicas,
        # Above the app's own limit, so that people see the app's answer and not Ray's.
        max_ongoing_requests=2 * limits.queue,
        graceful_shutdown_timeout_s=limits.timeout + 10,
    )
    try:
        serve.run(app, name=NAME, route_prefix="/")
    except (RuntimeError, RayError) as error:
        reason = " ".join(str(error).split())
        raise RecrayError(f"the service did not start: {reason}") from error


def _open_once(path: str, options: ServiceOptions) -> None:
    """Open everything here, where the user sees an error, and not in a replica's log.

    Raises:
        RecrayError: A file is missing, damaged, or of another data set.
    """
    from recray.inference.recommender import Recommender

    recommender = Recommender(Bundle.open(resolve_bundle(path)))
    options.open_feedback(path, recommender)
    options.open_ab_test(recommender, ServiceMetrics())


@contextlib.contextmanager
def serving(
    bundle: str,
    host: str = "127.0.0.1",
    port: int = 8000,
    replicas: int = 1,
    address: str = LOCAL,
    limits: ServiceLimits | None = None,
    profile: Profile = "laptop",
    options: ServiceOptions | None = None,
    ends_with_ray: bool = False,
) -> Iterator[str]:
    """Serve a bundle, or what is current in a registry, while the block runs.

    Args:
        bundle: Folder of a bundle, or of a registry to follow; every replica must reach it.
        host, port: Interface and port of HTTP.
        replicas: Processes that answer.
        address: Ray cluster.
        limits: Keys and limits; by default the keys of the environment.
        profile: production has HAProxy, which binds every interface; a Ray that runs keeps its own.
        options: A ratings log and a challenger; by default a registry's own log.
        ends_with_ray: Whether the caller ends Ray right after, which ends Serve, too.

    Yields:
        The address of the service, which answers.

    Raises:
        RecrayError: The port is taken, the bundle cannot be used, or keys are missing.
    """
    limits, options = limits or ServiceLimits(keys=load_keys(None)), options or ServiceOptions()
    bundle = Folder(bundle).path  # replicas have working folders of their own
    require_keys("0.0.0.0" if profile == "production" else host, limits.keys)
    _open_once(bundle, options)
    if address == LOCAL:
        refuse_taken_port(host, port)
    goes_on = (address != LOCAL or ray_runs()) and not ends_with_ray
    switches = switched(PRODUCTION_SWITCHES if profile == "production" else {}, overrule=True)
    with switches, session(address), ray_serve(host, port, goes_on), replicas_shown():
        deploy(bundle, limits, replicas, options)
        yield f"http://{host}:{port}"
