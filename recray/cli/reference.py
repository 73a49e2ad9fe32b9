"""The reference of all commands, from their own help: `python -m recray.cli.reference`."""

from collections.abc import Iterator

import click

from recray.cli import cli

WIDTH = 92
HEAD = """# Commands

Made from `--help` by `make docs`; do not edit.
"""


def commands(group: click.Group, words: str = "recray") -> Iterator[tuple[str, click.Command]]:
    """Every command with the words one types, groups before what is in them."""
    for name, command in sorted(group.commands.items()):
        yield f"{words} {name}", command
        if isinstance(command, click.Group):
            yield from commands(command, f"{words} {name}")


def reference() -> str:
    """The page, as Markdown."""
    every = [("recray", cli), *commands(cli)]
    links = "\n".join(f"- [`{words}`](#{words.replace(' ', '-')})" for words, _ in every)
    return "\n".join([HEAD, links, *(_chapter(words, command) for words, command in every)])


def _chapter(words: str, command: click.Command) -> str:
    context = click.Context(
        command,
        info_name=words,
        terminal_width=WIDTH,
        max_content_width=WIDTH,
        help_option_names=["-h", "--help"],
    )
    lines = [line.rstrip() for line in command.get_help(context).splitlines()]
    return "\n".join([f"\n## {words}\n", "```text", *lines, "```"])


if __name__ == "__main__":
    print(reference())
