"""An A/B test: a challenger answers a share of the users, or makes lists that nobody is shown.

Which of the two models answers a user follows from the user's id alone. It is the same on every
replica and after every restart, and a larger share keeps the users of a smaller one.
"""

import hashlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from recray.data.ids import RawId
from recray.errors import RecrayError
from recray.inference.catalog import Filters
from recray.inference.raw_ratings import RawRatings
from recray.inference.recommendations import Recommendations
from recray.inference.recommender import Recommender
from recray.serving.guard import ListComparison, ServiceMetrics
from recray.serving.log import log

SALT = b"recray-arm-"
"""Another salt would give every user of a running test to another model."""
MAX_WAITING_LISTS = 16
"""Lists that may wait for the challenger. More are skipped, so that the first model never waits."""


def hash_fraction(user: RawId) -> float:
    """Hash a user id to a number in [0, 1), evenly spread and the same on every machine."""
    digest = hashlib.sha256(SALT + str(user).encode("utf-8", "replace")).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


class ABTest:
    """The challenger, and which users get it.

    Args:
        challenger: A model of the same data set as the first one.
        metrics: Counts lists and comparisons.
        traffic_share: Share of the users that the challenger answers, 0..1.
        shadow: Whether the challenger also makes the lists of all other users, which are compared
            with those of the first model and shown to nobody.
    """

    def __init__(
        self,
        challenger: Recommender,
        metrics: ServiceMetrics,
        traffic_share: float = 0.0,
        shadow: bool = False,
    ) -> None:
        self.challenger, self.metrics = challenger, metrics
        self.traffic_share, self.shadow = traffic_share, shadow
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="recray-shadow")
        self._free = threading.BoundedSemaphore(MAX_WAITING_LISTS)

    def close(self) -> None:
        """Wait for the lists that were begun; no more are made."""
        self._thread.shutdown()

    def assigned(self, user: RawId) -> bool:
        """Whether the challenger answers this user."""
        return hash_fraction(user) < self.traffic_share

    def mirror(
        self,
        user: RawId,
        shown: Recommendations,
        k: int,
        exclude_seen: bool,
        filters: Filters,
        since: RawRatings,
        now: int | None,
    ) -> None:
        """Have the challenger make the same list later, in a thread, and compare the two."""
        if not self.shadow or shown.model_version == self.challenger.version:
            return
        if not self._free.acquire(blocking=False):
            self.metrics.record_comparison(None)
            return

        def work() -> None:
            try:
                begin = time.perf_counter()
                other = self.challenger.recommend(user, k, exclude_seen, filters, since, now)
                seconds = time.perf_counter() - begin
                self.metrics.record_list_seconds(other.model_version, seconds)
                self.metrics.record_comparison(compare_lists(shown, other))
            except KeyError:
                pass  # the challenger does not know this user
            except Exception as error:  # no request waits for it, so only the log can say it
                log(event="shadow_failed", reason=f"{type(error).__name__}: {error}")
            finally:
                self._free.release()

        self._thread.submit(work)


def compare_lists(shown: Recommendations, other: Recommendations) -> ListComparison:
    """Compare two models' lists for one user."""
    first = {entry.item: entry.score for entry in shown.items}
    second = {entry.item: entry.score for entry in other.items}
    both = first.keys() & second.keys()
    score_diff = sum(abs(first[i] - second[i]) for i in both) / len(both) if both else float("nan")
    return ListComparison(len(both) / max(len(first), 1), score_diff)


def check_same_dataset(first: Recommender, challenger: Recommender) -> None:
    """Refuse a challenger whose ids mean other users and items.

    Raises:
        RecrayError: The two models come from different data sets.
    """
    one, two = (r.bundle.config["dataset"] for r in (first, challenger))
    if one != two:
        raise RecrayError(f"--second comes from {two}, the first model from {one}")
