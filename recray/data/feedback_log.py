"""The ratings log: what users rate while a model serves, kept for the next training.

LOG/log.json                         the data set whose ids it speaks
LOG/<writer>/part-<level>-<number>.parquet   ratings in the order they came; never changed

Every process writes under a name of its own, so writers need no lock. A part appears whole or not
at all. When a writer has many small parts it puts them together in one of the next level; what a
kill leaves twice counts once, as does a rating that was sent twice.
"""

import re
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from recray.data.ids import RawId
from recray.errors import DamagedFile, RecrayError
from recray.storage import Folder

FACTS = "log.json"
KIND = "ratings log"
ENDING = ".parquet"
PART = re.compile(r"[0-9a-f]+/part-\d+-\d+\.parquet")
TOGETHER = 64
"""Parts of one level that become one of the next."""
KEY_LENGTH = 200
MICRO = 1_000_000


@dataclass(frozen=True)
class LoggedRating:
    """One rating that came.

    Args:
        user: Raw user id; may be new.
        item: Raw item id.
        rating: Stars.
        key: Idempotency key: the same rating with the same key counts once.
        received: When, in microseconds since 1970.
    """

    user: RawId
    item: RawId
    rating: float
    key: str
    received: int

    @property
    def identity(self) -> tuple[RawId, RawId, float, str]:
        """What two copies of one rating have in common."""
        return self.user, self.item, self.rating, self.key


@dataclass(frozen=True)
class Contents:
    """What a log holds.

    Args:
        ratings: Each rating once, in the order they came.
        parts: Parts that were read.
        damaged: Names of the parts that cannot be read.
        repeated: Copies that were left out.
    """

    ratings: list[LoggedRating]
    parts: int
    damaged: list[str]
    repeated: int


class RatingsLog:
    """A log on a local disk or any store.

    Args:
        folder: Where it lies.
        dataset: Name of the data set whose ids it speaks.
        text: Whether its user ids, and its item ids, are text.
    """

    def __init__(self, folder: Folder, dataset: str, text: tuple[bool, bool]) -> None:
        self.folder, self.dataset, self.text = folder, dataset, text

    @classmethod
    def open(cls, path: str) -> "RatingsLog":
        """Open a log that is there.

        Raises:
            RecrayError: There is none.
        """
        folder = Folder(path)
        if not folder.exists(FACTS):
            raise RecrayError(f"no ratings log at {folder}; a service that keeps ratings makes one")
        facts = folder.read_json(FACTS)
        if not isinstance(facts, dict) or facts.get("kind") != KIND:
            raise RecrayError(f"{folder}/{FACTS} is not that of a ratings log")
        return cls(folder, facts["dataset"], (facts["text_users"], facts["text_items"]))

    @classmethod
    def of(cls, path: str, dataset: str, text: tuple[bool, bool]) -> "RatingsLog":
        """Open the log of a data set, or begin it.

        Raises:
            RecrayError: There is one of another data set.
        """
        folder = Folder(path)
        if not folder.exists(FACTS):
            facts = {"kind": KIND, "dataset": dataset, "text_users": text[0], "text_items": text[1]}
            folder.write_json(FACTS, facts)
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
        """Names of the parts."""
        found = self.folder.files()
        return [name for name in found if PART.fullmatch(name)]

    def read_part(self, name: str) -> list[LoggedRating] | None:
        """The ratings of one part; None if it is gone, because it was put together with others.

        Raises:
            DamagedFile: It is damaged.
            RecrayError: It cannot be read now; that says nothing of the part.
        """
        wanted = self._schema().names
        try:
            table = self.folder.read_table(name, wanted)
            columns = [table[column].to_pylist() for column in wanted]
        except (pa.ArrowException, KeyError) as error:
            raise DamagedFile(f"{self.folder}/{name} is damaged: {error}") from error
        except RecrayError:
            if not self.folder.exists(name):
                return None
            raise
        return [LoggedRating(*row) for row in zip(*columns, strict=True)]

    def _schema(self) -> pa.Schema:
        user, item = (pa.string() if text else pa.int64() for text in self.text)
        return pa.schema(
            [
                ("user", user),
                ("item", item),
                ("rating", pa.float64()),
                ("key", pa.string()),
                ("received", pa.int64()),
            ]
        )

    def write_part(self, name: str, ratings: Sequence[LoggedRating]) -> None:
        """Write a part; it is on the disk, whole, when this returns.

        Raises:
            StorageError: It cannot be written.
        """
        wanted = self._schema()
        columns = {
            field.name: pa.array([getattr(r, field.name) for r in ratings], field.type)
            for field in wanted
        }
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table(columns, schema=wanted), sink, compression="zstd")
        writer, file = name.split("/")
        self.folder.child(writer).replace_bytes(file, sink.getvalue().to_pybytes(), durable=True)

    def read(self) -> Contents:
        """Everything there is now, while others may be writing. A damaged part is left out and
        named.

        Raises:
            RecrayError: The store does not answer.
        """
        parts: dict[str, list[LoggedRating]] = {}
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
        there = [parts[name] for name in names if name in parts]
        ratings = once(rating for part in there for rating in part)
        copies = sum(map(len, there)) - len(ratings)
        left_out = [name for name in names if name in damaged]
        return Contents(ratings, len(names), left_out, copies)


def once(ratings: Iterable[LoggedRating]) -> list[LoggedRating]:
    """Each rating once, by the time it first came."""
    first: dict[Any, LoggedRating] = {}
    for rating in ratings:
        before = first.get(rating.identity)
        if before is None or rating.received < before.received:
            first[rating.identity] = rating
    return sorted(first.values(), key=lambda r: (r.received, r.key))


class LogWriter:
    """Appends to a log under a name that nobody else has. One thread calls it.

    Args:
        log: The log.
    """

    def __init__(self, log: RatingsLog) -> None:
        self.log, self.name = log, uuid.uuid4().hex[:12]
        self._count: dict[int, int] = {}
        self._small: dict[int, list[str]] = {}

    def append(self, ratings: Sequence[LoggedRating]) -> str:
        """Write ratings as one part, which outlives a kill once this returns; return its name.

        Raises:
            StorageError: It cannot be written; nothing was kept.
        """
        return self._write(0, ratings)

    def _write(self, level: int, ratings: Sequence[LoggedRating]) -> str:
        number = self._count.get(level, 0)
        name = f"{self.name}/part-{level}-{number:09d}{ENDING}"
        self.log.write_part(name, ratings)
        self._count[level] = number + 1
        self._small.setdefault(level, []).append(name)
        return name

    def tidy(self) -> None:
        """Put small parts together where there are many.

        Raises:
            RecrayError: One cannot be read; all of them stay as they are.
        """
        level = 0
        while len(small := self._small.get(level, [])) >= TOGETHER:
            self._small[level] = []
            parts = [self.log.read_part(name) for name in small]
            self._write(level + 1, [rating for part in parts for rating in part or ()])
            for name in small:
                self.log.folder.delete(name)
            level += 1
