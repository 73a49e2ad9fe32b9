"""Checks Serve configs: Ray takes a key that it does not know without a word. Needs no Ray."""

from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from recray.errors import RecrayError
from recray.serving.auth import is_loopback, load_keys
from recray.serving.guard import LogLevel, ServiceLimits
from recray.serving.options import ServiceOptions

APP_BUILDER = "recray.serving.deployment:app_builder"
DEPLOYMENT = "recray"


def _keys(names: str) -> dict[str, Any]:
    return dict.fromkeys(names.split())


# Every key that Ray 2.60 knows, by level; a test compares them with Ray itself.
_LOGGING = _keys("encoding log_level logs_dir enable_access_log additional_log_standard_attrs")
_AUTOSCALING = _keys(
    "min_replicas initial_replicas max_replicas target_ongoing_requests metrics_interval_s "
    "look_back_period_s smoothing_factor upscale_smoothing_factor downscale_smoothing_factor "
    "upscaling_factor downscaling_factor downscale_delay_s downscale_to_zero_delay_s "
    "upscale_delay_s aggregation_function policy"
)
_ACTOR = _keys(
    "runtime_env num_cpus num_gpus memory resources accelerator_type label_selector "
    "fallback_strategy"
)
_DEPLOYMENT: dict[str, Any] = _keys(
    "name num_replicas max_ongoing_requests max_queued_requests user_config "
    "graceful_shutdown_wait_loop_s graceful_shutdown_timeout_s health_check_period_s "
    "health_check_timeout_s placement_group_bundles placement_group_strategy "
    "placement_group_bundle_label_selector max_replicas_per_node request_router_config "
    "gang_scheduling_config deployment_actors rolling_update_percentage max_surge_percent"
) | {
    "backpressure_config": _keys("status_code retry_after_s"),
    "autoscaling_config": _AUTOSCALING,
    "ray_actor_options": _ACTOR,
    "logging_config": _LOGGING,
}
_APPLICATION: dict[str, Any] = _keys(
    "name route_prefix import_path runtime_env host port autoscaling_policy args "
    "external_scaler_enabled"
) | {"deployments": [_DEPLOYMENT], "logging_config": _LOGGING}
SERVE_KEYS: dict[str, Any] = {
    "proxy_location": None,
    "target_capacity": None,
    "http_options": _keys(
        "host port root_path request_timeout_s keep_alive_timeout_s ssl_keyfile ssl_certfile "
        "ssl_keyfile_password ssl_ca_certs"
    ),
    "grpc_options": _keys("port grpc_servicer_functions request_timeout_s enable_reflection"),
    "controller_options": _keys("runtime_env"),
    "logging_config": _LOGGING,
    "tracing_config": _keys("enabled exporter_import_path sampling_ratio"),
    "applications": [_APPLICATION],
}
"""Key to what is inside: keys, a list of one mapping, or None for whatever Ray checks itself."""


class AppArgs(BaseModel):
    """What `args:` of our application may say.

    Limits are as in ServiceLimits, each one replica's; max_body is in MiB here.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    bundle: str = Field(min_length=1)
    """A bundle, or a registry whose current version is followed; every replica must reach it."""
    api_keys: str | None = None
    """File of keys on every node; without it the keys of RECRAY_API_KEYS there."""
    without_keys: bool = False
    """Let everybody in; only where no other machine reaches the service."""
    max_body: int = Field(4, ge=1, le=1024)
    timeout: float = Field(10.0, gt=0)
    queue: int = Field(64, ge=1)
    rate: float = Field(0.0, ge=0)
    burst: int = Field(20, ge=1)
    cors: tuple[str, ...] = ()
    log: LogLevel = "errors"
    ratings_log: str | None = None
    """Folder of the ratings log; without it a registry's own."""
    second: str | None = None
    """A second bundle or registry, to compare with; see ServiceOptions."""
    share: float = Field(0.0, ge=0, le=1)
    shadow: bool = False
    revision: str = ""
    """Any text; a new one replaces the replicas one after another."""

    def options(self) -> ServiceOptions:
        """The ratings log and the challenger.

        Raises:
            RecrayError: There is a share, and no second model.
        """
        return ServiceOptions(self.ratings_log, self.second, self.share, self.shadow)

    def limits(self) -> ServiceLimits:
        """Keys and limits; reads the keys where it is called.

        Raises:
            RecrayError: Keys are wanted and there are none.
        """
        keys = () if self.without_keys else load_keys(self.api_keys)
        if not keys and not self.without_keys:
            raise RecrayError(
                "no keys: give args.api_keys or set RECRAY_API_KEYS on every node, "
                "or args.without_keys where no other machine reaches the service"
            )
        limits = {name: getattr(self, name) for name in ("timeout", "queue", "rate", "burst")}
        return ServiceLimits(
            keys=keys, max_body=self.max_body << 20, cors=self.cors, log=self.log, **limits
        )


