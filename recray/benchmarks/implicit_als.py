"""Exact solves beside implicit's: time of an epoch, and NDCG@10 of what validation picks for each.

The ratings are those of ml-1m, or generated: a user likes what is popular, and what is near the
user's taste.
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
from itertools import product
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from recray.benchmarks.experiments import archive
from recray.benchmarks.harness import Figures, Measurement, Row, timed
from recray.config import load_settings
from recray.data import ingest
from recray.data.source import detect_source
from recray.errors import RecrayError
from recray.models.factorization import Dot
from recray.models.objectives import ImplicitALS
from recray.progress import Log
from recray.runtime.session import session
from recray.training.als import CG_STEPS, ALSEpochs
from recray.training.own_users import OwnUsers, first_model
from recray.training.shard import Shard, Workers

DIM, EPOCHS, LIST = 64, 12, 10
TASTE, DRAWS = 8, 4
Ids = NDArray[np.int64]
Recipe = tuple[float, float]
"""Weight of the pairs that nobody rated, and l2."""
RECIPES: tuple[Recipe, ...] = tuple(product((0.1, 0.3), (0.003, 0.006, 0.013, 0.03, 0.06)))
TIMED: Recipe = (0.3, 0.013)
"""That of the larger sets, of which no quality is measured: the time hardly depends on it."""
SPLIT = ("split.kind=random", "split.valid=0.1", "split.test=0.1")
Tables = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Vectors of users and of items."""
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
    ours_weight_l2: str = ""
    implicit_weight_l2: str = ""
    one_worker_s: float | None = None
    each_alone_s: float | None = None
    load: float


@dataclass(frozen=True)
class Pairs:
    """Sorted pairs of a user and an item, those of `valid` and `test` being held out."""

    size: Size
    train: tuple[Ids, Ids]
    valid: tuple[Ids, Ids]
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
        part = rng.choice(3, len(pair), p=(0.8, 0.1, 0.1))
        return cls(size, *(divmod(pair[part == n], size.items) for n in range(3)))

    @classmethod
    def of_archive(cls, path: str) -> "Pairs":
        """Read the ratings of an archive, whatever their stars, and split them by lot."""
        settings = load_settings("ranking", None, SPLIT)
        with tempfile.TemporaryDirectory(prefix="recray-benchmark-") as folder, session():
            made = ingest.prepare(detect_source(path), f"{folder}/prepared", settings)
            rows = [made.load(split) for split in ("train", "valid", "test")]
        known = [r.where((r.user < made.users) & (r.item < made.items)) for r in rows]
        parts = [(r.user.astype(np.int64), r.item.astype(np.int64)) for r in known]
        return cls(Size(made.users, made.items, 0), *parts)

    def ndcg(self, tables: Tables, held_out: tuple[Ids, Ids]) -> float:
        """NDCG@10 of held-out pairs, over users who have some; those of `train` are not listed."""
        users, items = tables
        scores = users @ items.T
        scores[self.train] = -np.inf
        top = np.argpartition(-scores, LIST, axis=1)[:, :LIST]
        ranked = np.argsort(-np.take_along_axis(scores, top, 1), axis=1)
        liked = np.zeros(scores.shape, bool)
        liked[held_out] = True
        hits = np.take_along_axis(liked, np.take_along_axis(top, ranked, 1), 1)
        gain, count = 1 / np.log2(np.arange(2, LIST + 2)), liked.sum(axis=1)
        most = gain.cumsum()[np.clip(count, 1, LIST) - 1]
        return float(((hits @ gain) / most)[count > 0].mean())


def run(sizes: tuple[Size, ...], repetitions: int, log: Log, data: str | None) -> Measurement:
    """Compare in turn: one thread on the first size, two workers or threads on the others.

    Args:
        sizes: Of what is generated.
        repetitions: Turns, of which the median counts.
        log: Receives what happens, one line at a time.
        data: Folder of ml-1m.zip, which then takes the place of the first size; None generates.

    Raises:
        RecrayError: implicit is not installed, or there is no such archive.
    """
    if find_spec("implicit") is None:
        raise RecrayError("implicit is not installed: pip install 'recray[implicit]'")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # implicit says so itself
    first = Pairs.drawn(sizes[0]) if data is None else Pairs.of_archive(archive("ml-1m", data))
    torch.set_num_threads(1)
    rows = [_alone(first, way, repetitions, log) for way in WAYS]
    for size in sizes[1:]:
        pairs = Pairs.drawn(size)
        rows += [_two(pairs, way, repetitions, log) for way in WAYS]
    figures: Figures = {}
    for row in rows:
        name = f"ials_over_implicit_{row.way}{'_25m' if row.workers > 1 else ''}"
        figures[name] = row.implicit_s / row.ours_s
        if row.one_worker_s is not None and row.each_alone_s is not None:
            figures[f"ials_two_over_one_{row.way}_25m"] = row.one_worker_s / row.ours_s
            # What two processes reach here that exchange nothing: the most that the machine gives.
            figures[f"ials_two_alone_{row.way}_25m"] = 2 * row.one_worker_s / row.each_alone_s
    return Measurement(figures, rows)


# -------------------------------------------------------------------------------- one thread


