"""Models that every evaluation compares a model with: popularity, biases, item-kNN and EASE.

The only training of item-kNN and EASE is to count which users have rated two items both. A new user
needs no fold-in: the history is the user state. Ratings are not used, only which items were rated.
"""

# Shape letters: B = pairs in the batch, U = users, I = items, J = items of a block, N = neighbours,
# H = history.

import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from recray.models.base import LinearModel, ScoreType, Statistics
from recray.models.counts import ALONE, Group
from recray.models.history import ClosedForm, RatingsCSR, refuse_large_catalogue

SHRINKAGE_RATINGS = 5.0
"""Ratings of residual 0 that are added to each user and item before its mean is taken."""
COUNT_BLOCK = 512  # items whose co-occurrences are counted at once
NEIGHBOURS = 200  # of each item
SHRINKAGE_USERS = 10.0
RIDGE_USERS = 300.0


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

    def predict(self, user: NDArray[np.int64], item: NDArray[np.int64]) -> NDArray[np.float32]:
        """Mean and known biases of pairs: (B,) and (B,) ids, unknown ones too, to (B,) ratings."""
        user_bias = np.append(self.user_bias.numpy(), 0.0)[np.minimum(user, self.users)]
        item_bias = np.append(self.item_bias.numpy(), 0.0)[np.minimum(item, self.items)]
        ratings: NDArray[np.float32] = (float(self.mean) + user_bias + item_bias).astype(np.float32)
        return ratings


class ItemItem(ClosedForm):
    """Score of a pair: the sum of weights from the items of the user's history to the item.

    A user state is the history itself, (U, items) of 0 and 1.
    """

    def state_of(self, known: RatingsCSR) -> Tensor:
        """(U, items) of 0 and 1: which items the users have."""
        state = torch.zeros(len(known.indptr) - 1, self.items)
        state[known.row, known.item] = 1.0
        return state


class Cooccurrence:
    """How many users have both of two items, computed by blocks of rows to bound memory.

    Args:
        histories: The ratings of this worker's users.
        items: Number of items.
        group: The workers.
    """

    def __init__(self, histories: RatingsCSR, items: int, group: Group = ALONE) -> None:
        users, item = len(histories.indptr) - 1, histories.item
        self.user, self.item, self.items, self.users = histories.row, item, items, users
        self.group = group
        indices = torch.stack([self.user, item])
        size = (users, items)
        self._all = _sparse(indices, size)
        self._by_item = torch.argsort(item, stable=True)
        own = torch.bincount(item, minlength=items)
        self._ends = torch.cat([own.new_zeros(1), own.cumsum(dim=0)]).tolist()
        self.counts = group.sum(own.clone())

    def rows(self, first: int, last: int) -> Tensor:
        """(last - first, items) float32 counts; exact, since they are whole numbers."""
        rated = self._by_item[self._ends[first] : self._ends[last]]
        indices = torch.stack([self.item[rated] - first, self.user[rated]])
        size = (last - first, self.users)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
            counts: Tensor = torch.sparse.mm(_sparse(indices, size), self._all).to_dense()
        return self.group.sum(counts)


def _sparse(indices: Tensor, size: tuple[int, int]) -> Tensor:
    """A sparse matrix of ones at (2, N) distinct indices."""
    ones = torch.ones(indices.shape[1])
    return torch.sparse_coo_tensor(indices, ones, size, check_invariants=True).coalesce()


