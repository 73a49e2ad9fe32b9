"""Public names use the words of docs/glossary.md, and none that it calls retired."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click

from recray.cli import cli

ROOT = Path(__file__).parent.parent
GLOSSARY = (ROOT / "docs" / "glossary.md").read_text()


def table(heading: str) -> list[list[str]]:
    """The rows of the first table below a line that begins with these words, without its head."""
    below = GLOSSARY.split(f"\n{heading}", 1)[1].splitlines()
    rows = [line for line in below if line.startswith("|")]
    end = next((n for n, line in enumerate(below) if n > 6 and line and line[0] not in "|"), None)
    rows = [line for line in below[:end] if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


RETIRED_NAMES = {n for row in table("## Retired") for n in re.findall(r"`(\w+)`", row[0])}
RETIRED_WORDS = {n for row in table("No public name, flag") for n in re.findall(r"`(\w+)`", row[0])}


def public_names() -> Iterator[tuple[str, str, str]]:
    """Where, name, and first line of the docstring of modules, classes, functions, parameters."""
    for path in sorted((ROOT / "recray").rglob("*.py")):
        where = path.relative_to(ROOT).as_posix()
        if "/benchmarks/" in where:
            continue
        tree = ast.parse(path.read_text())
        yield where, path.stem, ast.get_docstring(tree) or ""
        for node in ast.walk(tree):
            if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if node.name.startswith("_"):
                continue
            yield f"{where}:{node.lineno}", node.name, ast.get_docstring(node) or ""
            if not isinstance(node, ast.ClassDef):
                for argument in (*node.args.args, *node.args.kwonlyargs):
                    yield f"{where}:{node.lineno}", argument.arg, ""


def flags(command: click.Command) -> Iterator[str]:
    for parameter in command.params:
        yield from (option.strip("-") for option in (*parameter.opts, *parameter.secondary_opts))
    if isinstance(command, click.Group):
        for child in command.commands.values():
            yield from flags(child)


def words(name: str) -> set[str]:
    """The words of a name in any spelling: snake_case, CamelCase, with hyphens."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)
    return set(re.split(r"[\W_]+", spaced.lower()))


def test_the_glossary_has_its_tables():
    assert len(RETIRED_NAMES) > 100
    assert {"wish", "stars"} <= RETIRED_WORDS
    assert words("RecommendRequest") == {"recommend", "request"}


def test_no_public_name_is_retired():
    found = {f"{where}: {name}" for where, name, _ in public_names() if name in RETIRED_NAMES}
    assert not found


def test_no_public_name_has_a_retired_word():
    found = {f"{where}: {name}" for where, name, _ in public_names() if words(name) & RETIRED_WORDS}
    assert not found


def test_no_docstring_begins_with_a_retired_word_in_its_first_line():
    found = {
        f"{where}: {text.splitlines()[0]}"
        for where, _, text in public_names()
        if text and words(text.splitlines()[0]) & RETIRED_WORDS
    }
    assert not found


def test_no_flag_has_a_retired_word():
    assert not {flag for flag in flags(cli) if words(flag) & RETIRED_WORDS}
