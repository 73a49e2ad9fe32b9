"""Makes the index of a large catalogue when a bundle is exported.

IVF with SQ8: k-means on a sample in which long vectors are more likely, since the best items of
users are among these; each item in the list of its nearest centroid, as codes of 8 bits a number.
HNSW over the items themselves takes hours for ten million of them on one core and a graph of twice
the bytes of the codes; here it finds the nearest centroids alone.
"""

# Shape letters: I = items, N = lists, D = length of a vector of the index, U = users, K = length
# of a list for a user, B = items of a block.

import math
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from pydantic import BaseModel

from recray.inference.exact_lists import exact_top_k
from recray.inference.index_file import Clusters, write_index_file
from recray.inference.indexed_lists import indexed_top_k
from recray.inference.item_index import (
    FACTS,
    FILE,
    INDEXED_ITEMS,
    IndexFacts,
    ItemIndex,
    index_vectors,
    is_usable,
)
from recray.inference.queries import POPULAR, Queries
from recray.inference.scorer import Scorer
from recray.inference.top_k import NONE, Ids, shared
from recray.models.base import LinearModel, Model
from recray.storage import Folder

BLOCK = 1 << 16
"""Items that are looked at together."""
SAMPLE, ROUNDS = 32, 6
"""Items of the sample for each list, and rounds of k-means."""
LINKS, BREADTH = 16, 32
"""Of the graph that finds the nearest centroid."""
TARGET = 0.98
"""Share of the best items of users whose lists are among those that are looked into."""
LEAST_PROBES = 16
K, USERS = 10, 600
"""Length of the lists by which that is found, and how many users have one: half of them to find it,
the others to measure."""

LACKING = "faiss is not installed, so lists take long: pip install 'recray[ann]', and export again"


class IndexQuality(BaseModel):
    """What is kept of an index in metrics.json.

    Args:
        recall: Share of the exact lists of ten that lists by the index have.
        users: How many lists were compared.
        lists: Of the index.
        probes: Lists that are looked into for a list of ten.
        seconds: That it took to make.
        threads: That made it.
        faiss: Its version.
    """

    recall: float | None
    users: int
    lists: int
    probes: int
    seconds: float
    threads: int
    faiss: str


def wants_index(model: Model) -> bool:
    """Whether an index is made of a model's items: many of them, scored by a product."""
    return isinstance(model, LinearModel) and model.items > INDEXED_ITEMS


def lists_for(items: int) -> int:
    """How many lists an index has: the power of two next to 4 times the root of the items."""
    return 1 << max(0, round(math.log2(4 * math.sqrt(items))))


@torch.no_grad()
def cluster(model: LinearModel, seed: int = 0) -> Clusters:
    """Put the items into lists."""
    import faiss

    facts = IndexFacts(faiss=faiss.__version__, probes=1, wanted=K, columns=_columns(model))
    lists, rng = lists_for(model.items), np.random.default_rng(seed)
    centroid = _centroids(model, facts, lists, rng)
    graph = _graph(facts.dim)
    graph.add(centroid)
    nearest, squares = np.empty(model.items, np.int64), np.zeros(lists)
    sums = torch.zeros(lists, facts.dim, dtype=torch.float64)
    low, high = np.full(facts.dim, np.inf, np.float32), np.full(facts.dim, -np.inf, np.float32)
    for first, vectors in _blocks(model, facts):
        place = graph.search(vectors, 1)[1][:, 0]
        nearest[first : first + len(vectors)] = place
        squares += np.bincount(place, np.square(vectors).sum(axis=1), lists)
        sums.index_add_(0, torch.from_numpy(place), torch.from_numpy(vectors).double())
        low, high = np.minimum(low, vectors.min(axis=0)), np.maximum(high, vectors.max(axis=0))
    counts = np.bincount(nearest, minlength=lists)
    mean = sums.numpy() / np.maximum(counts, 1)[:, None]
    order = _neighbours_together(mean.astype(np.float32))
    order = order[counts[order] > 0]
    rank = np.zeros(lists, np.int32)
    rank[order] = np.arange(len(order))
    mean, squares, counts = mean[order], squares[order], counts[order]
    spread = squares / counts - np.square(mean).sum(axis=1)
    # The best of n normal numbers is expected about sqrt(2 ln n) deviations above their mean.
    reach = np.sqrt(spread.clip(0) / len(facts.columns) * 2 * np.log(counts))
    found = mean.astype(np.float32), reach.astype(np.float32), rank[nearest]
    return Clusters(facts, *found, low, high - low)


def _neighbours_together(mean: NDArray[np.float32]) -> Ids:
    """(N,) places of (N, D) means such that those of one direction stand together, long ones first:
    a user's lists then lie on fewer pages.
    """
    import faiss

    groups = max(1, math.isqrt(len(mean)))
    means = faiss.Kmeans(mean.shape[1], groups, niter=ROUNDS, seed=0, min_points_per_centroid=1)
    means.train(mean)
    group = means.index.search(mean, 1)[1][:, 0]
    return np.lexsort((-np.linalg.norm(mean, axis=1), group))


