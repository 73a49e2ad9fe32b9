"""A file of a store for readers that ask for a few bytes at a time, at one place and another."""

import bisect
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

TAIL_BYTES = 64 << 10
"""What is fetched first of the end of a file."""
FIRST_SPAN_BYTES, SPAN_BYTES = 1 << 20, 16 << 20
"""What is fetched from a place on; where reading goes on, twice as much each time up to the second.
"""
KEPT_BYTES = 64 << 20
"""Bytes of earlier spans that are kept."""


class OpenFile(io.RawIOBase):
    """A file of a store as Python has it, with a place from which a subclass reads.

    Args:
        file: The file; it is closed with this one.
    """

    def __init__(self, file: pa.NativeFile) -> None:
        super().__init__()
        self._file, self._size, self._position = file, file.size(), 0

    def readable(self) -> bool:
        """It is there to be read."""
        return True

    def seekable(self) -> bool:
        """It can be read from anywhere."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place; return it."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError("a place before the begin of the file")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        """The place."""
        return self._position

    def close(self) -> None:
        """Close the file, too."""
        if not self.closed:
            super().close()
            self._file.close()


class SpanReader(OpenFile):
    """Fetches spans of a file, and gives them out bit by bit, and again without a request.

    Args:
        file: The file; it is closed with this one.
    """

    def __init__(self, file: pa.NativeFile) -> None:
        super().__init__(file)
        self._spans: dict[int, bytes] = {}
        self._edges: list[int] = []
        self._next, self._ahead = -1, FIRST_SPAN_BYTES

    def divide(self, edges: Sequence[int]) -> None:
        """Tell where parts begin that are read by themselves: no span goes beyond one."""
        self._edges = sorted(edges)

    def readinto(self, buffer: "WriteableBuffer") -> int:
        """Fill the buffer as far as bytes are there; 0 at the end.

        Raises:
            OSError: The store does not give them.
        """
        room, count = memoryview(buffer).cast("B"), 0
        while count < len(room) and self._position < self._size:
            begin, content = self._span()
            piece = content[self._position - begin :][: len(room) - count]
            room[count : count + len(piece)] = piece
            count += len(piece)
            self._position += len(piece)
        return count

    def _span(self) -> tuple[int, bytes]:
        """The span that has the place in it, and where it begins."""
        for begin, content in self._spans.items():
            if begin <= self._position < begin + len(content):
                return begin, content
        begin, end = self._wanted()
        content = self._file.read_at(end - begin, begin)
        if len(content) < end - begin:
            raise OSError("the file has become shorter while it was read")
        self._spans[begin], self._next = content, end
        while len(self._spans) > 1 and sum(map(len, self._spans.values())) > KEPT_BYTES:
            del self._spans[next(iter(self._spans))]
        return begin, content

    def _wanted(self) -> tuple[int, int]:
        """Begin and end of the span to fetch for the place: the end of the file, or from here on
        to the next part.
        """
        begin, tail = self._position, max(0, self._size - TAIL_BYTES)
        if begin >= tail:
            return tail, self._size
        goes_on = begin == self._next and begin not in self._edges
        self._ahead = min(2 * self._ahead, SPAN_BYTES) if goes_on else FIRST_SPAN_BYTES
        part = bisect.bisect_right(self._edges, begin)
        return begin, min([begin + self._ahead, tail, *self._edges[part : part + 1]])

    def close(self) -> None:
        """Close the file, too, and forget its bytes."""
        super().close()
        self._spans.clear()
