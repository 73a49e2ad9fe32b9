"""What a search shows while it runs and at its end."""

import math
import sys
from typing import TYPE_CHECKING, Any

from recray.progress import Console
from recray.reporting import terminal as console

if TYPE_CHECKING:
    from rich.live import Live
    from rich.text import Text

    from recray.tuning.driver import Event

SHOWN = 12
"""Rows of the live table."""


class Watch:
    """The trials as they go, on stderr: a live table on a terminal, a line an end elsewhere.

    Args:
        ui: Where lines go.
        metric: What is compared.
    """

    def __init__(self, ui: Console, metric: str) -> None:
        self.ui, self.metric = ui, metric
        self.events: dict[int, Event] = {}
        self._live: Live | None = None

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def log(self, line: str) -> None:
        """Tell of what follows the search."""
        self._stop()
        self.ui.log(line)

    def tell(self, event: "Event") -> None:
        """Tell of a report or an end."""
        self.events[event.number] = event
        if sys.stderr.isatty():
            self._show(event)
        elif event.status != "running":
            self.ui.log(f"{_words(event, self.metric)}; {progress(event, self.metric)}")

    def _show(self, event: "Event") -> None:
        from rich.console import Console as Terminal
        from rich.live import Live

        if self._live is None:
            self.ui.patience.told(held=True)
            self._live = Live(console=Terminal(stderr=True), refresh_per_second=4)
            self._live.start()
        text = live_table(list(self.events.values()), event, self.metric)
        self._live.update(cut(text))


def cut(table: str) -> "Text":
    """A table that is cut, not wrapped, where the terminal is narrow."""
    from rich.text import Text

    return Text(table, no_wrap=True, overflow="ellipsis")


def progress(event: "Event", metric: str) -> str:
    """How far the sweep is, and the best so far."""
    best = f"best {metric} {event.best[1]:.4f} (trial {event.best[0]})" if event.best else "no best"
    return f"{event.ended} of {event.trials} trials, {best}"


def _words(event: "Event", metric: str) -> str:
    value = "" if math.isnan(event.value) else f"  {metric} {event.value:.4f}"
    error = f"  {event.error}" if event.error else ""
    return f"trial {event.number:>3} {event.status:<8} {event.epochs:>3} epochs{value}{error}"


def live_table(events: "list[Event]", latest: "Event", metric: str) -> str:
    """The trials that run, the best, and the last that ended."""
    place = {event.number: n for n, event in enumerate(events)}
    best = latest.best[0] if latest.best else -1

    def rank(event: "Event") -> tuple[bool, bool, int]:
        return event.number != best, event.status != "running", -place[event.number]

    rows = [
        [
            f"{event.number}{' *' if event.number == best else ''}",
            event.status,
            str(event.epochs),
            "" if math.isnan(event.value) else f"{event.value:.4f}",
            event.error,
        ]
        for event in sorted(events, key=rank)[:SHOWN]
    ]
    columns = ["trial", "status", "epochs", metric, ""]
    return console.table(progress(latest, metric), columns, rows)


def summary(result: dict[str, Any]) -> str:
    """The end of a sweep: all trials, best first, then the winner on test."""
    metric, best = result["metric"], result["best"]
    settings = list(dict.fromkeys(name for row in result["trials"] for name in row["settings"]))
    lower = result["lower_is_better"]

    def rank(row: dict[str, Any]) -> tuple[bool, bool, float]:
        value = row["value"]
        nothing = value is None
        return row["trial"] != best, nothing, 0.0 if nothing else value if lower else -value

    body = [
        [
            f"{row['trial']}{' *' if row['trial'] == best else ''}",
            row["status"],
            _value(row),
            "" if row["best_epoch"] is None else f"{row['best_epoch']} of {row['epochs']}",
            *(_cell(row["settings"].get(name)) for name in settings),
        ]
        for row in sorted(result["trials"], key=rank)
    ]
    title = (
        f"{result['dataset']}, preset {result['preset']}: {len(body)} trials by "
        f"{result['searcher']}, scheduler {result['scheduler']}; validation {metric}"
        + (f" over {result['folds']} folds" if result["folds"] else "")
    )
    columns = ["trial", "status", metric, "epoch", *short_names(settings)]
    lines = [console.table(title, columns, body)]
    lines += [f"trial {row['trial']}: {row['error']}" for row in result["trials"] if row["error"]]
    lines += _test(result["test"], metric)
    workers = f" --workers {result['workers']}" if result["workers"] > 1 else ""
    lines.append(f"trial {best} wins: recray train --config {result['best_config']}{workers}")
    if result["pictures"]:
        lines.append(f"pictures: {result['pictures'][0].rpartition('/')[0]}")
    return "\n".join(lines)


def short_names(settings: list[str]) -> list[str]:
    """The settings without their groups, where that leaves them apart."""
    short = [name.split(".")[-1] for name in settings]
    return [s if short.count(s) == 1 else name for s, name in zip(short, settings, strict=True)]


def _value(row: dict[str, Any]) -> str:
    """The value, with the standard deviation over folds where there are any."""
    if row["value"] is None:
        return ""
    return f"{row['value']:.4f}" + (f" +- {row['sd']:.4f}" if row["sd"] is not None else "")


def _cell(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _test(test: dict[str, Any] | None, metric: str) -> list[str]:
    if test is None:
        return ["the test split was not opened"]
    rows = [
        [
            f"{name} (trial {test[name]['trial']})",
            f"{test[name]['valid']:.4f}",
            f"{test[name]['test']['value']:.4f}",
            f"{test[name]['test']['low']:.4f} to {test[name]['test']['high']:.4f}",
        ]
        for name in ("winner", "preset")
        if name in test
    ]
    title = f"mean of {test['seeds']} seeds, {metric}"
    made = console.table(title, ["", "validation", "test", "95 % interval"], rows)
    return ["", made, test["verdict"]]