def _alone(pairs: Pairs, way: str, repetitions: int, log: Log) -> Solves:
    """CPU seconds in turn, and the quality on test of what validates best."""
    steps, conjugate = WAYS[way]
    own, ours = _best(pairs, partial(_trained, pairs, steps=steps))
    other, theirs = _best(pairs, partial(_implicit, pairs, conjugate=conjugate, epochs=EPOCHS))
    epochs = _epochs(pairs, own, steps, Workers())
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
        ours_ndcg=round(ours, 4),
        implicit_ndcg=round(theirs, 4),
        ours_weight_l2="{:g}, {:g}".format(*own),
        implicit_weight_l2="{:g}, {:g}".format(*other),
        load=round(os.getloadavg()[0], 1),
    )
    log(f"{row.ratings:,} ratings, {way}: {row.ours_s:.3f} s, implicit {row.implicit_s:.3f} s")
    return row


def _best(pairs: Pairs, train: Callable[[Recipe], Tables]) -> tuple[Recipe, float]:
    """The recipe that validates best, and its NDCG@10 on test."""
    made = {recipe: train(recipe) for recipe in RECIPES}
    best = max(made, key=lambda recipe: pairs.ndcg(made[recipe], pairs.valid))
    return best, pairs.ndcg(made[best], pairs.test)


def _cpu(work: Callable[[], object]) -> float:
    before = time.process_time()
    work()
    return time.process_time() - before


def _trained(pairs: Pairs, recipe: Recipe, steps: int | None) -> Tables:
    epochs = _epochs(pairs, recipe, steps, Workers())
    for epoch in range(EPOCHS):
        epochs.run(epoch)
    users, items = (
        epochs.model.get_parameter(f"{name}_vectors.weight").detach().numpy()
        for name in ("user", "item")
    )
    return users, items


def _epochs(pairs: Pairs, recipe: Recipe, steps: int | None, workers: Workers) -> ALSEpochs:
    """Those of a worker who has every W-th user."""
    size, (user, item) = pairs.size, pairs.train
    own = user % workers.size == workers.rank
    ids = np.arange(workers.rank, size.users, workers.size)
    users = OwnUsers.of((workers.rank,), [ids], size.users)
    local, rated = (torch.from_numpy(x[own]) for x in (user // workers.size, item))
    model = first_model(lambda u, i: Dot(u, i, DIM, "logit"), users, size.items, 0)
    shard = Shard(local, rated, torch.ones(len(local)), users)
    return ALSEpochs(model, ImplicitALS(*recipe), shard, workers, steps)


def _implicit(
    pairs: Pairs, recipe: Recipe, conjugate: bool, epochs: int, threads: int = 1
) -> Tables:
    """Train implicit's model, whose l2 is not scaled by counts."""
    (user, item), (weight, l2) = pairs.train, recipe
    shape = pairs.size.users, pairs.size.items
    ratings = import_module("scipy.sparse").csr_matrix(
        (np.ones(len(user), np.float32), (user, item)), shape
    )
    model = import_module("implicit.cpu.als").AlternatingLeastSquares(
        factors=DIM,
        regularization=l2 * (shape[0] * shape[1]) ** 0.5,
        alpha=1 / weight,
        use_cg=conjugate,
        iterations=epochs,
        num_threads=threads,
        random_state=0,
    )
    model.fit(ratings, show_progress=False)
    return model.user_factors, model.item_factors


# ------------------------------------------------------------------------------- two workers


def _two(pairs: Pairs, way: str, repetitions: int, log: Log) -> Solves:
    """Seconds that pass: of two workers, of one, of two that each do all, of implicit's threads."""
    steps, conjugate = WAYS[way]
    ours, one, alone = map(statistics.median, zip(*_ours(pairs, steps, repetitions), strict=True))
    theirs = []
    for _ in range(repetitions):
        few, many = (
            timed(partial(_implicit, pairs, TIMED, conjugate, epochs, threads=2))
            for epochs in (1, 2)
        )
        theirs.append(many - few)
    row = Solves(
        way=way,
        ratings=len(pairs.train[0]),
        workers=2,
        clock="wall",
        ours_s=ours,
        implicit_s=statistics.median(theirs),
        one_worker_s=one,
        each_alone_s=alone,
        load=round(os.getloadavg()[0], 1),
    )
    log(f"{row.ratings:,} ratings, two, {way}: {ours:.2f}, implicit {row.implicit_s:.2f} s")
    log(f"one worker: {one:.2f} s; two at a time that each do all of it: {alone:.2f} s")
    return row


def _ours(pairs: Pairs, steps: int | None, repetitions: int) -> list[tuple[float, float, float]]:
    """In turn: an epoch of two workers, of one of them alone, and of both that each do all."""
    context = get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="recray-benchmark-") as folder:
        answers = context.Queue()
        work = (pairs, steps, repetitions, folder, answers)
        several = [context.Process(target=_worker, args=(rank, *work)) for rank in range(2)]
        for process in several:
            process.start()
        ours: list[tuple[float, float, float]] = answers.get()
        for process in several:
            process.join()
    return ours


def _worker(
    rank: int, pairs: Pairs, steps: int | None, repetitions: int, folder: str, answers: Any
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    both = Workers(rank, 2)
    shared = _epochs(pairs, TIMED, steps, both)
    whole = _epochs(pairs, TIMED, steps, Workers())
    found = []
    for epoch in range(repetitions + 1):
        ways = [shared, whole if rank == 0 else None, whole]
        found.append(tuple(_between_barriers(both, way, epoch) for way in ways))
    if rank == 0:
        answers.put(found[1:])  # the first epoch is slower than all others
    dist.destroy_process_group()


def _between_barriers(workers: Workers, epochs: ALSEpochs | None, epoch: int) -> float:
    """Seconds until all workers have had their epoch; a worker may have none."""
    workers.barrier()

    def run() -> None:
        if epochs is not None:
            epochs.run(epoch)
        workers.barrier()

    return timed(run)
