"""Counts what the service does, for Prometheus. Knows nothing of Ray, which exports it."""

import threading
from collections import Counter
from dataclasses import dataclass, field

MAX_LATENCIES = 100_000
"""Kept between two exports at most; more are counted as requests only."""


@dataclass
class Counts:
    """What happened since the last export.

    Args:
        requests: By route, method and status.
        answers: Lists by their source and the version that made them.
        seconds: Route and duration of each request.
    """

    requests: Counter[tuple[str, str, int]] = field(default_factory=Counter)
    answers: Counter[tuple[str, str]] = field(default_factory=Counter)
    seconds: list[tuple[str, float]] = field(default_factory=list)


class Tally:
    """Counts until somebody drains it; any thread may do either."""

    def __init__(self) -> None:
        self._counts, self._lock = Counts(), threading.Lock()

    def request(self, route: str | None, method: str, status: int, seconds: float) -> None:
        """Count a request; without a route it was for an address that is none of ours."""
        route = route or "other"
        with self._lock:
            self._counts.requests[route, method, status] += 1
            if len(self._counts.seconds) < MAX_LATENCIES:
                self._counts.seconds.append((route, seconds))

    def answer(self, source: str, version: str, count: int = 1) -> None:
        """Count lists."""
        with self._lock:
            self._counts.answers[source, version] += count

    def drain(self) -> Counts:
        """What was counted since the last time."""
        with self._lock:
            counts, self._counts = self._counts, Counts()
        return counts
