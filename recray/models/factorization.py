"""Dot products of user and item vectors, with and without biases."""

# Shape letters: B = pairs in the batch, U = users, I = items, D = vector length.

from typing import Literal

import torch
from torch import Tensor, nn

from recray.models.base import LinearModel, ScoreType, Statistics, rows_of


def embedding(rows: int, dim: int, std: float) -> nn.Embedding:
    """A table of vectors that start normal around 0."""
    table = nn.Embedding(rows, dim)
    nn.init.normal_(table.weight, std=std)
    return table


class Dot(LinearModel):
    """Score of a pair: <user vector, item vector>.

    Args:
        users: Number of users.
        items: Number of items.
        dim: Vector length D.
        score_type: Whether a score is a predicted rating or a logit.

    Source: Hu, Koren and Volinsky (2008), ICDM, eq. 2.
    """

    def __init__(self, users: int, items: int, dim: int, score_type: ScoreType = "rating") -> None:
        super().__init__(users, items, score_type)
        self.user_vectors = embedding(users, dim, 0.1 * dim**-0.5)
        self.item_vectors = embedding(items, dim, 0.1 * dim**-0.5)
        if score_type == "rating":  # the product itself must reach 1..5, so start larger
            nn.init.normal_(self.user_vectors.weight, std=dim**-0.5)
            nn.init.normal_(self.item_vectors.weight, std=dim**-0.5)

    def user_state(self, user: Tensor | slice) -> Tensor:
        """(U,) ids to (U, D) vectors."""
        return rows_of(self.user_vectors, user)

    def item_rows(self, item: Tensor | slice) -> Tensor:
        """(I, D) item vectors."""
        return rows_of(self.item_vectors, item)

    def item_offset(self, item: Tensor | slice) -> Tensor:
        """Zero: a plain dot product has no offset."""
        return self.item_vectors.weight[item, 0].detach() * 0

    def item_vectors_for_similarity(self) -> Tensor:
        """(items, D) vectors."""
        return self.item_vectors.weight


class DotBias(LinearModel):
    """Rating of a pair: link(mean + user bias + item bias + <user vector, item vector>).

    Args:
        users: Number of users.
        items: Number of items.
        dim: Vector length D.
        output: raw, the sum in stars itself; sigmoid, squeezed between the lowest and the highest
            rating (the sum is then a logit and the mean its value at the mean rating).
        score_type: Whether a score is a predicted rating or a logit.

    Source: Koren, Bell and Volinsky (2009), IEEE Computer 42(8), eq. 4.
    """

    def __init__(
        self,
        users: int,
        items: int,
        dim: int,
        output: Literal["raw", "sigmoid"] = "raw",
        score_type: ScoreType = "rating",
    ) -> None:
        super().__init__(users, items, score_type)
        self.output = output
        self.user_vectors = embedding(users, dim, 0.1 * dim**-0.5)
        self.item_vectors = embedding(items, dim, 0.1 * dim**-0.5)
        self.user_bias = nn.Embedding(users, 1)
        self.item_bias = nn.Embedding(items, 1)
        nn.init.zeros_(self.user_bias.weight)
        nn.init.zeros_(self.item_bias.weight)
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("range", torch.tensor([0.0, 1.0]))
        self.mean: Tensor
        self.range: Tensor

    def init_from_statistics(self, statistics: Statistics) -> None:
        """Take the mean and the range of the training ratings."""
        low, high = statistics.low, statistics.high
        self.range.copy_(torch.tensor([low, high]))
        share = (statistics.mean - low) / max(high - low, 1e-9)
        logit = torch.logit(torch.tensor(share, dtype=torch.float64), eps=1e-6)
        self.mean.fill_(statistics.mean if self.output == "raw" else float(logit))

    def user_state(self, user: Tensor | slice) -> Tensor:
        """(U,) ids to (U, D + 1): vector, then bias."""
        return torch.cat([rows_of(self.user_vectors, user), rows_of(self.user_bias, user)], dim=-1)

    def item_rows(self, item: Tensor | slice) -> Tensor:
        """(I, D + 1): vector, then the 1 that takes up the user's bias."""
        vectors = rows_of(self.item_vectors, item)
        return torch.cat([vectors, vectors.new_ones(len(vectors), 1)], dim=-1)

    def item_offset(self, item: Tensor | slice) -> Tensor:
        """(I,) mean + item bias."""
        return self.mean + self.item_bias.weight[item, 0]

    def activation(self, raw: Tensor) -> Tensor:
        """Stars; through the sigmoid if the output asks for it."""
        if self.output == "raw":
            return raw
        return self.range[0] + (self.range[1] - self.range[0]) * torch.sigmoid(raw)

    def item_vectors_for_similarity(self) -> Tensor:
        """(items, D) vectors."""
        return self.item_vectors.weight


class MfNormalised(DotBias):
    """Rating of a pair: the film's mean + user bias + item bias + <user vector, item vector>.

    Each film's training ratings are centred on their mean, so what is learned is the deviation.

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
        """Take each film's mean; a film without ratings gets the overall mean."""
        super().init_from_statistics(statistics)
        count = statistics.item_count
        mean = torch.where(count > 0, statistics.item_sum / count.clamp(min=1), statistics.mean)
        self.item_mean.copy_(mean)

    def item_offset(self, item: Tensor | slice) -> Tensor:
        """(I,) film mean + item bias."""
        return self.item_mean[item] + self.item_bias.weight[item, 0]
