"""The k best of the scores of many users; where scores are equal, the items with the lowest ids."""

# Shape letters: U = users, I = items, K = length of a list.

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ids = NDArray[np.int64]
Scores = NDArray[np.float32]
NONE = -1
"""Item id of an empty place in a list."""
GROUP_ITEMS = 32
"""Neighbouring items that are looked at together in the search for the best ones."""
LAST_ID = (1 << 31) - 1


@dataclass(frozen=True)
class TopK:
    """Lists of several users.

    Args:
        item: (U, K) int64 dense ids, best first; NONE where too few items remain.
        score: (U, K) float32; ratings or logits, as the model says.
        source: (U,) int8 index into scorer.SOURCES.
    """

    item: Ids
    score: Scores
    source: NDArray[np.int8]


def shared(lists: Ids, found: Ids) -> float | None:
    """Share of the items of (U, K) lists that are in (U, K) others; None of empty lists."""
    listed = lists != NONE
    same = (lists[:, :, None] == found[:, None, :]).any(axis=2)
    return float(same[listed].mean()) if listed.any() else None


def top_k(scores: Scores, k: int) -> tuple[Ids, Scores]:
    """The k best items of each user, by score, then by ascending item id.

    Args:
        scores: (U, I); -inf marks items that must not appear.
        k: Length of the lists, 1 <= k <= I.

    Returns:
        (U, K) items, NONE where too few remain, and (U, K) their scores.
    """
    item, best = best_of(scores, k)
    item[best == -np.inf] = NONE
    return item, best


def best_of(scores: Scores, k: int, item: Ids | None = None) -> tuple[Ids, Scores]:
    """top_k whose lists keep the ids of items at -inf, so that lists can be merged.

    Args:
        item: (U, I) ids of the columns, distinct in a row; 0..I-1 by default.
    """
    many = torch.from_numpy(scores)
    if item is None and scores.shape[1] >= 4 * GROUP_ITEMS * k:
        chosen, best = _best_of_groups(many, k)
    else:
        columns = torch.arange(scores.shape[1]) if item is None else torch.from_numpy(item)
        chosen, best = _best_by_key(many, k, columns)
    return chosen.numpy(), best.numpy()


def _best_by_key(scores: Tensor, k: int, item: Tensor) -> tuple[Tensor, Tensor]:
    place = torch.topk(_sort_keys(scores, item), k, dim=1)[1]
    return item.expand(scores.shape).gather(1, place), scores.gather(1, place)


def _sort_keys(scores: Tensor, item: Tensor) -> Tensor:
    """int64 numbers whose order is that of scores, and where they are equal of descending ids."""
    bits = (scores + 0.0).view(torch.int32)  # + 0.0, since -0.0 equals 0.0 but has other bits
    ordered = bits ^ ((bits >> 31) & LAST_ID)  # floats below 0 have their bits the other way round
    return (ordered.long() << 32) | (LAST_ID - item)


def _best_of_groups(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Look only into the k groups of neighbouring items that have the highest maxima.

    Each of them has an item that is no worse than all that is in other groups; where maxima are
    equal the earlier groups are taken, whose ids are lower. So no other group can be needed.
    """
    users, items = scores.shape
    groups = items // GROUP_ITEMS
    whole = groups * GROUP_ITEMS
    highest = scores[:, :whole].unflatten(1, (groups, GROUP_ITEMS)).amax(dim=2)
    chosen = torch.topk(_sort_keys(highest, torch.arange(groups)), k, dim=1)[1]
    inside = (chosen[:, :, None] * GROUP_ITEMS + torch.arange(GROUP_ITEMS)).flatten(1)
    rest = torch.arange(whole, items).expand(users, -1)
    item = torch.cat([inside, rest], dim=1)
    return _best_by_key(scores.gather(1, item), k, item)


def best_of_one(scores: Scores, k: int) -> tuple[Ids, Scores]:
    """best_of for one user, whose (1, I) scores are cut at the k-th best one, which is faster."""
    score_I = scores[0]
    ordered = score_I.copy()
    ordered.partition(-k)
    item = (score_I >= ordered[-k]).nonzero()[0]  # ascending, with all that tie with the k-th
    place = (-score_I[item]).argsort(kind="stable")[:k]
    chosen = item[place][None, :]
    return chosen, score_I[chosen]
