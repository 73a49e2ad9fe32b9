"""How many workers a command is given: a number such as 4, or a range such as 1..4."""

import re
from dataclasses import dataclass

from recray.errors import RecrayError

_WRITTEN = re.compile(r"\s*([0-9]+)\s*(?:\.\.\s*([0-9]+)\s*)?")


@dataclass(frozen=True)
class WorkerRange:
    """The numbers of workers that a training may have.

    `4` begins with 4, goes on with fewer where nodes are lost, and grows to 4 again. `2..4` begins
    as soon as there is room for 2, with as many as there is room for, and ends where fewer than 2
    are left.

    Args:
        start: Workers that there must be room for at the beginning.
        least: Fewest workers to go on with.
        most: Most workers.
    """

    start: int
    least: int
    most: int

    @classmethod
    def of(cls, given: "int | str | WorkerRange") -> "WorkerRange":
        """Read a number or a range.

        Raises:
            RecrayError: It is neither, or has no worker.
        """
        if isinstance(given, WorkerRange):
            return given
        written = _WRITTEN.fullmatch(str(given))
        if written is None:
            raise _refused(given, "is neither a number nor a range")
        first, last = (int(number or 0) for number in written.groups())
        if first < 1:
            raise _refused(given, "one worker is the fewest")
        if written.group(2) is None:
            return cls(first, 1, first)
        if last < first:
            raise _refused(given, "the range ends before it begins")
        return cls(first, first, last)

    @property
    def is_range(self) -> bool:
        """Whether fewer than the most may begin."""
        return self.start < self.most

    def __str__(self) -> str:
        """As the user writes it."""
        plain = self == WorkerRange(self.most, 1, self.most)
        return str(self.most) if plain else f"{self.least}..{self.most}"

    def on_this_machine(self) -> "WorkerRange":
        """The most from the beginning: on one machine no node comes later."""
        return WorkerRange(self.most, self.least, self.most)


def _refused(given: object, why: str) -> RecrayError:
    return RecrayError(
        f"--workers {given}: {why}; give a number such as 2, or a range such as 1..4"
    )
