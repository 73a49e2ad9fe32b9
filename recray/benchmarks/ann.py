"""A catalogue of millions with an index: the service beside an empty one, recall, and memory.

Nothing is trained. Vectors of items are drawn with the norms, and vectors of both sides with the
spectrum and the mean, that the preset ranking has on ml-1m with 64 numbers.
"""

# Shape letters: I = items, U = users, D = vector length.

import asyncio
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from recray.benchmarks.client import HOST, Rate, SteadyLoad, free_port, peak, percentiles, rate_of
from recray.benchmarks.client import steady as open_loop
from recray.benchmarks.empty_service import serve_empty
from recray.benchmarks.harness import Figures, Row, apart, own_memory
from recray.benchmarks.indexed_bundle import USERS, indexed_bundle
from recray.inference.bundle import Bundle
from recray.inference.catalog import Filters
from recray.inference.exact_lists import exact_top_k
from recray.inference.recommender import Recommender
from recray.inference.top_k import shared
from recray.progress import Log
from recray.serving.deployment import serving

if TYPE_CHECKING:
    from torch import Tensor

MODULE = "recray.benchmarks.ann"
COMPARED = 300
"""Users whose lists are compared with exact ones."""
SHARES = {"ann_filter_1_recall10": 0.01, "ann_filter_10_recall10": 0.1}
"""Share of the items that a filter keeps, by the figure."""


class IndexBuild(Row):
    """How the index was made, and how it recalls the lists of other users than it was made by."""

    what: str
    items: int
    lists: int
    probes: int
    build_s: float
    threads: int
    recall: float | None


class IndexedLists(Row):
    """Lists by the index beside exact ones: recall, and milliseconds of a processor for a list."""

    what: str
    recall: float
    index_ms: float
    exact_ms: float


class IndexMemory(Row):
    """A process that opens the bundle and answers: anonymous memory, and what is mapped.

    Args:
        what: The row.
        vectors_mb: Anonymous memory of weights and index.
        index_mb: Codes, lists and centroids.
        over_index: The first over the second.
        replica_mb: Anonymous memory of all, with ids, titles and popularity.
    """

    what: str
    vectors_mb: float
    index_mb: float
    over_index: float
    replica_mb: float


def ann(
    folder: Path, items: int, turns: int, seconds: float, log: Log
) -> tuple[Figures, list[Row]]:
    """Write such a bundle, and measure it."""
    log(f"a bundle of {items:,} items with an index")
    path = indexed_bundle(folder, items, log)
    made = Bundle.open_to_answer(path).metrics["index"]
    build = IndexBuild(
        what="index",
        items=items,
        build_s=made["seconds"],
        **{key: made[key] for key in ("lists", "probes", "threads", "recall")},
    )
    log("its lists beside exact ones")
    found = [IndexedLists.model_validate_json(line) for line in _lines("recall", path)]
    memory = IndexMemory.model_validate_json(apart(MODULE, "memory", path))
    log("the service beside an empty one")
    empty, recommend, load = _served(path, turns, seconds)
    figures: Figures = {
        "ann_requests_per_s": recommend.per_second,
        "ann_over_empty": recommend.per_second / empty.per_second,
        "ann_p99_ms": load.p99_ms,
        "ann_anonymous_over_index": memory.over_index,
        "ann_build_s": build.build_s,
    }
    figures |= {row.what: row.recall for row in found}
    return figures, [build, *found, memory, empty, recommend, load]


def _lines(what: str, path: str) -> list[str]:
    return apart(MODULE, what, path).split("\t")


def _served(path: str, turns: int, seconds: float) -> tuple[Rate, Rate, SteadyLoad]:
    """Peaks of an empty deployment and of recray in turns, then an open loop at half the peak."""
    port = free_port()
    paths = [f"/v1/users/{user}/recommendations?k=10" for user in range(1, USERS + 1)]
    with serving(path, HOST, port):
        serve_empty()
        found: dict[str, list[float]] = {"empty ann": [], "recommend ann": []}
        for turn in range(turns + 1):
            for what, own in zip(found, (["/empty/"], paths), strict=True):
                speed = asyncio.run(peak(port, own, seconds if turn else 1.0))
                if turn:  # the first one warms up
                    found[what].append(speed)
        empty, recommend = (rate_of(what, speeds) for what, speeds in found.items())
        rate = recommend.per_second / 2
        taken = asyncio.run(open_loop(port, paths, rate, turns * seconds))
    load = SteadyLoad(what="open loop ann", per_second=rate, **percentiles(taken))
    return empty, recommend, load


# -------------------------------------------------------------- in a process of their own


def recall(path: str) -> list[IndexedLists]:
    """Lists of ten and of a hundred, and of ten where a filter keeps some of the items."""
    torch.set_num_threads(1)  # as on a replica
    recommender = Recommender(Bundle.open_to_answer(path))
    first, last = recommender.catalog.year_span or (0, 0)
    years = last - first + 1
    rows = [
        _compared(recommender, "ann_recall10", 10, None),
        _compared(recommender, "ann_recall100", 100, None),
    ]
    for what, share in SHARES.items():
        since = last + 1 - round(share * years)
        mask = recommender.catalog.candidate_mask(Filters(year_from=since))
        rows.append(_compared(recommender, what, 10, mask))
    return rows


def _compared(recommender: Recommender, what: str, k: int, mask: "Tensor | None") -> IndexedLists:
    scorer = recommender.scorer
    queries = scorer.queries(np.arange(0, USERS, USERS // COMPARED))
    begin = time.thread_time()
    exact = exact_top_k(scorer, queries, k, True, mask)
    exact_s = time.thread_time() - begin
    scorer.top_k(queries[:20], k, candidates=mask)
    begin = time.thread_time()
    each = [scorer.top_k(queries[n : n + 1], k, candidates=mask) for n in range(len(queries))]
    index_s = time.thread_time() - begin
    return IndexedLists(
        what=what,
        recall=shared(exact.item, np.concatenate([one.item for one in each])) or 0.0,
        index_ms=1000 * index_s / len(queries),
        exact_ms=1000 * exact_s / len(queries),
    )


def memory(path: str) -> IndexMemory:
    """Open weights and index, then all, in this process."""
    torch.set_num_threads(1)
    before = own_memory("RssAnon")
    bundle = Bundle.open_to_answer(path)
    tables = own_memory("RssAnon")
    index = bundle.index
    if index is None:
        raise RuntimeError("faiss is not installed")
    opened = own_memory("RssAnon") - tables
    recommender = Recommender(bundle)
    for user in recommender.users.first(COMPARED):
        recommender.recommend(user)
    replica = own_memory("RssAnon") - before
    size = index.items * (index.facts.dim + 8) + index.centroid.nbytes
    return IndexMemory(
        what="memory ann",
        vectors_mb=opened / 1e6,
        index_mb=size / 1e6,
        over_index=opened / size,
        replica_mb=replica / 1e6,
    )


if __name__ == "__main__":
    if sys.argv[1] == "memory":
        print(memory(sys.argv[2]).model_dump_json())
    else:
        print("\t".join(row.model_dump_json() for row in recall(sys.argv[2])))
