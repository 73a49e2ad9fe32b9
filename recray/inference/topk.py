"""The best items of rows of scores: by score, then by ascending item id, exactly and fast."""

# Shape letters: U = users, I = items, K = length of a list, G = groups of items, C = candidates.

import torch
from torch import Tensor

NONE = -1
GROUP = 32
LOW = 32
LAST_ID = (1 << 31) - 1


def top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best items of each user, by score, then by ascending item id.

    Args:
        scores: (U, I) float32 scores; -inf marks items that must not appear.
        k: Length of the lists, 1 <= k <= I.

    Returns:
        (U, K) int64 items, NONE where too few remain, and (U, K) their scores.
    """
    item, best = best_of(scores, k)
    return item.masked_fill(torch.isneginf(best), NONE), best


def best_of(scores: Tensor, k: int, item: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """top_k whose lists keep the ids of items at -inf, so that lists can be merged.

    Args:
        scores: (U, I) float32 scores.
        k: Length of the lists, 1 <= k <= I.
        item: (U, I) or (I,) int64 ids of the columns, distinct in a row; 0..I-1 by default.

    Returns:
        (U, K) int64 items and (U, K) scores.
    """
    if item is None:
        if scores.shape[1] >= 4 * GROUP * k:
            return _best_of_groups(scores, k)
        item = torch.arange(scores.shape[1])
    place = torch.topk(_keys(scores, item), k, dim=1)[1]
    return item.expand(scores.shape).gather(1, place), scores.gather(1, place)


def _keys(scores: Tensor, item: Tensor) -> Tensor:
    """int64 numbers whose order is that of scores, and where they are equal of descending ids."""
    bits = (scores + 0.0).view(torch.int32)  # + 0.0, since -0.0 equals 0.0 but has other bits
    ordered = bits ^ ((bits >> 31) & LAST_ID)  # floats below 0 have their bits the other way round
    return (ordered.long() << LOW) | (LAST_ID - item)


def _best_of_groups(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Look only into the k groups of neighbouring items that have the highest maxima.

    Each of them has an item that is no worse than all that is in other groups; where maxima are
    equal the earlier groups are taken, whose ids are lower. So no other group can be needed.
    """
    users, items = scores.shape
    groups = items // GROUP
    whole = groups * GROUP
    highest = scores[:, :whole].unflatten(1, (groups, GROUP)).amax(dim=2)
    chosen = torch.topk(_keys(highest, torch.arange(groups)), k, dim=1)[1]
    inside = (chosen[:, :, None] * GROUP + torch.arange(GROUP)).flatten(1)
    rest = torch.arange(whole, items).expand(users, -1)
    item = torch.cat([inside, rest], dim=1)
    return best_of(scores.gather(1, item), k, item)
