"""What a command prints: its result on stdout, and its progress on stderr."""

import contextlib
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.progress import Progress, ProgressColumn

Json: TypeAlias = "Mapping[str, Json] | Sequence[Json] | str | float | None"
"""A value that JSON can hold."""
Log = Callable[[str], None]
"""Shows one line of progress; Console.log is one."""
QUIET_SECONDS = 2.0
"""How long a command works before a terminal shows a spinner: the quick ones need none."""


class StageProgress(NamedTuple):
    """How far the tasks of a stage are.

    Args:
        stage: Name of the stage.
        done: Tasks that have ended.
        tasks: All tasks.
        rows: Rows that those have handled; None where they are not counted.
        seconds: Since the stage began.
    """

    stage: str
    done: int
    tasks: int
    rows: int | None
    seconds: float


@dataclass(frozen=True)
class StageFacts:
    """What Ray Data and the tasks themselves have counted of a stage of `prepare`.

    Args:
        stage: Its name.
        operators: What Ray Data calls its tasks.
        tasks: Tasks that ended.
        failed: Tasks that were lost and done again.
        rows: Ratings that they handled; None where they did not count them.
        bytes: Bytes that they wrote; None where they did not count them.
        wall_s: Seconds from the first begin of a task to the last end.
        task_s: Seconds of all tasks together.
        cpu_s: Seconds of CPU of all tasks together.
        max_memory_bytes: The most memory of a worker process in a task, without what it shares
            with others, as Ray Data samples it once a second; None where it cannot.
    """

    stage: str
    operators: str
    tasks: int
    failed: int
    rows: int | None
    bytes: int | None
    wall_s: float
    task_s: float
    cpu_s: float
    max_memory_bytes: int | None


class Console:
    """Prints text for a reader, or one JSON object for a program.

    On a terminal stderr also shows a spinner with the time, or a bar while epochs or the tasks of a
    stage are counted.

    Args:
        as_json: Print exactly one JSON object on stdout and nothing else there.
        words: What is being done.
    """

    def __init__(self, as_json: bool, words: str = "recray") -> None:
        self.as_json = as_json
        self._words = words
        self._epochs, self._metric = 0, ""
        self._seconds: list[float] = []
        self._begin = time.monotonic()
        self._display: Progress | None = None
        self._counted = ""
        self._quiet = threading.Timer(QUIET_SECONDS, self._start)
        if sys.stderr.isatty():
            self._quiet.daemon = True
            self._quiet.start()

    def _start(self) -> None:
        self._display = _spinner(self._words)
        self._display.start()

    def _show(self, display: "Progress | None") -> None:
        """Show this in place of what moves on the terminal now."""
        self._quiet.cancel()
        if self._quiet.is_alive():  # it may be starting the spinner at this moment
            self._quiet.join()
        if self._display is not None:
            self._display.stop()
        self._display, self._counted = display, ""
        if display is not None:
            display.start()

    def log(self, line: str) -> None:
        """Print a line of progress on stderr, with the seconds since the start."""
        if self._counted:
            self._show(_spinner(self._words))
        print(f"[{time.monotonic() - self._begin:6.1f} s] {line}", file=sys.stderr, flush=True)

    def expect(self, epochs: int, metric: str) -> None:
        """Announce how many epochs follow, and which validation metric to show."""
        self._epochs, self._metric = epochs, metric
        self._seconds = []

    def epoch(self, entry: Mapping[str, float]) -> None:
        """Show a finished epoch: in a bar on a terminal, as a line elsewhere."""
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
        self._count("epochs", entry["epoch"], self._epochs, numbers + last)

    def stage(self, progress: StageProgress) -> None:
        """Show the tasks of a stage: in a bar on a terminal, elsewhere as a line at its end."""
        stage, done, tasks, rows, seconds = progress
        numbers = []
        if rows is not None:
            numbers = [f"{rows:,} rows", f"{_rate(rows / max(seconds, 1e-3))} rows/s"]
        if sys.stderr.isatty():
            self._count(stage, done, tasks, numbers)
        elif done == tasks:
            ended = f"{stage}: {tasks} task{'s' if tasks > 1 else ''}"
            self.log("  ".join([ended, *numbers, f"{seconds:.2f} s"]))

    def _count(self, what: str, done: float, total: int, numbers: list[str]) -> None:
        """Show in a bar how many of these are done."""
        if self._display is None or self._counted != what:
            self._display = self._bar(what, total)
        words = "  ".join(numbers)
        self._display.update(self._display.task_ids[0], completed=done, numbers=words)

    def _bar(self, what: str, total: int) -> "Progress":
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn

        numbers = TextColumn("{task.fields[numbers]}")
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), numbers
        bar = _progress(*columns, transient=what != "epochs")
        bar.add_task(what, total=total or None, numbers="")
        self._show(bar)
        self._counted = what
        return bar

    @contextlib.contextmanager
    def during(self, words: str) -> Iterator[None]:
        """Say what is done while the block runs: beside the spinner, or in a line elsewhere."""
        before = self._words
        if not sys.stderr.isatty():
            self.log(words)
        self._describe(words)
        try:
            yield
        finally:
            self._describe(before)

    def _describe(self, words: str) -> None:
        self._words = words
        if self._display is not None and not self._counted:
            self._display.update(self._display.task_ids[0], description=words)

    def close(self) -> None:
        """Stop the spinner or the bar: the work is done, or it is shown in another way."""
        self._show(None)

    def result(self, value: "BaseModel | Mapping[str, Json]", text: str = "") -> None:
        """Print a command's result: the value as JSON, or the text."""
        self.close()
        facts = value if isinstance(value, Mapping) else value.model_dump()
        out = json.dumps(facts, ensure_ascii=False) if self.as_json else text or _plain(facts)
        print(out, flush=True)


def _progress(*columns: "ProgressColumn", transient: bool = False) -> "Progress":
    from rich.console import Console as Terminal
    from rich.progress import Progress

    # Stdout stays what it is: it may be a file while stderr is a terminal.
    terminal = Terminal(stderr=True)
    return Progress(*columns, console=terminal, transient=transient, redirect_stdout=False)


def _spinner(words: str) -> "Progress":
    from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    spinner = _progress(*columns, transient=True)
    spinner.add_task(words, total=None)
    return spinner


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


def _plain(value: Mapping[str, Json]) -> str:
    return "\n".join(
        f"{name}: {json.dumps(v, ensure_ascii=False) if isinstance(v, (dict, list)) else v}"
        for name, v in value.items()
    )
