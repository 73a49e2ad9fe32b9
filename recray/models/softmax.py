"""A deep network with one class for each rating level."""

# Shape letters: B = pairs in the batch, U = users, I = items, D = vector length, C = classes.

from collections.abc import Sequence

import torch
from torch import Tensor

from recray.models.base import Model, ScoreType, embedding_rows
from recray.models.factorization import embedding
from recray.models.neumf import Tower


class SoftmaxDnn(Model):
    """Class of a pair: softmax over rating levels of ReLU layers over user and item vector.

    With score_type=rating the score is the expected rating. With score_type=logit the last class
    means "not rated", and the score is the log-odds of being rated at all.

    Args:
        users: Number of users.
        items: Number of items.
        dim: Vector length D.
        layers: Widths of the layers, first to last.
        levels: The ratings that occur, ascending; each is a class.
        dropout: Fraction of each layer's values that training drops.
        score_type: Whether a score is a predicted rating or a logit.
        product: Whether the layers also see the element-wise product of the two vectors. ReLU
            layers alone learn a product slowly: Rendle et al. (2020), RecSys.
    """

    def __init__(
        self,
        users: int,
        items: int,
        dim: int,
        layers: Sequence[int],
        levels: Sequence[float],
        dropout: float = 0.0,
        score_type: ScoreType = "rating",
        product: bool = False,
    ) -> None:
        super().__init__(users, items, score_type)
        self.user_vectors = embedding(users, dim, 0.1)
        self.item_vectors = embedding(items, dim, 0.1)
        self.tower = Tower(dim, layers, len(levels) + (score_type == "logit"), dropout, product)
        self.register_buffer("levels", torch.tensor(list(levels), dtype=torch.float32))
        self.levels: Tensor

    @property
    def unobserved(self) -> int:
        """Number of the class "not rated", which exists with score_type=logit."""
        return len(self.levels)

    def class_of(self, rating: Tensor) -> Tensor:
        """(B,) ratings to (B,) int64 classes: the nearest level."""
        return (rating[:, None] - self.levels).abs().argmin(dim=-1)

    def user_state(self, user: Tensor) -> Tensor:
        """(U,) ids to (U, D) vectors."""
        return embedding_rows(self.user_vectors, user)

    def class_logits(self, state: Tensor, item: Tensor) -> Tensor:
        """(B, D) states and (B,) ids to (B, C) logits."""
        return self.tower.pairs(state, self.item_vectors(item))

    def logits(self, state: Tensor, item: Tensor) -> Tensor:
        """(B, D) states and (B,) ids to (B,) ratings, or log-odds of being rated."""
        return self._score(self.class_logits(state, item))

    def logits_block(self, state: Tensor, first: int, last: int) -> Tensor:
        """(U, D) states to (U, last - first) ratings, or log-odds of being rated."""
        return self._score(self.tower.block(state, self.item_vectors.weight[first:last]))

    def _score(self, classes: Tensor) -> Tensor:
        if self.score_type == "rating":
            return torch.softmax(classes, dim=-1) @ self.levels
        rated, unobserved = classes[..., : self.unobserved], classes[..., self.unobserved]
        return torch.logsumexp(rated, dim=-1) - unobserved

    def item_vectors_for_similarity(self) -> Tensor:
        """(items, D) vectors."""
        return self.item_vectors.weight
