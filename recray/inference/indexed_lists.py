"""Lists for users by the index of a large catalogue; by all items where an index finds too few.

What is listed has the score that the model gives it: the index chooses the candidates alone. Where
a filter keeps few items these are scored one and all.
"""

# Shape letters: U = users, I = items, K = length of a list, C = candidates, S = size of a state.

import math
from dataclasses import dataclass
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
"""Probes grow with this power of how deep the items that are looked for lie among all."""
POPULAR_ITEMS = 20_000
"""The most popular items, kept in order for those of whom nothing is known."""
NOTHING = np.zeros(0, np.int32)
USERS_AT_ONCE = 8
"""Whose scores of a filter's items are held together."""


@dataclass(frozen=True)
class _Allowed:
    """What may be listed: (I,) bool or None for all, how many, and what the index takes of it."""

    mask: Tensor | None
    count: int
    selector: Any


@torch.no_grad()
def indexed_top_k(
    scorer: "Scorer",
    index: ItemIndex,
    queries: Queries,
    k: int,
    exclude_seen: bool,
    mask: Tensor | None,
) -> TopK:
    """The lists of users; see Scorer.top_k.

    Args:
        scorer: Knows the model.
        index: Of its items.
        queries: U users.
        k: Length of the lists, at most the number of items.
        exclude_seen: Leave out what the user has seen.
        mask: (I,) bool; only these items may be listed. None allows all.
    """
    count = index.items if mask is None else int(mask.sum())
    item = np.full((len(queries), k), NONE, np.int64)
    score = np.full((len(queries), k), -np.inf, np.float32)
    if mask is not None and count <= INDEXED_ITEMS:
        only = torch.nonzero(mask)[:, 0]
        for first in range(0, len(queries), USERS_AT_ONCE):
            rows = slice(first, first + USERS_AT_ONCE)
            chosen, best = _best_of_few(scorer, queries[rows], k, exclude_seen, only)
            item[rows, : chosen.shape[1]], score[rows, : best.shape[1]] = chosen, best
    else:
        allowed = _Allowed(mask, count, None if mask is None else index.selector(mask.numpy()))
        for row in range(len(queries)):
            query = queries[row : row + 1] if len(queries) > 1 else queries
            item[row], score[row] = _best_of_one(scorer, index, query, k, exclude_seen, allowed)
    item[score == -np.inf] = NONE
    return TopK(item, score, queries.source)


def _best_of_one(
    scorer: "Scorer",
    index: ItemIndex,
    query: Queries,
    k: int,
    exclude_seen: bool,
    allowed: _Allowed,
) -> tuple[Ids, Scores]:
    """(K,) items of one user, best first, and (K,) their scores."""
    seen = query.seen.item if exclude_seen else NOTHING
    found = _candidates(scorer, index, query, k + len(seen), allowed)
    found = found[~_among(found, seen)]
    if len(found) < k:  # nearly all has been seen, or little of what is near is allowed
        exact = exact_top_k(scorer, query, k, exclude_seen, allowed.mask)
        return exact.item[0], exact.score[0]
    place, best = best_of_one(_scores(scorer, query, torch.from_numpy(found)), k)
    return found[place[0]], best[0]


def _among(found: Ids, seen: NDArray[np.int32]) -> NDArray[np.bool_]:
    """(C,) which of (C,) items, which ascend, a user has seen."""
    marked = np.zeros(len(found), bool)
    if len(found):  # np.isin does the same in five times the time
        place = np.minimum(found.searchsorted(seen), len(found) - 1)
        marked[place[found[place] == seen]] = True
    return marked


def _candidates(
    scorer: "Scorer", index: ItemIndex, query: Queries, wanted: int, allowed: _Allowed
) -> Ids:
    """The items, ascending, that may be among the `wanted` best of one user."""
    if query.source[0] == POPULAR:
        first, mask = scorer.most_popular, allowed.mask
        return first if mask is None else first[mask.numpy()[first]]
    # Where a filter keeps every tenth item the best of these lie ten times as deep.
    deeper = max(1.0, wanted / index.facts.wanted) * index.items / allowed.count
    probes = math.ceil(index.facts.probes * deeper**DEEPER)
    return index.find(query.embedding[0], wanted + MARGIN, probes, allowed.selector)


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
