"""The compose file: a strict schema of what is used of the Compose specification, and our rules.

The specification has many more keys; one that is new here is added here.
"""

from pathlib import Path
from typing import Any

from cluster.validate.problems import Problem, against, read_documents

TEXT = {"type": "string"}
TEXTS = {"type": "array", "items": TEXT}
NUMBER = {"type": "integer", "minimum": 1}
BYTES = {"type": "string", "pattern": "^[0-9]+(b|k|m|g|kb|mb|gb)$"}
TIME = {"type": "string", "pattern": "^([0-9]+(us|ms|s|m|h))+$"}


def _object(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "required": list(required),
        "properties": properties,
        "additionalProperties": False,
    }


def _named(entry: dict[str, Any]) -> dict[str, Any]:
    """A mapping of free names to one kind of entry."""
    return {"type": "object", "additionalProperties": entry}


_CONDITION = ("service_started", "service_healthy", "service_completed_successfully")
_SERVICE = _object(
    ("image", "command"),
    image=TEXT,
    build=_object(("context",), context=TEXT, dockerfile=TEXT, args=_named(TEXT)),
    command={"anyOf": [TEXT, TEXTS]},
    init={"type": "boolean"},
    read_only={"type": "boolean"},
    user={"type": "string", "pattern": "^[0-9]+:[0-9]+$"},
    cap_drop=TEXTS,
    security_opt=TEXTS,
    pids_limit=NUMBER,
    shm_size=BYTES,
    mem_limit=BYTES,
    tmpfs=TEXTS,
    secrets=TEXTS,
    environment=_named(TEXT),
    volumes=TEXTS,
    hostname=TEXT,
    ports=TEXTS,
    restart={"type": "string", "pattern": "^(no|always|unless-stopped|on-failure(:[0-9]+)?)$"},
    healthcheck=_object(
        ("test",), test=TEXTS, interval=TIME, timeout=TIME, retries=NUMBER, start_period=TIME
    ),
    depends_on=_named(_object(("condition",), condition={"enum": list(_CONDITION)})),
    configs={"type": "array", "items": _object(("source", "target"), source=TEXT, target=TEXT)},
)
_FILE = _object(("file",), file=TEXT)
SCHEMA = {
    **_object(
        ("name", "services"),
        name=TEXT,
        services=_named(_SERVICE),
        secrets=_named(_FILE),
        configs=_named(_FILE),
        volumes=_named({"type": "null"}),
    ),
    "patternProperties": {"^x-": True},
}


def check(file: Path) -> list[Problem]:
    """All problems of a compose file."""
    documents, problems = read_documents(file)
    if problems:
        return problems
    values: Any = documents[0] if documents else None
    return against(file, values, SCHEMA) or [*_references(file, values), *_closed(file, values)]


def _references(file: Path, values: dict[str, Any]) -> list[Problem]:
    """Names that nothing declares, and files that are not there (secrets are made by the user)."""
    problems = []

    def declared(place: str, name: str, among: str) -> None:
        if name not in values.get(among, {}):
            problems.append(Problem(file, place, f"{name} is not among {among}"))

    for name, service in values["services"].items():
        place = f"services.{name}"
        for one in service.get("secrets", []):
            declared(f"{place}.secrets", one, "secrets")
        for volume in service.get("volumes", []):
            declared(f"{place}.volumes", volume.partition(":")[0], "volumes")
        for one in service.get("configs", []):
            declared(f"{place}.configs", one["source"], "configs")
        for one in service.get("depends_on", {}):
            declared(f"{place}.depends_on", one, "services")
        built = service.get("build")
        if built and not (file.parent / built["context"] / built.get("dockerfile", "")).is_file():
            problems.append(Problem(file, f"{place}.build.dockerfile", "is not there"))
    for name, entry in values.get("configs", {}).items():
        if not (file.parent / entry["file"]).is_file():
            problems.append(Problem(file, f"configs.{name}.file", f"{entry['file']} is not there"))
    return problems


def _closed(file: Path, values: dict[str, Any]) -> list[Problem]:
    """Little that a container may do, a token in every one, and no port for other machines."""
    problems = []
    for name, service in values["services"].items():
        wanted = {
            "read_only": service.get("read_only") is True,
            "user": not service.get("user", "0").startswith("0"),
            "cap_drop": service.get("cap_drop") == ["ALL"],
            "security_opt": "no-new-privileges:true" in service.get("security_opt", []),
            "mem_limit": "mem_limit" in service,
            "environment.RAY_AUTH_MODE": service.get("environment", {}).get("RAY_AUTH_MODE")
            == "token",
            "ports": all(port.startswith("127.0.0.1:") for port in service.get("ports", [])),
        }
        for key, holds in wanted.items():
            if not holds:
                problems.append(Problem(file, f"services.{name}.{key}", _WHY[key]))
        for key in service.get("environment", {}):
            if key.endswith(("TOKEN", "SECRET", "PASSWORD", "KEY", "KEYS")):
                message = "a secret in the environment is seen by `docker inspect`; mount a file"
                problems.append(Problem(file, f"services.{name}.environment.{key}", message))
    return problems


_WHY = {
    "read_only": "must be true",
    "user": "must not be root",
    "cap_drop": "must be [ALL]",
    "security_opt": "must hold no-new-privileges:true",
    "mem_limit": "is missing: Ray would take the machine's memory for its own",
    "environment.RAY_AUTH_MODE": "must be token",
    "ports": "must begin with 127.0.0.1: so that no other machine gets in",
}
