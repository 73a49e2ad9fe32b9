"""How alike items are, by their vectors; and lists re-ranked so that their items are less alike."""

# Shape letters: I = items, D = vector length, N = some of the items, P = items to choose from,
# K = length of a list.

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recray.models.base import Model

SHORTEST_VECTOR = 1e-12
"""Least length to divide by, so that a vector of zeros stays one."""
MMR_POOL_ITEMS = 300
"""Re-ranking chooses among this many of the best items, or four times the list if that is more."""


class ItemSimilarity:
    """Cosines of item vectors; the vectors stay the model's and are not copied.

    Args:
        vectors: (I, D).
    """

    def __init__(self, vectors: Tensor) -> None:
        self.vectors = vectors
        length = torch.linalg.vector_norm(vectors, dim=-1)
        self._length = length.clamp(min=SHORTEST_VECTOR)

    @classmethod
    def of(cls, model: Model) -> "ItemSimilarity | None":
        """Take the item vectors of a model; None if it has none."""
        vectors = model.item_vectors_for_similarity()
        return None if vectors is None else cls(vectors.detach())

    def unit_vectors(self, item: Tensor) -> Tensor:
        """(N,) items to their (N, D) vectors of length 1."""
        return self.vectors[item] / self._length[item, None]

    def cosines(self, item: int) -> Tensor:
        """(I,) cosines of all items with one."""
        unit_D = self.vectors[item] / self._length[item]
        return (self.vectors @ unit_D).div_(self._length)


def mmr_pool(k: int, items: int, diversity: float) -> int:
    """How many of the best items a list of k is chosen from."""
    return min(items, max(MMR_POOL_ITEMS, 4 * k)) if diversity else k


def mmr_rerank(
    unit: Tensor, score: NDArray[np.float32], k: int, diversity: float
) -> NDArray[np.int64]:
    """Choose k of P items, each the best balance of its score and its unlikeness to those before.

    Maximal marginal relevance: of the rest the item with the largest
    (1 - diversity) * score - diversity * likeness is next. Scores are scaled to 0..1 among the P;
    the likeness is the largest cosine with a chosen item.

    Args:
        unit: (P, D) item vectors of length 1, best score first.
        score: (P,) descending.
        k: Length of the list; all of them if fewer.
        diversity: 0..1.

    Returns:
        (K,) int64 places among the P.

    Source: Carbonell and Goldstein (1998), SIGIR, "The use of MMR".
    """
    vectors = unit.numpy()
    spread = float(score[0] - score[-1]) if len(score) else 0.0
    gain = (1 - diversity) * (score - score[-1:]) / max(spread, 1e-12)
    likeness = np.full(len(score), -1.0, np.float32)
    chosen: list[int] = []
    for _ in range(min(k, len(score))):
        value = gain - diversity * likeness
        value[chosen] = -np.inf
        chosen.append(int(value.argmax()))
        np.maximum(likeness, vectors @ vectors[chosen[-1]], out=likeness)
    return np.array(chosen, np.int64)
