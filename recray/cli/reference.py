"""The pages of docs/ that are made from the code: `python -m recray.cli.reference PAGE`."""

import json
import pydoc
import re
import sys
from collections.abc import Iterator
from typing import Any

import click
from pydantic import TypeAdapter

from recray.cli import cli
from recray.config import Group, Settings

WIDTH = 92
"""Characters in a line of help."""
Schema = dict[str, Any]
RESULTS = {
    "benchmark": "benchmarks.harness.BenchmarkResult",
    "completion": "cli.results.ShellCompletion",
    "data describe": "cli.results.Description",
    "data fetch": "cli.results.FetchedRelease",
    "data list": "cli.results.ReleaseList",
    "doctor": "pipelines.doctor.Diagnosis",
    "evaluate": "evaluation.report.EvaluationReport pipelines.repetition.FoldsReport",
    "explain": "inference.inspect_user.UserInspection",
    "export": "cli.results.ExportedBundle",
    "jobs list": "cli.results.JobList",
    "jobs logs": "cli.results.JobLog cli.results.JobState",
    "jobs stop": "cli.results.JobState",
    "key": "cli.results.NewKey",
    "pipeline": "pipelines.stages.Release pipelines.refresh.Refreshed",
    "prepare": "cli.results.PreparedFacts",
    "presets": "cli.results.PresetList",
    "recommend": "serving.schemas.responses.RecommendationList inference.batch.BatchLists",
    "refresh": "pipelines.refresh.Refreshed",
    "registry add": "cli.results.AddedVersion",
    "registry list": "serving.registry.VersionList",
    "registry promote": "serving.registry.Promotion",
    "registry rollback": "serving.registry.Rollback",
    "forget": "serving.forget.ForgottenUser",
    "report": "cli.results.WrittenReport",
    "reproduce": "pipelines.repetition.Reproduction",
    "serve": "cli.results.StartedService",
    "similar": "inference.inspect_user.SimilarItems",
    "submit": "cli.results.Submitted cli.results.JobState",
    "train": "training.run_metadata.RunSummary",
    "tune": "tuning.results.TuneResult",
    "tune export": "reporting.mlflow.SweepExport",
    "up": "pipelines.stages.Running",
    "verify": "serving.verify.Verification",
}
"""The types of what each command prints with --json."""
COMMANDS_HEAD = """# Commands

Made from `--help` by `make docs`; do not edit.
"""
SETTINGS_HEAD = """# Settings

Made from `recray/config/groups.py` by `make docs`; do not edit.

Given as `--set KEY=VALUE`, or by group in a YAML file (`--config`), over a preset. What a preset
leaves out has the default of this page; `recray/config/presets/` has what each says. `data` and
`split` are given to `recray prepare`, the other groups to `recray train` and `recray tune`;
`recray up` and `recray pipeline` take them all. A setting that changes nothing under the others is
refused, as is the name that a setting had in an earlier version: the error has the new one.
"""
RESULTS_HEAD = """# Results

Made from the types of results by `make docs`; do not edit.

With `--json` a command prints one JSON object of the type below. A type has the names of its
fields, what each is in JSON, and what it means. `null` fields of an EvaluationReport are left out.

| | prints |
|---|---|"""
NOUNS = {"integer": "whole number", "number": "number", "string": "text"}
BOUNDS = {
    "minimum": " from",
    "exclusiveMinimum": " above",
    "maximum": " to",
    "exclusiveMaximum": ", below",
}


# ---------------------------------------------------------------------------- commands


def commands(group: click.Group, words: str = "recray") -> Iterator[tuple[str, click.Command]]:
    """Every command with the words one types, groups before what is in them."""
    for name, command in sorted(group.commands.items()):
        yield f"{words} {name}", command
        if isinstance(command, click.Group):
            yield from commands(command, f"{words} {name}")


def command_page() -> str:
    """The page, as Markdown."""
    every = [("recray", cli), *commands(cli)]
    links = "\n".join(f"- [`{words}`](#{words.replace(' ', '-')})" for words, _ in every)
    return "\n".join(
        [COMMANDS_HEAD, links, *(_command(words, command) for words, command in every)]
    )


def _command(words: str, command: click.Command) -> str:
    context = click.Context(
        command,
        info_name=words,
        terminal_width=WIDTH,
        max_content_width=WIDTH,
        help_option_names=["-h", "--help"],
    )
    lines = [line.rstrip() for line in command.get_help(context).splitlines()]
    return "\n".join([f"\n## {words}\n", "```text", *lines, "```"])


