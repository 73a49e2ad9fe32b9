"""A page of pictures and tables as one HTML file: nothing is loaded from elsewhere."""

from dataclasses import dataclass, field
from html import escape
from importlib import resources
from typing import Literal

from matplotlib.figure import Figure

from recray.reporting.plots import style as canvas


@dataclass(frozen=True)
class Picture:
    """A figure on the page.

    Args:
        name: Of its PNG file, unique on the page.
        figure: A matplotlib figure.
        span: Where there is room, how many stand side by side: one, half or third.
    """

    name: str
    figure: Figure
    span: Literal["wide", "half", "third"] = "half"

    @property
    def title(self) -> str:
        """What it shows, in one line."""
        return " ".join(self.figure.get_suptitle().split())

    def html(self) -> str:
        """The picture inline."""
        drawn = canvas.svg(self.figure, self.name, escape(self.title, quote=True))
        return f'<figure class="{self.span}">{drawn}</figure>'


@dataclass(frozen=True)
class Table:
    """Rows under a title; columns of numbers are aligned to the right.

    Args:
        title: What it shows.
        columns: Their names.
        rows: Text of the cells.
        marked: Rows to mark.
        half: Whether two tables stand side by side where there is room.
    """

    title: str
    columns: list[str]
    rows: list[list[str]]
    marked: frozenset[int] = frozenset()
    half: bool = False

    def html(self) -> str:
        """The table."""
        numbers = [all(map(_is_number, column)) for column in zip(*self.rows, strict=True)]
        classes = [" class=number" if number else "" for number in numbers]
        classes = classes or [""] * len(self.columns)
        cells = zip(classes, self.columns, strict=True)
        head = "".join(f"<th{kind}>{escape(name)}</th>" for kind, name in cells)
        body = "".join(self._row(place, row, classes) for place, row in enumerate(self.rows))
        return (
            f'<div class="table {"half" if self.half else "wide"}"><h3>{escape(self.title)}</h3>'
            f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody>'
            "</table></div></div>"
        )

    def _row(self, place: int, row: list[str], classes: list[str]) -> str:
        cells = "".join(
            f"<td{kind}>{escape(cell)}</td>" for kind, cell in zip(classes, row, strict=True)
        )
        return f"<tr{' class=hit' if place in self.marked else ''}>{cells}</tr>"


@dataclass(frozen=True)
class Details:
    """Text that is opened by a click.

    Args:
        title: What it is.
        text: Shown as it is.
    """

    title: str
    text: str

    def html(self) -> str:
        """The folded text."""
        return (
            f'<details class="wide"><summary>{escape(self.title)}</summary>'
            f"<pre>{escape(self.text)}</pre></details>"
        )


Block = Picture | Table | Details


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Args:
        name: Of its anchor.
        title: Its heading.
        words: A sentence below the heading.
        blocks: What it shows.
    """

    name: str
    title: str
    words: str
    blocks: list[Block]


@dataclass(frozen=True)
class Document:
    """A page.

    Args:
        title: Its heading.
        lead: Sentences below it.
        tiles: Figures to see first: (value, what it is).
        sections: In order.
    """

    title: str
    lead: list[str]
    tiles: list[tuple[str, str]]
    sections: list[Section] = field(default_factory=list)

    @property
    def pictures(self) -> list[Picture]:
        """Every picture, in order."""
        blocks = (block for section in self.sections for block in section.blocks)
        return [block for block in blocks if isinstance(block, Picture)]

    def html(self) -> str:
        """The whole page."""
        style = (resources.files("recray.reporting") / "report.css").read_text()
        colors = f":root {{ {canvas.css(dark=False)} }} @media (prefers-color-scheme: dark) "
        colors += f"{{ :root {{ {canvas.css(dark=True)} }} }}"
        links = "".join(f'<a href="#{s.name}">{escape(s.title)}</a>' for s in self.sections)
        tiles = "".join(
            f"<div><b>{escape(value)}</b><span>{escape(words)}</span></div>"
            for value, words in self.tiles
        )
        lead = "".join(f"<p>{escape(line)}</p>" for line in self.lead)
        body = "".join(_section(section) for section in self.sections)
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            '<meta name="color-scheme" content="light dark">'
            f"<title>{escape(self.title)}</title><style>{colors}\n{style}</style></head>\n<body>"
            f"<header><h1>{escape(self.title)}</h1>{lead}</header><nav>{links}</nav>\n"
            f'<main><div class="tiles">{tiles}</div>\n{body}</main>\n</body></html>\n'
        )


def _section(section: Section) -> str:
    blocks = "\n".join(block.html() for block in section.blocks)
    words = f"<p>{escape(section.words)}</p>" if section.words else ""
    return (
        f'<section id="{section.name}"><h2>{escape(section.title)}</h2>{words}'
        f'<div class="grid">{blocks}</div></section>\n'
    )


def _is_number(cell: str) -> bool:
    return not cell or cell.lstrip("+-").replace(",", "").replace(".", "", 1).isdigit()
