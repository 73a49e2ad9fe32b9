"""Plots of ranking metrics: the model beside the baselines, by users and by items."""

from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from recray.reporting.plots import style as canvas

Report = dict[str, Any]
"""See evaluation.Evaluator.report."""
ERRORS = ("rmse", "mae")


def _systems(report: Report) -> dict[str, Any]:
    return {"model": report["metrics"], **report["baselines"]}


def beside(report: Report, errors: bool) -> Figure | None:
    """Every metric with its 95 % interval, of the model and of each baseline.

    Args:
        report: An evaluation.
        errors: The errors in stars; otherwise the metrics of lists, which lie in 0..1.

    Returns:
        None where there are none of them.
    """
    names = [name for name in report["metrics"] if (name in ERRORS) == errors]
    if not names:
        return None
    title, unit = "Lists on the test split, with 95 % intervals: higher is better", "0 to 1"
    if errors:
        title, unit = "Error on the test split, with 95 % intervals: lower is better", "stars"
    systems = {k: v for k, v in _systems(report).items() if any(n in v for n in names)}
    height = 1.6 + 0.12 * len(names) * len(systems)
    figure, axes = canvas.picture(title, unit, "", (canvas.WIDE, max(height, 2.4)))
    step = 0.75 / len(systems)
    for place, (system, values) in enumerate(systems.items()):
        there = [(n, values[name]) for n, name in enumerate(names) if name in values]
        x = [value["value"] for _, value in there]
        spread = [
            [value["value"] - value["low"] for _, value in there],
            [value["high"] - value["value"] for _, value in there],
        ]
        y = [n - 0.375 + step * (place + 0.5) for n, _ in there]
        color = canvas.color_of(system)
        style: dict[str, Any] = {
            "color": color,
            "ecolor": color,
            "capsize": 2,
            "markersize": 5,
            "label": system,
        }
        axes.errorbar(x, y, xerr=spread, fmt="o", **style)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(False, axis="y")
    axes.grid(True, axis="x", color=canvas.GRID)
    if not errors:
        axes.set_xlim(left=0)
    canvas.legend_above(axes, len(systems))
    return figure


def by_history(report: Report) -> Figure | None:
    """NDCG of groups of users, by how many of their ratings are known.

    Returns:
        None where the evaluation has no groups.
    """
    groups = report.get("slices", {}).get("users", {})
    metric = next((name for name in report["metrics"] if name.startswith("ndcg")), None)
    if not groups or metric is None:
        return None
    words = metric.replace("ndcg", "NDCG")
    names = [f"{name}\n{group['users']:,} users" for name, group in groups.items()]
    title = f"Who is served: {words} by how many ratings of a user are known"
    return _groups(title, "known ratings of the user", f"{words} (0 to 1)", names, groups, metric)


def by_popularity(report: Report) -> Figure | None:
    """Recall of groups of items, by how many ratings they have.

    Returns:
        None where the evaluation has no groups.
    """
    groups = report.get("slices", {}).get("items", {})
    metric = next((n for group in groups.values() for n in group.get("model", {})), None)
    if metric is None:
        return None
    words = {"head": "50 and more", "middle": "5 to 49", "tail": "under 5"}
    names = [f"{words.get(n, n)}\n{g['ratings']:,} held out" for n, g in groups.items()]
    title = (
        f"Which films are found: {metric.replace('recall', 'Recall')} by how often films are rated"
    )
    y = f"{metric.replace('recall', 'Recall')} (0 to 1)"
    return _groups(title, "known ratings of the film", y, names, groups, metric)


def _groups(
    title: str, x: str, y: str, names: list[str], groups: dict[str, Any], metric: str
) -> Figure:
    figure, axes = canvas.picture(title, x, y)
    systems = [s for s in next(iter(groups.values())) if s not in ("users", "ratings")]
    series = {s: [group[s].get(metric) for group in groups.values()] for s in systems}
    canvas.grouped(axes, names, dict(series), [canvas.color_of(s) for s in systems])
    canvas.legend_above(axes, len(systems))
    return figure


def catalogue(report: Report) -> Figure | None:
    """Coverage, novelty and Gini of all lists, of the model and of each baseline.

    Returns:
        None where the protocol chooses what can be shown.
    """
    own = report.get("catalogue")
    if not own:
        return None
    kinds = {
        "coverage": "share of all films\nin some list",
        "novelty": "novelty (bits)",
        "gini": "Gini: 0 even,\n1 one film only",
    }
    chosen = {kind: next(n for n in own if n.startswith(kind)) for kind in kinds}
    k = chosen["gini"].partition("@")[2]
    systems = {"model": own} | {n: v["catalogue"] for n, v in report["baselines"].items()}
    title = f"What all lists of {k} show: how much of the catalogue, how little known, how unevenly"
    size = (canvas.WIDE, 1.9 + 0.28 * len(systems))
    figure, row = canvas.row_of(title, list(kinds.values()), size)
    for axes, (kind, name) in zip(row, chosen.items(), strict=True):
        values = [facts[name] or 0.0 for facts in systems.values()]
        colors = [canvas.color_of(system) for system in systems]
        drawn = axes.barh(list(systems), values, color=colors)
        words = [f"{v:.1f}" if kind == "novelty" else f"{v:.2f}" for v in values]
        axes.bar_label(drawn, words, padding=2, color=canvas.SOFT, fontsize=9)
        axes.set_xlim(0, max(*values, 1e-9) * 1.35)
        axes.grid(False)
        axes.locator_params(axis="x", nbins=3)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    row[0].invert_yaxis()
    return figure
