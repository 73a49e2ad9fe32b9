"""Docker files: hadolint and the Compose specification, and what neither of them asks for.

Pinned packages, files that are there, containers that may do little, no secret that others see, and
no port for other machines.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from cluster.validate.problems import Problem, read_documents


def _tool(name: str, *arguments: str) -> Any:
    """The JSON that a tool of the dev extra prints.

    Raises:
        SystemExit: The tool is not installed.
    """
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        sys.exit(f"{name} is not installed: pip install -e '.[dev]'")
    done = subprocess.run([found, *arguments], capture_output=True, text=True, check=False)
    return json.loads(done.stdout)


# --------------------------------------------------------------------------------- Dockerfile


class Instruction(NamedTuple):
    """One instruction of a Dockerfile: its first line, its word, and the rest of it in one line."""

    line: int
    word: str
    rest: str


def check_dockerfile(file: Path, context: Path) -> list[Problem]:
    """All problems of a Dockerfile; a problem's key is the line and the instruction.

    Args:
        file: The Dockerfile.
        context: The folder that it is built in, for what it copies.
    """
    lines = file.read_text().splitlines()
    found = [
        (entry["line"], lines[entry["line"] - 1].split()[0], entry["message"])
        for entry in _tool("hadolint", "--no-fail", "--format", "json", str(file))
    ]
    if not found:  # the rest is read more simply, which only a right file allows
        instructions = list(_instructions(lines))
        found = [*_free_versions(instructions), *_copied(instructions, context)]
        found += _last_user(instructions)
    return [Problem(file, f"line {line} {word}", message) for line, word, message in found]


def _instructions(lines: list[str]) -> Iterator[Instruction]:
    begun, parts = 0, list[str]()
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        begun = begun if parts else number
        parts.append(line.strip().removesuffix("\\").strip())
        if not line.rstrip().endswith("\\"):
            word, _, rest = " ".join(parts).partition(" ")
            yield Instruction(begun, word.upper(), rest)
            parts = []


def _free_versions(instructions: list[Instruction]) -> Iterator[tuple[int, str, str]]:
    """Packages without versions, and scripts that nobody has read."""
    for line, word, rest in instructions:
        for command in re.split(r"&&|\|\||;", rest) if word == "RUN" else ():
            words = set(shlex.split(command))
            pinned = words & {"-c", "--constraint", "--require-hashes"}
            if re.search(r"\bpip\d* install\b", command) and not pinned:
                yield line, word, "pip install without -c constraints.txt: versions would be free"
            if re.search(r"\b(curl|wget)\b.*\|\s*(ba)?sh\b", command):
                yield line, word, "runs a script from the network unseen"


def _copied(instructions: list[Instruction], context: Path) -> Iterator[tuple[int, str, str]]:
    """Sources that are not in the context, or all of it."""
    for line, word, rest in instructions:
        if word != "COPY" or "--from=" in rest:
            continue
        for source in [name for name in shlex.split(rest) if not name.startswith("--")][:-1]:
            if source in (".", "./", "/"):
                yield line, word, "copies the whole folder; name what the image needs"
            elif not list(context.glob(source.rstrip("/"))):
                yield line, word, f"{source} is not there"


def _last_user(instructions: list[Instruction]) -> Iterator[tuple[int, str, str]]:
    """The last stage must end as an ordinary user, by number."""
    defaults = dict(i.rest.split("=", 1) for i in instructions if i.word == "ARG" and "=" in i.rest)
    last = max(place for place, i in enumerate(instructions) if i.word == "FROM")
    users = [i for i in instructions[last:] if i.word == "USER"]
    if not users:
        yield instructions[-1].line, "USER", "is missing: the image would run as root"
        return
    named = users[-1].rest.partition(":")[0]
    user = defaults.get(named.strip("${}"), named)
    if not user.isdigit() or int(user) == 0:
        message = f"{user} must be a number above 0: Kubernetes cannot tell whether a name is root"
        yield users[-1].line, "USER", message


# ------------------------------------------------------------------------------------ compose


def check_compose(file: Path) -> list[Problem]:
    """All problems of a compose file."""
    documents, problems = read_documents(file)
    if problems:
        return problems
    problems = list(_specification(file))
    if problems:
        return problems
    (values,) = documents
    return [*_references(file, values), *_closed(file, values)]


def _specification(file: Path) -> Iterator[Problem]:
    """What does not match the Compose specification."""
    arguments = ("--builtin-schema", "vendor.compose-spec", "--output-format", "json", str(file))
    for error in _tool("check-jsonschema", *arguments)["errors"]:
        steps = re.findall(r"\.([\w-]+)|\['([^']+)'\]|\[(\d+)\]", error["path"])
        place = [part for step in steps for part in step if part]
        unexpected = re.search(r"\((.*) (?:was|were) unexpected\)", error["message"])
        names = re.findall(r"'([^']+)'", unexpected[1]) if unexpected else []
        for key in [".".join([*place, name]) for name in names] or [".".join(place)]:
            yield Problem(file, key or "the whole file", error["message"])


def _references(file: Path, values: dict[str, Any]) -> Iterator[Problem]:
    """Names that nothing declares, and files that are not there (secrets are made by the user)."""
    for name, service in values["services"].items():
        used = {
            "secrets": service.get("secrets", []),
            "volumes": [volume.partition(":")[0] for volume in service.get("volumes", [])],
            "configs": [entry["source"] for entry in service.get("configs", [])],
            "services": service.get("depends_on", []),
        }
        for among, names in used.items():
            key = f"services.{name}.{'depends_on' if among == 'services' else among}"
            for one in set(names) - set(values.get(among, {})):
                yield Problem(file, key, f"{one} is not among {among}")
        built = service.get("build")
        if built and not (file.parent / built["context"] / built.get("dockerfile", "")).is_file():
            yield Problem(file, f"services.{name}.build.dockerfile", "is not there")
    for name, entry in values.get("configs", {}).items():
        if not (file.parent / entry["file"]).is_file():
            yield Problem(file, f"configs.{name}.file", f"{entry['file']} is not there")


def _closed(file: Path, values: dict[str, Any]) -> Iterator[Problem]:
    """Little that a container may do, a token in every one, and no port for other machines."""
    for name, service in values["services"].items():
        environment = service.get("environment", {})
        rules = {
            "read_only": (service.get("read_only") is True, "must be true"),
            "user": (not service.get("user", "0").startswith("0"), "must not be root"),
            "cap_drop": (service.get("cap_drop") == ["ALL"], "must be [ALL]"),
            "security_opt": (
                "no-new-privileges:true" in service.get("security_opt", []),
                "must hold no-new-privileges:true",
            ),
            "mem_limit": (
                "mem_limit" in service,
                "is missing: Ray would take the machine's memory for its own",
            ),
            "environment.RAY_AUTH_MODE": (
                environment.get("RAY_AUTH_MODE") == "token",
                "must be token",
            ),
            "ports": (
                all(str(port).startswith("127.0.0.1:") for port in service.get("ports", [])),
                "must begin with 127.0.0.1: so that no other machine gets in",
            ),
        }
        for key, (holds, message) in rules.items():
            if not holds:
                yield Problem(file, f"services.{name}.{key}", message)
        for key in environment:
            if key.endswith(("TOKEN", "SECRET", "PASSWORD", "KEY", "KEYS")):
                message = "a secret in the environment is seen by `docker inspect`; mount a file"
                yield Problem(file, f"services.{name}.environment.{key}", message)
