"""Closed-form ridge from decayed pasts to what came next."""

# Shape letters: B = pairs, U = users, I = items, L = lags, W = window.

import numpy as np
import torch
from torch import Tensor

from recray.models.counts import ALONE, SCALE, Group, HistoryPairs, Whole, in_units
from recray.models.history import ClosedForm, RatingsCSR, refuse_large_catalogue


class NextRidge(ClosedForm):
    """Score of a pair: recent items of the history, decayed, times item-item weights.

    B = (X'X + ridge I)^-1 X'Y. A row of X is the past of one rating of a training history:
    decay^(j - 1) for the item j places before it, j up to the window. A row of Y is what came: 1
    for the next item, and ahead_decay^f for the one f places later, f below `ahead`. Column b of B
    is divided by (ratings of b)^popularity_power. A history scores by recent_decay^j for the item j
    places from its end, for its last `recent` items. Solving needs 20 to 30 bytes for each pair of
    items, the result 4.

    Args:
        users: Number of users.
        items: Number of items.
        window: Farthest places of a past.
        decay: Weight of an item one place farther back, 0 < decay <= 1.
        ahead: How many of the items that came are predicted.
        ahead_decay: Weight of an item that came one place later.
        recent: How many items of a history make its scores.
        recent_decay: Weight of an item one place earlier, 0 < recent_decay <= 1.
        popularity_power: 0: popular items stay; more: they are worth less.
        ridge: Weight of the squared weights, in ratings.

    Source: Choi, Kim, Lee, Shim and Lee (2021), WWW, "Session-aware linear item-item models for
        session-based recommendation": SLIT.
    """

    reads_order, reads_times = True, False

    def __init__(
        self,
        users: int,
        items: int,
        window: int = 13,
        decay: float = 0.81,
        ahead: int = 1,
        ahead_decay: float = 0.5,
        recent: int = 50,
        recent_decay: float = 0.79,
        popularity_power: float = 0.05,
        ridge: float = 430.0,
    ) -> None:
        super().__init__(users, items)
        refuse_large_catalogue("next-ridge", items)
        self.window, self.decay = window, decay
        self.ahead, self.ahead_decay = ahead, ahead_decay
        self.recent, self.recent_decay = recent, recent_decay
        self.popularity_power, self.ridge = popularity_power, ridge
        self.register_buffer("weight", torch.zeros(items, items))
        self.weight: Tensor

    def fit(self, histories: RatingsCSR, group: Group = ALONE) -> None:
        """Solve for the weights in float64."""
        pairs = HistoryPairs(histories.indptr, histories.item, self.items, group)
        gram = self._sums(pairs, range(self.window), past_units(self.window, self.decay))
        # Only pairs in their order were counted: the other half mirrors it.
        gram += gram.T.clone().fill_diagonal_(0.0)
        gram.diagonal().add_(self.ridge)
        units = self._next_units()
        came = self._sums(pairs, range(1, len(units) + 1), units)
        torch.linalg.cholesky(gram, out=gram)  # in place: another matrix of this size may not fit
        weight = torch.cholesky_solve(came, gram, out=came)
        weight /= torch.from_numpy(pairs.counts.clip(min=1)).double() ** self.popularity_power
        self.weight.copy_(weight)

    def _sums(self, pairs: HistoryPairs, lags: range, units: Whole) -> Tensor:
        """(I, I) float64 sums of the weights of pairs."""
        sums = torch.zeros(self.items, self.items, dtype=torch.float64)
        for row, column, count in pairs.blocks(lags, units):
            sums[torch.from_numpy(row), torch.from_numpy(column)] = torch.from_numpy(count / SCALE)
        return sums

    def _next_units(self) -> Whole:
        """(L, 1) weights in units of X'Y: of an item that stands so many places after a past one.

        One of the items that came, f places after the next, is at the places 1 + f to window + f
        from the items of the past.
        """
        past = self.decay ** np.arange(self.window, dtype=np.float64)
        future = self.ahead_decay ** np.arange(self.ahead, dtype=np.float64)
        return in_units(np.convolve(past, future))[:, None]

    def state_of(self, known: RatingsCSR) -> Tensor:
        """Weights of the last items of each history: (U, I) float32."""
        left = known.indptr[1:][known.row] - 1 - torch.arange(len(known.item))
        weight = torch.where(left < self.recent, self.recent_decay ** left.double(), 0.0)
        state = torch.zeros(len(known.indptr) - 1, self.items)
        state[known.row, known.item] = weight.float()
        return state

    def logits_block(self, state: Tensor, first: int, last: int) -> Tensor:
        """Scores of users for the items first..last-1: (U, I) to (U, last - first)."""
        return state @ self.weight[:, first:last]

    def logits(self, state: Tensor, item: Tensor) -> Tensor:
        """Scores of B pairs: (B, I) states and (B,) ids to (B,)."""
        return (state * self.weight[:, item].T).sum(dim=-1)


def past_units(window: int, decay: float) -> Whole:
    """(W, W + 1) weights in units of X'X: of two items so many places apart, with so many after.

    Both are in the past of a rating n places after the second one with decay^(n - 1) and
    decay^(n - 1 + apart), for every n while the first is within the window and ratings are left.
    """
    apart, left = np.arange(window)[:, None], np.arange(window + 1)[None, :]
    squares = decay ** (2 * np.arange(window, dtype=np.float64))
    together = np.concatenate([[0.0], squares.cumsum()])[np.minimum(window - apart, left)]
    return in_units(decay**apart * together)
