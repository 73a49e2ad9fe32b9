"""What became of the rows that were read: each is kept in a split, or counted by the reason."""

from collections import Counter

from pydantic import BaseModel

from recray.data.formats.layout import FileRange
from recray.data.formats.times import TimeFormat
from recray.data.scan import Scanned
from recray.errors import LostRows, RecrayError

UNKNOWN_SHARE = 0.01
"""Largest share of unknown times with which one cut in time still divides the ratings."""


class RowCounts(BaseModel):
    """What became of the rows that were read.

    Args:
        read: Rows of the source and of a ratings log, blank lines left out.
        kept: Rows that are in a split.
        dropped: All others by the reason: rejected, duplicates, min_year, min_rating or core.
    """

    read: int
    kept: int
    dropped: dict[str, int]


class TimesRead(BaseModel):
    """How the times of ratings were read.

    Args:
        format: The rule of the whole column: s, ms, us or ns since 1970; typed where the type of
            the column tells the unit; iso, compact, mdy or dmy for dates; unclear where none reads
            them; None where there is no such column.
        unknown: Ratings of the source whose time is missing or could not be read.
    """

    format: TimeFormat | None
    unknown: int


def account(scanned: Scanned, dropped: Counter[str], kept: int) -> RowCounts:
    """Balance the rows of a source.

    Args:
        scanned: What was read and rejected.
        dropped: What tasks took out, by the reason.
        kept: Rows that were written.

    Raises:
        LostRows: Some rows are neither kept nor counted, or counted twice.
    """
    counts = Counter(rejected=sum(scanned.reasons.values())) + dropped
    if scanned.read != kept + sum(counts.values()):
        found = ", ".join(f"{count:,} {why}" for why, count in sorted(counts.items()))
        raise LostRows(
            f"{scanned.read:,} rows were read, and {kept:,} kept and {found or 'none'} dropped do "
            "not make as many: this is a fault of recray, please report it"
        )
    return RowCounts(read=scanned.read, kept=kept, dropped=dict(sorted(counts.items())))


def times_read(ranges: tuple[FileRange, ...], unknown: int) -> TimesRead:
    """How the times of a source were read.

    Args:
        ranges: Its files; a ratings log among them does not count.
        unknown: Rows without a known time.
    """
    layouts = [r.file.layout for r in ranges if r.file.part != "logged"]
    timed = [one.time for one in layouts if "timestamp" in one.columns]
    return (
        TimesRead(format=timed[0], unknown=unknown) if timed else TimesRead(format=None, unknown=0)
    )


def check_times_known(kind: str, rows: int, timed: int) -> None:
    """Refuse one cut in time where many ratings would only train because their time is unknown.

    Args:
        kind: The kind of split.
        rows: Ratings.
        timed: Those whose time is known.

    Raises:
        RecrayError: The others are more than UNKNOWN_SHARE.
    """
    unknown = rows - timed
    if unknown > UNKNOWN_SHARE * rows:
        raise RecrayError(
            f"split.kind={kind} cuts by time, and {unknown:,} of {rows:,} ratings "
            f"({unknown / rows:.1%}) have none that can be read, more than {UNKNOWN_SHARE:.0%}; "
            "mend them, or use split.kind=per-user-ratio or leave-one-out, where such ratings "
            "train, or per-user-random"
        )
