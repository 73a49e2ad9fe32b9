"""What preparing and training cost, as sums of terms in the sizes of the data.

A term is a count (ratings a worker reads, bytes it sends); the constant it is multiplied with is a
fact of the machine, fitted on small runs. cluster/SCALING.md explains the terms.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recray.data.split import partitions_for
from recray.models.objectives.ials import ROW_BLOCK

FLOAT32, FLOAT64, INT64 = 4, 8, 8

Terms = dict[str, float]


@dataclass(frozen=True)
class Size:
    """What the costs depend on.

    Args:
        ratings: Rows of the training split; for `prepare` all rows.
        users: Users of the training split.
        items: Items of the training split.
        dim: Length of a vector.
        workers: Processes.
        epochs: Passes over the data.
    """

    ratings: int
    users: int
    items: int
    dim: int
    workers: int
    epochs: int


def prepare_seconds(size: Size) -> Terms:
    """CPU seconds of all tasks together; a cluster of N free CPUs takes an Nth of them."""
    return {"start": 1, "rating": size.ratings}


def prepare_bytes(size: Size) -> Terms:
    """Memory of all processes at once: each holds one chunk of a file, or one bucket of users."""
    bucket = size.ratings / partitions_for(size.ratings)
    return {"driver": 1, "process": size.workers, "rating of a bucket": size.workers * bucket}


def train_seconds(size: Size) -> Terms:
    """CPU seconds of one worker of exact solves, reading its rows included.

    A rating is added to a Gram matrix once for its user and once for its item. A user's system is
    solved by the worker that has the user, an item's by every worker.
    """
    solved = size.users / size.workers * (size.epochs + 1) + size.items * size.epochs
    gathered = size.ratings / size.workers * (2 * size.epochs + 1)
    return {
        "rating": size.ratings / size.workers,
        "rating x dim": gathered * size.dim,
        "rating x dim^2": gathered * size.dim**2,
        "row": solved,
        "row x dim^2": solved * size.dim**2,
        "row x dim^3": solved * size.dim**3,
        "byte sent": sent_bytes(size),
    }


def train_bytes(size: Size) -> Terms:
    """Memory of one worker beyond an idle one: its ratings, the vectors of its users and of all
    items, a block of systems, and among several workers as much again to receive it.
    """
    block = ROW_BLOCK * size.dim * (size.dim + 2) * FLOAT32
    return {
        "process": 1,
        "rating": size.ratings / size.workers,
        "vector": (size.users / size.workers + size.items) * size.dim * FLOAT32,
        "system": block,
        "system received": block * (size.workers > 1),
    }


def summed_bytes(size: Size) -> int:
    """Bytes of the tensors that all workers sum in a training of exact solves; 0 for one worker."""
    if size.workers == 1:
        return 0
    statistics = 2 * size.items * FLOAT64 + size.workers * 2 * FLOAT64
    counts = size.items * FLOAT32
    items = size.items * size.dim * (size.dim + 2) * FLOAT32
    gram = size.dim**2 * FLOAT32
    told = 5 * FLOAT64  # loss, rows, whether all is finite, seconds of training and of the epoch
    return statistics + counts + size.epochs * (items + gram + told)


def sent_bytes(size: Size) -> float:
    """Bytes that each worker sends, and receives, for these sums around a ring.

    Source: Patarasuk and Yuan (2009), J. Parallel Distrib. Comput. 69(2): 2 (N - 1) / N.
    """
    return summed_bytes(size) * 2 * (size.workers - 1) / size.workers


def fit(terms: Sequence[Terms], measured: Sequence[float]) -> Terms:
    """The constants, none of them negative, with the least squared relative errors.

    Args:
        terms: The terms of each run.
        measured: What each run took, all above 0.

    Raises:
        ValueError: There are no runs.
    """
    if not terms:
        raise ValueError("no runs to fit constants to")
    names = list(terms[0])
    weighed = np.array([[t[n] for n in names] for t in terms]) / np.asarray(measured)[:, None]
    scale = np.abs(weighed).max(axis=0)
    used = [column for column in range(len(names)) if scale[column] > 0]
    best, least = np.zeros(len(names)), np.inf
    # With few terms every choice of those that are not 0 can be tried.
    for count in range(1, len(used) + 1):
        for chosen in map(list, itertools.combinations(used, count)):
            found, *_ = np.linalg.lstsq(weighed[:, chosen] / scale[chosen], np.ones(len(terms)))
            error = float(np.square(weighed[:, chosen] / scale[chosen] @ found - 1).sum())
            if (found >= 0).all() and error < least:
                least, best = error, np.zeros(len(names))
                best[chosen] = found / scale[chosen]
    return dict(zip(names, best.tolist(), strict=True))


def predict(constants: Terms, terms: Terms) -> float:
    """The sum of constant times count."""
    return sum(constants[name] * count for name, count in terms.items())
