"""How a run went, epoch by epoch."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from recray.reporting.plots import style

WORDS = {
    "mse": "squared error (stars²)",
    "bce": "cross-entropy (nats)",
    "classes": "cross-entropy (nats)",
    "item-softmax": "cross-entropy (nats)",
    "logistic": "cross-entropy (nats)",
    "bpr": "cross-entropy (nats)",
    "unobserved-class": "cross-entropy (nats)",
    "ials": "loss a rating (no unit)",
    "bpmf": "squared error (stars²)",
}

Entries = list[dict[str, Any]]
"""One entry an epoch: epoch, loss, seconds, and validation metrics."""


def loss(entries: Entries, objective: str) -> Figure:
    """The loss on training rows, and on validation rows where the validation metric is the same.

    Args:
        entries: The history of a run.
        objective: objective.kind.
    """
    epochs = [entry["epoch"] for entry in entries]
    valid = objective in ("mse", "bpmf") and all("rmse" in entry for entry in entries)
    rows = "training and validation ratings" if valid else "the training ratings"
    words = WORDS.get(objective, "loss")
    figure, axes = style.picture(f"Loss on {rows}, by epoch", "epoch", words)
    _line(axes, epochs, [entry["loss"] for entry in entries], style.FIRST, "training")
    if valid:
        squared = [entry["rmse"] ** 2 for entry in entries]
        _line(axes, epochs, squared, style.SERIES[1], "validation")
        style.legend(axes)
    style.epochs(axes, entries[-1]["epoch"])
    return figure


def metric(entries: Entries, name: str, best_epoch: int) -> Figure | None:
    """A validation metric by epoch, with the epoch that was chosen.

    Args:
        entries: The history of a run.
        name: The metric.
        best_epoch: The chosen epoch.

    Returns:
        None where nothing was validated.
    """
    there = [entry for entry in entries if entry.get(name) is not None]
    if not there:
        return None
    unit = " (stars)" if name in ("rmse", "mae") else " (0 to 1)"
    title = f"{name.upper()} on the validation split: epoch {best_epoch} was chosen"
    figure, axes = style.picture(title, "epoch", f"{name.upper()}{unit}")
    epochs = [entry["epoch"] for entry in there]
    _line(axes, epochs, [entry[name] for entry in there], style.FIRST, name)
    chosen = [entry[name] for entry in there if entry["epoch"] == best_epoch]
    axes.plot([best_epoch] * len(chosen), chosen, "o", color=style.SERIES[1], markersize=8)
    style.epochs(axes, entries[-1]["epoch"])
    return figure


def speed(entries: Entries, rows: int) -> Figure:
    """Training ratings a second in each epoch, validation included.

    Args:
        entries: The history of a run.
        rows: Training ratings.
    """
    rates = [rows / max(entry["seconds"], 1e-4) for entry in entries]
    title = f"Ratings a second, validation included: {np.median(rates):,.0f} in the median epoch"
    figure, axes = style.picture(title, "epoch", "training ratings a second")
    axes.bar([entry["epoch"] for entry in entries], rates, color=style.FIRST)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    style.epochs(axes, entries[-1]["epoch"])
    return figure


def _line(axes: Axes, epochs: list[int], values: list[float], color: str, label: str) -> None:
    marker = "o" if len(epochs) <= 30 else ""
    axes.plot(epochs, values, marker=marker, markersize=4, color=color, label=label)
