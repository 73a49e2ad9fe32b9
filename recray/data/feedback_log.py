"""The ratings log: what users rate while a model serves, kept for the next training.

LOG/log.json                                the data set whose ids it speaks
LOG/<writer>/part-<level>-<number>.parquet  events in the order they came; never changed

Every process writes under a name of its own, so writers need no lock. A part appears whole or not
at all. Many small parts are put together in one of the next level, which keeps what still counts:
the latest rating of each pair. What a kill leaves twice counts once, as does a rating that was sent
twice, so two processes that put the same parts together do no harm.
"""

import re
import time
import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from recray.data.feedback_events import (
    LATE_SECONDS,
    MICRO,
    LoggedRating,
    event_schema,
    event_table,
    events_of,
    settled,
)
from recray.errors import DamagedFile, RecrayError, StorageError
from recray.storage import Folder

FACTS = "log.json"
KIND = "ratings log"
ENDING = ".parquet"
PART = re.compile(r"[0-9a-f]+/part-\d+-\d+\.parquet")
TOGETHER = 64
"""Parts of one level that become one of the next."""
LEVELS = 2
"""A service puts parts together up to this level, so that few rows are in memory at once."""
PART_ROWS = 1_000_000
"""Rows of the parts that hold a whole log."""
KEY_LENGTH = 200


@dataclass(frozen=True)
class Contents:
    """What a log holds.

    Args:
        events: The ratings that count, oldest first, as feedback_events.event_schema.
        parts: Parts that were read.
        damaged: Names of the parts that cannot be read.
        repeated: Copies that were left out.
    """

    events: pa.Table
    parts: int
    damaged: list[str]
    repeated: int

    @property
    def ratings(self) -> list[LoggedRating]:
        """The same as objects."""
        return events_of(self.events)


class RatingsLog:
    """A log on a local disk or any store.

    Args:
        folder: Where it lies.
        dataset: Name of the data set whose ids it speaks.
        text: Whether its user ids, and its item ids, are text.
        every: Whether all ratings of a pair count, as where they are added up, and not the latest.
    """

    def __init__(
        self, folder: Folder, dataset: str, text: tuple[bool, bool], every: bool = False
    ) -> None:
        self.folder, self.dataset, self.text, self.every = folder, dataset, text, every
        self._schema = event_schema(text)

    @classmethod
    def open(cls, path: str) -> "RatingsLog":
        """Open a log that is there.

        Raises:
            RecrayError: There is none.
        """
        folder = Folder(path)
        if not folder.exists(FACTS):
            _refuse_lost(folder)
            raise RecrayError(f"no ratings log at {folder}; a service that keeps ratings makes one")
        facts = folder.read_json(FACTS)
        if not isinstance(facts, dict) or facts.get("kind") != KIND:
            raise RecrayError(f"{folder}/{FACTS} is not that of a ratings log")
        text = facts["text_users"], facts["text_items"]
        # Logs of before do not say how they are read, so nothing of them is left out.
        return cls(folder, facts["dataset"], text, facts.get("duplicates", "all") != "last")

    @classmethod
    def of(
        cls, path: str, dataset: str, text: tuple[bool, bool], duplicates: str = "last"
    ) -> "RatingsLog":
        """Open the log of a data set, or begin it.

        Raises:
            RecrayError: There is one of another data set, or one that has lost its log.json.
        """
        folder = Folder(path)
        if not folder.exists(FACTS):
            _refuse_lost(folder)
            rules = {"text_users": text[0], "text_items": text[1], "duplicates": duplicates}
            folder.write_json(FACTS, {"kind": KIND, "dataset": dataset, **rules})
        log = cls.open(path)
        log.expect(dataset, text)
        return log

    def expect(self, dataset: str, text: tuple[bool, bool]) -> None:
        """Refuse a log of another data set.

        Raises:
            RecrayError: It is one.
        """
        if (self.dataset, self.text) != (dataset, text):
            raise RecrayError(
                f"{self.folder} holds ratings of {self.dataset}, not of {dataset}: "
                "their ids mean other users and items; give another folder for the log"
            )

    # ------------------------------------------------------------------------------ parts

    def names(self) -> list[str]:
        """Names of the parts.

        Raises:
            StorageError: log.json has gone, or the store does not answer.
        """
        found = self.folder.files()
        if FACTS not in found:
            raise self._lost()
        return [name for name in found if PART.fullmatch(name)]

    def read_part(self, name: str) -> pa.Table | None:
        """The events of one part; None if it is gone, because it was put together with others.

        Raises:
            DamagedFile: It is damaged.
            RecrayError: It cannot be read now; that says nothing of the part.
        """
        try:
            table = self.folder.read_table(name, self._schema.names)
            return table.cast(self._schema)
        except (pa.ArrowException, KeyError, ValueError) as error:
            raise DamagedFile(f"{self.folder}/{name} is damaged: {error}") from error
        except RecrayError:
            if not self.folder.exists(name):
                return None
            raise

    def write_part(self, name: str, events: pa.Table) -> None:
        """Write a part; it is on the disk, whole, when this returns.

        Raises:
            StorageError: It cannot be written, or log.json has gone: nobody would find the part.
        """
        if not self.folder.exists(FACTS):
            raise self._lost()
        sink = pa.BufferOutputStream()
        pq.write_table(events, sink, compression="zstd")
        writer, file = name.split("/")
        self.folder.child(writer).replace_bytes(file, sink.getvalue().to_pybytes(), durable=True)

    def _lost(self) -> StorageError:
        text = f"{self.folder} has lost its {FACTS}: put the log back, or restart the service"
        return StorageError(text)

    def read(self) -> Contents:
        """Everything there is now, while others may be writing. A damaged part is left out and
        named.

        Raises:
            RecrayError: The store does not answer.
        """
        parts, damaged = self._parts()
        whole = pa.concat_tables([self._schema.empty_table(), *parts.values()])
        events, copies = settled(whole, self.every)
        return Contents(events, len(parts) + len(damaged), damaged, copies)

    def compact(self) -> None:
        """Put all parts that are there together, by user and item.

        Raises:
            StorageError: It cannot be written; what was there stays.
        """
        parts, _ = self._parts()
        if len(parts) > 1:
            late = int((time.time() - LATE_SECONDS) * MICRO)
            LogWriter(self).together(list(parts), LEVELS + 1, list(parts.values()), late)

    def _parts(self) -> tuple[dict[str, pa.Table], list[str]]:
        """All parts that can be read, and the names of the damaged ones."""
        parts: dict[str, pa.Table] = {}
        damaged: set[str] = set()
        gone = True
        while gone:  # parts that were put together meanwhile are elsewhere by now: look once more
            names, gone = self.names(), False
            for name in names:
                if name in parts or name in damaged:
                    continue
                try:
                    part = self.read_part(name)
                except DamagedFile:
                    damaged.add(name)
                    continue
                if part is None:
                    gone = True
                else:
                    parts[name] = part
        there = {name: parts[name] for name in names if name in parts}
        return there, [name for name in names if name in damaged]


