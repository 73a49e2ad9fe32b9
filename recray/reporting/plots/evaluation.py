"""Plots of an evaluation: the model beside others, groups of users and items, what lists show."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from recray.evaluation.report import EvaluationReport, Interval, Segment
from recray.reporting.plots import style

ERRORS = ("rmse", "mae")


def figures(report: EvaluationReport) -> dict[str, Figure | None]:
    """Every plot by its name; None where there is nothing to draw."""
    groups = report.slices
    known = "how many ratings of a user are known"
    return {
        "ranking-metrics": beside(report, errors=False),
        "ranking-errors": beside(report, errors=True),
        "ranking-catalogue": catalogue(report),
        "ranking-variety": variety(report),
        "ranking-users": by_group(report, groups.users, known, "known ratings of the user"),
        "ranking-gender": by_group(report, groups.gender, "gender", "gender as the data say it"),
        "ranking-age": by_group(report, groups.age, "age", "age of the user (years)"),
        "ranking-films": by_popularity(report),
    }


def beside(report: EvaluationReport, errors: bool) -> Figure | None:
    """Every metric with its 95 % interval, of the model and of each baseline.

    Args:
        report: An evaluation.
        errors: The errors in stars; otherwise the metrics of lists, which lie in 0..1.

    Returns:
        None where there are none of them.
    """
    names = [name for name in report.metrics if (name in ERRORS) == errors]
    if not names:
        return None
    title, unit = "Lists on the test split, with 95 % intervals: higher is better", "0 to 1"
    if errors:
        title, unit = "Error on the test split, with 95 % intervals: lower is better", "stars"
    systems = {"model": report.metrics} | {n: b.metrics for n, b in report.others.items()}
    systems = {system: means for system, means in systems.items() if means.keys() & set(names)}
    height = 1.6 + 0.12 * len(names) * len(systems)
    figure, axes = style.picture(title, unit, "", (style.WIDE, max(height, 2.4)))
    step = 0.75 / len(systems)
    for place, (system, means) in enumerate(systems.items()):
        _means(axes, names, means, step * (place + 0.5) - 0.375, system)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(False, axis="y")
    axes.grid(True, axis="x", color=style.GRID)
    if not errors:
        axes.set_xlim(left=0)
    style.legend_above(axes, len(systems))
    return figure


def _means(
    axes: Axes, names: list[str], means: Mapping[str, Interval], offset: float, system: str
) -> None:
    """Draw the means of one system, each `offset` below the line of its metric."""
    measured = [(row, means[name]) for row, name in enumerate(names) if name in means]
    x = [mean.value for _, mean in measured]
    low, high = ([getattr(m, end) for _, m in measured] for end in ("low", "high"))
    spread = [np.subtract(x, low), np.subtract(high, x)]
    y = [row + offset for row, _ in measured]
    style.intervals(axes, x, y, style.color_of(system), fmt="o", xerr=spread, label=system)


def by_group(
    report: EvaluationReport, groups: Mapping[str, Segment] | None, what: str, axis: str
) -> Figure | None:
    """NDCG of groups of users.

    Args:
        report: An evaluation.
        groups: Some of its groups.
        what: What they are grouped by, in words of the title.
        axis: The same on the horizontal axis.

    Returns:
        None where the evaluation has no such groups.
    """
    metric = next((name for name in report.metrics if name.startswith("ndcg")), None)
    if not groups or metric is None:
        return None
    words = metric.replace("ndcg", "NDCG")
    names = [f"{name}\n{group.users:,} users" for name, group in groups.items()]
    title = f"Who is served: {words} by {what}"
    return _groups(title, axis, f"{words} (0 to 1)", names, groups, metric)


def by_popularity(report: EvaluationReport) -> Figure | None:
    """Recall of groups of items, by how many ratings they have.

    Returns:
        None where the evaluation has no groups.
    """
    groups = report.slices.items
    metric = next((n for group in groups.values() for n in group.systems.get("model", {})), None)
    if metric is None:
        return None
    words = {"head": "50 and more", "middle": "5 to 49", "tail": "under 5"}
    names = [f"{words.get(n, n)}\n{g.ratings:,} held out" for n, g in groups.items()]
    title = (
        f"Which films are found: {metric.replace('recall', 'Recall')} by how often films are rated"
    )
    y = f"{metric.replace('recall', 'Recall')} (0 to 1)"
    return _groups(title, "known ratings of the film", y, names, groups, metric)


def _groups(
    title: str, x: str, y: str, names: list[str], groups: Mapping[str, Segment], metric: str
) -> Figure:
    figure, axes = style.picture(title, x, y)
    systems = list(next(iter(groups.values())).systems)
    series = {s: [group.systems[s].get(metric) for group in groups.values()] for s in systems}
    style.grouped(axes, names, series, [style.color_of(s) for s in systems])
    style.legend_above(axes, len(systems))
    return figure


def catalogue(report: EvaluationReport) -> Figure | None:
    """Coverage, novelty and Gini of all lists, of the model and of each system beside it.

    Returns:
        None where the protocol chooses what can be shown.
    """
    kinds = {
        "coverage": "share of all films\nin some list",
        "novelty": "novelty (bits)",
        "gini": "Gini: 0 even,\n1 one film only",
    }
    words = "how much of the catalogue, how little known, how unevenly"
    return _of_lists(report, kinds, f"What all lists of {{k}} show: {words}")


def variety(report: EvaluationReport) -> Figure | None:
    """How unlike the items of a list are, and how many are found that popularity would not show.

    Returns:
        None where the protocol chooses what can be shown.
    """
    kinds = {
        "diversity": "diversity by the\nmodel's vectors",
        "genre_diversity": "diversity by genre",
        "serendipity": "share found beyond\nthe popular ones",
    }
    return _of_lists(report, kinds, "How varied lists of {k} are, and what popularity would miss")


def _of_lists(report: EvaluationReport, kinds: Mapping[str, str], title: str) -> Figure | None:
    """Bars of each system, side by side for each kind of metric; `{k}` is the length of lists."""
    model = report.catalogue or {}
    found = {kind: next((n for n in model if n.startswith(f"{kind}@")), None) for kind in kinds}
    chosen = {kind: name for kind, name in found.items() if name is not None}
    if not chosen:
        return None
    k = next(iter(chosen.values())).partition("@")[2]
    systems = {"model": model} | {n: b.catalogue or {} for n, b in report.others.items()}
    size = (style.WIDE, 1.9 + 0.28 * len(systems))
    labels = [kinds[kind] for kind in chosen]
    figure, row = style.row_of(title.format(k=k), labels, size)
    for axes, (kind, name) in zip(row, chosen.items(), strict=True):
        values = [facts.get(name) or 0.0 for facts in systems.values()]
        colors = [style.color_of(system) for system in systems]
        drawn = axes.barh(list(systems), values, color=colors)
        words = [f"{v:.1f}" if kind == "novelty" else f"{v:.2f}" for v in values]
        axes.bar_label(drawn, words, padding=2, color=style.SOFT, fontsize=9)
        axes.set_xlim(0, max(*values, 1e-9) * 1.35)
        axes.grid(False)
        axes.locator_params(axis="x", nbins=3)
        axes.xaxis.set_major_formatter("{x:g}")
    row[0].invert_yaxis()
    return figure
