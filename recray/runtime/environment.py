"""What a Ray in this process changes for its caller: variables, log levels, signal handlers."""

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TextIO, cast

TERMINATED = 143
"""Exit status after SIGTERM."""


@contextmanager
def switched(switches: Mapping[str, str | None], overrule: bool = False) -> Iterator[None]:
    """Set environment variables inside the block; what the user has set already is kept.

    Args:
        switches: Names and values; None takes a variable away.
        overrule: Whether the user's own values give way.
    """
    before = {name: os.environ.get(name) for name in switches}
    put({k: v for k, v in switches.items() if overrule or before[k] is None})
    try:
        yield
    finally:
        put(before)


def put(variables: Mapping[str, str | None]) -> None:
    """Set environment variables; None takes one away."""
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


class KeptVariables:
    """Takes back what a start changes in the environment, and nothing that came later.

    Made before the start; `changed` is called right after it.
    """

    def __init__(self) -> None:
        self._before = dict(os.environ)
        self._now: dict[str, str | None] = {}

    def changed(self) -> None:
        """Note what the start has changed."""
        names = {*self._before, *os.environ}
        self._now = {
            n: os.environ.get(n) for n in names if os.environ.get(n) != self._before.get(n)
        }

    def restore(self) -> None:
        """Put back every noted variable that still has the value of the start."""
        same = [name for name, value in self._now.items() if os.environ.get(name) == value]
        put({name: self._before.get(name) for name in same})


class QuietStdout:
    """Drops what is printed on stdout while a block of any thread runs.

    contextlib.redirect_stdout is not for threads: of two that overlap, the second to end would put
    back what the first had put there.
    """

    def __init__(self) -> None:
        self._lock, self._blocks = threading.Lock(), 0
        self._stdout: TextIO | None = None

    def __enter__(self) -> None:
        with self._lock:
            if not self._blocks:
                self._stdout, sys.stdout = sys.stdout, cast("TextIO", None)
            self._blocks += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._blocks -= 1
            if not self._blocks and sys.stdout is None:
                sys.stdout = cast("TextIO", self._stdout)


quiet_stdout = QuietStdout()


@contextmanager
def log_levels_kept(top: str) -> Iterator[None]:
    """Restore the levels of a package's loggers at the end of the block.

    Args:
        top: Name of the package.
    """
    before = {name: logging.getLogger(name).level for name in _loggers(top)}
    try:
        yield
    finally:
        for name in _loggers(top):
            logging.getLogger(name).setLevel(before.get(name, logging.NOTSET))


def _loggers(top: str) -> list[str]:
    known = logging.Logger.manager.loggerDict
    return [top, *(name for name in known if name.startswith(f"{top}."))]


@contextmanager
def signal_handlers_kept() -> Iterator[Callable[[], None]]:
    """Restore the handlers of this process at the end of the block.

    It yields a function that takes SIGTERM back from what has been started: a handler of the
    caller's own is put back, and where there was none, SIGTERM ends the process in order.

    Python lets the main thread alone set handlers: in any other one nothing happens.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def take_back() -> None:
        own = handlers[signal.SIGTERM]
        if own in (signal.SIG_DFL, None):
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
        else:
            signal.signal(signal.SIGTERM, own)

    try:
        yield take_back
    finally:
        for number, handler in handlers.items():
            if handler is not None:  # one that is not Python's cannot be set by Python
                with contextlib.suppress(ValueError):
                    signal.signal(number, handler)
