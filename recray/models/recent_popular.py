"""Popularity in a window of time: what was rated most in the days before a list is asked for."""

# Shape letters: B = pairs, U = users, I = items, N = days and items that occur together.

import numpy as np
import torch
from torch import Tensor

from recray.errors import RecrayError
from recray.models.base import refuse_outside
from recray.models.counts import ALONE, Group, merged, summed_by_key
from recray.models.history import ClosedForm, RatingsCSR
from recray.schema import UNKNOWN_TIME

DAY_S = 86_400


class RecentPopular(ClosedForm):
    """Score of a pair: ratings of the item in the days before `now`, for every user alike.

    Days are periods of 24 hours, counted back from the last rating of the training. The window is
    the last `days` of them that had ended by `now`: where `now` is later than the training, the
    last days of the training. No rating after `now` counts. Where the window says the same of two
    items, the one with more ratings in all comes first: their share, below 1, is added.

    A user state is (1,) number: the first day of the window, 0 for the last day of the training.

    Args:
        users: Number of users.
        items: Number of items.
        days: Length of the window.
    """

    reads_order, reads_times = True, True
    sized_by_data = ("day", "item", "ratings")

    def __init__(self, users: int, items: int, days: int = 30) -> None:
        super().__init__(users, items)
        self.days = days
        self.register_buffer("end", torch.zeros((), dtype=torch.int64))
        self.register_buffer("share", torch.zeros(items))
        for name in self.sized_by_data:
            self.register_buffer(name, torch.zeros(0, dtype=torch.int32))
        self.end: Tensor
        self.share: Tensor
        self.day: Tensor
        self.item: Tensor
        self.ratings: Tensor

    def fit(self, histories: RatingsCSR, group: Group = ALONE) -> None:
        """Count the ratings of each day and item.

        Raises:
            RecrayError: No training rating has a time.
        """
        time, item = _times(histories).numpy(), histories.item.numpy()
        counts = group.sum(torch.from_numpy(np.bincount(item, minlength=self.items)))
        known = time != UNKNOWN_TIME
        ends = torch.full((group.size,), 0, dtype=torch.int64)
        dated = torch.zeros(group.size, dtype=torch.int64)
        dated[group.rank] = int(known.sum())
        if known.any():
            ends[group.rank] = int(time[known].max())
        group.sum(ends), group.sum(dated)
        if not dated.any():
            raise RecrayError(
                "recent-popular needs times, and no training rating has one; use a source with "
                "times, or leave it out"
            )
        self.end.fill_(ends[dated > 0].max())
        key = (int(self.end) - time[known]) // DAY_S * self.items + item[known]
        key.sort()
        key, ratings = merged(*summed_by_key(key, np.ones_like(key)), group)
        for name, value in zip(
            self.sized_by_data, (key // self.items, key % self.items, ratings), strict=True
        ):
            setattr(self, name, torch.from_numpy(value.astype(np.int32)))
        self.share.copy_(counts / (counts.sum() + 1))

    def check_weights(self) -> None:
        """Compare the three columns of the counts; see Model."""
        if len({len(self.day), len(self.item), len(self.ratings)}) > 1:
            raise ValueError("day, item and ratings differ in length")
        if bool((self.day.diff() < 0).any()):
            raise ValueError("day does not ascend")
        refuse_outside("item", self.item, self.items)

    def state_of(self, known: RatingsCSR) -> Tensor:
        """The first day of each one's window: (U, 1) float32."""
        now = known.now
        if now is None:
            now = torch.full((len(known.indptr) - 1,), UNKNOWN_TIME)
            rated = known.indptr.diff() > 0
            now[rated] = _times(known)[known.indptr[1:][rated] - 1]
        past = (self.end - now).clamp(min=0)
        past[now == UNKNOWN_TIME] = 0
        # Rounded up: the day in which `now` lies has ratings that come after it.
        return ((past + DAY_S - 1) // DAY_S).float()[:, None]

    def logits_block(self, state: Tensor, first: int, last: int) -> Tensor:
        """Scores of users for the items first..last-1: (U, 1) to (U, last - first)."""
        begin, place = torch.unique(state[:, 0].long(), return_inverse=True)
        return self._windows(begin, first, last)[place]

    def logits(self, state: Tensor, item: Tensor) -> Tensor:
        """Scores of B pairs: (B, 1) states and (B,) ids to (B,)."""
        begin, place = torch.unique(state[:, 0].long(), return_inverse=True)
        return self._windows(begin, 0, self.items)[place, item]

    def _windows(self, begin: Tensor, first: int, last: int) -> Tensor:
        """Scores of the items first..last-1 in windows that begin on these days."""
        scores = self.share[first:last].repeat(len(begin), 1)
        edges = torch.stack([begin, begin + self.days], dim=1)
        edges = edges.clamp(max=torch.iinfo(self.day.dtype).max).to(self.day.dtype)
        for row, (low, high) in zip(
            scores, torch.searchsorted(self.day, edges).tolist(), strict=True
        ):
            item, ratings = self.item[low:high].long(), self.ratings[low:high]
            inside = (item >= first) & (item < last)
            row += torch.bincount(item[inside] - first, ratings[inside], last - first)
        return scores


def _times(known: RatingsCSR) -> Tensor:
    """(R,) int64 times; unknown ones where none were given."""
    if known.time is None:
        return torch.full((len(known.item),), UNKNOWN_TIME)
    return known.time
