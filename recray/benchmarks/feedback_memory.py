"""What a replica's process grows by for a large ratings log."""

import sys
import tempfile
import time

import numpy as np
import pyarrow as pa

from recray.benchmarks.harness import Row, apart, own_memory, trimmed_memory
from recray.data.feedback_events import MICRO, event_schema
from recray.data.feedback_log import LogWriter, RatingsLog
from recray.serving.feedback_service import FeedbackService

MODULE = "recray.benchmarks.feedback_memory"
INTEGERS = (False, False)
RATINGS, USERS, ITEMS = 5_000_000, 500_000, 59_047
"""In the log, and who gave them to which items."""
PART_ROWS, SMALL_PARTS = 1_000_000, 60
"""Rows of the parts of a log that was put together, and parts of a few ratings beside them."""
ASKED = 20_000


class FeedbackMemory(Row):
    """A replica's feedback: seconds to read the log, memory after that, most memory meanwhile."""

    what: str
    ratings: int
    start_s: float
    mb: float
    most_mb: float
    bytes_a_rating: float
    ask_us: float


def feedback() -> FeedbackMemory:
    """Write a log, and read it in a fresh process."""
    with tempfile.TemporaryDirectory(prefix="recray-feedback-") as folder:
        write_log(folder)
        return FeedbackMemory.model_validate_json(apart(MODULE, "feedback", folder))


def write_log(folder: str) -> None:
    """A log of RATINGS ratings, each of another pair, in large parts and some small ones."""
    writer, rng = LogWriter(RatingsLog.of(folder, "synthetic", INTEGERS)), np.random.default_rng(0)
    few = SMALL_PARTS * 10
    sizes = [*np.diff([*range(0, RATINGS - few, PART_ROWS), RATINGS - few]).tolist()]
    begin, first = time.time_ns() // 1000 - RATINGS - 86_400 * MICRO, 0
    for number, size in enumerate([*sizes, *[10] * SMALL_PARTS]):
        place = np.arange(first, first + size)
        columns = {
            # Each user has RATINGS / USERS items, which differ.
            "user": place % USERS,
            "item": (place // USERS * 4801 + place * 7) % ITEMS,
            "rating": rng.integers(1, 11, size) / 2,
            "key": [f"{n:012x}" for n in place.tolist()],
            "received": begin + place,
        }
        events = pa.table(columns, schema=event_schema(INTEGERS))
        name = f"{writer.name}/part-{3 if number < len(sizes) else 0}-{number:09d}.parquet"
        writer.log.write_part(name, events)
        first += size


def read_log(folder: str) -> FeedbackMemory:
    """Start a replica's feedback, and ask it for users."""
    before = trimmed_memory()
    begin = time.perf_counter()
    service = FeedbackService(RatingsLog.open(folder))
    service.start()
    seconds = time.perf_counter() - begin
    most, grown = own_memory("VmHWM") - before, trimmed_memory() - before
    begin = time.perf_counter()
    found = sum(len(service.ratings_of(user)) for user in range(ASKED))
    asked = (time.perf_counter() - begin) / ASKED
    status = service.status()
    service.stop()
    if (status.ratings, status.users) != (RATINGS, USERS) or found != ASKED * RATINGS // USERS:
        raise RuntimeError(f"the replica has read {status.ratings:,} ratings")
    return FeedbackMemory(
        what="feedback",
        ratings=status.ratings,
        start_s=seconds,
        mb=grown / 1e6,
        most_mb=most / 1e6,
        bytes_a_rating=grown / status.ratings,
        ask_us=1e6 * asked,
    )


if __name__ == "__main__":
    print(read_log(sys.argv[2]).model_dump_json())
