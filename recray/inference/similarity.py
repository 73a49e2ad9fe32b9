"""How alike items are: the cosines of their vectors."""

# Shape letters: I = items, D = vector length, N = some of the items.

import torch
from torch import Tensor

from recray.models.base import Model

SHORTEST = 1e-12


class Directions:
    """Which way the vectors of items point; the vectors stay the model's, and are not copied.

    Args:
        vectors: (I, D).
    """

    def __init__(self, vectors: Tensor) -> None:
        self.vectors = vectors
        self._length = torch.linalg.vector_norm(vectors, dim=-1).clamp(min=SHORTEST)

    @classmethod
    def of(cls, model: Model) -> "Directions | None":
        """Those of a model; None if it has no item vectors."""
        vectors = model.item_vectors_for_similarity()
        return None if vectors is None else cls(vectors.detach())

    def unit(self, item: Tensor) -> Tensor:
        """(N,) items to their (N, D) vectors of length 1."""
        return self.vectors[item] / self._length[item, None]

    def cosines(self, item: int) -> Tensor:
        """(I,) cosines of all items with one."""
        own = self.vectors[item] / self._length[item]
        return (self.vectors @ own).div_(self._length)
