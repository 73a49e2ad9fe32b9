"""Results of commands as text: lines and tables."""

import io
import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.box import Box
from rich.console import Console
from rich.table import Table

from recray.evaluation.report import EvaluationReport, Segments, Values

if TYPE_CHECKING:
    from recray.inference.batch import BatchLists
    from recray.inference.catalog import ItemSummary
    from recray.inference.inspect_user import UserInspection
    from recray.inference.recommendations import Recommendations
    from recray.runtime.jobs import Job

UNLIMITED = 10_000
"""Columns of a table that is written to a file or a pipe: as many as its content takes."""
RULE = Box("    \n    \n----\n    \n    \n    \n    \n    \n")
"""A line of dashes below the head of a table, and no other line."""


def table(title: str, columns: list[str], rows: list[list[str]]) -> str:
    """Lay out a table; the first column is left-aligned, the others right.

    On a terminal that is too narrow, long cells continue on further lines.
    """
    layout = Table(box=RULE, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="")
    for place, name in enumerate(columns):
        layout.add_column(name, justify="right" if place else "left", overflow="fold")
    for row in rows:
        layout.add_row(*row)
    limited = sys.stdout.isatty() or os.environ.get("COLUMNS")
    out = Console(
        file=io.StringIO(),
        width=shutil.get_terminal_size().columns if limited else UNLIMITED,
        color_system=None,
        highlight=False,
        markup=False,
    )
    with out.capture() as captured:
        if title:
            out.print(title)
        out.print(layout)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def evaluation(report: EvaluationReport | None, slices: bool = False) -> str:
    """An evaluation: data set, split, metrics beside the others, verdict, and maybe slices."""
    if report is None:
        return "no test split to measure on"
    rows, unseen = report.split.rows, report.unseen
    cold = (
        f"not in training: {unseen.users:,} users, {unseen.items:,} items, "
        f"{unseen.ratings:,} of {rows['test']:,} test ratings"
    )
    plain = report.protocol.honest and report.protocol.next is None
    lines = [] if plain else [report.protocol.words]
    if report.final_fit:
        lines.append(f"measured: the fit on {report.fit_on}; served: the same on all ratings")
    lines += [_metrics(report), *report.verdict.split("; "), *_comparisons(report), cold]
    shown = _slices(report.slices, ["model", *report.others]) if slices else []
    return "\n".join(lines + shown)


def _metrics(report: EvaluationReport) -> str:
    """Every metric, of the model with its interval and of the systems beside it."""
    rows, others = report.split.rows, report.others
    targets = "" if report.targets is None else f", {report.targets:,} targets"
    title = (
        f"{report.dataset}, preset {report.preset}: {report.users:,} users{targets}, "
        f"split {report.split.kind} "
        f"(train {rows['train']:,}, valid {rows['valid']:,}, test {rows['test']:,})"
    )
    body = []
    for name, mean in report.metrics.items():
        beside = [b.metrics.get(name) for b in others.values()]
        values = [f"{other.value:.4f}" if other else "" for other in beside]
        body.append([name, f"{mean.value:.4f}", f"{mean.low:.4f} to {mean.high:.4f}", *values])
    for name, number in (report.catalogue or {}).items():
        values = [_number((b.catalogue or {}).get(name)) for b in others.values()]
        body.append([name, _number(number), "", *values])
    return table(title, ["metric", "model", "95 % interval", *others], body)


def _comparisons(report: EvaluationReport) -> list[str]:
    """The model less each other system, where there are several."""
    if len(report.comparisons) < 2:
        return []
    rows = [
        [
            f"{found.verdict} {found.other}",
            found.metric,
            f"{found.difference:+.4f}",
            f"{found.low:+.4f} to {found.high:+.4f}",
            _number(found.p),
            _number(found.p_holm),
        ]
        for found in report.comparisons
    ]
    columns = ["the model is", "metric", "difference", "95 % interval", "p", "p after Holm"]
    return ["", table("", columns, rows), ""]


