"""Cluster launcher files: Ray's own validation, and what Ray lets pass.

Ray checks neither the keys of `provider` nor what it hands on to the cloud as `node_config`. Those
of AWS are held against the request that botocore would send; those of Google against a list.
"""

import contextlib
import io
from pathlib import Path
from typing import Any

import click
import jsonschema

from cluster.validate.problems import Problem, against, explain, read_documents, unknown
from recray.runtime.nodes import MAX_CPUS_RESOURCE

PROVIDER_KEYS = {
    "aws": ["type", "region", "availability_zone", "cache_stopped_nodes", "security_group"],
    "gcp": ["type", "region", "availability_zone", "project_id"],
    "local": ["type", "head_ip", "worker_ips"],
}
OPEN_DASHBOARD = ("--dashboard-host=0.0.0.0", "--dashboard-host 0.0.0.0", "--dashboard-host=::")
# Ray would fill these in: a cluster named default, a dashboard open to the network, no token.
_OWN = ("cluster_name", "docker", "file_mounts", "head_start_ray_commands", "idle_timeout_minutes")
TOKEN = "--env=RAY_AUTH_MODE=token"


def _keys(*names: str, **children: Any) -> dict[str, Any]:
    """A JSON schema of an object with these keys and no others."""
    return {
        "type": "object",
        "properties": {**dict.fromkeys(names, True), **children},
        "additionalProperties": False,
    }


# https://cloud.google.com/compute/docs/reference/rest/v1/instances, the part that is used.
_GCP_NODE = _keys(
    "minCpuPlatform",
    machineType={"type": "string"},
    scheduling={"type": "array", "items": _keys(preemptible={"type": "boolean"})},
    serviceAccounts={
        "type": "array",
        "items": _keys(email={"type": "string"}, scopes={"type": "array"}),
    },
    disks={
        "type": "array",
        "items": _keys(
            boot={"type": "boolean"},
            autoDelete={"type": "boolean"},
            type={"enum": ["PERSISTENT", "SCRATCH"]},
            initializeParams=_keys("diskType", "sourceImage", diskSizeGb={"type": "integer"}),
        ),
    },
    guestAccelerators={
        "type": "array",
        "items": _keys(
            acceleratorType={"type": "string"}, acceleratorCount={"type": "integer", "minimum": 1}
        ),
    },
)


def check(file: Path) -> list[Problem]:
    """All problems of a launcher file."""
    documents, problems = read_documents(file)
    if problems:
        return problems
    (config,) = documents if len(documents) == 1 else [None]
    if not isinstance(config, dict) or not isinstance(config.get("provider"), dict):
        return [
            Problem(file, "provider", "is missing: one YAML document with a provider is needed")
        ]
    return [
        *_as_ray(file, config),
        *_provider(file, config["provider"]),
        *_nodes(file, config),
        *_closed(file, config),
    ]


def _as_ray(file: Path, config: dict[str, Any]) -> list[Problem]:
    """What `ray up` would refuse, found by its own code; nothing is started."""
    from ray.autoscaler._private import util

    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            util.validate_config(util.prepare_config(config))
    except jsonschema.ValidationError as error:
        return explain(file, error)
    except (ValueError, AssertionError, KeyError, AttributeError) as error:
        return [Problem(file, _named(str(error), config), f"Ray refuses it: {error}")]
    except click.ClickException as error:
        return [Problem(file, "provider", f"Ray refuses it: {error.message}")]
    return []


def _named(message: str, config: dict[str, Any]) -> str:
    """The key that a message of Ray names in backticks, or the one that it is about."""
    named = message.split("`")[1::2]
    return named[0] if named else ("docker" if "image" in message else next(iter(config)))


def _provider(file: Path, provider: dict[str, Any]) -> list[Problem]:
    kind = provider.get("type")
    if kind not in PROVIDER_KEYS:
        return [Problem(file, "provider.type", f"must be one of {', '.join(PROVIDER_KEYS)}")]
    known = PROVIDER_KEYS[kind]
    return [
        Problem(file, f"provider.{key}", unknown(key, known))
        for key in provider
        if key not in known
    ]


def _nodes(file: Path, config: dict[str, Any]) -> list[Problem]:
    """What the cloud would refuse in a machine, and what a head and a worker must be."""
    kind = config["provider"].get("type")
    if kind == "local":
        return []
    problems = []
    for name, node in config.get("available_node_types", {}).items():
        place, wanted = f"available_node_types.{name}", node.get("node_config", {})
        if kind == "aws":
            problems += against(file, wanted, _aws_schema(), f"{place}.node_config")
        elif kind == "gcp":
            problems += against(file, wanted, _GCP_NODE, f"{place}.node_config")
        if name == config.get("head_node_type"):
            if node.get("resources", {}).get("CPU") != 0:
                problems.append(
                    Problem(file, f"{place}.resources.CPU", "the head must have CPU: 0")
                )
            if node.get("resources", {}).get(MAX_CPUS_RESOURCE) != (most := _most_cpus(config)):
                key = f"{place}.resources.{MAX_CPUS_RESOURCE}"
                problems.append(Problem(file, key, f"the workers may come to {most}"))
        elif not _spot(kind, wanted):
            problems.append(Problem(file, f"{place}.node_config", "workers must be spot machines"))
    return problems


def _most_cpus(config: dict[str, Any]) -> int:
    """The CPUs of all workers that there may be."""
    types = config.get("available_node_types", {}).values()
    return sum(t.get("resources", {}).get("CPU", 0) * t.get("max_workers", 0) for t in types)


def _spot(kind: str | None, wanted: dict[str, Any]) -> bool:
    if kind == "aws":
        return bool(wanted.get("InstanceMarketOptions", {}).get("MarketType") == "spot")
    return any(entry.get("preemptible") for entry in wanted.get("scheduling", []))


def _aws_schema() -> dict[str, Any]:
    """What EC2 takes to start a machine, from botocore's description of the request."""
    import botocore.session

    service = botocore.session.get_session().get_service_model("ec2")
    return _as_schema(service.operation_model("RunInstances").input_shape)


def _as_schema(shape: Any) -> dict[str, Any]:
    """A shape of botocore as a JSON schema that refuses unknown keys."""
    if shape.type_name == "structure":
        return _keys(**{name: _as_schema(member) for name, member in shape.members.items()})
    if shape.type_name == "list":
        return {"type": "array", "items": _as_schema(shape.member)}
    plain = {"integer": "integer", "long": "integer", "boolean": "boolean", "string": "string"}
    kind = plain.get(shape.type_name)
    return {"type": kind} if kind else {}


def _closed(file: Path, config: dict[str, Any]) -> list[Problem]:
    """A token, a dashboard that only the head reaches, and nothing that Ray's defaults fill in."""
    problems = [Problem(file, key, "is missing") for key in _OWN if not config.get(key)]
    head = config.get("head_start_ray_commands", [])
    for number, command in enumerate(head):
        key = f"head_start_ray_commands.{number}"
        if any(words in command for words in OPEN_DASHBOARD):
            problems.append(Problem(file, key, "the dashboard must not be open to the network"))
        if "ray start" in command and "--num-cpus=0" not in command:
            problems.append(Problem(file, key, "the head must start with --num-cpus=0"))
    if TOKEN not in config.get("docker", {}).get("run_options", []):
        problems.append(Problem(file, "docker.run_options", f"{TOKEN} is missing"))
    return problems
