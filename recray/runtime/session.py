"""The Ray of this process: who has started it, who uses it, and what is as before at its end."""

import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext

from recray.errors import RecrayError
from recray.runtime.environment import (
    KeptVariables,
    log_levels_kept,
    signal_handlers_kept,
    switched,
)
from recray.runtime.ray_private import (
    QUIET_LOGGERS,
    TOKEN_MODE,
    forget_serve,
    leave_no_serve,
    messages_on_stderr,
    on_loopback,
    reread_token_mode,
)
from recray.runtime.ray_start import LOCAL as LOCAL
from recray.runtime.ray_start import in_job, start
from recray.runtime.ray_switches import RAY_SWITCHES
from recray.runtime.worker_range import WorkerRange

SERVE = "ray.serve"


def own_address() -> str:
    """The cluster where none is named: a job's own, elsewhere one of this machine."""
    return "auto" if in_job() else LOCAL


def local_cpus() -> int:
    """Logical CPUs of a local start: at least 4, so that small machines can place every stage."""
    return max(4, os.cpu_count() or 1)


def workers_at(given: int | str | WorkerRange, address: str) -> WorkerRange:
    """Read the workers that a training may have; on this machine no node comes later.

    Raises:
        RecrayError: It is neither a number nor a range.
    """
    allowed = WorkerRange.of(given)
    return allowed.on_this_machine() if address == LOCAL else allowed


def require_local(workers: int) -> None:
    """Refuse, before anything starts, what a local cluster can never place.

    Raises:
        RecrayError: More workers than logical CPUs.
    """
    if workers > local_cpus():
        raise RecrayError(
            f"--workers {workers}: this machine can place at most {local_cpus()} workers "
            f"({os.cpu_count()} CPUs); give fewer, or --address of a larger cluster"
        )


def ray_runs() -> bool:
    """Whether this process is connected to a Ray already; asking does not import Ray."""
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())


def quieten() -> None:
    """Raise the level of QUIET_LOGGERS; Ray sets some of them when its modules are imported."""
    for name, level in QUIET_LOGGERS.items():
        logging.getLogger(name).setLevel(level)


def set_token_mode() -> None:
    """Make Ray ask for tokens, unless the user has chosen a mode.

    Ray reads the mode once, when it is imported. Where it was imported before, it has to read it
    again.

    Raises:
        RecrayError: This Ray cannot read the mode again.
    """
    chosen = os.environ.get("RAY_AUTH_MODE")
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if "ray" in sys.modules and not reread_token_mode() and chosen is None:
        del os.environ["RAY_AUTH_MODE"]
        raise RecrayError(
            "ray was imported before recray, without RAY_AUTH_MODE=token in the environment, and "
            f"this version has no {TOKEN_MODE.replace(':', '.')}: set the variable before Python "
            "starts, or import ray after the first call of recray"
        )


# --------------------------------------------------------------------- one Ray for all threads


class _OwnRay:
    """The Ray that recray has started or joined in this process; its threads share it.

    Whoever comes first starts it, and the last one to leave ends it.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()  # nobody comes while Ray starts or ends
        self._users = 0
        self._end = ExitStack()

    @contextmanager
    def used(self, address: str, cpus: int) -> Iterator[bool]:
        """Have it running inside the block; the value says whether it was started for it."""
        with self._lock:
            others = ray_runs() and not self._users  # the caller's own, which is left alone
            started = not ray_runs()
            if started:
                with ExitStack() as stack:
                    _begin(stack, address, cpus)
                    self._end.push(stack.pop_all().__exit__)
            self._users += not others
        try:
            yield started
        finally:
            if not others:
                with self._lock:
                    self._users -= 1
                    if not self._users:
                        self._end.close()


_own_ray = _OwnRay()


@contextmanager
def session(address: str | None = None, cpus: int | None = None) -> Iterator[None]:
    """Have Ray running inside the block; a Ray that was running before is used and left alone.

    Threads that call this at the same time share one Ray. At its end the environment, the signal
    handlers and the levels of Ray's loggers are what they were.

    Args:
        address: `local` starts one on this machine and stops it afterwards; anything else that
            ray.init takes (`auto`, host:port, ray://...) joins that cluster; None: own_address().
        cpus: Logical CPUs of a local start; None takes local_cpus().

    Raises:
        RecrayError: The cluster cannot be reached or refuses the token.
    """
    used = _own_ray.used(address or own_address(), cpus or local_cpus())
    with signal_handlers_kept() as take_back, used as started:
        if started:
            take_back()
        yield


def _begin(stack: ExitStack, address: str, cpus: int) -> None:
    """Start or join Ray, and put on the stack what ends it."""
    stack.enter_context(switched(RAY_SWITCHES))
    stack.enter_context(log_levels_kept("ray"))
    stack.callback(setattr, sys, "excepthook", sys.excepthook)  # Ray puts its own there
    kept = KeptVariables()
    stack.callback(_restore, kept)
    set_token_mode()
    _forget_serve()
    stack.enter_context(messages_on_stderr())
    stack.callback(_leave, address)
    try:
        # While it starts alone: what this process runs later may be a cluster's.
        with on_loopback() if address == LOCAL else nullcontext():
            start(address, cpus)
    finally:
        kept.changed()


def _restore(kept: KeptVariables) -> None:
    """Put the environment back; Ray, too, forgets that it had to ask for tokens."""
    mode = os.environ.get("RAY_AUTH_MODE")
    kept.restore()
    if os.environ.get("RAY_AUTH_MODE") != mode and not reread_token_mode():
        os.environ["RAY_AUTH_MODE"] = mode or ""  # Ray keeps the mode, so the variable stays


def _leave(address: str) -> None:
    import ray

    if address == LOCAL and ray.is_initialized() and SERVE in sys.modules:
        leave_no_serve()
    ray.shutdown()
    _forget_serve()


def _forget_serve() -> None:
    if SERVE in sys.modules:
        forget_serve()
