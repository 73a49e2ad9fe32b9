"""Work that takes long: priced before it begins, in threads where callers take turns.

Short work has threads of its own, so no number of long requests keeps a search or a list waiting.
In each kind the next work is that of the caller who has waited longest, so one key with many
requests does not keep those of others waiting.
"""

import asyncio
import math
import threading
from collections import defaultdict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from recray.serving.http_errors import HTTPError

SHORT_SECONDS = 0.02
"""Up to here work is short: even a full queue of it is done within a second."""
SHORT_THREADS, LONG_THREADS = 2, 1
HELD_OF_TIMEOUT = 0.1
"""Seconds of long work of one caller, in parts of the timeout: so much is done before it even where
other callers and other processes want the processor, too.
"""

T = TypeVar("T")


class GivenUp(Exception):
    """Nobody waits for this work any more."""


class Waiting:
    """Whether somebody still waits for a piece of work."""

    def __init__(self) -> None:
        self._ended = threading.Event()

    def end(self) -> None:
        """Note that nobody does: the reply has been sent, a timeout is over, the client is gone."""
        self._ended.set()

    def check(self) -> None:
        """End the work here if nobody waits for it.

        Raises:
            GivenUp: Nobody does.
        """
        if self._ended.is_set():
            raise GivenUp


Work = Callable[[Waiting], T]


class FairThreads:
    """Threads that take the work of several callers in turn.

    Args:
        threads: Number of threads.
        name: What their names begin with.
    """

    def __init__(self, threads: int, name: str) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._queues: dict[str, deque[tuple[Future[Any], Callable[[], Any]]]] = {}
        self._lock = threading.Lock()

    def submit(self, caller: str, work: Callable[[], T]) -> "Future[T]":
        """Do some work when it is the caller's turn; cancelled before, it is not begun."""
        future: Future[T] = Future()
        with self._lock:
            self._queues.setdefault(caller, deque()).append((future, work))
        self._executor.submit(self._run_next)
        return future

    def _run_next(self) -> None:
        with self._lock:
            caller, queue = next(iter(self._queues.items()))
            future, work = queue.popleft()
            del self._queues[caller]
            if queue:
                self._queues[caller] = queue  # behind all others
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)


class Workers:
    """The threads of a service, and what each caller may ask of them.

    Args:
        budget: Seconds of a processor that one request may take.
        timeout: Seconds after which a request is given up.
    """

    def __init__(self, budget: float, timeout: float) -> None:
        self.budget, self.most = budget, max(budget, timeout * HELD_OF_TIMEOUT)
        self._short = FairThreads(SHORT_THREADS, "recray-work")
        self._long = FairThreads(LONG_THREADS, "recray-long")
        self._held: defaultdict[str, float] = defaultdict(float)
        self._lock = threading.Lock()

    async def run(self, caller: str, seconds: float, work: Work[T]) -> T:
        """Do some work in a thread, and wait for it.

        Work that nobody waits for is not begun, or ends where it next asks `Waiting.check`.

        Args:
            caller: Whose work it is.
            seconds: What it takes of a processor, as `inference.costs` tells.
            work: What is done.

        Raises:
            HTTPError: It is above the budget, or the caller has as much as is allowed at once.
        """
        waiting = Waiting()
        future = self._submit(caller, seconds, lambda: work(waiting))
        try:
            return await asyncio.wrap_future(future)
        finally:
            waiting.end()

    def _submit(self, caller: str, seconds: float, work: Callable[[], T]) -> "Future[T]":
        if seconds <= SHORT_SECONDS:
            return self._short.submit(caller, work)
        self._hold(caller, seconds)
        future = self._long.submit(caller, work)
        future.add_done_callback(lambda _done: self._release(caller, seconds))
        return future

    def _hold(self, caller: str, seconds: float) -> None:
        if seconds > self.budget:
            raise HTTPError(
                422,
                "too_much",
                f"this takes about {seconds:.2g} s of a processor, {self.budget:g} s are allowed "
                "(--budget): ask for fewer lists, a smaller k, shorter histories, or no reasons",
            )
        with self._lock:
            held = self._held[caller]
            if held and held + seconds > self.most:
                raise HTTPError(
                    429,
                    "too_much_at_once",
                    f"requests that wait take {held:.2g} s of a processor, this one "
                    f"{seconds:.2g} s, and {self.most:.2g} s are allowed to one key at once",
                    {"retry-after": str(math.ceil(held))},
                )
            self._held[caller] += seconds

    def _release(self, caller: str, seconds: float) -> None:
        with self._lock:
            self._held[caller] -= seconds
            if self._held[caller] <= 1e-9:
                del self._held[caller]
