"""Full ranking on one core: users a second against a loop over numpy.argsort, and its memory."""

import time
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from recray.benchmarks.harness import PROC, Measurement, Row, interleaved, peak_memory
from recray.evaluation.metrics import USER_BLOCK
from recray.inference.history import History
from recray.inference.scorer import Scorer
from recray.models.factorization import Dot
from recray.models.neural import NeuMf
from recray.progress import Log

DIM = 64
K = 10
RATED = 154
"""Ratings of each user, as many as ml-25m has on average."""

ML_1M, ML_25M = (6_040, 3_706), (162_541, 59_047)
LOOPED = 256
"""Users that the loop ranks; it is too slow for all."""


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Args:
        memory_users: Users of ml-25m that are ranked while the memory is watched.
        repetitions: How often each way is timed.
    """

    memory_users: int
    repetitions: int = 7


FULL, QUICK = Sizes(32_768), Sizes(8_192)


class Speed(Row):
    """Users a second of the ranker, beside the loop."""

    items: int
    users: int
    users_per_s: int
    slowest_per_s: int
    fastest_per_s: int
    argsort_per_s: int
    over_argsort: float


class Memory(Row):
    """Peak memory of ranking, above that of the tables."""

    items: int
    users: int
    peak_mb: float | None


class Network(Row):
    """Pairs a second through a network."""

    items: int
    users: int
    pairs_per_s: int


def run(sizes: Sizes, log: Log) -> Measurement:
    """Rank at the sizes of ml-1m and ml-25m."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        large = _scorer(*ML_25M)
        # Memory first: what an earlier run has freed would be used again and not be seen.
        memory = _memory(large, sizes.memory_users, log)
        times = sizes.repetitions
        small = _speed(_scorer(*ML_1M), ML_1M[0], times, log)
        loaded, network = _speed(large, 1_024, times, log), _network(times, log)
    finally:
        torch.set_num_threads(threads)
    figures = {
        "users_per_s_3706": small.users_per_s,
        "users_per_s_59047": loaded.users_per_s,
        "over_argsort": small.over_argsort,
        "over_argsort_59047": loaded.over_argsort,
        "peak_mb_59047": memory.peak_mb,
        "neumf_pairs_per_s": network.pairs_per_s,
    }
    return Measurement(figures, [small, loaded, memory, network])


def _scorer(users: int, items: int) -> Scorer:
    """A dot product of random vectors, and as many random ratings of each user as ml-25m has."""
    torch.manual_seed(0)
    begins = np.arange(users + 1, dtype=np.int64) * RATED
    item = np.random.default_rng(0).integers(0, items, int(begins[-1]), np.int32)
    history = History(begins, item, np.ones(len(item), np.float32))
    return Scorer(Dot(users, items, DIM, "logit"), None, history)


def rank_all(scorer: Scorer, users: int) -> None:
    """The K best unseen items of the first users, in blocks as evaluation has them."""
    for first in range(0, users, USER_BLOCK):
        scorer.rank(np.arange(first, min(first + USER_BLOCK, users)), K)


def argsort_loop(scorer: Scorer, users: int) -> NDArray[np.int64]:
    """The same lists the obvious way, (users, K): score all, then sort the row of each user."""
    state, _ = scorer.user_embeddings(np.arange(users))
    with torch.no_grad():
        scores = scorer.model.score(state).numpy()
    lists = []
    for user, row in enumerate(scores):
        row[scorer.history.of_user(user)[0].numpy()] = -np.inf
        lists.append(np.argsort(-row, kind="stable")[:K])
    return np.stack(lists)


def _speed(scorer: Scorer, measured: int, repetitions: int, log: Log) -> Speed:
    items = scorer.model.items
    found = interleaved(
        {
            "ranker": lambda: rank_all(scorer, measured),
            "argsort": lambda: argsort_loop(scorer, LOOPED),
        },
        repetitions,
    )
    ranker, rate = found["ranker"], measured / found["ranker"].seconds
    loop = LOOPED / found["argsort"].seconds
    log(f"{items:,} items: {rate:,.0f} users/s, argsort loop {loop:,.0f}")
    return Speed(
        items=items,
        users=measured,
        users_per_s=round(rate),
        slowest_per_s=round(measured / ranker.high),
        fastest_per_s=round(measured / ranker.low),
        argsort_per_s=round(loop),
        over_argsort=rate / loop,
    )


def _network(repetitions: int, log: Log) -> Network:
    """Every pair of a block of users through a NeuMF of 64 and layers of 128, 64 and 32."""
    users, items = ML_1M
    model = NeuMf(users, items, DIM, DIM, (128, 64, 32), 0.0, "logit").eval()
    state = model.user_state(torch.arange(USER_BLOCK))
    with torch.no_grad():
        found = interleaved({"neumf": lambda: model.score(state)}, repetitions)["neumf"]
    rate = USER_BLOCK * items / found.seconds
    log(f"neumf, {items:,} items: {rate:,.0f} pairs/s")
    return Network(items=items, users=USER_BLOCK, pairs_per_s=round(rate))


def _memory(scorer: Scorer, users: int, log: Log) -> Memory:
    """Peak memory of ranking less what the vectors and the history take."""
    with peak_memory() as before:
        time.sleep(0.5 if PROC.is_dir() else 0.0)
    begin = time.perf_counter()
    with peak_memory() as during:
        rank_all(scorer, users)
    seconds = time.perf_counter() - begin
    peak = None if during.mb is None or before.mb is None else round(during.mb - before.mb, 1)
    log(f"{users:,} of {ML_25M[0]:,} users: {seconds:.1f} s, {peak} MB above the tables")
    return Memory(items=scorer.model.items, users=users, peak_mb=peak)
