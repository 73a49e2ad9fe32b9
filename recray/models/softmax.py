"""A deep network over the rating levels that the data have."""

# Shape letters: B = pairs in the batch, U = users, I = items, D = vector length, C = classes.

from collections.abc import Sequence

import torch
from torch import Tensor

from recray.models.base import Model, ScoreType, Statistics
from recray.models.factorization import embedding
from recray.models.neumf import Tower


class SoftmaxDnn(Model):
    """Class of a pair: softmax over rating levels of ReLU layers over user and item vector.

    Returning stars it predicts the expected rating. Returning logits it has one class more,
    "unrated", the last one, and scores the log-odds of being rated at all.

    Args:
        users: Number of users.
        items: Number of items.
        dim: Vector length D.
        layers: Widths of the layers, first to last.
        levels: The ratings that occur, ascending, in stars; one class each.
        dropout: Share of each layer's values that training drops.
        score_type: Whether a score is a predicted rating or a logit.
        product: Whether the layers also see the two vectors multiplied number by number. ReLU
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

    def init_from_statistics(self, statistics: Statistics) -> None:
        """Nothing: the classes' shares are learned soon enough."""

    @property
    def unrated(self) -> int:
        """The class of pairs that nobody rated; there is one if the model returns logits."""
        return len(self.levels)

    def class_of(self, rating: Tensor) -> Tensor:
        """(B,) stars to (B,) int64 classes, the nearest level."""
        return (rating[:, None] - self.levels).abs().argmin(dim=-1)

    def user_state(self, user: Tensor) -> Tensor:
        """(U,) ids to (U, D) vectors."""
        return self.user_vectors(user)

    def classes(self, state: Tensor, item: Tensor) -> Tensor:
        """(B, D) states and (B,) ids to (B, C) logits."""
        return self.tower.pairs(state, self.item_vectors(item))

    def logits(self, state: Tensor, item: Tensor) -> Tensor:
        """(B, D) states and (B,) ids to (B,) stars, or log-odds of being rated."""
        return self._score(self.classes(state, item))

    def logits_block(self, state: Tensor, first: int, last: int) -> Tensor:
        """(U, D) states to (U, last - first) stars, or log-odds of being rated."""
        return self._score(self.tower.block(state, self.item_vectors.weight[first:last]))

    def _score(self, classes: Tensor) -> Tensor:
        if self.score_type == "rating":
            return torch.softmax(classes, dim=-1) @ self.levels
        rated, unrated = classes[..., : self.unrated], classes[..., self.unrated]
        return torch.logsumexp(rated, dim=-1) - unrated

    def item_vectors_for_similarity(self) -> Tensor:
        """(items, D) vectors."""
        return self.item_vectors.weight