def _columns(model: LinearModel) -> list[int]:
    """The numbers of row and offset that are not the same for all items: others do not rank."""
    low, high = [], []
    for first in range(0, model.items, BLOCK):
        block = slice(first, min(first + BLOCK, model.items))
        whole = torch.cat([model.item_rows(block), model.item_offset(block)[:, None]], dim=1)
        least, most = whole.aminmax(dim=0)
        low.append(least)
        high.append(most)
    differs = torch.stack(high).amax(dim=0) > torch.stack(low).amin(dim=0)
    return torch.nonzero(differs)[:, 0].tolist() or [0]


def _blocks(model: LinearModel, facts: IndexFacts) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """The vectors of the items, (B, D) at a time, with the first item of each."""
    for first in range(0, model.items, BLOCK):
        block = slice(first, min(first + BLOCK, model.items))
        yield first, index_vectors(model, block, facts).numpy()


def _graph(dim: int) -> Any:
    import faiss

    graph = faiss.IndexHNSWFlat(dim, LINKS)
    graph.hnsw.efSearch = BREADTH
    return graph


def _centroids(
    model: LinearModel, facts: IndexFacts, lists: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    """(N, D) by k-means on items that are drawn in proportion to their squared length."""
    import faiss

    squares = np.concatenate([np.square(v).sum(axis=1) for _, v in _blocks(model, facts)])
    # Each item gets a key, and those with the highest are a weighted draw without replacement
    # (Efraimidis and Spirakis, 2006).
    key = np.log(rng.random(model.items)) / np.maximum(squares, 1e-12)
    size = min(model.items, SAMPLE * lists)
    chosen = np.sort(np.argpartition(key, -size)[-size:])
    sample = index_vectors(model, torch.from_numpy(chosen), facts).numpy()
    means = faiss.Clustering(facts.dim, lists)
    means.niter, means.seed, means.verbose = ROUNDS, int(rng.integers(1 << 30)), False
    means.min_points_per_centroid, means.max_points_per_centroid = 1, SAMPLE
    means.train(sample, _graph(facts.dim))
    found: NDArray[np.float32] = faiss.vector_to_array(means.centroids).reshape(lists, facts.dim)
    return found.copy()


# ------------------------------------------------------------------- how far to look, and quality


def write_index(folder: Folder, scorer: Scorer) -> IndexQuality | None:
    """Write the index of a bundle's items, if it is to have one and faiss is installed.

    Args:
        folder: Of the bundle.
        scorer: Of what answers, with users to measure by.
    """
    model = scorer.model
    if not (isinstance(model, LinearModel) and wants_index(model) and is_usable()):
        return None
    import faiss

    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="recray-index-") as name:
        path = Path(name) / FILE
        made = cluster(model)
        write_index_file(path, made, _blocks(model, made.facts))
        queries, exact = _exact_lists(scorer)
        index = ItemIndex(made.facts, path, model)
        probes = _probes(index, made, queries[: len(queries) // 2], exact)
        wanted = K + round(len(queries.seen.item) / max(1, len(queries)))
        index.facts = made.facts.model_copy(update={"probes": probes, "wanted": wanted})
        others = slice(len(queries) // 2, None)
        found = indexed_top_k(scorer, index, queries[others], K, True, None)
        recall = shared(exact[others], found.item)
        folder.write_json(FACTS, index.facts.model_dump())
        with pa.memory_map(str(path)) as mapped:
            folder.write_bytes(FILE, mapped.read_buffer())
    return IndexQuality(
        recall=recall,
        users=len(queries) - len(queries) // 2,
        lists=index.lists,
        probes=probes,
        seconds=round(time.perf_counter() - begin, 3),
        threads=faiss.omp_get_max_threads(),
        faiss=index.facts.faiss,
    )


def _exact_lists(scorer: Scorer) -> tuple[Queries, Ids]:
    """Some users of whom something is known, and their (U, K) best unseen items."""
    users = np.unique(np.linspace(0, scorer.model.users - 1, USERS).astype(np.int64))
    queries = scorer.queries(users)
    known = users[queries.source != POPULAR]
    if not len(known):
        return queries[:0], np.zeros((0, K), np.int64)
    queries = scorer.queries(known)
    return queries, exact_top_k(scorer, queries, K, True, None).item


@torch.no_grad()
def _probes(index: ItemIndex, made: Clusters, queries: Queries, exact: Ids) -> int:
    """How many lists hold the TARGET of the best items of users."""
    needed = []
    for row in range(len(queries)):
        score = index.list_scores(index.query_of(queries.embedding[row]))
        own = exact[row][exact[row] != NONE]
        held = score[torch.from_numpy(made.nearest[own].astype(np.int64))]
        needed.append((score >= held[:, None]).sum(dim=1).numpy())
    if not needed:
        return max(LEAST_PROBES, index.lists // LEAST_PROBES)
    found = np.quantile(np.concatenate(needed), TARGET, method="higher")
    return min(max(LEAST_PROBES, int(found)), index.lists)
