"""Models without personal preferences, which every evaluation compares a model with."""

# Shape letters: B = pairs in the batch, U = users, I = items.

import torch
from torch import Tensor

from recray.models.base import LinearModel, ScoreType, Statistics

SHRINKAGE_RATINGS = 5.0
"""Ratings of residual 0 that are added to each user and item before its mean is taken."""


class Popularity(LinearModel):
    """Score of a pair: the fraction of training ratings that the item has, for every user.

    Args:
        users: Number of users.
        items: Number of items.
        score_type: logit, since a fraction of ratings is no rating.
    """

    def __init__(self, users: int, items: int, score_type: ScoreType = "logit") -> None:
        super().__init__(users, items, score_type)
        self.register_buffer("share", torch.zeros(items))
        self.share: Tensor

    def init_from_statistics(self, statistics: Statistics) -> None:
        """Set each item's fraction of the ratings."""
        self.share.copy_(statistics.item_count / statistics.item_count.sum().clamp(min=1))

    def user_state(self, user: Tensor | slice) -> Tensor:
        """(U,) ids to (U, 1) zeros, since all users are alike."""
        return self.share.new_zeros(self.users, 1)[user]

    def item_rows(self, item: Tensor | slice) -> Tensor:
        """(I, 1) ones."""
        return torch.ones_like(self.share[item])[:, None]

    def item_offset(self, item: Tensor | slice) -> Tensor:
        """(I,) fractions."""
        return self.share[item]


class BiasOnly(LinearModel):
    """Rating of a pair: mean + item bias + user bias, both shrunk towards 0.

    bias = sum of residuals / (count + 5): items first, then users on the remaining residuals.

    Args:
        users: Number of users.
        items: Number of items.
        score_type: rating.

    Source: Koren (2010), ACM TKDD 4(1), section 2.1.
    """

    def __init__(self, users: int, items: int, score_type: ScoreType = "rating") -> None:
        super().__init__(users, items, score_type)
        for name, size in (("mean", ()), ("user_bias", (users,)), ("item_bias", (items,))):
            self.register_buffer(name, torch.zeros(size))
        self.mean: Tensor
        self.user_bias: Tensor
        self.item_bias: Tensor

    def init_from_statistics(self, statistics: Statistics) -> None:
        """Set the mean and the item biases; user biases need pairs, see fit_users."""
        self.mean.fill_(statistics.mean)
        count = statistics.item_count
        self.item_bias.copy_(
            (statistics.item_sum - statistics.mean * count) / (count + SHRINKAGE_RATINGS)
        )

    def fit_users(self, user: Tensor, item: Tensor, rating: Tensor) -> None:
        """Set the user biases from (R,) user ids, (R,) item ids and (R,) ratings."""
        residual = (rating - self.item_offset(item)).double()
        total = torch.zeros(self.users, dtype=torch.float64).index_add_(0, user, residual)
        count = torch.bincount(user, minlength=self.users)
        self.user_bias.copy_(total / (count + SHRINKAGE_RATINGS))

    def user_state(self, user: Tensor | slice) -> Tensor:
        """(U,) ids to (U, 1) biases."""
        return self.user_bias[user][:, None]

    def item_rows(self, item: Tensor | slice) -> Tensor:
        """(I, 1) ones, which multiply the user's bias."""
        return torch.ones_like(self.item_bias[item])[:, None]

    def item_offset(self, item: Tensor | slice) -> Tensor:
        """(I,) mean + item bias."""
        return self.mean + self.item_bias[item]
