"""A problem names its file and its key; YAML is read without the freedoms that hide mistakes."""

from collections.abc import Hashable, Iterator
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
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]  # type: ignore[no-untyped-call]
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
    validator = jsonschema.Draft202012Validator(schema)
    problems = [
        Problem(file, key, message)
        for error in validator.iter_errors(value)
        for key, message in _explain(error, inside)
    ]
    return sorted(set(problems), key=lambda p: (p.key, p.message))


def _explain(error: jsonschema.ValidationError, inside: str) -> Iterator[tuple[str, str]]:
    place = [inside, *map(str, error.absolute_path)] if inside else [*map(str, error.absolute_path)]
    if error.validator == "additionalProperties" and isinstance(error.instance, dict):
        known = list(error.schema.get("properties", {}))
        for key in sorted(set(error.instance) - set(known), key=str):
            yield ".".join([*place, str(key)]), unknown(str(key), known)
    elif error.validator == "required":
        missing = [name for name in error.validator_value if name not in error.instance]
        for name in missing:
            yield ".".join([*place, name]), "is missing"
    else:
        message = error.message if len(error.message) < 200 else f"{error.message[:200]} ..."
        yield ".".join(place) or "the whole file", message


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
