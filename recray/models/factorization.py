"""Dot products of user and item vectors: plain, with biases, with item features, and BPMF."""

# Shape letters: B = pairs in the batch, U = users, I = items, D = vector length, F = features,
# N = ratings of one user, S = length of a user state.

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from recray.errors import RecrayError
from recray.models.base import LinearModel, Model, Output, ScoreType, Statistics

SIDE_POWER = 0.25
"""A user with n rated items adds n^-SIDE_POWER times the sum of their side rows."""


def embedding(rows: int, dim: int, std: float) -> nn.Embedding:
    """Make a table of vectors that start as normal random numbers around 0."""
    table = nn.Embedding(rows, dim)
    nn.init.normal_(table.weight, std=std)
    return table


def embedding_rows(table: nn.Module, ids: Tensor | slice) -> Tensor:
    """Rows of a table, or of what stands for one; a slice gives a view, not a copy."""
    if not isinstance(table, nn.Embedding):
        rows: Tensor = table(ids)
        return rows
    if isinstance(ids, slice):
        return table.weight[ids]
    return torch.embedding(table.weight, ids)  # what nn.functional.embedding ends in


class VectorModel(Model):
    """A model with a vector for each user and for each item.

    Args:
        users: Number of users.
        items: Number of items.
        dim: Vector length D.
        std: Standard deviation of the numbers that the vectors start with.
        score_type: Whether a score is a predicted rating or a logit.
    """

    def __init__(self, users: int, items: int, dim: int, std: float, score_type: ScoreType) -> None:
        super().__init__(users, items, score_type)
        self.user_vectors = embedding(users, dim, std)
        self.item_vectors = embedding(items, dim, std)

    def user_state(self, user: Tensor | slice) -> Tensor:
        """(U,) ids to (U, D) vectors."""
        return embedding_rows(self.user_vectors, user)

    def item_vectors_for_similarity(self) -> Tensor:
        """(items, D) vectors."""
        return self.item_vectors.weight


class Dot(VectorModel, LinearModel):
    """Score of a pair: <user vector, item vector>.

    Args:
        users: Number of users.
        items: Number of items.
        dim: Vector length D.
        score_type: Whether a score is a predicted rating or a logit.

    Source: Hu, Koren and Volinsky (2008), ICDM, eq. 2.
    """

    def __init__(self, users: int, items: int, dim: int, score_type: ScoreType = "rating") -> None:
        super().__init__(users, items, dim, 0.1 * dim**-0.5, score_type)
        if score_type == "rating":  # the product itself is a rating, so it starts larger
            nn.init.normal_(self.user_vectors.weight, std=dim**-0.5)
            nn.init.normal_(self.item_vectors.weight, std=dim**-0.5)

    def item_rows(self, item: Tensor | slice) -> Tensor:
        """(I, D) item vectors."""
        return embedding_rows(self.item_vectors, item)

    def item_offset(self, item: Tensor | slice) -> Tensor:
        """Zero: a plain dot product has no offset."""
        weight = self.item_vectors.weight
        # Zeros of the right shape, made without a look at the rows: to read one number of each
        # would take as long as the product itself.
        if isinstance(item, slice):
            return weight.new_zeros(len(range(len(weight))[item]))
        return weight.new_zeros(item.shape)


class DotBias(VectorModel, LinearModel):
    """Rating of a pair: activation(mean + user bias + item bias + <user vector, item vector>).

    Args:
        users: Number of users.
        items: Number of items.
        dim: Vector length D.
        output: raw: the sum itself; sigmoid: between the lowest and the highest rating (the sum is
            then a logit, and `mean` is the logit of the mean rating).
        score_type: Whether a score is a predicted rating or a logit.

    Source: Koren, Bell and Volinsky (2009), IEEE Computer 42(8), eq. 4.
    """

    def __init__(
        self,
        users: int,
        items: int,
        dim: int,
        output: Output = "raw",
        score_type: ScoreType = "rating",
    ) -> None:
        super().__init__(users, items, dim, 0.1 * dim**-0.5, score_type)
        self.output: Output = output
        self.user_bias = nn.Embedding(users, 1)
        self.item_bias = nn.Embedding(items, 1)
        nn.init.zeros_(self.user_bias.weight)
        nn.init.zeros_(self.item_bias.weight)
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("range", torch.tensor([0.0, 1.0]))
        self.mean: Tensor
        self.range: Tensor

    def init_from_statistics(self, statistics: Statistics) -> None:
        """Set the mean and the range of the training ratings."""
        low, high = statistics.low, statistics.high
        self.range.copy_(torch.tensor([low, high]))
        scaled = (statistics.mean - low) / max(high - low, 1e-9)
        logit = torch.logit(torch.tensor(scaled, dtype=torch.float64), eps=1e-6)
        self.mean.fill_(statistics.mean if self.output == "raw" else float(logit))

    def user_state(self, user: Tensor | slice) -> Tensor:
        """(U,) ids to (U, D + 1): vector, then bias."""
        return torch.cat(
            [embedding_rows(self.user_vectors, user), embedding_rows(self.user_bias, user)], dim=-1
        )

    def item_rows(self, item: Tensor | slice) -> Tensor:
        """(I, D + 1): vector, then the 1 that multiplies the user's bias."""
        vectors = embedding_rows(self.item_vectors, item)
        return torch.cat([vectors, vectors.new_ones(len(vectors), 1)], dim=-1)

    def item_offset(self, item: Tensor | slice) -> Tensor:
        """(I,) mean + item bias."""
        return self.mean + self.item_bias.weight[item, 0]

    def activation(self, logits: Tensor) -> Tensor:
        """Ratings; with output=sigmoid between the lowest and the highest one."""
        if self.output == "raw":
            return logits
        return self.range[0] + (self.range[1] - self.range[0]) * torch.sigmoid(logits)


