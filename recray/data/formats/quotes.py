"""Quoted fields, as RFC 4180 has them: where rows end when a field may hold ends of lines.

A field is quoted if it begins with a quote, and its closing quote stands before a delimiter or an
end of line; a pair of quotes inside is one quote. All other quotes are letters: 12" vinyl, "weird
al" yankovic. Blanks may stand around the quotes. A quote that opens a field and is closed neither
on its line nor, well, within ROW_BYTES costs its line, which is rejected, and nothing after it.

What a row is depends on the bytes from its begin to ROW_BYTES behind it and on nothing else. So a
reader that knows where one row begins finds all later ones, however it cuts the file into chunks.
"""

import re
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from recray.data.formats.layout import Delimiter, Quoting

ROW_BYTES = 1 << 20
"""Bytes that a row may have; longer ones are rejected."""
LONG_ROW = f"row is longer than {ROW_BYTES:,} bytes"
"""Why they are."""
_QUOTE, _NEWLINE, _RETURN = b'"\n\r'
_CONTROLS = bytes([*range(1, 9), *range(14, 32)])
"""Bytes that hardly any text has; three of them stand in for delimiters and ends of lines."""


@dataclass(frozen=True)
class Rows:
    """Lines whose quoted fields were found.

    Args:
        masked: The content, byte for byte, but that delimiters and newlines inside quoted fields
            are replaced; so each newline ends a row and each delimiter a field.
        stand_ins: Replacement to what it replaces, of one byte each.
        unclosed: Bytes at which rows begin that are rejected because a quote is not closed.
        whole: Bytes of whole rows; behind them is the begin of a row that goes on.
        quoted: Whether there may be quoted fields.
        opened: Quotes at the begin of a field, and how many of these make a quoted field; counted
            only where some quote is a letter.
    """

    masked: bytes
    stand_ins: dict[bytes, bytes]
    unclosed: frozenset[int]
    whole: int
    quoted: bool = False
    opened: tuple[int, int] = (0, 0)


def find_rows(content: bytes, delimiter: Delimiter, quoting: Quoting, ended: bool = True) -> Rows:
    """Find the rows of a content that begins with one.

    Args:
        content: Lines.
        delimiter: What stands between fields.
        quoting: What quotes mean.
        ended: Whether nothing follows the content.
    """
    if not has_quoted_fields(content, delimiter, quoting):
        whole = len(content) if ended else content.rfind(b"\n") + 1
        return Rows(content, {}, frozenset(), whole)
    content, stand_ins = _with_stand_ins(content, delimiter)
    inside = quoted_bytes(content, delimiter, quoting)
    if inside is not None:
        masked = _masked(content, inside, stand_ins)
        whole = len(content) if ended else masked.rfind(b"\n") + 1
        is_open = ended and bool(inside[-1])
        if not is_open and short_rows(masked) and len(content) - whole < ROW_BYTES:
            return Rows(masked, stand_ins, frozenset(), whole, True)
    walk = _Walk(content, delimiter, quoting, ended)
    masked_bytes = bytearray(content)
    table = bytes.maketrans(b"".join(stand_ins.values()), b"".join(stand_ins))
    for begin, end in walk.spans:
        masked_bytes[begin:end] = content[begin:end].translate(table)
    opened = (walk.opened, len(walk.spans))
    return Rows(bytes(masked_bytes), stand_ins, frozenset(walk.unclosed), walk.whole, True, opened)


def has_quoted_fields(content: bytes, delimiter: Delimiter, quoting: Quoting) -> bool:
    """Whether any quote may make a quoted field: it stands at the begin of one, or behind blanks.

    Args:
        content: Lines, which begin with a row.
        delimiter: What stands between fields.
        quoting: What quotes mean.
    """
    if quoting == "none" or b'"' not in content:
        return False
    letters = np.frombuffer(content, np.uint8)
    before = letters[np.flatnonzero(letters[1:] == _QUOTE)]
    marks = [_NEWLINE, *b" \t", delimiter.encode()[-1]]
    return content.startswith(b'"') or bool(np.isin(before, marks).any())


def end_of_rows(content: bytes, block: int, rows: Rows) -> int:
    """Where the row ends in which byte `block` - 1 lies; 0 if that is not known yet."""
    return rows.masked.find(b"\n", block - 1, rows.whole) + 1


def _with_stand_ins(content: bytes, delimiter: Delimiter) -> tuple[bytes, dict[bytes, bytes]]:
    replaced = [b"\n", b" ", b"\t"] if delimiter == " " else [b"\n", delimiter[:1].encode()]
    free = [bytes([c]) for c in _CONTROLS if c not in content]
    if len(free) < len(replaced):  # no text: such rows are rejected for their NUL bytes
        free = [bytes([c]) for c in _CONTROLS[: len(replaced)]]
        content = content.translate(bytes.maketrans(b"".join(free), b"\0" * len(free)))
    return content, dict(zip(free, replaced, strict=False))