def _refuse_lost(folder: Folder) -> None:
    """Refuse a folder with parts of a log that does not say of which data set it is.

    Raises:
        RecrayError: It is one.
    """
    if any(PART.fullmatch(name) for name in folder.files()):
        raise RecrayError(
            f"{folder} holds ratings and no {FACTS}, so it is unknown what their ids mean: put "
            "that file back, or give another folder for the log"
        )


class LogWriter:
    """Appends to a log under a name that nobody else has. One thread calls it.

    Args:
        log: The log.
    """

    def __init__(self, log: RatingsLog) -> None:
        self.log, self.name = log, uuid.uuid4().hex[:12]
        self._count: dict[int, int] = {}

    def append(self, events: Sequence[LoggedRating]) -> str:
        """Write events as one part, which outlives a kill once this returns; return its name.

        Raises:
            StorageError: It cannot be written; nothing was kept.
        """
        return self._write(0, event_table(events, self.log.text))

    def _write(self, level: int, events: pa.Table) -> str:
        number = self._count.get(level, 0)
        name = f"{self.name}/part-{level}-{number:09d}{ENDING}"
        self.log.write_part(name, events)
        self._count[level] = number + 1
        return name

    def tidy(self, names: Collection[str]) -> list[str]:
        """Put small parts together where there are many of a level.

        Args:
            names: Parts of this writer, and of others that write no more.

        Returns:
            The parts that hold what was in the others.

        Raises:
            RecrayError: One cannot be read; all of them stay as they are.
        """
        written: list[str] = []
        for level in range(LEVELS):
            small = [n for n in [*names, *written] if f"/part-{level}-" in n]
            if len(small) >= TOGETHER:
                found = [(name, self.log.read_part(name)) for name in small]
                there = {name: part for name, part in found if part is not None}
                written += self.together(small, level + 1, list(there.values()))
        return written

    def together(
        self, names: Collection[str], level: int, parts: list[pa.Table], kept_since: int = 0
    ) -> list[str]:
        """Write what counts of some parts as new ones, and then remove the others.

        What took a rating back stays unless these are all parts: it may lie in another one.
        """
        whole = pa.concat_tables([event_table([], self.log.text), *parts])
        kept, _ = settled(whole, self.log.every, kept_since)
        pieces = [kept.slice(at, PART_ROWS) for at in range(0, len(kept), PART_ROWS)]
        written = [self._write(level, piece) for piece in pieces]
        for name in names:
            self.log.folder.delete(name)
        return written
