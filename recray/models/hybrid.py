"""Vectors of items that are made of what is said of them, too."""

# Shape letters: U = users, I = items, D = vector length, F = features.

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from recray.models.base import LinearModel, ScoreType, Statistics, rows_of
from recray.models.factorization import embedding


class Hybrid(LinearModel):
    """Score of a pair: <user vector, item vector + sum of its features' vectors> + the same of
    biases. An item with few ratings is placed by its genres and its decade.

    Args:
        users: Number of users.
        items: Number of items.
        dim: Vector length D.
        item_features: Names of the F features.
        score_type: Whether a score is a predicted rating or a logit.

    Source: Kula (2015), CBRecSys, "Metadata embeddings for user and item cold-start
        recommendations" (LightFM).
    """

    item_buffers = ("features",)

    def __init__(
        self,
        users: int,
        items: int,
        dim: int,
        item_features: Sequence[str],
        score_type: ScoreType = "rating",
    ) -> None:
        super().__init__(users, items, score_type)
        std = dim**-0.5 if score_type == "rating" else 0.1
        self.user_vectors = embedding(users, dim, std)
        self.item_vectors = embedding(items, dim, std)
        self.item_bias = nn.Embedding(items, 1)
        nn.init.zeros_(self.item_bias.weight)
        # A Parameter and no Embedding: its rows belong to no user and to no item.
        self.feature_vectors = nn.Parameter(torch.zeros(len(item_features), dim))
        self.feature_bias = nn.Parameter(torch.zeros(len(item_features)))
        self.register_buffer("features", torch.zeros(items, len(item_features)))
        self.register_buffer("mean", torch.zeros(()))
        self.features: Tensor
        self.mean: Tensor

    def init_from_statistics(self, statistics: Statistics) -> None:
        """Start at the mean rating, where ratings are predicted."""
        if self.score_type == "rating":
            self.mean.fill_(statistics.mean)

    def describe_items(self, features: Tensor) -> None:
        """Take (items, F) weights of the features of each item."""
        self.features.copy_(features)

    def user_state(self, user: Tensor | slice) -> Tensor:
        """(U,) ids to (U, D) vectors."""
        return rows_of(self.user_vectors, user)

    def item_rows(self, item: Tensor | slice) -> Tensor:
        """(I, D) own vectors and those of the features."""
        return rows_of(self.item_vectors, item) + self.features[item] @ self.feature_vectors

    def item_offset(self, item: Tensor | slice) -> Tensor:
        """(I,) mean, own biases and those of the features."""
        own = self.item_bias.weight[item, 0]
        return self.mean + own + self.features[item] @ self.feature_bias

    def prior_rows(self) -> Tensor:
        """(items, D) what an item's features say of its vector."""
        return self.features @ self.feature_vectors

    def set_item_rows(self, rows: Tensor, weight: Tensor) -> None:
        """Take (items, D) whole vectors; the features' vectors are their weighted regression, and
        each item keeps what is left.

        A feature's vector is held back as an item of mean weight is.

        Args:
            rows: (items, D) vectors, such as an objective has solved for.
            weight: (items,) how strongly each vector is held to what its features say.
        """
        weighted = self.features * weight[:, None]
        ridge = torch.diag(weight.mean().expand(self.features.shape[1]))
        matrix = self.features.T @ weighted + ridge
        self.feature_vectors.copy_(torch.linalg.solve(matrix, weighted.T @ rows))
        self.item_vectors.weight.copy_(rows - self.prior_rows())

    def item_vectors_for_similarity(self) -> Tensor:
        """(items, D) vectors, features included."""
        return self.item_rows(slice(None))
