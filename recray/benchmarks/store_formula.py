"""What prepare asks of a store, told apart by what it grows with; and what a billion would ask."""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from recray.benchmarks.counting_proxy import Request, Traffic
from recray.benchmarks.harness import Row

BILLION = 1_000_000_000
PARTITIONS = 256
"""Partitions of users from 128 million ratings on."""


class Scale(NamedTuple):
    """What the requests and bytes of prepare follow from.

    Args:
        ratings: Ratings of the source.
        ranges: File ranges that it is cut into.
        partitions: Partitions of its users.
    """

    ratings: int
    ranges: int
    partitions: int

    def times(self, factor: float) -> "Scale":
        """That of so many times the file, beyond the size where there are more partitions."""
        ranges = max(1, round(self.ranges * factor))
        return Scale(round(self.ratings * factor), ranges, PARTITIONS)


class Part(NamedTuple):
    """Some of the requests of prepare.

    Args:
        name: What they are about.
        grows_with: What their number grows with, in words.
        count: The same as a number; bytes grow with ratings, but where this is 1.
        key: Their object, below the folder that is written, or the source; a pattern.
        reads: Whether they are those that read, or those that write; None for both.
    """

    name: str
    grows_with: str
    count: Callable[[Scale], int]
    key: str
    reads: bool | None = None

    def takes(self, request: Request) -> bool:
        """Whether a request is one of them."""
        is_read = request.kind in ("GET", "HEAD")
        return self.reads in (None, is_read) and re.search(self.key, request.key) is not None


PARTS = (
    Part("source", "file ranges", lambda s: s.ranges, r"^[^/]+/raw/[^/]+\.csv$"),
    Part("spill written", "file ranges", lambda s: s.ranges, r"spill/rows-", False),
    Part(
        "spill read", "file ranges x partitions", lambda s: s.ranges * s.partitions,
        r"spill/rows-", True,
    ),
    Part(
        "partitions between tasks", "partitions", lambda s: s.partitions, r"spill/[a-z-]+-[\d-]+\.",
    ),
    Part("part files", "partitions", lambda s: s.partitions, r"/[a-z_]+/part-"),
    Part("all else", "", lambda _: 1, ""),
)  # fmt: skip
"""Each request is in the first part that takes it."""


class PrepareTraffic(Row):
    """One part of what prepare asked for, and the same for a billion ratings."""

    data: str
    part: str
    grows_with: str
    requests: int
    down_b_a_rating: float
    up_b_a_rating: float
    requests_1b: int
    down_gb_1b: float
    up_gb_1b: float


def of_a_billion(data: str, traffic: Traffic, scale: Scale) -> Sequence[PrepareTraffic]:
    """The parts of what preparing a csv file asked for, and their sum; of it, and of a billion."""
    by_part: dict[Part, list[Request]] = {part: [] for part in PARTS}
    for request in traffic.requests:
        by_part[next(part for part in PARTS if part.takes(request))].append(request)
    factor = BILLION / scale.ratings
    rows = [_row(data, part, found, scale, factor) for part, found in by_part.items()]
    return [*rows, _sum(rows)]


def _row(
    data: str, part: Part, requests: list[Request], scale: Scale, factor: float
) -> PrepareTraffic:
    more = part.count(scale.times(factor)) / part.count(scale)
    bytes_1b = BILLION if part.grows_with else scale.ratings
    down, up = (sum(getattr(r, way) for r in requests) / scale.ratings for way in ("down", "up"))
    return PrepareTraffic(
        data=data,
        part=part.name,
        grows_with=part.grows_with,
        requests=len(requests),
        down_b_a_rating=round(down, 3),
        up_b_a_rating=round(up, 3),
        requests_1b=round(len(requests) * more),
        down_gb_1b=round(down * bytes_1b / 1e9, 3),
        up_gb_1b=round(up * bytes_1b / 1e9, 3),
    )


def _sum(rows: Sequence[PrepareTraffic]) -> PrepareTraffic:
    names = [name for name, kind in PrepareTraffic.__annotations__.items() if kind is not str]
    total = {name: round(sum(getattr(row, name) for row in rows), 3) for name in names}
    return PrepareTraffic(data=rows[0].data, part="sum", grows_with="", **total)
