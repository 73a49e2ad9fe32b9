"""Plots of a search: every trial and the best value so far, how much each setting matters, and
where good values lie.
"""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray
from pydantic import JsonValue

from recray.reporting.plots import style
from recray.storage import Folder
from recray.tuning.results import TrialSummary, TuneResult
from recray.tuning.space import RANGES

MIN_TRIALS = 9
"""Trials with a value that the importance of settings needs."""
SHUFFLES = 500
COLOR = {"finished": style.FIRST, "stopped": style.SOFT}
WINNER = style.SERIES[1]
LABELS = {"rmse": "RMSE in stars", "mae": "MAE in stars"}

Ticks = list[tuple[float, str]]


def figures(result: TuneResult) -> dict[str, Figure]:
    """All plots that the trials of a search allow, by name."""
    measured = len(_measured(result))
    plots = {"history": history(result)}
    if measured >= 2:
        plots["parallel"] = parallel(result)
    if measured >= MIN_TRIALS:
        plots["importance"] = importance(result)
    return plots


def render(result: TuneResult) -> dict[str, bytes]:
    """The same plots as PNG, by file name."""
    return {f"{name}.png": style.png(figure) for name, figure in figures(result).items()}


def draw(result: TuneResult) -> list[str]:
    """Write the plots into the folder of the sweep; returns their files."""
    folder = Folder(result.sweep).child("pictures")
    for name, content in render(result).items():
        folder.replace_bytes(name, content)
    return [f"{folder.path}/{name}" for name in folder.files()]


def _measured(result: TuneResult) -> list[tuple[TrialSummary, float]]:
    """The trials that came to a value, by number, with their values."""
    trials = sorted(result.trials, key=lambda trial: trial.trial)
    return [(trial, trial.value) for trial in trials if trial.value is not None]


def _metric(result: TuneResult) -> str:
    return f"validation {LABELS.get(result.metric, result.metric.replace('ndcg', 'NDCG'))}"


def _subtitle(axes: Axes, result: TuneResult, text: str) -> None:
    """Say below the title which search is shown, and how to read it."""
    search = f"{result.dataset}, preset {result.preset}, searcher {result.searcher}"
    axes.set_title(f"{search}. {text}", loc="left", fontsize=8.5, color=style.INK, pad=10)


# ------------------------------------------------------------------------ trial after trial


def history(result: TuneResult) -> Figure:
    """The value of every trial, and the best so far, in the order of their numbers."""
    figure, axes = style.picture("Every trial of the search", "trial", _metric(result), (8, 4.5))
    trials = _measured(result)
    for status, color in COLOR.items():
        values = {trial.trial: value for trial, value in trials if trial.status == status}
        if values:
            label = f"{status} ({len(values)})"
            axes.plot([*values], [*values.values()], "o", color=color, label=label, zorder=3)
    values = {trial.trial: value for trial, value in trials}
    if values:
        best = np.minimum if result.lower_is_better else np.maximum
        so_far = best.accumulate(np.array([*values.values()]))
        axes.step([*values], so_far, where="post", color=style.FIRST, lw=1.5,
                  label=f"best so far: {so_far[-1]:.4f}")  # fmt: skip
    if result.best in values:
        axes.plot(result.best, values[result.best], "o", ms=12, mfc="none", mec=WINNER, mew=1.5,
                  label=f"the winner, trial {result.best}", zorder=4)  # fmt: skip
    if 0 in values:
        label = f"trial 0, where the search starts: {values[0]:.4f}"
        axes.axhline(values[0], color=style.INK, lw=1, ls=":", label=label)
    failed = [trial.trial for trial in result.trials if trial.value is None]
    if failed:
        foot = axes.get_xaxis_transform()  # the foot of the plot, whatever the values are
        axes.plot(failed, [0.02] * len(failed), "x", color=WINNER, transform=foot,
                  label=f"no value ({len(failed)})")  # fmt: skip
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    style.legend(axes, loc="upper left", bbox_to_anchor=(-0.02, -0.12), ncols=3)
    better = "lower" if result.lower_is_better else "higher"
    _subtitle(axes, result, f"Best epoch of each trial; {better} is better.")
    return figure