class ItemKnn(ItemItem):
    """Score of a pair: sum of the similarities of the item's neighbours in the history.

    similarity of i and j = both / (sqrt(count i * count j) + shrink): the cosine of their columns,
    but for the shrinkage. Without it two rare items with one common user would be very similar.

    Args:
        users: Number of users.
        items: Number of items.
        neighbours: How many each item keeps; ties go to the lowest ids.
        shrink: Added to the divisor, in users.

    Source: Sarwar et al. (2001), WWW; as in Dacrema, Cremonesi and Jannach (2019), RecSys.
    """

    def __init__(
        self, users: int, items: int, neighbours: int = NEIGHBOURS, shrink: float = SHRINKAGE_USERS
    ) -> None:
        super().__init__(users, items)
        self.shrink, count = shrink, min(neighbours, items)
        self.register_buffer("neighbour", torch.zeros(items, count, dtype=torch.int64))
        self.register_buffer("weight", torch.zeros(items, count))
        self.neighbour: Tensor
        self.weight: Tensor

    def fit(self, histories: RatingsCSR, group: Group = ALONE) -> None:
        """Find each item's neighbours, a block of items at a time; see ClosedForm.fit."""
        both = Cooccurrence(histories, self.items, group)
        root = both.counts.double().sqrt()
        for first in range(0, self.items, COUNT_BLOCK):
            last = min(first + COUNT_BLOCK, self.items)
            near = both.rows(first, last) / (torch.outer(root[first:last], root) + self.shrink)
            near[torch.arange(last - first), torch.arange(first, last)] = 0.0
            near = near.float().nan_to_num()  # an item without users, and no shrinkage: 0 / 0
            nearest = _nearest(near, self.weight.shape[1])
            self.neighbour[first:last] = nearest
            self.weight[first:last] = near.gather(1, nearest)

    def logits_block(self, state: Tensor, first: int, last: int) -> Tensor:
        """Scores of users for the items first..last-1: (U, items) to (U, last - first)."""
        return functional.embedding_bag(
            self.neighbour[first:last],
            state.T.contiguous(),
            per_sample_weights=self.weight[first:last],
            mode="sum",
        ).T

    def logits(self, state: Tensor, item: Tensor) -> Tensor:
        """Scores of B pairs: (B, items) states and (B,) ids to (B,)."""
        return (state.gather(1, self.neighbour[item]) * self.weight[item]).sum(dim=-1)


class LastItemKnn(ItemKnn):
    """item-kNN of the last item of a history alone: what is similar to it."""

    reads_order = True

    def state_of(self, known: RatingsCSR) -> Tensor:
        """(U, items) of 0 and 1: which item came last."""
        begin, end = known.indptr[:-1], known.indptr[1:]
        user = (begin < end).nonzero()[:, 0]
        state = torch.zeros(len(begin), self.items)
        state[user, known.item[end[user] - 1]] = 1.0
        return state


def _nearest(near: Tensor, count: int) -> Tensor:
    """(J, N) ids of the largest of (J, I) similarities, ascending; ties go to the lowest ids."""
    # torch.topk breaks ties in any order. The bits of float32 numbers that are not negative, read
    # as int32, have the order of the numbers. So the bits in the upper half and the reversed id in
    # the lower half of an int64 make a key without ties.
    key = near.view(torch.int32).long() << 32 | torch.arange(near.shape[1]).flip(0)
    return torch.topk(key, count, dim=1)[1].sort(dim=1)[0]


class Ease(ItemItem):
    """Score of a pair: history times the item-item weights that best reproduce the histories.

    B = argmin |X - X B|^2 + ridge |B|^2 with diagonal 0, in closed form: P = (X'X + ridge I)^-1,
    B_ij = -P_ij / P_jj. Solving needs 20 to 30 bytes for each pair of items, the result 4.

    Args:
        users: Number of users.
        items: Number of items.
        ridge: Weight of the squared weights, in users.

    Source: Steck (2019), WWW, "Embarrassingly shallow autoencoders for sparse data".
    """

    def __init__(self, users: int, items: int, ridge: float = RIDGE_USERS) -> None:
        super().__init__(users, items)
        refuse_large_catalogue("ease", items)
        self.ridge = ridge
        self.register_buffer("weight", torch.zeros(items, items))
        self.weight: Tensor

    def fit(self, histories: RatingsCSR, group: Group = ALONE) -> None:
        """Solve for the weights in float64; see ClosedForm.fit."""
        both = Cooccurrence(histories, self.items, group)
        gram = torch.empty(self.items, self.items, dtype=torch.float64)
        for first in range(0, self.items, COUNT_BLOCK):
            last = min(first + COUNT_BLOCK, self.items)
            gram[first:last] = both.rows(first, last)
        gram.diagonal().add_(self.ridge)
        torch.linalg.cholesky(gram, out=gram)  # in place: another matrix of this size may not fit
        inverse = torch.cholesky_inverse(gram)
        weight = inverse.div_(-inverse.diagonal().clone()[None, :])
        weight.fill_diagonal_(0.0)
        self.weight.copy_(weight)

    def logits_block(self, state: Tensor, first: int, last: int) -> Tensor:
        """Scores of users for the items first..last-1: (U, items) to (U, last - first)."""
        return state @ self.weight[:, first:last]

    def logits(self, state: Tensor, item: Tensor) -> Tensor:
        """Scores of B pairs: (B, items) states and (B,) ids to (B,)."""
        return (state * self.weight[:, item].T).sum(dim=-1)
