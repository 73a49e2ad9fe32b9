"""Exact solves beside implicit's: time of an epoch and NDCG@10, each at the better l2.

The ratings are generated: a user likes what is popular, and what is near the user's taste.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from recray.benchmarks.harness import Figures, Measurement, Row
from recray.errors import RecrayError
from recray.models.factorization import Dot
from recray.models.objectives import ImplicitALS
from recray.progress import Log
from recray.training.als import CG_STEPS, ALSEpochs
from recray.training.own_users import OwnUsers, first_model
from recray.training.shard import Shard, Workers

DIM, WEIGHT, EPOCHS, LIST = 64, 0.3, 12, 10
L2 = (0.006, 0.013, 0.03, 0.06)
TASTE, DRAWS = 8, 4
Ids = NDArray[np.int64]
WAYS = {"exact": (None, False), "cg": (CG_STEPS, True)}
"""Our steps of conjugate gradients, and whether implicit takes its own."""


@dataclass(frozen=True)
class Size:
    """Users, items and ratings of each user that are drawn, twice the same ones included."""

    users: int
    items: int
    each: int


ML_1M, ML_25M, SMALL = Size(6_040, 3_706, 166), Size(162_541, 59_047, 154), Size(300, 200, 30)


class Solves(Row):
    """One way of solving, beside implicit's: seconds of an epoch, the median of several."""

    way: str
    ratings: int
    workers: int
    clock: str
    ours_s: float
    implicit_s: float
    ours_ndcg: float | None = None
    implicit_ndcg: float | None = None
    ours_l2: float | None = None
    implicit_l2: float | None = None
    load: float


@dataclass(frozen=True)
class Pairs:
    """Sorted pairs of a user and an item, those of `test` being held out."""

    size: Size
    train: tuple[Ids, Ids]
    test: tuple[Ids, Ids]

    @classmethod
    def drawn(cls, size: Size, seed: int = 0) -> "Pairs":
        """Draw items by popularity; of four draws a user takes what is nearest to the taste."""
        rng = np.random.default_rng(seed)
        user = np.repeat(np.arange(size.users), size.each)
        popular = 1 / np.arange(20, size.items + 20)
        taste, kind = (rng.normal(size=(n, TASTE)) for n in (size.users, size.items))
        best, nearest = np.zeros(len(user), np.int64), np.full(len(user), -np.inf)
        for _ in range(DRAWS):
            item = rng.choice(size.items, len(user), p=popular / popular.sum())
            near = np.einsum("nd,nd->n", taste[user], kind[item])
            best, nearest = np.where(near > nearest, item, best), np.maximum(near, nearest)
        pair = np.unique(user * size.items + best)
        held_out = rng.random(len(pair)) < 0.1
        parts = [divmod(pair[chosen], size.items) for chosen in (~held_out, held_out)]
        return cls(size, parts[0], parts[1])

    def ndcg(self, users: NDArray[np.float32], items: NDArray[np.float32]) -> float:
        """NDCG@10 of the held-out pairs, over users who have some."""
        scores = users @ items.T
        scores[self.train] = -np.inf
        top = np.argpartition(-scores, LIST, axis=1)[:, :LIST]
        ranked = np.argsort(-np.take_along_axis(scores, top, 1), axis=1)
        liked = np.zeros(scores.shape, bool)
        liked[self.test] = True
        hits = np.take_along_axis(liked, np.take_along_axis(top, ranked, 1), 1)
        gain, count = 1 / np.log2(np.arange(2, LIST + 2)), liked.sum(axis=1)
        most = gain.cumsum()[np.clip(count, 1, LIST) - 1]
        return float(((hits @ gain) / most)[count > 0].mean())


def run(sizes: tuple[Size, ...], repetitions: int, log: Log) -> Measurement:
    """Compare in turn: one thread on the first size, two workers or threads on the others.

    Raises:
        RecrayError: implicit is not installed.
    """
    if find_spec("implicit") is None:
        raise RecrayError("implicit is not installed: pip install 'recray[implicit]'")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # implicit says so itself
    torch.set_num_threads(1)
    rows = [_alone(Pairs.drawn(sizes[0]), way, repetitions, log) for way in WAYS]
    for size in sizes[1:]:
        pairs = Pairs.drawn(size)
        rows += [_two(pairs, way, repetitions, log) for way in WAYS]
    figures: Figures = {}
    for row in rows:
        name = f"ials_over_implicit_{row.way}{'_25m' if row.workers > 1 else ''}"
        figures[name] = row.implicit_s / row.ours_s
    return Measurement(figures, rows)


# -------------------------------------------------------------------------------- one thread


