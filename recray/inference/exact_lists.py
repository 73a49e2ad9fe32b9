"""Lists for users from the scores of all items."""

# Shape letters: U = users, I = items, K = length of a list.

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recray.inference.queries import Queries
from recray.inference.top_k import NONE, Ids, Scores, TopK, best_of, best_of_one

if TYPE_CHECKING:
    from recray.inference.scorer import Scorer


@torch.no_grad()
def exact_top_k(
    scorer: "Scorer", queries: Queries, k: int, exclude_seen: bool, candidates: Tensor | None
) -> TopK:
    """The lists of users; see Scorer.top_k."""
    seen = queries.seen.coo_indices() if exclude_seen else None
    # All scores of a large catalogue would not fit the cache, nor perhaps the memory; so blocks of
    # items are cut to their best one by one, and those lists are merged.
    blocks = [
        _best_of_block(scorer, queries, seen, candidates, block, k)
        for block in scorer.blocks(len(queries))
    ]
    item, best = blocks[0]
    if len(blocks) > 1:
        item, best = (np.concatenate(parts, axis=1) for parts in zip(*blocks, strict=True))
        item, best = best_of(best, min(k, scorer.model.items), item)
    item[best == -np.inf] = NONE
    return TopK(item, best, queries.source)


def _best_of_block(
    scorer: "Scorer",
    queries: Queries,
    seen: tuple[Ids, NDArray[np.int32]] | None,
    candidates: Tensor | None,
    block: tuple[int, int],
    k: int,
) -> tuple[Ids, Scores]:
    """The k best of the items first..last-1: (U, K) ids and (U, K) scores."""
    # Masks are set in numpy, whose small steps take a single list less time than torch's.
    first, last = block
    scores = scorer.block_scores(queries, first, last).numpy()
    if seen is not None:
        row, item = seen
        if last - first < scorer.model.items:
            inside = (item >= first) & (item < last)
            row, item = row[inside], item[inside] - first
        scores[row, item] = -np.inf
    if candidates is not None:
        np.copyto(scores, -np.inf, where=~candidates[..., first:last].numpy())
    select = best_of_one if len(scores) == 1 else best_of
    chosen, best = select(scores, min(k, last - first))
    return chosen + first, best
