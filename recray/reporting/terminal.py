"""Results of commands as text: lines and tables."""

import io
import os
import shutil
import sys
import textwrap
from typing import Any

from rich.box import Box
from rich.console import Console
from rich.table import Table

from recray.data.feedback_source import LogSummary
from recray.evaluation.report import EvaluationReport, Segments

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
    """An evaluation: data set, split, metrics beside the baselines, verdict; slices if wanted."""
    if report is None:
        return "no test split to measure on"
    rows, baselines = report.split.rows, report.baselines
    title = (
        f"{report.dataset}, preset {report.preset}: {report.users:,} users, "
        f"split {report.split.kind} "
        f"(train {rows['train']:,}, valid {rows['valid']:,}, test {rows['test']:,})"
    )
    body = []
    for name, mean in report.metrics.items():
        others = [b.metrics.get(name) for b in baselines.values()]
        values = [f"{other.value:.4f}" if other else "" for other in others]
        body.append([name, f"{mean.value:.4f}", f"{mean.low:.4f} to {mean.high:.4f}", *values])
    for name, number in (report.catalogue or {}).items():
        values = [_number((b.catalogue or {}).get(name)) for b in baselines.values()]
        body.append([name, _number(number), "", *values])
    unseen = report.unseen
    cold = (
        f"not in training: {unseen.users:,} users, {unseen.items:,} items, "
        f"{unseen.ratings:,} of {rows['test']:,} test ratings"
    )
    columns = ["metric", "model", "95 % interval", *baselines]
    lines = [] if report.protocol.honest else [report.protocol.words]
    lines += [table(title, columns, body), *report.verdict.split("; "), cold]
    return "\n".join(lines + (_slices(report.slices, ["model", *baselines]) if slices else []))


def _slices(slices: Segments, systems: list[str]) -> list[str]:
    """NDCG by the known ratings of users, and recall by those of items."""
    rows = [
        [
            name,
            f"{group.users:,}",
            metric,
            *(_number(group.systems[s].get(metric)) for s in systems),
        ]
        for name, group in slices.users.items()
        for metric in group.systems["model"]
        if metric.startswith(("ndcg", "rmse"))
    ]
    lines = ["", table("users by known ratings", ["", "users", "metric", *systems], rows)]
    rows = [
        [name, f"{group.ratings:,}", metric, *(_number(group.systems[s][metric]) for s in systems)]
        for name, group in slices.items.items()
        for metric in group.systems["model"]
    ]
    columns = ["", "ratings", "metric", *systems]
    return [*lines, "", table("held-out items by known ratings", columns, rows)]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def releases(rows: list[dict[str, Any]], licence: str) -> str:
    """The MovieLens releases."""
    body = [
        [
            row["name"],
            f"{row['ratings']:,}",
            f"{row['users']:,}",
            f"{row['items']:,}",
            f"{row['bytes'] / 1e6:,.1f} MB" if row["bytes"] else "?",
            "cached" if row["cached"] else "",
        ]
        for row in rows
    ]
    columns = ["release", "ratings", "users", "films", "archive", ""]
    return "\n".join([table("", columns, body), *textwrap.wrap(licence, 90)])


def description(facts: dict[str, Any]) -> str:
    """Counts and histograms of a data set."""
    counts = ", ".join(f"{facts[n]:,} {n}" for n in ("ratings", "users", "items"))
    lines = [f"{facts['dataset']}: {counts}"]
    for name, word in (("per_user", "ratings per user"), ("per_item", "ratings per item")):
        if facts[name]:
            low, q1, median, q3, high = (f"{value:,.0f}" for value in facts[name])
            lines.append(f"{word}: {low} to {high}, half of them {q1} to {q3}, median {median}")
    lines += ["", "ratings by stars", *_histogram(facts["levels"])]
    if facts["years"]:
        lines += ["", "ratings by year", *_histogram(facts["years"])]
    if "splits" in facts:
        lines += ["", _splits(facts["splits"])]
    rejected = facts["rejected"]
    reasons = ", ".join(f"{count:,} {why}" for why, count in rejected["reasons"].items())
    lines += ["", f"rejected rows: {rejected['rows']:,}" + (f" ({reasons})" if reasons else "")]
    return "\n".join(lines)


