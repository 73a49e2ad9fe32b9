"""How a run trains: with which optimizer, on which rows, and where."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import torch

from recray.config import Settings, TrainSettings
from recray.errors import RecrayError
from recray.training.sparse_optimizers import BREAK_EVEN, IN_CACHE, ROW_OPTIMIZERS


@dataclass(frozen=True)
class Engine:
    """What follows from the settings and the sizes of the data.

    Args:
        optimizer: Its name; auto is resolved.
        rowwise: Whether a step changes the rows only that its batch touches.
    """

    optimizer: str
    rowwise: bool

    @classmethod
    def of(cls, train: TrainSettings, rows: int, pairs: int | None, entries: int) -> Self:
        """Choose.

        Every row is updated, by a dense optimizer, where a batch has more pairs than BREAK_EVEN of
        the tables' rows, or these stay in the cache. Elsewhere rows that no pair of the batch has
        stay as they are: auto is lazy-adam, and sgd, which is the same either way, takes the
        touched rows.

        Args:
            train: The settings.
            rows: Ratings that all workers train on.
            pairs: Pairs of a rating: itself and its negatives; None where all items take part.
            entries: Users and items.
        """
        batch = rows if train.batch_size == "all" else min(rows, train.batch_size)
        # What is compiled wants batches of one shape, and touched rows differ in number.
        small = pairs is None or entries < IN_CACHE or train.compile
        dense = small or batch * (pairs or 1) >= BREAK_EVEN * entries
        if train.optimizer == "auto":
            return cls("adam", False) if dense else cls("lazy-adam", True)
        if train.optimizer == "sgd":
            return cls("sgd", not dense)
        return cls(train.optimizer, train.optimizer in ROW_OPTIMIZERS)


def pairs_of(settings: Settings) -> int | None:
    """Pairs of a rating in a step: itself and its negatives; None where all items take part."""
    if not settings.ranks:
        return 1
    negatives = settings.objective.negatives
    return None if negatives == "all" else 1 + negatives


def describe(settings: Settings, users: int, items: int, rows: int, workers: int) -> str:
    """One line about how a run trains, before it begins.

    Args:
        settings: The resolved settings.
        users: Users in training.
        items: Items in training.
        rows: Ratings in training.
        workers: Processes.
    """
    train = settings.train
    size = f"{rows:,} ratings of {users:,} users and {items:,} items"
    if train.optimizer in EXACT:
        return f"train: {size}; {EXACT[train.optimizer]}"
    engine = Engine.of(train, rows, pairs_of(settings), users + items)
    batch = "all" if train.batch_size == "all" else f"{train.batch_size:,}"
    of = "users" if pairs_of(settings) is None else "ratings"
    which = "the rows that a batch touches" if engine.rowwise else "all rows"
    chosen = " (auto)" if train.optimizer == "auto" else ""
    words = [f"train: {size}", f"{engine.optimizer}{chosen} on {which}, {batch} {of} a step"]
    words += [f"{workers} workers"] * (workers > 1)
    if workers > 1 and train.local_sgd_steps > 1:
        words.append(
            f"APPROXIMATE: items and layers are averaged every {train.local_sgd_steps} steps"
        )
    words += [train.device] * (train.device != "cpu")
    words += [train.precision] * (train.precision != "float32")
    return "; ".join(words)


EXACT = {"alternating": "exact solves of users, then items", "gibbs": "samples of the posterior"}


def device_of(train: TrainSettings) -> torch.device:
    """Where to train.

    Raises:
        RecrayError: A GPU is asked for where there is none.
    """
    if train.device == "cuda" and not torch.cuda.is_available():
        raise RecrayError("train.device=cuda: there is no GPU that torch can use; give cpu")
    return torch.device(train.device)


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # numbers of malloc.h


def keep_freed_memory() -> None:
    """Let glibc keep what this process frees, up to 256 MB of it, for the next step.

    By default it hands tensors of a few MB back to the system after each step and asks for them
    again in the next, above all in a thread, where Ray Train trains: every page of them is then a
    fault, up to a tenth of the time of a step.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):
        libc.mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the most that glibc takes
        libc.mallopt(M_TRIM_THRESHOLD, 256 << 20)


@contextmanager
def precision_of(train: TrainSettings) -> Iterator[None]:
    """Compute the layers inside the block with the digits of the settings."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if train.precision == "tf32" else before)
    try:
        bf16 = train.precision == "bf16"
        # Its cache of rounded weights lives as long as the block, and steps change the weights.
        with torch.autocast(train.device, torch.bfloat16, enabled=bf16, cache_enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
