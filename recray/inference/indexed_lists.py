"""Lists for users by the index of a large catalogue; by all items where an index finds too few.

What is listed has the score that the model gives it: the index chooses the candidates alone. Where
a filter keeps few items these are scored one and all.
"""

# Shape letters: U = users, I = items, K = length of a list, C = candidates, S = size of a state.

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recray.inference.exact_lists import exact_top_k
from recray.inference.item_index import INDEXED_ITEMS, ItemIndex
from recray.inference.queries import POPULAR, Queries
from recray.inference.top_k import NONE, Ids, Scores, TopK, best_of, best_of_one
from recray.models.base import LinearModel

if TYPE_CHECKING:
    from recray.inference.scorer import Scorer

MARGIN = 32
"""Candidates above those that are needed: codes of 8 bits change the order of close ones."""
DEEPER = 0.5
"""Lists of the index for a user grow with this power of how many items are looked for."""
POPULAR_ITEMS = 20_000
"""The most popular items, kept in order for those of whom nothing is known."""
NOTHING = np.zeros(0, np.int32)
USERS_AT_ONCE = 8
"""Whose scores of a filter's items are held together."""


@torch.no_grad()
def indexed_top_k(
    scorer: "Scorer",
    index: ItemIndex,
    queries: Queries,
    k: int,
    exclude_seen: bool,
    allowed: Tensor | None,
) -> TopK:
    """The lists of users; see Scorer.top_k.

    Args:
        scorer: Knows the model.
        index: Of its items.
        queries: U users.
        k: Length of the lists, at most the number of items.
        exclude_seen: Leave out what the user has seen.
        allowed: (I,) bool; only these items may be listed. None allows all.
    """
    item = np.full((len(queries), k), NONE, np.int64)
    score = np.full((len(queries), k), -np.inf, np.float32)
    kept = index.items if allowed is None else int(allowed.sum())
    selector = None if allowed is None else index.selector(allowed.numpy())
    step = 1 if kept > INDEXED_ITEMS else USERS_AT_ONCE
    few = None if allowed is None or kept > INDEXED_ITEMS else torch.nonzero(allowed)[:, 0]
    for first in range(0, len(queries), step):
        some = queries[first : first + step] if len(queries) > 1 else queries
        if few is not None:
            chosen, best = _best_of_few(scorer, some, k, exclude_seen, few)
        else:
            seen = some.seen.item if exclude_seen else NOTHING
            found = _candidates(scorer, index, some, k + len(seen), kept, selector, allowed)
            found = found[~_among(found, seen)]
            if len(found) < k:
                every = exact_top_k(scorer, some, k, exclude_seen, allowed)
                chosen, best = every.item, every.score
            else:
                place, best = best_of_one(_scores(scorer, some, torch.from_numpy(found)), k)
                chosen = found[place]
        item[first : first + step, : chosen.shape[1]] = chosen
        score[first : first + step, : best.shape[1]] = best
    item[score == -np.inf] = NONE
    return TopK(item, score, queries.source)


def _among(found: Ids, seen: NDArray[np.int32]) -> NDArray[np.bool_]:
    """(C,) which of (C,) items, which ascend, a user has seen."""
    marked = np.zeros(len(found), bool)
    if len(found):  # np.isin does the same in five times the time
        place = np.minimum(found.searchsorted(seen), len(found) - 1)
        marked[place[found[place] == seen]] = True
    return marked


def _candidates(
    scorer: "Scorer",
    index: ItemIndex,
    query: Queries,
    wanted: int,
    kept: int,
    selector: Any,
    allowed: Tensor | None,
) -> Ids:
    """The items, ascending, that may be among the `wanted` best of one user."""
    if query.source[0] == POPULAR:
        first = scorer.most_popular
        return first if allowed is None else first[allowed.numpy()[first]]
    # Items of which a filter keeps every tenth lie ten times as deep, so more is looked into.
    deeper = max(1.0, wanted / index.facts.wanted) ** DEEPER * index.items / kept
    probes = math.ceil(index.facts.probes * deeper)
    return index.find(query.embedding[0], wanted + MARGIN, probes, selector)


def _best_of_few(
    scorer: "Scorer", queries: Queries, k: int, exclude_seen: bool, item: Tensor
) -> tuple[Ids, Scores]:
    """The k best of (C,) items, which ascend: (U, K) ids and (U, K) scores."""
    if not len(item):
        return np.zeros((len(queries), 0), np.int64), np.zeros((len(queries), 0), np.float32)
    scores, ids = _scores(scorer, queries, item), item.numpy()
    if exclude_seen:
        row, seen = queries.seen.coo_indices()
        place = np.minimum(np.searchsorted(ids, seen), len(ids) - 1)
        listed = ids[place] == seen
        scores[row[listed], place[listed]] = -np.inf
    place, best = best_of(scores, min(k, len(ids)))
    return ids[place], best


def _scores(scorer: "Scorer", queries: Queries, item: Tensor) -> Scores:
    """(U, C) scores of chosen items, as the model has them."""
    model = scorer.model
    if not isinstance(model, LinearModel):
        raise ValueError("an index is of items whose scores are products")
    offset, rows = model.item_offset(item), model.item_rows(item)
    scores: Tensor = model.activation(torch.addmm(offset[None, :], queries.embedding, rows.T))
    popular = queries.source == POPULAR
    if popular.any():
        scores[torch.from_numpy(popular)] = scorer.popularity[item]
    return scores.numpy()