def check_file(path: str) -> list[str]:
    """What is wrong with a Serve config, a line each; none if it can be deployed.

    Raises:
        RecrayError: The file cannot be read, or is no YAML.
    """
    try:
        values = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecrayError(f"{path}: {str(error).splitlines()[0]}") from error
    return check(values)


def check(values: Any) -> list[str]:
    """What is wrong with the values of a Serve config, such as a RayService's serveConfigV2."""
    problems = list(_unknown(values, SERVE_KEYS, ""))
    if problems:
        return problems
    applications = values.get("applications") or []
    if not applications:
        return ["applications: none"]
    for number, application in enumerate(applications):
        where = f"applications.{number}"
        if application.get("import_path") == APP_BUILDER:
            problems += _check_ours(application, where, values.get("http_options") or {})
        elif not application.get("import_path"):
            problems.append(f"{where}.import_path: missing; ours is {APP_BUILDER}")
    return problems


def _unknown(values: Any, known: Any, where: str) -> Iterator[str]:
    """Keys that Ray would pass over, and values that are no mapping or list where one belongs."""
    here = where or "the config"
    if isinstance(known, list):
        if not isinstance(values, list):
            yield f"{here}: must be a list"
            return
        for number, value in enumerate(values):
            yield from _unknown(value, known[0], f"{where}.{number}")
        return
    if not isinstance(values, dict):
        yield f"{here}: must be a mapping"
        return
    for key, value in values.items():
        name = f"{where}.{key}".lstrip(".")
        if key not in known:
            near = get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            yield f"{name}: unknown key; {hint}"
        elif known[key] is not None and value is not None:
            yield from _unknown(value, known[key], name)


def _check_ours(application: dict[str, Any], where: str, http: dict[str, Any]) -> Iterator[str]:
    try:
        args = AppArgs.model_validate(application.get("args") or {})
    except ValidationError as error:
        for wrong in error.errors():
            key = ".".join(str(part) for part in wrong["loc"])
            yield f"{where}.args.{key}: {wrong['msg']}"
        return
    host = str(http.get("host", "0.0.0.0"))  # Ray's own default for a config
    if args.without_keys and not is_loopback(host):
        yield f"{where}.args.without_keys: http_options.host {host} lets other machines in"
    deployments = application.get("deployments") or [{"name": DEPLOYMENT}]
    for number, deployment in enumerate(deployments):
        inside = f"{where}.deployments.{number}"
        if deployment.get("name") != DEPLOYMENT:
            yield f"{inside}.name: {deployment.get('name')!r}; the one of ours is {DEPLOYMENT!r}"
            continue
        for problem in _check_deployment(deployment, args):
            yield f"{inside}.{problem}"


def _check_deployment(deployment: dict[str, Any], args: AppArgs) -> Iterator[str]:
    scaling = deployment.get("autoscaling_config")
    replicas = scaling.get("min_replicas", 1) if scaling else deployment.get("num_replicas", 1)
    numbers = {
        "max_surge_percent": deployment.get("max_surge_percent", 100),  # app_builder's own
        "max_ongoing_requests": deployment.get("max_ongoing_requests", 2 * args.queue),
        "graceful_shutdown_timeout_s": deployment.get("graceful_shutdown_timeout_s", 1e9),
    }
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            yield f"{name}: {value!r} is no number"
            return
    if replicas != 1 and not numbers["max_surge_percent"]:
        yield "max_surge_percent: 0 stops a replica before the new one answers; give 100"
    if numbers["max_ongoing_requests"] <= args.queue:
        yield (
            f"max_ongoing_requests: must be above args.queue ({args.queue}), so that the service's "
            "own answer to too many requests is the one that people see"
        )
    if numbers["graceful_shutdown_timeout_s"] <= args.timeout:
        yield (
            f"graceful_shutdown_timeout_s: must be above args.timeout ({args.timeout:g}), so that "
            "requests end before their replica does"
        )
