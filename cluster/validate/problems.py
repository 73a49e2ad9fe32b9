"""A problem names its file and its key; YAML is read without the freedoms that hide mistakes."""

from collections.abc import Hashable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import jsonschema
import yaml


@dataclass(frozen=True)
class Problem:
    """Something that is wrong in a file.

    Args:
        file: The file.
        key: Where in it: names and numbers with dots between; a line for a Dockerfile.
        message: What is wrong, and what is allowed.
    """

    file: Path
    key: str
    message: str

    def __str__(self) -> str:
        return f"{self.file}: {self.key}: {self.message}"


class _Loader(yaml.SafeLoader):
    """Refuses a key given twice, of which YAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """A dict of distinct keys; those that `<<` brings may be overridden."""
        keys = [key.value for key, _ in node.value]
        for place, key in enumerate(keys):
            if key in keys[:place]:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", node.start_mark
                )
        return super().construct_mapping(node, deep)


def read_documents(file: Path) -> tuple[list[Any], list[Problem]]:
    """The YAML documents of a file, and why there are none."""
    return parse_documents(file, file.read_text())


def parse_documents(file: Path, text: str, inside: str = "") -> tuple[list[Any], list[Problem]]:
    """The YAML documents of a text that stands in a file, under the key `inside` if given."""
    try:
        return [d for d in yaml.load_all(text, _Loader) if d is not None], []
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}" if mark is not None else "?"
        message = str(getattr(error, "problem", None) or error)
        return [], [Problem(file, f"{inside}.{line}" if inside else line, message)]


def against(file: Path, value: Any, schema: dict[str, Any], inside: str = "") -> list[Problem]:
    """What of a value does not match a JSON schema."""
    errors = jsonschema.Draft202012Validator(schema).iter_errors(value)
    problems = {problem for error in errors for problem in explain(file, error, inside)}
    return sorted(problems, key=lambda p: (p.key, p.message))


def explain(file: Path, error: jsonschema.ValidationError, inside: str = "") -> list[Problem]:
    """The keys that an error of a JSON schema is about."""
    place = [*([inside] if inside else []), *map(str, error.absolute_path)]

    def problem(message: str, *key: str) -> Problem:
        return Problem(file, ".".join([*place, *key]) or "the whole file", message)

    if error.validator == "additionalProperties" and isinstance(error.instance, dict):
        known = list(error.schema.get("properties", {}))
        return [problem(unknown(str(k), known), str(k)) for k in error.instance if k not in known]
    if error.validator == "required":
        missing = (name for name in error.validator_value if name not in error.instance)
        return [problem("is missing", name) for name in missing]
    message: str = error.message
    return [problem(message if len(message) < 200 else f"{message[:200]} ...")]


def unknown(name: str, known: list[str]) -> str:
    """Says that a key is not known, with the nearest one that is."""
    near = get_close_matches(name, known, 1)
    return "unknown key" + (f"; did you mean {near[0]}?" if near else "")


def strict(schema: Any) -> Any:
    """A copy of a JSON schema that refuses unknown keys wherever it names the known ones."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: strict(value) for name, value in schema.items()}
    free = made.get("x-kubernetes-preserve-unknown-fields", False)
    if isinstance(made.get("properties"), dict) and not free:
        made.setdefault("additionalProperties", False)
    return made
