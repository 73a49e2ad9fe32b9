"""The model that answers, and how a newer version takes its place while requests go on.

A watcher looks at the registry. It opens, checks and warms up the version that was promoted, in a
thread of its own, and then replaces one reference in the holder from which requests get their
model.
"""

import re
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

import pyarrow as pa

from recray.errors import RecrayError
from recray.inference.bundle import Bundle
from recray.inference.catalog import Filters
from recray.inference.item_index import LACKING
from recray.inference.raw_ratings import RawRating
from recray.inference.recommender import Recommender
from recray.models.history import HistoryModel
from recray.serving.log import log
from recray.serving.registry import Registry, is_registry
from recray.serving.schemas.responses import Readiness, RefusedVersion
from recray.storage import Pause

POLL_SECONDS, LONGEST_POLL_SECONDS = 0.25, 5.0
"""Pause between two looks at the registry. In an object store, where a look is a HEAD of a small
file, the pause grows to the second number while nothing is promoted.
"""
RETRY_SECONDS, MAX_RETRY_SECONDS = 5.0, 300.0
"""A version that was refused is tried again after this pause, which doubles up to the maximum: the
reason may have been a store that failed for a moment.
"""

_CREDENTIALS = re.compile(r"://[^/@\s]*@")
_FOLDERS = re.compile(r"([a-z][a-z0-9+]*:/|(?<![\w./]))/([^\s/]+/)+")
"""Credentials in a URI, and the folders before a file's name. /readyz needs no key, so it shows
neither; the log has the whole reason.
"""


class ModelHolder:
    """Holds the model that answers, and what is known of the version that should answer.

    One attribute, `model`, is read and replaced, so there is no lock. A handler reads it once and
    keeps that model to the end of its request, so no reply mixes two versions.

    Args:
        recommender: The first model.
        registry: Path of the registry that is followed; None if the model never changes.
    """

    def __init__(self, recommender: Recommender, registry: str | None = None) -> None:
        self.model = recommender
        self.registry = registry
        self.registry_error: str | None = None
        self.target = recommender.version
        self.loading: str | None = None
        self.refused: RefusedVersion | None = None
        self.swaps = 0
        self.refusals = 0

    def begin_loading(self, version: str) -> None:
        """Note that a version should answer and is being opened."""
        self.target = self.loading = version

    def clear_error(self) -> None:
        """Note that the model that answers is the one that should."""
        self.target = self.model.version
        self.loading = self.refused = None

    def replace(self, recommender: Recommender) -> None:
        """Answer with this model from the next request on."""
        self.model = recommender
        self.clear_error()
        self.swaps += 1

    def reject(self, version: str, reason: str) -> None:
        """Note why a version that should answer does not; the model stays."""
        time = datetime.now(UTC).isoformat(timespec="seconds")
        if self.registry is not None:  # its path may hold spaces
            reason = reason.replace(f"{self.registry.rstrip('/')}/", "")
        reason = _FOLDERS.sub("", _CREDENTIALS.sub("://...@", reason))
        self.target, self.loading = version, None
        self.refused = RefusedVersion(version=version, reason=reason, time=time)
        self.refusals += 1

    def status(self) -> Readiness:
        """Describe which version answers, which should, and which is loading or was refused."""
        version = self.model.version
        followed = "followed" if self.registry else None
        return Readiness(
            status="ready",
            model_version=version,
            wanted_version=self.target,
            stale=self.target != version,
            loading=self.loading,
            refused=self.refused,
            registry="unreadable" if self.registry_error else followed,
            swaps=self.swaps,
            damaged_users=self.model.damaged_users,
        )


def load_and_warm_up(path: str) -> Recommender:
    """Open a bundle, check it, and have it answer each kind of request once.

    What a model computes at its first answer is computed here, so that no request waits for it.

    Raises:
        RecrayError: The bundle is missing or damaged, or its weights or answers are not finite.
    """
    try:
        recommender = Recommender(Bundle.open_to_answer(path))
        if recommender.bundle.has_index and recommender.scorer.index is None:
            log(event="index_not_used", version=recommender.version, reason=LACKING)
        _warm_up(recommender)
    except RecrayError:
        raise
    except Exception as error:  # a replica must not die of it, and it would meet every request
        reason = f"{type(error).__name__}: {error}"
        raise RecrayError(f"{path} cannot answer: {reason}") from error
    pa.default_memory_pool().release_unused()  # Arrow keeps what opening the tables needed
    return recommender