def _histogram(pairs: list[list[Any]], width: int = 50) -> list[str]:
    """A bar for each value; at most 30, neighbours put together."""
    step = -(-len(pairs) // 30)
    groups = [pairs[first : first + step] for first in range(0, len(pairs), step)]
    counts = [sum(count for _, count in group) for group in groups]
    most = max(counts, default=1)
    return [
        f"{group[0][0]:>8g}  {count:>12,}  {'#' * max(1, round(width * count / most))}"
        for group, count in zip(groups, counts, strict=True)
    ]


def _splits(splits: dict[str, Any], title: str = "") -> str:
    rows = [
        [
            name,
            *(f"{s[column]:,}" for column in ("rows", "users", "items", "unseen")),
            f"{s['unseen_percent']:.2f} %",
        ]
        for name, s in splits.items()
    ]
    columns = ["split", "ratings", "users", "items", "with unseen ids", "share"]
    return table(title, columns, rows)


def prepared(manifest: dict[str, Any]) -> str:
    """What a prepared data set holds."""
    counts = manifest["counts"]
    title = f"{manifest['dataset']}: {counts['users']:,} users, {counts['items']:,} items"
    lines = [_splits(manifest["splits"], title)]
    if manifest["rejected"]["rows"]:
        reasons = ", ".join(f"{n:,} {why}" for why, n in manifest["rejected"]["reasons"].items())
        lines.append(f"rejected: {reasons} (see rejected.parquet)")
    if counts["duplicates"]:
        lines.append(f"repeated ratings merged: {counts['duplicates']:,}")
    return "\n".join(lines)


def recommendations(answer: dict[str, Any]) -> str:
    """A recommended list."""
    rows = [
        [f"{place}. {i['title']}", ", ".join(i["genres"]), str(i["item"]), f"{i['score']:.4f}"]
        for place, i in enumerate(answer["items"], 1)
    ]
    reasons = [
        f"{place}. because of {_reasons(i['why'])}"
        for place, i in enumerate(answer["items"], 1)
        if i.get("why", {}).get("items")
    ]
    title = f"source {answer['source']}, model {answer['model_version']}"
    return "\n".join([table(title, ["title", "genres", "item", "score"], rows), *reasons])


def _reasons(why: dict[str, Any]) -> str:
    rated = ", ".join(f"{r['title']} ({r['share']:+.3f})" for r in why["items"])
    return rated if why["kind"] == "exact" else f"{rated}, approximately"


def lists(result: dict[str, Any]) -> str:
    """Where the lists of all users are, and how fast they came."""
    before = f", {result['parts_before']} of them before" if result["parts_before"] else ""
    made = (
        f"{result['users']:,} users, {result['k']} items each, in {result['parts']} parts{before}"
    )
    if result["parts_before"] == result["parts"]:
        return f"{made}; nothing was left to do\n{result['out']}"
    nodes = f"{result['nodes']} node{'s' if result['nodes'] > 1 else ''}"
    speed = f"{result['seconds']:.1f} s on {nodes}, {result['users_per_second']:,.0f} users/s"
    return f"{made}\n{speed}\n{result['out']}"


def explanation(look: dict[str, Any], k: int) -> str:
    """One user: items rated best, recommended (hits marked) and held out, at most k of each."""
    stars = look["scores"] == "stars"
    words = {"score": "predicted"} if stars and look["source"] != "popular" else {}

    def listed_items(title: str, rows: list[dict[str, Any]], *names: str) -> str:
        body = [
            [
                ("* " if item.get("hit") else "  ") + item["title"],
                ", ".join(item["genres"]),
                *("?" if item[name] is None else f"{item[name]:g}" for name in names),
            ]
            for item in rows[:k]
        ]
        columns = ["  title", "genres", *(words.get(name, name) for name in names)]
        more = f"\n  and {len(rows) - k:,} more" if len(rows) > k else ""
        return table(title, columns, body) + more

    held, hits = look["held_out"], look["hits"]
    rated = f"user {look['user']}: the best of {look['ratings']:,} ratings"
    listed = f"recommended (source {look['source']}, model {look['model_version']})"
    out = f"held out: {len(held):,} films, {hits} of them recommended (*)"
    return "\n\n".join(
        [
            listed_items(rated, look["rated"], "rating"),
            listed_items(listed, look["recommended"], "score"),
            listed_items(out, held, "rating", "score", "rank"),
        ]
    )


def jobs(rows: list[dict[str, Any]]) -> str:
    """The jobs of a cluster."""
    if not rows:
        return "no jobs yet"
    body = [
        [
            row["name"],
            row["status"].lower(),
            "" if row["exit_code"] is None else str(row["exit_code"]),
            "" if row["started"] is None else row["started"].replace("+00:00", "Z"),
            "" if row["seconds"] is None else f"{row['seconds']:,.0f} s",
        ]
        for row in rows
    ]
    return table("", ["job", "status", "exit", "started", "ran"], body)


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
        if 0 < abs(value) < 0.001:
            return f"{value:.3g}"
        return f"{value:,.3f}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def ratings_log(path: str, added: LogSummary) -> str:
    """What a ratings log gave, and what of it could not be used, in a line."""
    parts = [f"{path}: {added.ratings:,} ratings of {added.users:,} users"]
    if added.damaged_parts:
        parts.append(f"{len(added.damaged_parts)} damaged parts left out")
    if added.unknown_items:
        parts.append(f"{added.unknown_items:,} of items that the source does not have left out")
    return "; ".join(parts)
