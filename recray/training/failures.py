"""What an error in a worker means: another worker is lost, the machine has failed, or a bug."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from recray.errors import RecrayError

_GONE = re.compile(
    r"connection (closed|reset|refused)|closed by peer|broken pipe|no route to host"
    r"|ncclRemoteError|remote process exited",
    re.IGNORECASE,
)
"""Words of gloo, of NCCL and of the system for a connection whose other end is gone."""
_SILENT = re.compile(r"timed? ?out|watchdog caught", re.IGNORECASE)
"""Their words for one that says nothing."""
_NO_MEMORY = re.compile(
    r"out of memory|(can(no|')t|unable to) allocate|ALLOC_FAILED", re.IGNORECASE
)
_DEVICE_ERRORS = ("CUDA error", "cuDNN error")
"""How messages of RuntimeError begin that the libraries of a device have caused."""


def lost_peer(error: RuntimeError, waited_s: float) -> str | None:
    """What became of the worker that a collective operation waited for.

    Args:
        error: What the operation raised. Backends raise RuntimeError for everything: also for
            tensors of other shapes, and for errors of a device that come late.
        waited_s: Seconds until it was raised.

    Returns:
        The end of a sentence; None where the error is not that another worker is lost.
    """
    if machine_failure(error) is not None:
        return None
    if _GONE.search(str(error)):
        return f"died: its connection was closed after {waited_s:.1f} s"
    return f"has not answered for {waited_s:.1f} s" if _SILENT.search(str(error)) else None


def machine_failure(error: BaseException) -> str | None:
    """The first line of an error of memory or of a device; None for all others."""
    machine = isinstance(error, MemoryError | torch.OutOfMemoryError | torch.AcceleratorError)
    text = str(error).strip() or "out of memory"
    told = text.startswith(_DEVICE_ERRORS) or _NO_MEMORY.search(text) is not None
    if not machine and not (isinstance(error, RuntimeError) and told):
        return None
    return text.splitlines()[0]


@contextmanager
def machine_failures_told(rank: int, size: int) -> Iterator[None]:
    """Raise errors of memory or of a device in one line with their own words.

    They end the run: begun again it would fail in the same place.

    Raises:
        RecrayError: Memory was not enough, or a device has failed.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        words = machine_failure(error)
        if words is None:
            raise
        advice = "; give more workers, or a smaller train.batch_size or model.dim"
        raise RecrayError(
            f"worker {rank} of {size} (from 0): {words}{advice if _NO_MEMORY.search(words) else ''}"
        ) from error
