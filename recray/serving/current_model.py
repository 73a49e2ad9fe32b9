"""The model that answers now. Everything that asks a model takes it from here, once a request."""

import re
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from recray.inference.recommender import Recommender

_CREDENTIALS = re.compile(r"://[^/@\s]*@")
"""Of a store, in a URI: whoever asks whether the service is ready needs no key."""


@dataclass(frozen=True)
class Refusal:
    """A version that was to answer and does not.

    Args:
        version: Which one.
        reason: What is wrong with it.
        time: When, as ISO 8601.
    """

    version: str
    reason: str
    time: str


class Live:
    """The model that answers, and what is known of the one that should.

    `take` and `swap` read and write one attribute, so they need no lock: whoever has taken a model
    keeps it to the end of the request, and no reply mixes versions as long as its handler takes
    once.

    Args:
        recommender: Answers from the beginning.
        source: Where newer versions are looked for: a registry; None if the model never changes.
    """

    def __init__(self, recommender: Recommender, source: str | None = None) -> None:
        self._now = recommender
        self.source = source
        self.wanted = recommender.version
        self.loading: str | None = None
        self.refused: Refusal | None = None
        self.trouble: str | None = None
        self.swaps = 0
        self.refusals = 0
        self.since = time.time()

    def take(self) -> Recommender:
        """The model that answers now; call it once for each request."""
        return self._now

    def load(self, version: str) -> None:
        """Say that a version is being opened."""
        self.wanted = self.loading = version

    def settle(self) -> None:
        """What answers is wanted again: nothing is refused any more."""
        self.wanted = self._now.version
        self.loading = self.refused = None

    def swap(self, recommender: Recommender) -> None:
        """Answer with this one from the next request on; the one before ends with its requests."""
        self._now = recommender
        self.settle()
        self.swaps += 1
        self.since = time.time()

    def refuse(self, version: str, reason: str) -> None:
        """Keep what answers; say why the wanted version does not."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self.wanted, self.loading = version, None
        self.refused = Refusal(version, _CREDENTIALS.sub("://...@", reason), now)
        self.refusals += 1

    def status(self) -> dict[str, Any]:
        """JSON-ready: what answers, what should, what is on its way, and what was refused."""
        version = self._now.version
        return {
            "model_version": version,
            "wanted_version": self.wanted,
            "stale": self.wanted != version,
            "loading": self.loading,
            "refused": None if self.refused is None else asdict(self.refused),
            "registry": "unreadable" if self.trouble else "followed" if self.source else None,
            "swaps": self.swaps,
        }
