"""The mean of many samples of a Bayesian factorisation, as one dot product with biases."""

# Shape letters: N = ratings of one user, S = length of a user state, D = vector length.

import torch
from torch import Tensor

from recray.models.base import ScoreType
from recray.models.factorization import DotBias

TASTE_POWER = 0.25


class BPMFMean(DotBias):
    """Rating of a pair: mean + user bias + item bias + <user vector, item vector>.

    The tables hold posterior means: a mean over samples of dot products is itself one dot product.
    Beside them stands what is believed of somebody new, given only which items they rated:
    their state is normal around prior_mean + n^-1/4 * (sum of the taste rows of their n items).

    Args:
        users: Number of users.
        items: Number of items.
        dim: Vector length D.
        score_type: Whether a score is a predicted rating or a logit.

    Source: Salakhutdinov and Mnih (2008), ICML, eq. 10, is the mean that is held; the term of
        the rated items is that of Koren (2008), KDD, eq. 15.
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
        """(S,) mean state of those who rated these items: (N,) ids, each once; N may be 0."""
        taste = self.taste_rows[item].sum(dim=0) * max(len(item), 1) ** -TASTE_POWER
        return self.prior_mean + taste
