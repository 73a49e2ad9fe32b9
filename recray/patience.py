"""A sign of life on a terminal: a spinner with the seconds, when nothing was told for a while."""

import sys
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

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
