"""What a replica tells about itself: counters for Prometheus, and log lines as JSON.

The counters know nothing of Ray; deployment.py exports them to Ray's metrics.
"""

import json
import sys
import threading
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

MAX_SAMPLES = 100_000
"""Durations and comparisons that are kept between two exports; the rest is counted alone."""


def log(**facts: Any) -> None:
    """Write one line of JSON to stderr, with the time first."""
    time = datetime.now(UTC).isoformat(timespec="milliseconds")
    print(json.dumps({"time": time, **facts}), file=sys.stderr, flush=True)


@dataclass(frozen=True)
class ListComparison:
    """The difference between two models' lists for one user.

    Args:
        overlap: Share of the first list that is in the second, 0..1.
        score_diff: Mean absolute difference of the scores of the items in both lists; nan if
            no item is in both.
    """

    overlap: float
    score_diff: float


@dataclass
class Counts:
    """What happened since the last export.

    Args:
        requests: Number of requests by route, method and status.
        lists: Number of lists by their source and the version that made them.
        request_seconds: Route and duration of each request.
        list_seconds: Version and duration of each user's list, while two models are compared.
        comparisons: How lists of the challenger differ from those that were shown.
        skipped_comparisons: Lists that were not compared because the challenger was busy.
    """

    requests: Counter[tuple[str, str, int]] = field(default_factory=Counter)
    lists: Counter[tuple[str, str]] = field(default_factory=Counter)
    request_seconds: list[tuple[str, float]] = field(default_factory=list)
    list_seconds: list[tuple[str, float]] = field(default_factory=list)
    comparisons: list[ListComparison] = field(default_factory=list)
    skipped_comparisons: int = 0


class ServiceMetrics:
    """Counters that any thread may increment or flush."""

    def __init__(self) -> None:
        self._counts, self._lock = Counts(), threading.Lock()

    def record_request(self, route: str | None, method: str, status: int, seconds: float) -> None:
        """Count a request; its route is None if no route has its address."""
        route = route or "other"
        with self._lock:
            self._counts.requests[route, method, status] += 1
            if len(self._counts.request_seconds) < MAX_SAMPLES:
                self._counts.request_seconds.append((route, seconds))

    def record_lists(self, source: str, version: str, count: int = 1) -> None:
        """Count lists that one version of the model made."""
        with self._lock:
            self._counts.lists[source, version] += count

    def record_list_seconds(self, version: str, seconds: float) -> None:
        """Keep how long one of two compared models took for a list."""
        with self._lock:
            if len(self._counts.list_seconds) < MAX_SAMPLES:
                self._counts.list_seconds.append((version, seconds))

    def record_comparison(self, comparison: ListComparison | None) -> None:
        """Keep a comparison; None counts one that was skipped."""
        with self._lock:
            if comparison is None:
                self._counts.skipped_comparisons += 1
            elif len(self._counts.comparisons) < MAX_SAMPLES:
                self._counts.comparisons.append(comparison)

    def flush(self) -> Counts:
        """Return the counts since the last flush, and begin anew."""
        with self._lock:
            counts, self._counts = self._counts, Counts()
        return counts
