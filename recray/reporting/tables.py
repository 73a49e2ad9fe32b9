"""Tables of text that fit the terminal."""

import os
import shutil
import sys
import textwrap


def table(title: str, columns: list[str], rows: list[list[str]]) -> str:
    """Columns as wide as their content; the first is left-aligned, the others right.

    On a terminal that is too narrow long cells are cut, and columns that still do not fit follow in
    further tables that repeat the first.
    """
    cells = [columns, *rows]
    width = [max(len(row[place]) for row in cells) for place in range(len(columns))]
    room = _room()
    if width and sum(width) + 2 * len(width) - 2 > room:
        rest = min(sum(width[1:]) + 2 * len(width[1:]), room // 2)
        width[0] = min(width[0], max(room - rest, 12))
        width[1:] = [min(own, max(room - width[0] - 2, 12)) for own in width[1:]]
    parts = ["\n".join(_lines(cells, width, group)) for group in _groups(width, room)]
    return "\n".join(filter(None, [textwrap.fill(title, max(room, 20)), "\n\n".join(parts)]))


def _room() -> int:
    """Columns of the terminal; without one, or a number in COLUMNS, there is no end of room."""
    if not sys.stdout.isatty() and not os.environ.get("COLUMNS"):
        return 10_000
    return shutil.get_terminal_size().columns


def _groups(width: list[int], room: int) -> list[list[int]]:
    """Places of the columns of each table: the first column, and as many others as fit."""
    groups, used = [[0]], width[0] if width else 0
    for place in range(1, len(width)):
        if used + 2 + width[place] > room and len(groups[-1]) > 1:
            groups.append([0])
            used = width[0]
        groups[-1].append(place)
        used += 2 + width[place]
    return groups


def _lines(cells: list[list[str]], width: list[int], places: list[int]) -> list[str]:
    """The chosen columns of a table, with a rule below the first row."""
    lines = [
        "  ".join(
            _cut(row[place], width[place]).ljust(width[place])
            if place == 0
            else _cut(row[place], width[place]).rjust(width[place])
            for place in places
        ).rstrip()
        for row in cells
    ]
    return [lines[0], "-" * max(len(line) for line in lines), *lines[1:]]


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"