# ---------------------------------------------------------------------------- settings


def settings_page() -> str:
    """The page, as Markdown."""
    kinds = {name: field.annotation for name, field in Settings.model_fields.items()}
    groups = [(n, k) for n, k in kinds.items() if isinstance(k, type) and issubclass(k, Group)]
    return "\n".join([SETTINGS_HEAD.rstrip("\n"), *(_group(name, kind) for name, kind in groups)])


def _group(group: str, kind: type[Group]) -> str:
    schema = kind.model_json_schema()
    head = f"\n## {group}\n\n{schema['description']}\n\n| | takes | default | |\n|---|---|---|---|"
    return "\n".join([head, *(_row(f"{group}.{n}", s) for n, s in schema["properties"].items())])


def _row(key: str, schema: Schema) -> str:
    meaning = _cell(schema.get("description", ""))
    return f"| `{key}` | {_takes(schema)} | {_value(schema['default'])} | {meaning} |"


def _value(value: Any) -> str:
    """As one writes it after --set."""
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def _takes(schema: Schema, plural: str = "") -> str:
    """What a setting may be, from its JSON schema."""
    if "anyOf" in schema:
        return ", or ".join(_takes(one) for one in schema["anyOf"])
    if "const" in schema or "enum" in schema:
        return ", ".join(_value(v) for v in schema.get("enum", [schema.get("const")]))
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return "any JSON" if name == "JsonValue" else _link(name)
    match schema.get("type", "any"):
        case "any":
            return "any JSON"
        case "null":
            return _value(None)
        case "boolean":
            return f"{_value(True)}, {_value(False)}"
        case "array" if "prefixItems" in schema:
            return f"[{', '.join(map(_takes, schema['prefixItems']))}]"
        case "array":
            return f"list of {_takes(schema['items'], 's')}"
        case "object":
            keys = _takes(schema.get("propertyNames", {"type": "string"}))
            values = schema.get("additionalProperties", True)
            inner = _takes({} if values is True else values)
            return f"mapping of {keys} to {f'({inner})' if ', or ' in inner else inner}"
    bounds = [f"{word} {schema[key]:,}" for key, word in BOUNDS.items() if key in schema]
    return "".join([NOUNS[schema["type"]], plural, *bounds])


# ------------------------------------------------------------------------------- results


def result_types() -> dict[str, list[type]]:
    """What each command prints with --json; several types where its options decide."""
    return {
        command: [_resolved(f"recray.{path}") for path in paths.split()]
        for command, paths in RESULTS.items()
    }


def _resolved(path: str) -> type:
    found = pydoc.locate(path)
    if not isinstance(found, type):
        raise ValueError(f"no type {path}")
    return found


def result_page() -> str:
    """The page of results, as Markdown."""
    types = result_types()
    every = {kind.__name__: kind for kinds in types.values() for kind in kinds}
    _, schema = TypeAdapter.json_schemas(
        [(name, "validation", TypeAdapter(kind)) for name, kind in every.items()]
    )
    types_by_name = sorted(schema["$defs"].items())
    lines = [
        f"| `recray {command}` | {' or '.join(_link(kind.__name__) for kind in kinds)} |"
        for command, kinds in types.items()
    ]
    chapters = (_type(name, definition) for name, definition in types_by_name if definition)
    return "\n".join([RESULTS_HEAD, *lines, *chapters])


def _link(name: str) -> str:
    return f"[{name}](#{name.lower()})"


def _type(name: str, schema: Schema) -> str:
    """A section: what a type is, and a row for each field."""
    meaning, _, arguments = schema.get("description", "").partition("\n\nArgs:\n")
    told = dict(re.findall(r"^ +(\w+): ((?:.|\n {8,})*)", arguments, re.MULTILINE))
    rows = [
        f"| `{field}` | {_takes(one)} | {_cell(one.get('description', told.get(field, '')))} |"
        for field, one in schema.get("properties", {}).items()
    ]
    others = schema.get("additionalProperties")
    if isinstance(others, dict):
        rows.append(f"| any other | {_takes(others)} | |")
    head = f"\n## {name}\n\n{meaning.strip()}\n\n| | in JSON | |\n|---|---|---|"
    return "\n".join([head, *rows])


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


PAGES = {"commands": command_page, "settings": settings_page, "results": result_page}

if __name__ == "__main__":
    print(PAGES[sys.argv[1]]())
