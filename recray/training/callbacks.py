"""What follows a run: a progress bar, the event files of TensorBoard, and other loggers.

All of it reads the run's history, so it needs no connection to the workers.
"""

import contextlib
import json
import math
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import methodcaller
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from recray.errors import RecrayError
from recray.progress import Log
from recray.schema import TIMINGS
from recray.storage import Folder, Pause, PolledFile, is_uri
from recray.training.checkpoint import EPOCHS, RunFolder
from recray.training.run_metadata import EpochEntry, RunMetadata

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

OnEpoch = Callable[[EpochEntry], None]
OnStart = Callable[[int, str], None]
POLL_S, LONGEST_POLL_S = 0.25, 5.0
"""Seconds between two looks at the history of a run that trains in other processes. In a store they
grow while no epoch comes.
"""
EVENTS = "tensorboard"
TENSORBOARD_DELAY_S = 2.0
"""TensorBoard takes half a second to load; a run that is shorter than this waits for it once."""


class ExperimentLogger(Protocol):
    """Keeps the epochs of a run in the form of another tool."""

    name: str

    def epoch(self, entry: EpochEntry) -> None:
        """Take the next epoch's metrics."""

    def close(self, finished: bool) -> None:
        """Write what is left; the run is finished, or was stopped."""


LoggerFactory = Callable[[Folder, RunMetadata, list[EpochEntry]], ExperimentLogger]
"""From the run's folder, what the run is, and the epochs it has had."""


def _ignore(_line: str) -> None:
    """Drop the line."""


@dataclass(frozen=True)
class Callbacks:
    """What is called while a run trains.

    Args:
        log: Receives what happens, one line at a time.
        on_epoch: Receives each epoch's metrics as they come.
        loggers: Open what else keeps the metrics.
        on_start: Receives how many epochs follow at most, and the metric to show.
    """

    log: Log = _ignore
    on_epoch: OnEpoch | None = None
    loggers: tuple[LoggerFactory, ...] = ()
    on_start: OnStart | None = None


@dataclass
class HistoryTail:
    """Hands on the entries of epochs.json, each once.

    A logger that fails is left out from then on: no run ends because its log cannot be written.
    Nor does it because the file cannot be read: the next look may find it.

    Args:
        run: The run.
        callbacks: What receives the entries.
        loggers: The open loggers.
        already_seen: Entries that were handed on before.
    """

    run: RunFolder
    callbacks: Callbacks
    loggers: list[ExperimentLogger]
    already_seen: int

    def __post_init__(self) -> None:
        self.file = PolledFile[list[EpochEntry]](self.run.folder, EPOCHS, json.loads)
        self.told = ""

    def emit(self) -> bool:
        """Hand on the new entries; returns whether there were some."""
        try:
            history = self.file.read() or []
        except RecrayError as error:
            if str(error) != self.told:
                self.told = str(error)
                self.callbacks.log(f"the epochs of the run cannot be read now: {error}")
            return False
        for entry in history[self.already_seen :]:
            if self.callbacks.on_epoch is not None:
                self.callbacks.on_epoch(entry)
            self.call_loggers(methodcaller("epoch", entry))
        more = len(history) > self.already_seen
        self.already_seen = max(self.already_seen, len(history))
        return more

    def call_loggers(self, call: Callable[[ExperimentLogger], None]) -> None:
        """Call each logger; one that fails is left out."""
        for logger in list(self.loggers):
            try:
                call(logger)
            except Exception as error:  # a server that went away, a full disk
                self.loggers.remove(logger)
                message = next(iter(str(error).splitlines()), type(error).__name__)
                self.callbacks.log(f"{logger.name} is left out from here on: {message}")


@contextlib.contextmanager
def watch_history(
    run: RunFolder, callbacks: Callbacks, metadata: RunMetadata, history: list[EpochEntry]
) -> Iterator[None]:
    """Hand on each new entry of epochs.json while the block runs.

    The file is polled, so it does not matter in which process or on which node the run trains. In
    a store that is one HEAD for each look, and one GET for each epoch.

    Args:
        run: The run.
        callbacks: What receives the entries.
        metadata: What the run is.
        history: Epochs done before.

    Raises:
        RecrayError: A logger cannot be opened.
    """
    if callbacks.on_epoch is None and not callbacks.loggers:
        yield
        return
    loggers = [factory(run.folder, metadata, history) for factory in callbacks.loggers]
    tail = HistoryTail(run, callbacks, loggers, len(history))
    stop = threading.Event()

    def follow() -> None:
        pause = Pause(run.folder.path, POLL_S, LONGEST_POLL_S)
        while not stop.wait(pause.seconds):
            pause.after(changed=tail.emit())

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    finished = False
    try:
        yield
        finished = True
    finally:
        stop.set()
        thread.join()
        tail.emit()
        tail.call_loggers(methodcaller("close", finished))


def tagged(entry: EpochEntry) -> dict[str, float]:
    """The numbers of an entry as train/loss, valid/rmse, speed/seconds."""
    groups = {"loss": "train"} | dict.fromkeys(TIMINGS, "speed")
    numbers = {k: v for k, v in entry.items() if k != "epoch" and math.isfinite(v)}
    return {f"{groups.get(name, 'valid')}/{name}": value for name, value in numbers.items()}


class TensorBoard:
    """Event files in RUN/tensorboard, by torch's writer.

    They are written anew when a run is continued, so that no epoch is there twice or lacking.

    Args:
        folder: The run's folder; in an object store the files come when the run ends.
        metadata: What the run is.
        history: Epochs done before.
    """

    name = "tensorboard"

    def __init__(self, folder: Folder, metadata: RunMetadata, history: list[EpochEntry]) -> None:
        self.folder, self.metadata = folder.child(EVENTS), metadata
        self.pending = list(history)
        self.begin = time.monotonic()
        self.writer: SummaryWriter | None = None
        self.local = self.folder.path
        if is_uri(folder.path):
            self.scratch = tempfile.TemporaryDirectory(prefix="recray-events-")
            self.local = self.scratch.name

    def epoch(self, entry: EpochEntry) -> None:
        """Take the next epoch's metrics."""
        self.pending.append(entry)
        if time.monotonic() - self.begin > TENSORBOARD_DELAY_S:
            self._write()

    def close(self, finished: bool) -> None:
        """Write what is left."""
        if self.pending:
            self._write()
        if self.writer is not None:
            self.writer.close()
        if is_uri(self.folder.path):
            for path in Path(self.local).iterdir():
                self.folder.write_bytes(path.name, path.read_bytes())
            self.scratch.cleanup()

    def _write(self) -> None:
        if self.writer is None:
            for name in self.folder.files():  # not the folder: another run may be writing there
                self.folder.delete(name)
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(self.local)
            settings = json.dumps(self.metadata.settings.plain(), indent=1)
            self.writer.add_text("settings", f"```\n{settings}\n```")
        for entry in self.pending:
            for name, value in tagged(entry).items():
                self.writer.add_scalar(name, value, int(entry["epoch"]))
        self.writer.flush()
        self.pending.clear()
