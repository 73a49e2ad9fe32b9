"""Telling people and logbooks of the epochs of a run, wherever it trains."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from recray.progress import Log
from recray.storage import Folder
from recray.training.checkpoint import EPOCHS

Entry = dict[str, Any]
OnEpoch = Callable[[Entry], None]
POLL_S = 0.25


class Logbook(Protocol):
    """Keeps the epochs of a run in the form of another tool."""

    name: str

    def epoch(self, entry: Entry) -> None:
        """Take the next epoch's metrics."""

    def close(self, finished: bool) -> None:
        """Write what is left; the run has come to its end, or was stopped."""


OpenLogbook = Callable[[Folder, dict[str, Any], list[Entry]], Logbook]
"""From the run's folder, what the run is, and the epochs it has had."""


def _nobody(_line: str) -> None:
    """Nobody listens."""


@dataclass(frozen=True)
class Watch:
    """Who is told what while a run trains.

    Args:
        log: Receives what happens, one line at a time.
        on_epoch: Told each epoch's metrics as they come.
        logbooks: Open what else keeps them.
    """

    log: Log = _nobody
    on_epoch: OnEpoch | None = None
    logbooks: tuple[OpenLogbook, ...] = ()


class _Told:
    """Tells of the entries of epochs.json, each once. A logbook that fails is left out from then
    on: no run dies of its diary.
    """

    def __init__(self, folder: Folder, watch: Watch, books: list[Logbook], told: int) -> None:
        self.folder, self.watch, self.books, self.told = folder, watch, books, told

    def tell(self) -> None:
        """Tell of what is new."""
        if not self.folder.exists(EPOCHS):
            return
        history = self.folder.read_json(EPOCHS)
        for entry in history[self.told :]:
            if self.watch.on_epoch is not None:
                self.watch.on_epoch(entry)
            for book in list(self.books):
                self._guard(book, partial(book.epoch, entry))
        self.told = max(self.told, len(history))

    def close(self, finished: bool) -> None:
        """Close the logbooks."""
        for book in list(self.books):
            self._guard(book, partial(book.close, finished))

    def _guard(self, book: Logbook, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # a server that went away, a full disk
            self.books.remove(book)
            first = next(iter(str(error).splitlines()), type(error).__name__)
            self.watch.log(f"{book.name} is left out from here on: {first}")


@contextlib.contextmanager
def following(
    folder: Folder, watch: Watch, facts: dict[str, Any], history: list[Entry]
) -> Iterator[None]:
    """Tell of each new entry of epochs.json while the block runs.

    Args:
        folder: The run's folder.
        watch: Who is told.
        facts: What the run is.
        history: Epochs done before.

    Raises:
        RecrayError: A logbook cannot be opened.
    """
    if watch.on_epoch is None and not watch.logbooks:
        yield
        return
    books = [book(folder, facts, history) for book in watch.logbooks]
    told = _Told(folder, watch, books, len(history))
    stop = threading.Event()

    def follow() -> None:
        while not stop.wait(POLL_S):
            told.tell()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    finished = False
    try:
        yield
        finished = True
    finally:
        stop.set()
        thread.join()
        told.tell()
        told.close(finished)
