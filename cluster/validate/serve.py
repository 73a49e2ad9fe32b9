"""Serve configs: Ray's own schema, the keys refused that Ray would pass over, and our own rules."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from cluster.validate.problems import Problem, read_documents, unknown
from recray.serving.auth import is_loopback
from recray.serving.options import APP_BUILDER, DEPLOYMENT, AppArgs


def check(file: Path) -> list[Problem]:
    """All problems of a file that `serve deploy` takes."""
    documents, problems = read_documents(file)
    if problems:
        return problems
    return check_values(file, documents[0] if documents else None)


def check_values(file: Path, values: Any, inside: str = "") -> list[Problem]:
    """All problems of a config that stands in a file, under the key `inside` if given."""
    from ray.serve.schema import ServeDeploySchema

    if not isinstance(values, dict):
        return [Problem(file, inside or "the whole file", "must be a mapping")]
    found = list(_unknown(values, ServeDeploySchema))
    if not found:
        try:
            ServeDeploySchema.model_validate(values)
        except ValidationError as error:
            found = [(_place(e["loc"], e["msg"]), e["msg"]) for e in error.errors()]
    if not found:  # arguments and limits of our own application
        found = list(_applications(values))
    prefix = f"{inside}." if inside else ""
    return [Problem(file, f"{prefix}{key}", message) for key, message in found]


def _place(where: tuple[int | str, ...], message: str) -> str:
    """Where an error is; Ray's own checks name the key in the message alone."""
    return ".".join([*map(str, where), *message.split("`")[1:2]])


def _unknown(value: Any, model: type[BaseModel], where: str = "") -> Iterator[tuple[str, str]]:
    """Keys that no field of the model, or of a model below it, has."""
    for key, inner in value.items():
        place = f"{where}.{key}" if where else str(key)
        if key not in model.model_fields:
            yield place, unknown(str(key), list(model.model_fields))
            continue
        below = _model_in(model.model_fields[key].annotation)
        if below is None:
            continue
        if isinstance(inner, dict):
            yield from _unknown(inner, below, place)
        elif isinstance(inner, list):
            for number, one in enumerate(inner):
                if isinstance(one, dict):
                    yield from _unknown(one, below, f"{place}.{number}")


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model that an annotation is about: itself, or inside a list, a union or a default."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in get_args(annotation):
        found = _model_in(inner)
        if found is not None:
            return found
    return None


def _applications(values: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What Ray takes, and what would let strangers in or stop a replica too early."""
    applications = values.get("applications") or []
    if not applications:
        yield "applications", "none"
    for number, application in enumerate(applications):
        where = f"applications.{number}"
        if application.get("import_path") == APP_BUILDER:
            host = (values.get("http_options") or {}).get("host", "0.0.0.0")  # Ray's own default
            # Ray's own default is a proxy on every node.
            one_machine = is_loopback(host) or values.get("proxy_location") == "HeadOnly"
            found = _ours(application, host, one_machine)
            yield from ((f"{where}.{key}", message) for key, message in found)


def _ours(application: dict[str, Any], host: str, one_machine: bool) -> Iterator[tuple[str, str]]:
    try:
        args = AppArgs.model_validate(application.get("args") or {})
    except ValidationError as error:
        for wrong in error.errors():
            yield ".".join(["args", *map(str, wrong["loc"])]), wrong["msg"]
        return
    if args.without_keys and not is_loopback(host):
        yield "args.without_keys", f"http_options.host {host} lets other machines in"
    for number, deployment in enumerate(application.get("deployments") or ()):
        inside = f"deployments.{number}"
        if deployment.get("name") != DEPLOYMENT:
            message = f"{deployment.get('name')!r}; the one of ours is {DEPLOYMENT!r}"
            yield f"{inside}.name", message
            continue
        found = _limits(deployment, args, one_machine)
        yield from ((f"{inside}.{key}", message) for key, message in found)


def _limits(
    deployment: dict[str, Any], args: AppArgs, one_machine: bool
) -> Iterator[tuple[str, str]]:
    """Numbers of our deployment that Ray takes and that do not fit each other."""
    scaling = deployment.get("autoscaling_config")
    replicas = scaling.get("min_replicas", 1) if scaling else deployment.get("num_replicas", 1)
    if replicas != 1 and not one_machine and deployment.get("max_replicas_per_node") != 1:
        message = "must be 1: replicas on one machine are lost together"
        yield "max_replicas_per_node", message
    if replicas != 1 and not deployment.get("max_surge_percent", 100):
        message = "0 stops a replica before the new one answers; give 100"
        yield "max_surge_percent", message
    if deployment.get("max_ongoing_requests", 2 * args.queue) <= args.queue:
        yield (
            "max_ongoing_requests",
            f"must be above args.queue ({args.queue}), so that the service's own answer to too "
            "many requests is the one that people see",
        )
    if deployment.get("graceful_shutdown_timeout_s", args.timeout + 1) <= args.timeout:
        yield (
            "graceful_shutdown_timeout_s",
            f"must be above args.timeout ({args.timeout:g}), so that requests end before their "
            "replica does",
        )
