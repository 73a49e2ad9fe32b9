"""Serve configs: Ray's own schema, the keys refused that Ray would pass over, and our own rules."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from cluster.validate.problems import Problem, read_documents, unknown
from recray.serving import serve_config


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
        told = (line.partition(": ") for line in serve_config.check(values))
        found = [(key, message) for key, _, message in told]
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
