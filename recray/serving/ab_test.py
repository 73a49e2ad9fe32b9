"""Two models at once: a share of the users for the second, or a copy of their requests.

Which of the two answers a user follows from the user's id alone, so it stays the same on every
replica and after every restart, and a larger share keeps those who were in the smaller one.
"""

import hashlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from recray.data.ids import RawId
from recray.errors import RecrayError
from recray.inference.filters import Wish
from recray.inference.recommendations import Recommendations
from recray.inference.recommender import GivenRatings, Recommender
from recray.serving.log import log
from recray.serving.metrics import Compared, Tally

SALT = b"recray-arm-"
WAITING = 16
"""Copies that may wait; more are left out and counted, so that the first model never waits."""


def place_of(user: RawId) -> float:
    """Where a user stands in [0, 1): evenly spread, and the same everywhere."""
    digest = hashlib.sha256(SALT + str(user).encode("utf-8", "replace")).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


class Arms:
    """The second model, and who gets it.

    Args:
        second: A bundle of the same data set as the first.
        tally: Counts.
        share: Share of the users that it answers, 0..1.
        shadow: Whether it also makes the lists of everybody else, which are compared and not shown.
    """

    def __init__(
        self, second: Recommender, tally: Tally, share: float = 0.0, shadow: bool = False
    ) -> None:
        self.second, self.tally, self.share, self.shadow = second, tally, share, shadow
        self._copies = ThreadPoolExecutor(1, thread_name_prefix="recray-shadow")
        self._free = threading.BoundedSemaphore(WAITING)

    def close(self) -> None:
        """Wait for the copies that are on their way; more are not made."""
        self._copies.shutdown()

    def has(self, user: RawId) -> bool:
        """Whether the second model answers this user."""
        return place_of(user) < self.share

    def copy(
        self,
        user: RawId,
        shown: Recommendations,
        k: int,
        exclude_seen: bool,
        wish: Wish,
        since: GivenRatings,
    ) -> None:
        """Make the second model's list beside the one that was shown, later, in a thread."""
        if not self.shadow or shown.model_version == self.second.version:
            return
        if not self._free.acquire(blocking=False):
            self.tally.compare(None)
            return

        def work() -> None:
            try:
                begin = time.perf_counter()
                other = self.second.recommend(user, k, exclude_seen, wish, since)
                self.tally.arm(other.model_version, time.perf_counter() - begin)
                self.tally.compare(compared(shown, other))
            except KeyError:
                pass  # the second model does not know this user
            except Exception as error:  # nobody waits for it, so the log is told
                log(event="shadow_failed", reason=f"{type(error).__name__}: {error}")
            finally:
                self._free.release()

        self._copies.submit(work)


def compared(shown: Recommendations, other: Recommendations) -> Compared:
    """Two lists for one user: how much of the first the second has, and how far scores differ.

    The difference is over the items in both; nan where there is none.
    """
    first = {entry["item"]: entry["score"] for entry in shown.items}
    second = {entry["item"]: entry["score"] for entry in other.items}
    both = first.keys() & second.keys()
    drift = sum(abs(first[i] - second[i]) for i in both) / len(both) if both else float("nan")
    return Compared(len(both) / max(len(first), 1), drift)


def refuse_misfit(first: Recommender, second: Recommender) -> None:
    """Refuse a second model whose ids mean other users and items.

    Raises:
        RecrayError: It comes from another data set.
    """
    one, two = (r.bundle.config["dataset"] for r in (first, second))
    if one != two:
        raise RecrayError(f"--second comes from {two}, the first model from {one}")