def _alone(pairs: Pairs, way: str, repetitions: int, log: Log) -> Solves:
    """CPU seconds in turn, and quality at the better l2 of each."""
    steps, conjugate = WAYS[way]
    ours = {l2: _trained(pairs, l2, steps) for l2 in L2}
    theirs = {l2: _implicit(pairs, l2, conjugate, EPOCHS) for l2 in L2}
    l2, other = (max(found, key=lambda key: found[key]) for found in (ours, theirs))
    epochs = _epochs(pairs, l2, steps, Workers())
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    epochs.run(0)
    for _ in range(repetitions):
        seconds["ours"].append(_cpu(lambda: epochs.run(1)))
        few, many = (_cpu(partial(_implicit, pairs, other, conjugate, n)) for n in (1, 4))
        seconds["theirs"].append((many - few) / 3)
    row = Solves(
        way=way,
        ratings=len(pairs.train[0]),
        workers=1,
        clock="cpu",
        ours_s=statistics.median(seconds["ours"]),
        implicit_s=statistics.median(seconds["theirs"]),
        ours_ndcg=round(ours[l2], 4),
        implicit_ndcg=round(theirs[other], 4),
        ours_l2=l2,
        implicit_l2=other,
        load=round(os.getloadavg()[0], 1),
    )
    log(f"{row.ratings:,} ratings, {way}: {row.ours_s:.3f} s, implicit {row.implicit_s:.3f} s")
    return row


def _cpu(work: Callable[[], object]) -> float:
    before = time.process_time()
    work()
    return time.process_time() - before


def _trained(pairs: Pairs, l2: float, steps: int | None) -> float:
    epochs = _epochs(pairs, l2, steps, Workers())
    for epoch in range(EPOCHS):
        epochs.run(epoch)
    tables = (epochs.model.get_parameter(f"{name}_vectors.weight") for name in ("user", "item"))
    return pairs.ndcg(*(table.detach().numpy() for table in tables))


def _epochs(pairs: Pairs, l2: float, steps: int | None, workers: Workers) -> ALSEpochs:
    """Those of a worker who has every W-th user."""
    size, (user, item) = pairs.size, pairs.train
    own = user % workers.size == workers.rank
    ids = np.arange(workers.rank, size.users, workers.size)
    users = OwnUsers.of((workers.rank,), [ids], size.users)
    local, rated = (torch.from_numpy(x[own]) for x in (user // workers.size, item))
    model = first_model(lambda u, i: Dot(u, i, DIM, "logit"), users, size.items, 0)
    shard = Shard(local, rated, torch.ones(len(local)), users)
    return ALSEpochs(model, ImplicitALS(WEIGHT, l2), shard, workers, steps)


def _implicit(pairs: Pairs, l2: float, conjugate: bool, epochs: int, threads: int = 1) -> float:
    """Train implicit's model, whose l2 is not scaled by counts; NDCG@10 where all epochs ran."""
    user, item = pairs.train
    shape = pairs.size.users, pairs.size.items
    ratings = import_module("scipy.sparse").csr_matrix(
        (np.ones(len(user), np.float32), (user, item)), shape
    )
    model = import_module("implicit.cpu.als").AlternatingLeastSquares(
        factors=DIM,
        regularization=l2 * (shape[0] * shape[1]) ** 0.5,
        alpha=1 / WEIGHT,
        use_cg=conjugate,
        iterations=epochs,
        num_threads=threads,
        random_state=0,
    )
    model.fit(ratings, show_progress=False)
    return pairs.ndcg(model.user_factors, model.item_factors) if epochs == EPOCHS else 0.0


# ------------------------------------------------------------------------------- two workers


def _two(pairs: Pairs, way: str, repetitions: int, log: Log) -> Solves:
    """Seconds that pass, of two workers beside two threads of implicit."""
    steps, conjugate = WAYS[way]
    theirs = []
    context = get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="recray-benchmark-") as folder:
        answers = context.Queue()
        work = (pairs, steps, repetitions, folder, answers)
        several = [context.Process(target=_worker, args=(rank, *work)) for rank in range(2)]
        for process in several:
            process.start()
        ours = answers.get()
        for process in several:
            process.join()
    for _ in range(repetitions):
        took = []
        for epochs in (1, 2):
            before = time.perf_counter()
            _implicit(pairs, L2[1], conjugate, epochs, threads=2)
            took.append(time.perf_counter() - before)
        theirs.append(took[1] - took[0])
    row = Solves(
        way=way,
        ratings=len(pairs.train[0]),
        workers=2,
        clock="wall",
        ours_s=statistics.median(ours),
        implicit_s=statistics.median(theirs),
        load=round(os.getloadavg()[0], 1),
    )
    log(f"{row.ratings:,} ratings, two, {way}: {row.ours_s:.2f}, implicit {row.implicit_s:.2f} s")
    return row


def _worker(
    rank: int, pairs: Pairs, steps: int | None, repetitions: int, folder: str, answers: Any
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    epochs, seconds = _epochs(pairs, L2[1], steps, Workers(rank, 2)), []
    epochs.run(0)
    for _ in range(repetitions):
        before = time.perf_counter()
        epochs.run(1)
        seconds.append(time.perf_counter() - before)
    if rank == 0:
        answers.put(seconds)
    dist.destroy_process_group()
