"""Follows a registry: what is promoted is opened, checked and warmed, and then answers."""

import threading
import time
from collections.abc import Callable

import pyarrow as pa
import torch

from recray.errors import RecrayError
from recray.inference.filters import Wish
from recray.inference.recommender import GivenRatings, Recommender
from recray.serving.current_model import Live
from recray.serving.log import log
from recray.serving.registry import Registry, is_registry
from recray.storage import is_uri

LOCAL_SECONDS, STORE_SECONDS = 0.25, 0.8
"""Between two looks at the registry: a file of some 100 bytes is read."""
RETRY_SECONDS, RETRY_LIMIT = 5.0, 300.0
"""A refused version is tried again after this time, and then after twice as long each time: it may
have been the store that failed.
"""
WARM_USERS = 3

Open = Callable[[str], Recommender]


def open_warm(path: str) -> Recommender:
    """Open a bundle, check it, and have it answer each kind of question once.

    What is computed when it is first needed is there afterwards, so no request waits for it.

    Raises:
        RecrayError: It is missing or damaged, or its weights or answers are not finite numbers.
    """
    recommender = Recommender.open(path)
    for name, weight in recommender.bundle.model.state_dict().items():
        if weight.is_floating_point() and not bool(torch.isfinite(weight).all()):
            raise RecrayError(f"{path}: {name} has values that are not finite numbers")
    try:
        _ask_everything(recommender)
    except RecrayError:
        raise
    except Exception as error:  # whatever it is, it would be every request's
        reason = f"{type(error).__name__}: {error}"
        raise RecrayError(f"{path} opens and cannot answer: {reason}") from error
    recommender.forget_rows()
    pa.default_memory_pool().release_unused()  # what opening took and nothing needs any more
    return recommender


def _ask_everything(recommender: Recommender) -> None:
    k = min(10, recommender.items.known)
    high = recommender.bundle.rating_range[1]
    ratings: GivenRatings = [(item, high) for item in recommender.items.raw[:k].tolist()]
    users = recommender.users.raw[:WARM_USERS].tolist()
    vectors = recommender.bundle.model.item_vectors_for_similarity() is not None
    wish = Wish(diversity=0.5 if vectors else 0.0, explain=True, min_popularity=1)
    for user in users:
        recommender.recommend(user, k)
        recommender.written(user, k, True)
        recommender.user(user)
    recommender.written_many(users, k, True)
    made = recommender.recommend_many([*users, ratings, []], k, True, wish)
    for answer in made:
        if isinstance(answer, RecrayError):
            raise answer
    recommender.score_pairs([(user, ratings[0][0]) for user in users])
    recommender.facts.find("the", k)
    recommender.item(ratings[0][0])
    if vectors:
        recommender.similar(ratings[0][0], k)


def open_live(path: str) -> Live:
    """What answers at the start: a bundle, or the current version of a registry.

    If the current version cannot be used, the newest one before it that can answers, and the live
    model says so: a replica that starts again must not fall behind those that still run.

    Raises:
        RecrayError: There is no version that can be used.
    """
    if not is_registry(path):
        return Live(open_warm(path))
    registry = Registry(path)
    wanted, before = registry.pointer()
    failed: RecrayError | None = None
    for version in [wanted, *reversed(before)]:
        try:
            live = Live(open_warm(registry.folder_of(version).path), path)
        except RecrayError as error:
            failed = failed or error
            continue
        if failed is not None:
            live.refuse(wanted, str(failed))
        return live
    raise failed or RecrayError(f"{path} has no current version; use `recray registry promote`")


def _refuse_other_ids(new: Recommender, answers: Recommender) -> None:
    """Ids of another data set mean other users, and so would the ratings that are kept.

    Raises:
        RecrayError: It is of another data set.
    """
    ours, theirs = (
        (r.bundle.config["dataset"], r.users.text, r.items.text) for r in (answers, new)
    )
    if ours != theirs:
        raise RecrayError(
            f"{new.version} is of {theirs[0]}, what answers is of {ours[0]}: their ids mean other "
            "users and items; start another service for it, with a ratings log of its own"
        )


class Follower:
    """Keeps a live model at the current version of its registry.

    Opening, checking and warming happen beside the model that answers, in a thread of its own; one
    pointer is swapped at the end. A version that fails is refused, and what answers stays.

    Args:
        live: Whose `source` is a registry.
        open_bundle: Opens a version, ready to answer.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        live: Live,
        open_bundle: Open = open_warm,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if live.source is None:
            raise ValueError("this model follows no registry")
        self.live, self._open, self._clock = live, open_bundle, clock
        self._registry = Registry(live.source)
        self._read = self._registry.watch()
        self._seconds = STORE_SECONDS if is_uri(live.source) else LOCAL_SECONDS
        self._failed = live.refused.version if live.refused else None
        self._wait, self._again = RETRY_SECONDS, clock() + RETRY_SECONDS
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="recray-follower", daemon=True)

    def start(self) -> None:
        """Look again and again, until `stop`."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more; waits for a look that is going on."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._seconds):
            self.look()

    def look(self) -> None:
        """Look once, and do what has to be done; whatever goes wrong is only told."""
        try:
            wanted, _ = self._read()
        except Exception as error:  # the registry's trouble must never be the service's
            if self.live.trouble is None:
                log(event="registry_unreadable", reason=str(error))
            self.live.trouble = str(error)
            return
        self.live.trouble = None
        if wanted == self.live.take().version:
            if self.live.refused is not None:
                self.live.settle()
            self._failed = None
        elif wanted != self._failed or self._clock() >= self._again:
            self._follow(wanted)

    def _follow(self, version: str) -> None:
        before, begin = self.live.take().version, time.perf_counter()
        self.live.load(version)
        try:
            recommender = self._open(self._registry.folder_of(version).path)
            if recommender.version != version:
                raise RecrayError(f"the folder of {version} holds version {recommender.version}")
            _refuse_other_ids(recommender, self.live.take())
        except Exception as error:  # the one that answers goes on
            self._postpone(version)
            self.live.refuse(version, str(error))
            log(event="model_refused", version=version, answers=before, reason=str(error))
            return
        self._failed = None
        self.live.swap(recommender)
        seconds = round(time.perf_counter() - begin, 3)
        log(event="model_swapped", version=version, before=before, seconds=seconds)

    def _postpone(self, version: str) -> None:
        again = version == self._failed
        self._wait = min(2 * self._wait, RETRY_LIMIT) if again else RETRY_SECONDS
        self._failed, self._again = version, self._clock() + self._wait
