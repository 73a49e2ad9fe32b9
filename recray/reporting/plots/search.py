"""Pictures of a search, from what `recray tune` writes as summary.json: every trial and the best so
far, how much each setting matters, and where good values lie.
"""

import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

Result = dict[str, Any]

FEWEST = 9
"""Trials with a value from which importance is told."""
SHUFFLES = 500
BLUE, GREY, RED, INK = "#2b6cb0", "#a0aec0", "#c53030", "#2d3748"
STATUS = {"finished": BLUE, "stopped": GREY}
WORDS = {"rmse": "RMSE in stars", "mae": "MAE in stars"}


def figures(result: Result) -> dict[str, Figure]:
    """All pictures of a search that its trials allow, by name."""
    makers: dict[str, Callable[[Result], Figure]] = {"history": history}
    if len(_measured(result)) >= 2:
        makers["parallel"] = parallel
    if len(_measured(result)) >= FEWEST:
        makers["importance"] = importance
    return {name: make(result) for name, make in makers.items()}


def render(result: Result) -> dict[str, bytes]:
    """The same: file name to PNG."""
    return {f"{name}.png": _png(figure) for name, figure in figures(result).items()}


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=150)
    return stream.getvalue()


def _measured(result: Result) -> list[dict[str, Any]]:
    """The trials that came to a value, by number."""
    return sorted((t for t in result["trials"] if t["value"] is not None), key=lambda t: t["trial"])


def _axis(result: Result) -> str:
    metric = str(result["metric"])
    return f"validation {WORDS.get(metric, metric.replace('ndcg', 'NDCG'))}"


def _head(figure: Figure, result: Result, what: str, below: str) -> None:
    """Two lines above the picture: what is shown, and of which search."""
    where = f"{result['dataset']}, preset {result['preset']}, searcher {result['searcher']}"
    figure.suptitle(what, x=0.01, ha="left", fontsize=12, color=INK, fontweight="bold")
    first = figure.axes[0]
    first.set_title(f"{where}. {below}", loc="left", fontsize=8.5, color=INK, pad=10)


# ------------------------------------------------------------------------ trial after trial


def history(result: Result) -> Figure:
    """The value of every trial, and the best so far, in the order of their numbers."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    trials = _measured(result)
    for status, colour in STATUS.items():
        some = [t for t in trials if t["status"] == status]
        if some:
            points = [t["trial"] for t in some], [t["value"] for t in some]
            axes.plot(*points, "o", color=colour, label=f"{status} ({len(some)})", zorder=3)
    _best_so_far(axes, trials, bool(result["lower_is_better"]))
    values = {t["trial"]: t["value"] for t in trials}
    if result["best"] in values:
        axes.plot(result["best"], values[result["best"]], "o", ms=12, mfc="none", mec=RED, mew=1.5,
                  label=f"the winner, trial {result['best']}", zorder=4)  # fmt: skip
    if 0 in values:
        label = f"trial 0, where the search starts: {values[0]:.4f}"
        axes.axhline(values[0], color=INK, lw=1, ls=":", label=label)
    lost = [t["trial"] for t in result["trials"] if t["value"] is None]
    if lost:
        place = axes.get_xaxis_transform()  # at the foot, whatever the values are
        axes.plot(lost, [0.02] * len(lost), "x", color=RED, transform=place,
                  label=f"no value ({len(lost)})")  # fmt: skip
    axes.set(xlabel="trial", ylabel=_axis(result))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower left", ncols=3, frameon=False, fontsize=8.5)
    better = "lower" if result["lower_is_better"] else "higher"
    _head(figure, result, "Every trial of the search",
          f"Best epoch of each trial; {better} is better.")  # fmt: skip
    return figure


def _best_so_far(axes: Axes, trials: list[dict[str, Any]], lower: bool) -> None:
    if not trials:
        return
    values = np.array([t["value"] for t in trials])
    best = (np.minimum if lower else np.maximum).accumulate(values)
    numbers = [t["trial"] for t in trials]
    axes.step(numbers, best, where="post", color=BLUE, lw=1.5, label=f"best so far: {best[-1]:.4f}")


# ---------------------------------------------------------------------------- what mattered


def effect(groups: NDArray[np.int64], ranks: NDArray[np.float64]) -> float:
    """Share of the variance of the ranks that the groups explain, less what chance would.

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


def importances(result: Result) -> dict[str, tuple[float, float]]:
    """How much of the order of the trials each setting explains by itself.

    Returns:
        Setting to (its `effect`, the 95 % quantile of the effect of the same groups on shuffled
        trials); the largest first. An effect below its quantile may be chance.
    """
    trials = _measured(result)
    ranks = _ranks([t["value"] for t in trials])
    rng = np.random.default_rng(0)
    found = {}
    for setting in result["space"]:
        groups = _groups([t["settings"][setting] for t in trials])
        chance = [effect(groups, rng.permutation(ranks)) for _ in range(SHUFFLES)]
        found[setting] = (effect(groups, ranks), float(np.quantile(chance, 0.95)))
    return dict(sorted(found.items(), key=lambda pair: -pair[1][0]))


def _ranks(values: list[Any]) -> NDArray[np.float64]:
    """1 for the smallest; equal ones share their mean rank."""
    _, place, counts = np.unique(np.array(values, float), return_inverse=True, return_counts=True)
    last = counts.cumsum()
    mean: NDArray[np.float64] = (2 * last - counts + 1) / 2
    return mean[place]