# ---------------------------------------------------------------------------- what mattered


def effect(groups: NDArray[np.int64], ranks: NDArray[np.float64]) -> float:
    """Share of the variance of the ranks that the groups explain, less the share due to chance.

    Args:
        groups: (N,) int64, the group of each trial, from 0.
        ranks: (N,) float64 ranks of their values; equal values share their mean rank.

    Returns:
        Eta squared of Kruskal and Wallis: (H - G + 1) / (N - G) for G groups, 0 at least; 0 where
        there is one group, a trial a group, or no variance.

    Source: Tomczak and Tomczak (2014), Trends in Sport Sciences 21(1).
    """
    counts = np.bincount(groups)
    total = float(((ranks - ranks.mean()) ** 2).sum())
    spare = len(ranks) - len(counts)
    if len(counts) < 2 or spare < 1 or not total:
        return 0.0
    means = np.bincount(groups, ranks) / counts
    between = float((counts * (means - ranks.mean()) ** 2).sum())
    h = (len(ranks) - 1) * between / total
    return max(0.0, (h - len(counts) + 1) / spare)


def importances(result: TuneResult) -> dict[str, tuple[float, float]]:
    """How much of the order of the trials each setting explains by itself.

    Returns:
        Setting to (its `effect`, the 95 % quantile of the effect of the same groups on shuffled
        trials); the largest first. An effect below its quantile may be chance.
    """
    trials = _measured(result)
    ranks = _ranks([value for _, value in trials])
    rng = np.random.default_rng(0)
    found = {}
    for setting in result.space:
        groups = _groups([trial.settings[setting] for trial, _ in trials])
        chance = [effect(groups, rng.permutation(ranks)) for _ in range(SHUFFLES)]
        found[setting] = (effect(groups, ranks), float(np.quantile(chance, 0.95)))
    return dict(sorted(found.items(), key=lambda pair: -pair[1][0]))


def _ranks(values: list[float]) -> NDArray[np.float64]:
    """1 for the smallest; equal ones share their mean rank."""
    _, place, counts = np.unique(np.array(values, float), return_inverse=True, return_counts=True)
    last = counts.cumsum()
    mean: NDArray[np.float64] = (2 * last - counts + 1) / 2
    return mean[place]


def _groups(values: list[JsonValue]) -> NDArray[np.int64]:
    """Values of a choice as they are; numbers in up to four groups of about the same size."""
    if any(isinstance(v, bool) or not isinstance(v, (int, float)) for v in values):
        return np.unique([str(v) for v in values], return_inverse=True)[1]
    numbers = np.array(values, float)
    count = 4 if len(values) >= 2 * MIN_TRIALS else 3
    if len(np.unique(numbers)) > count:
        edges = np.quantile(numbers, np.arange(1, count) / count)
        numbers = np.searchsorted(edges, numbers, side="right").astype(float)
    return np.unique(numbers, return_inverse=True)[1]


def importance(result: TuneResult) -> Figure:
    """How much of the order of the trials each setting explains, with the effect of chance."""
    found = importances(result)
    names, rows = list(found), np.arange(len(found))
    title = f"What mattered for the {_metric(result)}: {len(_measured(result))} trials"
    share = "share of the variance of the trials' ranks that the setting explains alone"
    figure, axes = style.picture(title, share, "", (8, 1.9 + 0.42 * len(names)))
    effects, chances = np.array([found[name] for name in names]).T
    colors = [style.FIRST if size > chance else style.SOFT for size, chance in found.values()]
    axes.barh(rows, effects, 0.6, color=colors)
    axes.vlines(chances, rows - 0.38, rows + 0.38, color=WINNER, lw=1.5,
                label="95 % of shuffles lie to the left: a grey bar may be chance")  # fmt: skip
    for row, size in enumerate(effects):
        axes.annotate(f" {size:.0%}", (size, row), va="center", fontsize=9, color=style.INK)
    axes.set_yticks(rows, names)
    axes.invert_yaxis()
    axes.grid(False)
    axes.set_xlim(0, max(1.15 * float(max(*effects, *chances)), 0.1))
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    style.legend(axes, loc="upper left", bbox_to_anchor=(-0.02, -0.7 / figure.get_figheight()))
    _subtitle(axes, result, "Kruskal-Wallis eta squared over groups of each setting's values.")
    return figure