def _warm_up(recommender: Recommender) -> None:
    k = min(10, recommender.items.known)
    high = recommender.bundle.rating_range[1]
    ratings = [RawRating(item, high) for item in recommender.items.raw[:k].tolist()]
    users = recommender.example_users
    vectors = recommender.bundle.model.item_vectors_for_similarity() is not None
    filters = Filters(diversity=0.5 if vectors else 0.0, explain=True, min_popularity=1)
    for user in users:
        recommender.recommend(user, k).to_json()
        recommender.user(user)
    for answer in recommender.recommend_many([*users, ratings, []], k, True, filters):
        if isinstance(answer, RecrayError):
            raise answer
    recommender.score_pairs([(user, ratings[0].item) for user in users])
    recommender.catalog.find("the", k)
    recommender.item(ratings[0].item)
    if vectors or isinstance(recommender.bundle.model, HistoryModel):
        recommender.similar(ratings[0].item, k)


def open_holder(path: str) -> ModelHolder:
    """Open what answers at the start: a bundle, or the current version of a registry.

    If the current version cannot be used, the newest of the versions before it answers, and the
    holder says so: a replica that starts again must not fail while the others still run.

    Raises:
        RecrayError: No version can be used.
    """
    if not is_registry(path):
        return ModelHolder(load_and_warm_up(path))
    registry = Registry(path)
    current, earlier = registry.pointer()
    first_error: RecrayError | None = None
    for version in [current, *reversed(earlier)]:
        try:
            holder = ModelHolder(load_and_warm_up(registry.folder_of(version).path), path)
        except RecrayError as error:
            first_error = first_error or error
            continue
        if first_error is not None:
            reason = str(first_error)
            holder.reject(current, reason)
            log(event="model_refused", version=current, answers=version, reason=reason)
        return holder
    raise first_error or RecrayError(
        f"{path} has no current version; use `recray registry promote`"
    )


def _check_same_ids(new: Recommender, current: Recommender) -> None:
    """Refuse a model of another data set, whose ids mean other users and items.

    The ratings log holds such ids, too.

    Raises:
        RecrayError: The new model is of another data set.
    """
    ours, theirs = (
        (r.bundle.config["dataset"], r.users.text, r.items.text) for r in (current, new)
    )
    if ours != theirs:
        raise RecrayError(
            f"{new.version} is of {theirs[0]}, what answers is of {ours[0]}: their ids mean other "
            "users and items; start another service for it, with a ratings log of its own"
        )


class RegistryWatcher:
    """Keeps a holder at the current version of its registry.

    A version that cannot be used is refused; the model that answers stays.

    Args:
        holder: Holds the model, and names the registry.
        open_bundle: Opens a version, ready to answer.
        clock: Returns seconds that only grow.
    """

    def __init__(
        self,
        holder: ModelHolder,
        open_bundle: Callable[[str], Recommender] = load_and_warm_up,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if holder.registry is None:
            raise ValueError("this model follows no registry")
        self.holder, self._open, self._clock = holder, open_bundle, clock
        self._registry = Registry(holder.registry)
        self._pause = Pause(holder.registry, POLL_SECONDS, LONGEST_POLL_SECONDS)
        self._failed = holder.refused.version if holder.refused else None
        self._retry_pause, self._retry_at = RETRY_SECONDS, clock() + RETRY_SECONDS
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="recray-follower", daemon=True)

    def start(self) -> None:
        """Poll in a thread until `stop`."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread, after the poll that it may be doing."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._pause.seconds):
            self._pause.after(changed=self.poll())

    def poll(self) -> bool:
        """Look at the registry once, and load another version if it is current; never raises.

        Returns:
            Whether a version was loaded, or refused.
        """
        try:
            current, _ = self._registry.pointer()
        except Exception as error:  # a registry that cannot be read must not end the service
            if self.holder.registry_error is None:
                log(event="registry_unreadable", reason=str(error))
            self.holder.registry_error = str(error)
            return False
        self.holder.registry_error = None
        if current == self.holder.model.version:
            if self.holder.refused is not None:
                self.holder.clear_error()
            self._failed = None
        elif current != self._failed or self._clock() >= self._retry_at:
            self._load(current)
            return True
        return False

    def _load(self, version: str) -> None:
        before, begin = self.holder.model.version, time.perf_counter()
        self.holder.begin_loading(version)
        try:
            recommender = self._open(self._registry.folder_of(version).path)
            if recommender.version != version:
                raise RecrayError(f"the folder of {version} holds version {recommender.version}")
            _check_same_ids(recommender, self.holder.model)
        except Exception as error:  # the model that answers goes on
            self._postpone(version)
            self.holder.reject(version, str(error))
            log(event="model_refused", version=version, answers=before, reason=str(error))
            return
        self._failed = None
        self.holder.replace(recommender)
        seconds = round(time.perf_counter() - begin, 3)
        log(event="model_swapped", version=version, before=before, seconds=seconds)

    def _postpone(self, version: str) -> None:
        again = version == self._failed
        self._retry_pause = (
            min(2 * self._retry_pause, MAX_RETRY_SECONDS) if again else RETRY_SECONDS
        )
        self._failed, self._retry_at = version, self._clock() + self._retry_pause
