"""Models that learn nothing of taste; each real model is measured beside them."""

# Shape letters: B = pairs in the batch, U = users, I = items.

import torch
from torch import Tensor

from recray.models.base import LinearModel, ScoreType, Statistics

SHRINK = 5.0


class Popularity(LinearModel):
    """Score of a pair: the share of training ratings that the item has, whoever asks.

    Args:
        users: Number of users.
        items: Number of items.
        score_type: logit; the share is no rating.
    """

    def __init__(self, users: int, items: int, score_type: ScoreType = "logit") -> None:
        super().__init__(users, items, score_type)
        self.register_buffer("share", torch.zeros(items))
        self.share: Tensor

    def init_from_statistics(self, statistics: Statistics) -> None:
        """Take each item's share of the ratings."""
        self.share.copy_(statistics.item_count / statistics.item_count.sum().clamp(min=1))

    def user_state(self, user: Tensor | slice) -> Tensor:
        """(U,) ids to (U, 1) zeros: everybody is alike."""
        return self.share.new_zeros(self.users, 1)[user]

    def item_rows(self, item: Tensor | slice) -> Tensor:
        """(I, 1) ones."""
        return torch.ones_like(self.share[item])[:, None]

    def item_offset(self, item: Tensor | slice) -> Tensor:
        """(I,) shares."""
        return self.share[item]


class BiasOnly(LinearModel):
    """Rating of a pair: mean + item bias + user bias, both shrunk towards 0.

    bias = sum of residuals / (count + 5): items first, then users on what is left.

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
        """Take the mean and each item's deviation; user biases need pairs, see fit_users."""
        self.mean.fill_(statistics.mean)
        count = statistics.item_count
        self.item_bias.copy_((statistics.item_sum - statistics.mean * count) / (count + SHRINK))

    def fit_users(self, user: Tensor, item: Tensor, rating: Tensor) -> None:
        """Take each user's mean residual: (R,) ids, (R,) ids, (R,) stars."""
        residual = (rating - self.item_offset(item)).double()
        total = torch.zeros(self.users, dtype=torch.float64).index_add_(0, user, residual)
        count = torch.bincount(user, minlength=self.users)
        self.user_bias.copy_(total / (count + SHRINK))

    def user_state(self, user: Tensor | slice) -> Tensor:
        """(U,) ids to (U, 1) biases."""
        return self.user_bias[user][:, None]

    def item_rows(self, item: Tensor | slice) -> Tensor:
        """(I, 1) ones, which take up the user's bias."""
        return torch.ones_like(self.item_bias[item])[:, None]

    def item_offset(self, item: Tensor | slice) -> Tensor:
        """(I,) mean + item bias."""
        return self.mean + self.item_bias[item]