# ------------------------------------------------------------------------ where good values lie


def parallel(result: TuneResult) -> Figure:
    """A line per trial through its settings to its value; the winner on top."""
    trials, names = _measured(result), list(result.space)
    size = (max(6.0, 1.9 * (len(names) + 1)), 4.8)
    figure, axes = style.picture(f"Where good values lie: {len(trials)} trials", "", "", size)
    scales = [_scale([t.settings[name] for t, _ in trials], result.space[name]) for name in names]
    scales.append(_scale([value for _, value in trials], {}))
    lines = np.array([positions for positions, _ in scales]).T
    quality = _ranks([value for _, value in trials]) / len(trials)
    quality = 1 - quality if result.lower_is_better else quality
    colors = colormaps["Blues"](0.15 + 0.8 * quality)
    for line in np.argsort(quality):
        if trials[line][0].trial == result.best:
            axes.plot(range(len(scales)), lines[line], color=WINNER, lw=2.5, zorder=9)
        else:
            axes.plot(range(len(scales)), lines[line], color=colors[line], lw=1, alpha=0.75)
    for place, (_, ticks) in enumerate(scales):
        _vertical_axis(axes, place, ticks)
    axes.set_xticks(range(len(scales)), [*names, _metric(result)], fontsize=9)
    axes.set(yticks=[], ylim=(-0.04, 1.04), xlim=(-0.15, len(scales) - 0.55))
    axes.spines[:].set_visible(False)
    left_out = len(result.trials) - len(trials)
    without = f"; {left_out} trials without a value are left out" if left_out else ""
    _subtitle(axes, result, f"Darker is better, orange is the best (trial {result.best}){without}.")
    return figure


def _vertical_axis(axes: Axes, place: int, ticks: Ticks) -> None:
    """The axis of one setting, with its ticks to the right."""
    axes.axvline(place, color=style.INK, lw=0.8, zorder=1)
    for height, label in ticks:
        axes.annotate(label, (place, height), xytext=(4, 0), textcoords="offset points",
                      va="center", fontsize=8, color=style.INK, zorder=10,
                      bbox={"fc": style.PAPER, "ec": "none", "alpha": 0.7, "pad": 0.6})  # fmt: skip


def _scale(
    values: Sequence[JsonValue], parameter: dict[str, JsonValue]
) -> tuple[NDArray[np.float64], Ticks]:
    """Positions of values on an axis from 0 to 1, and its ticks; trial 0 may lie outside its space.

    Args:
        values: The values of all trials.
        parameter: The setting's part of the search space.
    """
    choices = parameter.get("choice")
    if isinstance(choices, list):
        labels = [str(c) for c in choices]
        labels += sorted({str(v) for v in values} - set(labels))
        step = 1 / max(1, len(labels) - 1)
        ticks = [(n * step, label) for n, label in enumerate(labels)]
        return np.array([labels.index(str(v)) * step for v in values]), ticks
    ranges = [parameter[kind] for kind in RANGES if kind in parameter]
    bounds = [bound for ends in ranges if isinstance(ends, list) for bound in ends]
    numbers, ends = np.array(values, float), np.array([*values, *bounds], float)
    low, high = float(ends.min()), float(ends.max())
    if high == low:
        return np.full(len(values), 0.5), [(0.5, f"{low:.4g}")]
    if low > 0 and ("loguniform" in parameter or parameter.get("log", False)):
        positions = np.log(numbers / low) / math.log(high / low)
        labels = [f"{low * (high / low) ** (n / 4):.3g}" for n in range(5)]
    else:
        positions = (numbers - low) / (high - low)
        labels = [f"{low + n / 4 * (high - low):.3g}" for n in range(5)]
    return positions, [(n / 4, label) for n, label in enumerate(labels)]