def _groups(values: list[Any]) -> NDArray[np.int64]:
    """Values of a choice as they are; numbers in up to four groups of about the same size."""
    if not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
        names = sorted({str(v) for v in values})
        return np.array([names.index(str(v)) for v in values])
    numbers = np.array(values, float)
    count = 4 if len(values) >= 4 * FEWEST // 2 else 3
    if len(np.unique(numbers)) > count:
        edges = np.quantile(numbers, np.arange(1, count) / count)
        numbers = np.searchsorted(edges, numbers, side="right").astype(float)
    return np.unique(numbers, return_inverse=True)[1]


def importance(result: Result) -> Figure:
    """How much of the order of the trials each setting explains, beside what chance would."""
    found = importances(result)
    names = list(found)
    figure = Figure(figsize=(8, 1.9 + 0.42 * len(names)), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(names))
    sizes, chances = (np.array([found[n][k] for n in names]) for k in (0, 1))
    colours = [BLUE if size > chance else GREY for size, chance in found.values()]
    axes.barh(places, sizes, 0.6, color=colours)
    axes.vlines(chances, places - 0.38, places + 0.38, color=RED, lw=1.5,
                label="95 % of shuffles lie to the left: a grey bar may be chance")  # fmt: skip
    for place, size in zip(places, sizes, strict=True):
        axes.annotate(f" {size:.0%}", (size, place), va="center", fontsize=9, color=INK)
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.set_xlim(0, max(1.15 * float(max(*sizes, *chances)), 0.1))
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:.0%}")
    axes.set_xlabel("share of the variance of the trials' ranks that the setting explains alone")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower left", frameon=False, fontsize=8)
    count = len(_measured(result))
    _head(figure, result, f"What mattered for the {_axis(result)}: {count} trials",
          "Kruskal-Wallis eta squared over groups of each setting's values.")  # fmt: skip
    return figure


# ------------------------------------------------------------------------ where good values lie


def parallel(result: Result) -> Figure:
    """A line a trial through its settings to its value; the winner on top."""
    trials = _measured(result)
    names = list(result["space"])
    figure = Figure(figsize=(max(6.0, 1.9 * (len(names) + 1)), 4.8), layout="constrained")
    axes = figure.subplots()
    scales = [
        _scale([t["settings"][name] for t in trials], result["space"][name]) for name in names
    ]
    scales.append(_scale([t["value"] for t in trials], {}))
    shares = np.array([shares for shares, _ in scales]).T
    ranks = _ranks([t["value"] for t in trials])
    good = ranks / len(trials)
    good = 1 - good if result["lower_is_better"] else good
    colours = _colours(good)
    for place in np.argsort(good):
        won = trials[place]["trial"] == result["best"]
        look = {"color": RED, "lw": 2.5, "zorder": 9} if won else {"color": colours[place], "lw": 1}
        axes.plot(range(len(scales)), shares[place], alpha=1 if won else 0.75, **look)
    for place, (_, ticks) in enumerate(scales):
        _upright(axes, place, ticks)
    axes.set_xticks(range(len(scales)), [*names, _axis(result)], fontsize=9)
    axes.set(yticks=[], ylim=(-0.04, 1.04), xlim=(-0.15, len(scales) - 0.55))
    axes.spines[:].set_visible(False)
    left_out = len(result["trials"]) - len(trials)
    without = f"; {left_out} trials without a value are left out" if left_out else ""
    _head(figure, result, f"Where good values lie: {len(trials)} trials",
          f"Darker is better, red is the best (trial {result['best']}){without}.")  # fmt: skip
    return figure


def _colours(good: NDArray[np.float64]) -> Any:
    from matplotlib import colormaps

    return colormaps["Blues"](0.15 + 0.8 * good)


def _upright(axes: Axes, place: int, ticks: list[tuple[float, str]]) -> None:
    """One axis of a setting, with its ticks to the right."""
    axes.axvline(place, color=INK, lw=0.8, zorder=1)
    for share, label in ticks:
        axes.annotate(label, (place, share), xytext=(4, 0), textcoords="offset points",
                      va="center", fontsize=8, color=INK, zorder=10,
                      bbox={"fc": "white", "ec": "none", "alpha": 0.7, "pad": 0.6})  # fmt: skip


def _scale(
    values: list[Any], plain: dict[str, Any]
) -> tuple[NDArray[np.float64], list[tuple[float, str]]]:
    """Where values lie on an axis from 0 to 1, and its ticks; trial 0 may lie outside its space."""
    if "choice" in plain:
        labels = [str(c) for c in plain["choice"]]
        labels += sorted({str(v) for v in values} - set(labels))
        step = 1 / max(1, len(labels) - 1)
        ticks = [(n * step, label) for n, label in enumerate(labels)]
        return np.array([labels.index(str(v)) * step for v in values]), ticks
    ends = [end for kind in ("uniform", "loguniform", "int") for end in plain.get(kind, [])]
    low, high = float(min([*values, *ends])), float(max([*values, *ends]))
    log = low > 0 and ("loguniform" in plain or plain.get("log", False))
    if high == low:
        return np.full(len(values), 0.5), [(0.5, f"{low:.4g}")]
    to: Callable[[float], float] = math.log if log else float
    back: Callable[[float], float] = math.exp if log else float
    span = to(high) - to(low)
    ticks = [(n / 4, f"{back(to(low) + n / 4 * span):.3g}") for n in range(5)]
    return np.array([(to(float(v)) - to(low)) / span for v in values]), ticks
