"""A page of plots and tables as one HTML file that loads nothing from elsewhere."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from importlib import resources
from typing import Literal

from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from matplotlib.figure import Figure

from recray.reporting.plots import style


@dataclass(frozen=True)
class Plot:
    """A figure on the page.

    Args:
        name: Name of its PNG file, unique on the page.
        figure: A matplotlib figure.
        span: How much of a row it takes where there is room: all, a half or a third.
    """

    name: str
    figure: Figure
    span: Literal["wide", "half", "third"] = "half"
    kind = "plot"

    @property
    def title(self) -> str:
        """The figure's title on one line."""
        return " ".join(self.figure.get_suptitle().split())

    @property
    def svg(self) -> Markup:
        """The figure as inline SVG."""
        return Markup(style.svg(self.figure, self.name, escape(self.title, quote=True)))


@dataclass(frozen=True)
class Table:
    """Rows under a title; columns of numbers are aligned to the right.

    Args:
        title: Its heading.
        columns: Names of the columns.
        rows: Text of the cells.
        marked: Places of the rows to highlight.
        half: Whether two tables stand side by side where there is room.
    """

    title: str
    columns: list[str]
    rows: list[list[str]]
    marked: frozenset[int] = frozenset()
    half: bool = False
    kind = "table"

    @property
    def numeric(self) -> list[bool]:
        """Whether every cell of a column is a number or empty, by column."""
        columns = zip(*self.rows, strict=True) if self.rows else ([" "] for _ in self.columns)
        return [all(map(_is_number, column)) for column in columns]


@dataclass(frozen=True)
class Details:
    """A text that a click unfolds.

    Args:
        title: Its heading.
        text: Shown without a change.
    """

    title: str
    text: str
    kind = "details"


Block = Plot | Table | Details


def plots_of(figures: Mapping[str, Figure | None]) -> list[Block]:
    """Lay out the plots that there are: two a row, and three in the last row of an odd number."""
    drawn = [(name, figure) for name, figure in figures.items() if figure is not None]
    thirds = len(drawn) - 3 if len(drawn) % 2 and len(drawn) > 1 else len(drawn)
    return [
        Plot(name, figure, "third" if place >= thirds else "half")
        for place, (name, figure) in enumerate(drawn)
    ]


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Args:
        name: Name of its anchor.
        title: Its heading.
        words: A sentence below the heading.
        blocks: Its plots, tables and texts.
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
        lead: Sentences below the heading.
        tiles: Numbers to see first: (value, what it means).
        sections: In order.
    """

    title: str
    lead: list[str]
    tiles: list[tuple[str, str]]
    sections: list[Section] = field(default_factory=list)

    @property
    def plots(self) -> list[Plot]:
        """Every plot, in order."""
        blocks = (block for section in self.sections for block in section.blocks)
        return [block for block in blocks if isinstance(block, Plot)]

    def html(self) -> str:
        """The whole page. Jinja escapes every text; only the SVG of plots is taken as it is."""
        environment = Environment(
            loader=PackageLoader("recray.reporting", "."),
            autoescape=True,
            trim_blocks=True,
            keep_trailing_newline=True,
        )
        css = (resources.files("recray.reporting") / "report.css").read_text()
        return environment.get_template("report.html.j2").render(
            page=self,
            light=Markup(style.css(dark=False)),
            dark=Markup(style.css(dark=True)),
            css=Markup(css),
        )


def _is_number(cell: str) -> bool:
    return not cell or cell.lstrip("+-").replace(",", "").replace(".", "", 1).isdigit()
