"""How many requests a second each caller may send to this replica."""

import time
from collections.abc import Callable


class RateLimiter:
    """A token bucket for each caller.

    Args:
        rate: Tokens that a caller gets each second; 0 sets no limit.
        burst: Tokens that a caller has at most.
        clock: Returns seconds that only grow.
    """

    def __init__(
        self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.rate, self.burst, self.clock = rate, max(1, burst), clock
        self._buckets: dict[str, tuple[float, float]] = {}  # tokens, and when they were counted

    def acquire(self, caller: str) -> float:
        """Take a token and return 0, or return the seconds until there is one."""
        if not self.rate:
            return 0.0
        now = self.clock()
        tokens, counted = self._buckets.get(caller, (float(self.burst), now))
        tokens = min(self.burst, tokens + (now - counted) * self.rate)
        granted = tokens >= 1
        self._buckets[caller] = (tokens - granted, now)
        return 0.0 if granted else (1 - tokens) / self.rate
