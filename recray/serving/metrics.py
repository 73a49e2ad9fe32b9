"""Counts what the service does, for Prometheus. Knows nothing of Ray, which exports it."""

import threading
from collections import Counter
from dataclasses import dataclass, field

MAX_LATENCIES = 100_000
"""Kept between two exports at most; more are counted as requests only."""


@dataclass(frozen=True)
class Compared:
    """Two models' lists for one user.

    Args:
        overlap: Share of the first list that is in the second.
        drift: Mean absolute difference of the scores of what is in both; nan if nothing is.
    """

    overlap: float
    drift: float


@dataclass
class Counts:
    """What happened since the last export.

    Args:
        requests: By route, method and status.
        answers: Lists by their source and the version that made them.
        seconds: Route and duration of each request.
        arms: Version and duration of each list for a user, where there are two models.
        compared: What the second model had beside lists of the first.
        uncompared: Lists that nothing was compared with, for want of time.
    """

    requests: Counter[tuple[str, str, int]] = field(default_factory=Counter)
    answers: Counter[tuple[str, str]] = field(default_factory=Counter)
    seconds: list[tuple[str, float]] = field(default_factory=list)
    arms: list[tuple[str, float]] = field(default_factory=list)
    compared: list[Compared] = field(default_factory=list)
    uncompared: int = 0


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

    def arm(self, version: str, seconds: float) -> None:
        """Count a list of one of two models."""
        with self._lock:
            if len(self._counts.arms) < MAX_LATENCIES:
                self._counts.arms.append((version, seconds))

    def compare(self, result: Compared | None) -> None:
        """Count two lists for one user; None if there was no time for the second."""
        with self._lock:
            if result is None:
                self._counts.uncompared += 1
            elif len(self._counts.compared) < MAX_LATENCIES:
                self._counts.compared.append(result)

    def drain(self) -> Counts:
        """What was counted since the last time."""
        with self._lock:
            counts, self._counts = self._counts, Counts()
        return counts
