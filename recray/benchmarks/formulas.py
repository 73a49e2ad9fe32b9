"""What preparing and training cost, as sums of terms in the sizes of the data.

A term is a count (ratings a worker reads, bytes it sends); the constant it is multiplied with is a
fact of the machine, fitted on small runs. cluster/SCALING.md explains the terms.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from recray.data.split import partitions_for
from recray.models.objectives.normal_equations import rows_at_once
from recray.training.divided_items import chunk_sizes

FLOAT32, FLOAT64, INT64 = 4, 8, 8
CPU = torch.device("cpu")

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
    solved by the worker that has the user, an item's by one of the workers. Among several, each
    packs the equations of all items.
    """
    solved = (size.users * (size.epochs + 1) + size.items * size.epochs) / size.workers
    gathered = size.ratings / size.workers * (2 * size.epochs + 1)
    return {
        "rating": size.ratings / size.workers,
        "rating x dim": gathered * size.dim,
        "rating x dim^2": gathered * size.dim**2,
        "row": solved,
        "row x dim^2": solved * size.dim**2,
        "row x dim^3": solved * size.dim**3,
        "item x dim^2, packed": size.items * size.epochs * size.dim**2 * (size.workers > 1),
        "byte sent": sent_bytes(size),
    }


def train_bytes(size: Size) -> Terms:
    """Memory of one worker beyond an idle one: its ratings, the vectors of its users and of all
    items, a block of systems, and among several workers as much again to receive it.
    """
    block = rows_at_once(size.dim, CPU) * size.dim * (size.dim + 2) * FLOAT32
    return {
        "process": 1,
        "rating": size.ratings / size.workers,
        "vector": (size.users / size.workers + size.items) * size.dim * FLOAT32,
        "system": block,
        "system received": block * (size.workers > 1),
    }


def summed_bytes(size: Size) -> int:
    """Bytes of the tensors that all workers sum in a training of exact solves; 0 for one worker.

    Each is what one worker has: the tensor itself, or the table that is put together of all.
    """
    return _reduced_bytes(size) + _exchanged_bytes(size)


def _reduced_bytes(size: Size) -> int:
    """Of tensors that every worker gets the sum of."""
    if size.workers == 1:
        return 0
    statistics = 2 * size.items * FLOAT64 + size.workers * 2 * FLOAT64
    counts = size.items * FLOAT32
    gram = size.dim**2 * FLOAT64 + size.dim * (size.dim + 1) * FLOAT32  # and its spectrum
    told = 5 * FLOAT64  # loss, rows, whether all is finite, seconds of training and of the epoch
    return statistics + counts + size.epochs * (gram + told)


def _exchanged_bytes(size: Size) -> int:
    """Of the equations of items, of which a worker gets the sum of its share, and of all items'
    vectors: an item has D (D + 1) / 2 numbers of its matrix, D of the right side and D of the
    vector. A few items are there twice, where a share would be smaller than another's.
    """
    if size.workers == 1:
        return 0
    items = size.workers * sum(chunk_sizes(size.items, size.workers, size.dim, CPU))
    equations, vector = size.dim * (size.dim + 3) // 2, size.dim
    return size.epochs * items * (equations + vector) * FLOAT32


def sent_bytes(size: Size) -> float:
    """Bytes that each worker sends, and receives: sums go around a ring, the rest goes straight.

    Source: Patarasuk and Yuan (2009), J. Parallel Distrib. Comput. 69(2): 2 (N - 1) / N.
    """
    others = (size.workers - 1) / size.workers
    return (2 * _reduced_bytes(size) + _exchanged_bytes(size)) * others


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
