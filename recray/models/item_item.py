"""Models that score an item by the items in a user's history; item-kNN and EASE.

They need no training beyond counting who rated what, and nobody has to be folded in: whoever has a
history is scored by it, in training or not. Stars are not used.
"""

# Shape letters: B = pairs, U = users, I = items, J = items of a block, N = neighbours, H = history.

import warnings
from abc import abstractmethod

import torch
from torch import Tensor
from torch.nn import functional

from recray.models.base import Model

COUNT_BLOCK = 512
PAIR_BLOCK = 256
NEIGHBOURS = 200
SHRINK = 10.0
L2 = 300.0


class HistoryModel(Model):
    """Score of a pair: the sum of weights from the items of the user's history to the item.

    A user state is the history itself, (U, items) of 0 and 1.

    Args:
        users: Number of users.
        items: Number of items.
    """

    def __init__(self, users: int, items: int) -> None:
        super().__init__(users, items, "logit")
        self.begins = torch.zeros(users + 1, dtype=torch.int64)
        self.item = torch.zeros(0, dtype=torch.int64)

    def fit(self, begins: Tensor, item: Tensor) -> None:
        """Take the histories, and compute the weights from them.

        Args:
            begins: (users + 1,) int64; user u has the items begins[u]..begins[u + 1] - 1.
            item: (H,) int64 ids, each once for a user.
        """
        self.begins, self.item = begins, item
        self.fit_weights()

    @abstractmethod
    def fit_weights(self) -> None:
        """Compute the weights from the histories."""

    def user_state(self, user: Tensor) -> Tensor:
        """(U,) ids to (U, items) of 0 and 1."""
        count = self.begins[user + 1] - self.begins[user]
        row = torch.repeat_interleave(torch.arange(len(user)), count)
        first = torch.cat([count.new_zeros(1), count.cumsum(dim=0)])[row]
        place = self.begins[user][row] + torch.arange(len(row)) - first
        state = torch.zeros(len(user), self.items)
        state[row, self.item[place]] = 1.0
        return state

    def state_of(self, item: Tensor) -> Tensor:
        """(1, items) state of somebody with these items: (N,) ids."""
        state = torch.zeros(1, self.items)
        state[0, item] = 1.0
        return state

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        """Score B pairs: (B,) int64 ids and (B,) int64 ids to (B,) scores."""
        scores = [
            self.logits(self.user_state(u), i)
            for u, i in zip(user.split(PAIR_BLOCK), item.split(PAIR_BLOCK), strict=True)
        ]
        return torch.cat(scores)


class Cooccurrence:
    """How many users have both of two items, by blocks of rows, so that memory is bounded.

    Args:
        begins: (users + 1,) int64 as of HistoryModel.fit.
        item: (H,) int64 ids.
        items: Number of items.
    """

    def __init__(self, begins: Tensor, item: Tensor, items: int) -> None:
        users = len(begins) - 1
        self.user = torch.repeat_interleave(torch.arange(users), begins.diff())
        self.item, self.items, self.users = item, items, users
        cells = torch.stack([self.user, item])
        size = (users, items)
        self._all = _sparse(cells, size)
        self._by_item = torch.argsort(item, stable=True)
        self.counts = torch.bincount(item, minlength=items)
        self._ends = torch.cat([self.counts.new_zeros(1), self.counts.cumsum(dim=0)]).tolist()

    def rows(self, first: int, last: int) -> Tensor:
        """(last - first, items) float32 counts; exact, so the same whoever counts."""
        own = self._by_item[self._ends[first] : self._ends[last]]
        cells = torch.stack([self.item[own] - first, self.user[own]])
        size = (last - first, self.users)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
            return torch.sparse.mm(_sparse(cells, size), self._all).to_dense()


def _sparse(cells: Tensor, size: tuple[int, int]) -> Tensor:
    """Ones at (2, N) distinct cells."""
    ones = torch.ones(cells.shape[1])
    return torch.sparse_coo_tensor(cells, ones, size, check_invariants=True).coalesce()


class ItemKnn(HistoryModel):
    """Score of a pair: the similarities of the item's nearest neighbours that the user has.

    similarity of i and j = both / (sqrt(count i * count j) + shrink), the cosine of their columns
    but for the shrinkage, which keeps two rare items with one common user from being close.

    Args:
        users: Number of users.
        items: Number of items.
        neighbours: How many each item keeps; of equal ones those with the lowest ids.
        shrink: Added to the divisor, in users.

    Source: Sarwar et al. (2001), WWW; as in Dacrema, Cremonesi and Jannach (2019), RecSys.
    """

    def __init__(
        self, users: int, items: int, neighbours: int = NEIGHBOURS, shrink: float = SHRINK
    ) -> None:
        super().__init__(users, items)
        self.shrink, kept = shrink, min(neighbours, items)
        self.register_buffer("neighbour", torch.zeros(items, kept, dtype=torch.int64))
        self.register_buffer("weight", torch.zeros(items, kept))
        self.neighbour: Tensor
        self.weight: Tensor

    def fit_weights(self) -> None:
        """Find each item's neighbours, a block of items at a time."""
        both = Cooccurrence(self.begins, self.item, self.items)
        root = both.counts.double().sqrt()
        for first in range(0, self.items, COUNT_BLOCK):
            last = min(first + COUNT_BLOCK, self.items)
            near = both.rows(first, last) / (torch.outer(root[first:last], root) + self.shrink)
            near[torch.arange(last - first), torch.arange(first, last)] = 0.0
            near = near.float().nan_to_num()  # an item that nobody has, without shrinkage: 0 / 0
            place = _nearest(near, self.weight.shape[1])
            self.neighbour[first:last] = place
            self.weight[first:last] = near.gather(1, place)

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


def _nearest(near: Tensor, kept: int) -> Tensor:
    """(J, N) ids of the largest of (J, I) similarities, of equal ones the lowest; ids ascending."""
    # The bits of numbers from 0 on are ordered as they are; the id below them breaks ties.
    key = near.view(torch.int32).long() << 32 | torch.arange(near.shape[1]).flip(0)
    return torch.topk(key, kept, dim=1)[1].sort(dim=1)[0]


class Ease(HistoryModel):
    """Score of a pair: history times the item-item weights that best give each user's own row.

    B = argmin |X - X B|^2 + l2 |B|^2 with diagonal 0, in closed form: P = (X'X + l2 I)^-1,
    B_ij = -P_ij / P_jj. Needs 20 to 30 bytes for each pair of items while it is solved, 4 after.

    Args:
        users: Number of users.
        items: Number of items.
        l2: Weight of the squared weights, in users.

    Source: Steck (2019), WWW, "Embarrassingly shallow autoencoders for sparse data".
    """

    def __init__(self, users: int, items: int, l2: float = L2) -> None:
        super().__init__(users, items)
        self.l2 = l2
        self.register_buffer("weight", torch.zeros(items, items))
        self.weight: Tensor

    def fit_weights(self) -> None:
        """Solve for the weights, in float64."""
        both = Cooccurrence(self.begins, self.item, self.items)
        gram = torch.empty(self.items, self.items, dtype=torch.float64)
        for first in range(0, self.items, COUNT_BLOCK):
            last = min(first + COUNT_BLOCK, self.items)
            gram[first:last] = both.rows(first, last)
        gram.diagonal().add_(self.l2)
        torch.linalg.cholesky(gram, out=gram)
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
