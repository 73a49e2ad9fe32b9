"""The pages of docs/ that are made from the code: `python -m recray.cli.reference PAGE`."""

import json
import sys
from collections.abc import Iterator
from typing import Any

import click

from recray.cli import cli
from recray.config import Group, Settings

WIDTH = 92
"""Characters in a line of help."""
Schema = dict[str, Any]
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
    meaning = " ".join(schema.get("description", "").split()).replace("|", "\\|")
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
    match schema["type"]:
        case "null":
            return _value(None)
        case "boolean":
            return f"{_value(True)}, {_value(False)}"
        case "array":
            return f"list of {_takes(schema['items'], 's')}"
        case "object":
            return f"mapping of {_takes(schema['propertyNames'])} to text"
    bounds = [f"{word} {schema[key]:,}" for key, word in BOUNDS.items() if key in schema]
    return "".join([NOUNS[schema["type"]], plural, *bounds])


PAGES = {"commands": command_page, "settings": settings_page}

if __name__ == "__main__":
    print(PAGES[sys.argv[1]]())
