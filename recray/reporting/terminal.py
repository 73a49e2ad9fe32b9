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


def evaluation(report: dict[str, Any], slices: bool = False) -> str:
    """An evaluation: data set, split, metrics beside the baselines, verdict; slices if wanted."""
    split = report["split"]
    rows = split["rows"]
    title = (
        f"{report['dataset']}, preset {report['preset']}: {report['users']:,} users, "
        f"split {split['kind']} "
        f"(train {rows['train']:,}, valid {rows['valid']:,}, test {rows['test']:,})"
    )
    baselines = report["baselines"]
    body = []
    for name, value in report["metrics"].items():
        interval = f"{value['low']:.4f} to {value['high']:.4f}"
        others = [f"{b[name]['value']:.4f}" if name in b else "" for b in baselines.values()]
        body.append([name, f"{value['value']:.4f}", interval, *others])
    for name, number in report.get("catalogue", {}).items():
        others = [_number(b["catalogue"][name]) for b in baselines.values()]
        body.append([name, _number(number), "", *others])
    unseen = report["unseen"]
    cold = (
        f"not in training: {unseen['users']:,} users, {unseen['items']:,} items, "
        f"{unseen['ratings']:,} of {rows['test']:,} test ratings"
    )
    columns = ["metric", "model", "95 % interval", *baselines]
    protocol = report.get("protocol", {"honest": True})
    lines = [] if protocol["honest"] else [protocol["words"]]
    lines += [table(title, columns, body), *report["verdict"].split("; "), cold]
    groups = report.get("slices", {}) if slices else {}
    return "\n".join(lines + _slices(groups, ["model", *baselines]))


def _slices(groups: dict[str, Any], systems: list[str]) -> list[str]:
    """NDCG by how much is known of users, and recall by how often items are rated."""
    lines = []
    titles = {"users": "users by known ratings", "items": "held-out items by known ratings"}
    for kind, title in titles.items():
        rows = []
        for name, group in groups.get(kind, {}).items():
            counted = "users" if kind == "users" else "ratings"
            for metric in group["model"]:
                if kind == "items" or metric.startswith(("ndcg", "rmse")):
                    values = [_number(group[system].get(metric)) for system in systems]
                    rows.append([name, f"{group[counted]:,}", metric, *values])
        if rows:
            lines += ["", table(title, ["", counted, "metric", *systems], rows)]
    return lines


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
    """One user: films rated best, recommended (hits marked) and held out, at most k of each."""
    stars = look["scores"] == "stars"
    words = {"score": "predicted"} if stars and look["source"] != "popular" else {}

    def films(title: str, rows: list[dict[str, Any]], *names: str) -> str:
        body = [
            [
                ("* " if film.get("hit") else "  ") + film["title"],
                ", ".join(film["genres"]),
                *("?" if film[name] is None else f"{film[name]:g}" for name in names),
            ]
            for film in rows[:k]
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
            films(rated, look["rated"], "rating"),
            films(listed, look["recommended"], "score"),
            films(out, held, "rating", "score", "rank"),
        ]
    )
