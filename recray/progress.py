"""What a command tells while it works: results on stdout, progress on stderr."""

import contextlib
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.progress import Progress


Log = Callable[[str], None]
"""Shows one line of progress; Console.log is one."""


QUIET_SECONDS = 2.0


class Patience:
    """Shows that work goes on; does nothing where stderr is no terminal.

    Args:
        words: What is being done.
    """

    def __init__(self, words: str) -> None:
        self.words = words
        self._last = time.monotonic()
        self._held = False
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._spinner: Progress | None = None
        if sys.stderr.isatty():
            threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while not self._end.wait(0.1):
            with self._lock:
                quiet = time.monotonic() - self._last
                if self._spinner is None and not self._held and quiet >= QUIET_SECONDS:
                    self._spinner = _spinner(self.words)
                    self._spinner.start()

    def name(self, words: str) -> None:
        """Something else is being done now."""
        with self._lock:
            self.words = words
            if self._spinner is not None:
                self._spinner.update(self._spinner.task_ids[0], description=words)

    def told(self, held: bool = False) -> None:
        """Something else is shown now: take the spinner away, for good while `held`."""
        with self._lock:
            if self._spinner is not None:
                self._spinner.stop()
                self._spinner = None
            self._last, self._held = time.monotonic(), held

    def end(self) -> None:
        """The work is done."""
        self._end.set()
        self.told(held=True)


def _spinner(words: str) -> "Progress":
    from rich.console import Console as Terminal
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    made = Progress(*columns, console=Terminal(stderr=True), transient=True)
    made.add_task(words, total=None)
    return made


class Console:
    """Prints text for a reader, or one JSON object for a program.

    Args:
        as_json: Print exactly one JSON object on stdout and nothing else there.
        words: What is being done; shown on a terminal while nothing else is.
    """

    def __init__(self, as_json: bool, words: str = "recray") -> None:
        self.as_json = as_json
        self._epochs, self._metric = 0, ""
        self._seconds: list[float] = []
        self.patience = Patience(words)
        self._begin = time.monotonic()
        self._bar: Progress | None = None

    def log(self, line: str) -> None:
        """Tell of progress, on stderr, with the seconds since the start."""
        self._close_bar()
        self.patience.told()
        print(f"[{time.monotonic() - self._begin:6.1f} s] {line}", file=sys.stderr, flush=True)

    def expect(self, epochs: int, metric: str) -> None:
        """Be ready to tell of so many epochs, with that validation metric."""
        self._epochs, self._metric = epochs, metric
        self._seconds = []

    def epoch(self, entry: dict[str, Any]) -> None:
        """Tell of one finished epoch: a bar on a terminal, a line elsewhere."""
        self._seconds.append(entry["seconds"])
        shown = {name: entry[name] for name in ("loss", self._metric) if name in entry}
        numbers = [f"{name} {value:.4f}" for name, value in shown.items()]
        numbers.append(f"{_rate(entry['samples_per_s'])} samples/s")
        left = (self._epochs - entry["epoch"]) * sum(self._seconds) / len(self._seconds)
        last = [f"{_duration(left)} left"] if left > 0 else []
        if not sys.stderr.isatty():
            numbers += [f"{entry['seconds']:.2f} s", *last]
            width = len(str(self._epochs))
            self.log(f"epoch {entry['epoch']:>{width}}/{self._epochs}  {'  '.join(numbers)}")
            return
        if self._bar is None:
            self.patience.told(held=True)
            self._bar = _bar()
            self._bar.start()
            self._bar.add_task("epochs", total=self._epochs or None, numbers="")
        words = "  ".join(numbers + last)
        self._bar.update(self._bar.task_ids[0], completed=entry["epoch"], numbers=words)

    @contextlib.contextmanager
    def during(self, words: str) -> Iterator[None]:
        """Tell what is done while the block runs: in a spinner on a terminal, a line elsewhere."""
        if not sys.stderr.isatty():
            self.log(words)
        self.patience.name(words)
        yield
        self.patience.told()

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def close(self) -> None:
        """The work is done: nothing moves on the terminal any more."""
        self._close_bar()
        self.patience.end()

    def result(self, value: "BaseModel | dict[str, Any]", text: str = "") -> None:
        """Print a command's result: the value as JSON, or the text."""
        self.close()
        value = value if isinstance(value, dict) else value.model_dump()
        out = json.dumps(value, ensure_ascii=False) if self.as_json else text or _plain(value)
        print(out, flush=True)


def _bar() -> "Progress":
    from rich.console import Console as Terminal
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
    )

    columns = (
        TextColumn("epochs"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[numbers]}"),
    )
    return Progress(*columns, console=Terminal(stderr=True))


def _rate(per_second: float) -> str:
    """1,234,567 as 1.23M, 45,678 as 45.7k."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if per_second >= size:
            return f"{per_second / size:.3g}{letter}"
    return f"{per_second:.0f}"


def _duration(seconds: float) -> str:
    """4,000 seconds as 1:06:40, 70 as 1:10."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _plain(value: dict[str, Any]) -> str:
    return "\n".join(
        f"{name}: {json.dumps(v, ensure_ascii=False) if isinstance(v, (dict, list)) else v}"
        for name, v in value.items()
    )