def short_rows(masked: bytes) -> bool:
    """Whether no row is nearly as long as allowed: there is a newline in each half of that."""
    half = ROW_BYTES // 2
    return all(
        masked.find(b"\n", begin, begin + half) >= 0 for begin in range(0, len(masked) - half, half)
    )


# ------------------------------------------------------------------------------ well-formed


def quoted_bytes(
    content: bytes, delimiter: Delimiter, quoting: Quoting
) -> NDArray[np.bool_] | None:
    """(N,) which bytes lie in quoted fields, or None if some quote is a letter.

    Where all quotes make quoted fields, every second one opens: it follows a delimiter, an end of
    line or, as the second one of a pair, a quote; the others stand before one of these.
    """
    letters = np.frombuffer(b"\n\n" + content + b"\n\n", np.uint8)
    is_quote = letters == _QUOTE
    place = np.flatnonzero(is_quote)
    before_field = np.zeros(256, bool)
    before_field[list(b'\n"' + (b" \t" if delimiter == " " else delimiter.encode()[-1:]))] = True
    after_field = before_field.copy()
    opening, closing = place[::2], place[1::2]
    if not before_field[letters[opening - 1]].all():
        return None
    behind = letters[closing + 1]
    returns = behind == _RETURN
    if not (after_field[behind] | returns).all():
        return None
    if returns.any() and not (letters[closing[returns] + 2] == _NEWLINE).all():
        return None
    inside = np.add.accumulate(is_quote, dtype=np.uint8)[2:-2] & 1
    if quoting == "line" and (inside & (letters[2:-2] == _NEWLINE)).any():
        return None
    return inside.astype(bool)


def _masked(content: bytes, inside: NDArray[np.bool_], stand_ins: dict[bytes, bytes]) -> bytes:
    letters = np.frombuffer(content, np.uint8).copy()
    for stand_in, replaced in stand_ins.items():
        letters[inside & (letters == replaced[0])] = stand_in[0]
    return letters.tobytes()


# -------------------------------------------------------------------------------- quote by quote


_FIELD = {
    "rows": re.compile(rb'"(?:[^"]++|"")*+"'),
    "line": re.compile(rb'"(?:[^"\n]++|"")*+"'),
}


@cache
def _behind(delimiter: Delimiter) -> re.Pattern[bytes]:
    ends = rb"[ \t]" if delimiter == " " else re.escape(delimiter.encode())
    return re.compile(rb" *(?=" + ends + rb"|\r?\n|\r?\Z)")


class _Walk:
    """Go from quote to quote where some of them are letters.

    After it, `spans` are the begins and ends of quoted fields; `opened` counts the quotes that
    begin a field; `unclosed` and `whole` are as in Rows.
    """

    def __init__(self, content: bytes, delimiter: Delimiter, quoting: Quoting, ended: bool) -> None:
        self._content, self._ended, self._quoting = content, ended, quoting
        self._delimiter = b" \t" if delimiter == " " else delimiter.encode()
        self._field, self._behind = _FIELD[quoting], _behind(delimiter)
        self.spans: list[tuple[int, int]] = []
        self.unclosed: list[int] = []
        self.opened = 0
        self.whole = self._rows()

    def _rows(self) -> int:
        """Go through all rows that have a quote; return where whole rows end."""
        content, position = self._content, 0
        while (quote := content.find(b'"', position)) >= 0:
            start = content.rfind(b"\n", position, quote) + 1 or position
            end = self._row(start)
            if end is None:
                return start
            position = end
        return len(content) if self._ended else max(position, content.rfind(b"\n", position) + 1)

    def _row(self, start: int) -> int | None:
        """Where a row ends, None if it goes on behind the content."""
        content, place = self._content, start
        while True:
            newline = content.find(b"\n", place)
            stop = len(content) if newline < 0 else newline
            quote = content.find(b'"', place, stop)
            if quote < 0:
                return None if newline < 0 and not self._ended else min(stop + 1, len(content))
            if not self._begins_field(start, quote):
                place = quote + 1
                continue
            self.opened += 1
            end = self._closed(start, quote)
            if end is None:
                if newline < 0 and not self._ended:
                    return None
                self.unclosed.append(start)
                return min(stop + 1, len(content))
            if end < 0:
                return None
            place = end

    def _begins_field(self, start: int, quote: int) -> bool:
        before = quote - 1
        if self._delimiter != b" \t":
            while before >= start and self._content[before] == ord(" "):
                before -= 1
        return before < start or self._content[before] in self._delimiter

    def _closed(self, start: int, quote: int) -> int | None:
        """Where to go on behind the quote; None if it is not closed, -1 if that is not known."""
        content = self._content
        limit = min(len(content), start + ROW_BYTES)
        found = self._field.match(content, quote, limit)
        if found is not None and (behind := self._behind.match(content, found.end())):
            if behind.end() == len(content) and not self._ended:
                return -1
            self.spans.append(found.span())
            return behind.end()
        if self._quoting == "line" or (found is not None and b"\n" not in found.group()):
            return quote + 1
        goes_on = found is None and limit == len(content) and limit < start + ROW_BYTES
        return -1 if goes_on and not self._ended else None