def _slices(slices: Segments, systems: list[str]) -> list[str]:
    """NDCG by the known ratings, the gender and the age of users, and recall by those of items."""

    def rows(name: str, size: int | None, means: Mapping[str, Values]) -> Iterable[list[str]]:
        for metric in means["model"]:
            yield [name, f"{size:,}", metric, *(_number(means[s].get(metric)) for s in systems)]

    columns, lines = ["metric", *systems], []
    of_users = {"known ratings": slices.users, "gender": slices.gender, "age": slices.age}
    for words, groups in of_users.items():
        found = [
            row
            for name, group in (groups or {}).items()
            for row in rows(name, group.users, group.systems)
            if row[2].startswith(("ndcg", "rmse"))
        ]
        if found:
            lines += ["", table(f"users by {words}", ["", "users", *columns], found)]
    items = [row for name, g in slices.items.items() for row in rows(name, g.ratings, g.systems)]
    return [
        *lines,
        "",
        table("held-out items by known ratings", ["", "ratings", *columns], items),
    ]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def recommendations(answer: "Recommendations") -> str:
    """A recommended list."""
    rows = [
        [f"{place}. {i.title}", ", ".join(i.genres), str(i.item), f"{i.score:.4f}"]
        for place, i in enumerate(answer.items, 1)
    ]
    lines = [
        table(
            f"source {answer.source}, model {answer.model_version}",
            ["title", "genres", "item", "score"],
            rows,
        )
    ]
    for place, why in enumerate(answer.why or (), 1):
        if why.items:
            rated = ", ".join(f"{r.title} ({r.share:+.3f})" for r in why.items)
            approximately = "" if why.kind == "exact" else ", approximately"
            lines.append(f"{place}. because of {rated}{approximately}")
    if answer.skipped:
        lines.append(f"skipped {answer.skipped} that the model was not trained on")
    return "\n".join(lines)


def lists(result: "BatchLists") -> str:
    """Where the lists of all users are, and how fast they came."""
    before = f", {result.parts_before} of them before" if result.parts_before else ""
    counts = f"{result.users:,} users, {result.k} items each, in {result.parts} parts{before}"
    if result.parts_before == result.parts:
        return f"{counts}; nothing was left to do\n{result.out}"
    nodes = f"{result.nodes} node{'s' if result.nodes > 1 else ''}"
    speed = f"{result.seconds:.1f} s on {nodes}, {result.users_per_second:,.0f} users/s"
    return f"{counts}\n{speed}\n{result.out}"


def explanation(look: "UserInspection", k: int) -> str:
    """One user: items rated best, recommended and held out (hits marked), at most k of each."""
    stars = look.scores == "stars" and look.source != "popular"

    def listed_items(title: str, rows: "Sequence[ItemSummary]", *names: str) -> str:
        body = []
        for item in rows[:k]:
            values = [getattr(item, name) for name in names]
            mark = "* " if getattr(item, "hit", False) else "  "
            numbers = ["?" if value is None else f"{value:g}" for value in values]
            body.append([mark + item.title, ", ".join(item.genres), *numbers])
        shown = ("predicted" if name == "score" and stars else name for name in names)
        more = f"\n  and {len(rows) - k:,} more" if len(rows) > k else ""
        return table(title, ["  title", "genres", *shown], body) + more

    rated = f"user {look.user}: the best of {look.ratings:,} ratings"
    listed = f"recommended (source {look.source}, model {look.model_version})"
    held_out = (
        f"held out: {len(look.held_out):,} films, {look.hits} of them among the first {k} "
        "when they are not known (*)"
    )
    return "\n\n".join(
        [
            listed_items(rated, look.rated, "rating"),
            listed_items(listed, look.recommended, "score"),
            listed_items(held_out, look.held_out, "rating", "score", "rank"),
        ]
    )


def jobs(rows: "Iterable[Job]") -> str:
    """The jobs of a cluster."""
    body = [
        [
            job.name,
            job.status.lower(),
            "" if job.exit_code is None else str(job.exit_code),
            (job.started or "").replace("+00:00", "Z"),
            "" if job.seconds is None else f"{job.seconds:,.0f} s",
        ]
        for job in rows
    ]
    return table("", ["job", "status", "exit", "started", "ran"], body) if body else "no jobs yet"


def benchmark(name: str, result: dict[str, Any]) -> str:
    """A benchmark: its rows, then its figures, with the machine and its load."""
    columns = list(dict.fromkeys(key for row in result["rows"] for key in row))
    body = [[_cell(row.get(column)) for column in columns] for row in result["rows"]]
    facts = result["machine"]
    title = (
        f"{name} on {facts['cpus']} CPUs, load {facts['load']} before, {facts['load_after']} after"
    )
    figures = [[figure, _cell(value)] for figure, value in result["figures"].items()]
    return "\n\n".join([table(title, columns, body), table("", ["figure", ""], figures)])


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        if 0 < abs(value) < 1:
            return f"{value:.3g}" if abs(value) < 0.001 else f"{value:.5g}"
        return f"{value:,.3f}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