class MfNormalised(DotBias):
    """Rating of a pair: the item's mean + user bias + item bias + <user vector, item vector>.

    The ratings of an item are centred on their mean, so training learns the deviations.

    Args:
        users: Number of users.
        items: Number of items.
        dim: Vector length D.
        score_type: Whether a score is a predicted rating or a logit.

    Source: Ng, Machine Learning (Coursera 2011), lecture 16, mean normalisation.
    """

    item_buffers = ("item_mean",)

    def __init__(self, users: int, items: int, dim: int, score_type: ScoreType = "rating") -> None:
        super().__init__(users, items, dim, "raw", score_type)
        self.register_buffer("item_mean", torch.zeros(items))
        self.item_mean: Tensor

    def init_from_statistics(self, statistics: Statistics) -> None:
        """Set each item's mean; an item without ratings gets the overall mean."""
        super().init_from_statistics(statistics)
        count = statistics.item_count
        mean = torch.where(count > 0, statistics.item_sum / count.clamp(min=1), statistics.mean)
        self.item_mean.copy_(mean)

    def item_offset(self, item: Tensor | slice) -> Tensor:
        """(I,) item mean + item bias."""
        return self.item_mean[item] + self.item_bias.weight[item, 0]


class Hybrid(VectorModel, LinearModel):
    """Score of a pair: <user vector, item vector + sum of its features' vectors> + the same sum of
    biases. The genres and the decade of an item with few ratings decide where its vector lies.

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
        if not item_features:
            raise RecrayError(
                "model.kind=hybrid needs model.item_features, names of genres or decades"
            )
        std = dim**-0.5 if score_type == "rating" else 0.1
        super().__init__(users, items, dim, std, score_type)
        self.item_bias = nn.Embedding(items, 1)
        nn.init.zeros_(self.item_bias.weight)
        # A Parameter, not an Embedding: its rows belong to no user and to no item, and embeddings()
        # lists tables of users and items.
        self.feature_vectors = nn.Parameter(torch.zeros(len(item_features), dim))
        self.feature_bias = nn.Parameter(torch.zeros(len(item_features)))
        self.register_buffer("features", torch.zeros(items, len(item_features)))
        self.register_buffer("mean", torch.zeros(()))
        self.features: Tensor
        self.mean: Tensor

    def init_from_statistics(self, statistics: Statistics) -> None:
        """Start at the mean rating if the model predicts ratings."""
        if self.score_type == "rating":
            self.mean.fill_(statistics.mean)

    def describe_items(self, features: Tensor) -> None:
        """Set the (items, F) weights of the features of each item."""
        self.features.copy_(features)

    def item_rows(self, item: Tensor | slice) -> Tensor:
        """(I, D) item vectors plus the vectors of their features."""
        return embedding_rows(self.item_vectors, item) + self.features[item] @ self.feature_vectors

    def item_offset(self, item: Tensor | slice) -> Tensor:
        """(I,) mean plus item biases plus the biases of their features."""
        bias = self.item_bias.weight[item, 0]
        return self.mean + bias + self.features[item] @ self.feature_bias

    def prior_rows(self) -> Tensor:
        """(items, D) vectors that the features alone give; the prior mean of the item vectors."""
        return self.features @ self.feature_vectors

    def set_item_rows(self, rows: Tensor, weight: Tensor) -> None:
        """Split (items, D) whole vectors into vectors of features and vectors of items.

        The vectors of the features are the weighted ridge regression of the rows on the features;
        each item keeps its residual. The ridge is the mean weight.

        Args:
            rows: (items, D) vectors, such as an objective has solved for.
            weight: (items,) how strongly each vector is pulled to what its features give.
        """
        weighted = self.features * weight[:, None]
        ridge = torch.diag(weight.mean().expand(self.features.shape[1]))
        matrix = self.features.T @ weighted + ridge
        self.feature_vectors.copy_(torch.linalg.solve(matrix, weighted.T @ rows))
        self.item_vectors.weight.copy_(rows - self.prior_rows())

    def item_vectors_for_similarity(self) -> Tensor:
        """(items, D) vectors, features included."""
        return self.item_rows(slice(None))


class BPMFMean(DotBias):
    """Rating of a pair: mean + user bias + item bias + <user vector, item vector>.

    The tables hold posterior means, since a mean over samples of dot products is itself one dot
    product. The buffers hold the prior of a new user, given only which items they rated: the state
    is normal around prior_mean + n^-1/4 * (sum of the rows in taste_rows of their n items).

    Args:
        users: Number of users.
        items: Number of items.
        dim: Vector length D.
        score_type: Whether a score is a predicted rating or a logit.

    Source: Salakhutdinov and Mnih (2008), ICML, eq. 10, is the mean; the term of the
        rated items is that of Koren (2008), KDD, eq. 15.
    """

    item_buffers = ("taste_rows",)

    def __init__(self, users: int, items: int, dim: int, score_type: ScoreType = "rating") -> None:
        super().__init__(users, items, dim, "raw", score_type)
        state = dim + 1
        self.register_buffer("taste_rows", torch.zeros(items, state))
        self.register_buffer("prior_mean", torch.zeros(state))
        self.register_buffer("prior_precision", torch.eye(state))
        self.register_buffer("noise", torch.ones(()))
        self.taste_rows: Tensor
        self.prior_mean: Tensor
        self.prior_precision: Tensor
        self.noise: Tensor

    def prior_state(self, item: Tensor) -> Tensor:
        """(S,) prior mean of a user who rated (N,) items, each once; N may be 0."""
        scale: float = max(len(item), 1) ** -SIDE_POWER
        return self.prior_mean + self.taste_rows[item].sum(dim=0) * scale
