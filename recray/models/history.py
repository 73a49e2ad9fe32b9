"""Models without a table of users: the state of a user follows from the history alone.

So somebody who is new is served by the very same function as somebody of the training, at once.
"""

# Shape letters: U = users, R = all their ratings, N = ratings of one user, S = length of a state.

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from recray.errors import RecrayError
from recray.models.base import Model, ScoreType
from recray.models.counts import ALONE, Group

ITEM_LIMIT = 12_000
"""Items above which a model that solves for every pair of them is refused."""
HISTORIES_AT_ONCE = 64
"""Histories without one rating whose states are held at once."""
ITEMS_FOR_A_PAIR = 64
"""Scores of all items in one product take less time than those of pairs, of which each copies the
state of its user, where a pair stands for fewer items than this.
"""


class RatingsCSR(NamedTuple):
    """The ratings of users as a sparse matrix in CSR form.

    Args:
        indptr: (U + 1,) int64; user u has the ratings indptr[u]..indptr[u + 1] - 1.
        item: (R,) int64 ids; a user has each at most once. Those of a user are in the order of
            time where a model reads it.
        rating: (R,) float32 ratings.
        time: (R,) int64 seconds, schema.UNKNOWN_TIME where unknown; None where no model reads it.
        now: (U,) int64 seconds when each list is asked for; None: when the last rating came.
    """

    indptr: Tensor
    item: Tensor
    rating: Tensor
    time: Tensor | None = None
    now: Tensor | None = None

    @classmethod
    def one(cls, item: Tensor, rating: Tensor) -> Self:
        """One user with (N,) items and (N,) ratings."""
        return cls.of([(item, rating)])

    @classmethod
    def of(cls, users: Sequence[tuple[Tensor, Tensor]]) -> Self:
        """One or more users, each with (N,) items and (N,) ratings."""
        counts = torch.tensor([0, *(len(item) for item, _ in users)])
        items, ratings = zip(*users, strict=True)
        return cls(counts.cumsum(dim=0), torch.cat(items), torch.cat(ratings))

    @property
    def row(self) -> Tensor:
        """(R,) number of the user of each rating."""
        return torch.repeat_interleave(torch.arange(len(self.indptr) - 1), self.indptr.diff())

    def sums(self, value: Tensor) -> Tensor:
        """Sum (R,) values of ratings for each user: (U,)."""
        return value.new_zeros(len(self.indptr) - 1).index_add(0, self.row, value)

    def each(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The items and ratings of each user in turn."""
        for begin, end in pairwise(self.indptr.tolist()):
            yield self.item[begin:end], self.rating[begin:end]

    def blocks(self, ratings: int) -> Iterator["RatingsCSR"]:
        """Blocks of users with at most so many ratings in a block, but at least one user."""
        ends, first = self.indptr.tolist(), 0
        while first < len(ends) - 1:
            last = first + 1
            while last < len(ends) - 1 and ends[last + 1] - ends[first] <= ratings:
                last += 1
            yield self._users(first, last)
            first = last

    def _users(self, first: int, last: int) -> "RatingsCSR":
        """The ratings of the users first..last-1."""
        begin, end = (int(self.indptr[user]) for user in (first, last))
        return RatingsCSR(
            self.indptr[first : last + 1] - begin,
            self.item[begin:end],
            self.rating[begin:end],
            None if self.time is None else self.time[begin:end],
            None if self.now is None else self.now[first:last],
        )


class HistoryModel(Model):
    """A model whose user state is a function of the user's history.

    Args:
        users: Users of the training, whose lists come from the model; there is no row for them.
        items: Number of items.
        score_type: logit, or rating where scores are predicted ratings.
    """

    reads_order: ClassVar[bool] = False
    """Whether the state depends on the order of a user's ratings."""
    reads_times: ClassVar[bool] = False
    """Whether it depends on when they came, or on when the list is asked for."""

    def __init__(self, users: int, items: int, score_type: ScoreType = "logit") -> None:
        super().__init__(users, items, score_type)

    @abstractmethod
    def state_of(self, known: RatingsCSR) -> Tensor:
        """The (U, S) states of users with these ratings; each depends on its own user alone."""

    def user_state(self, user: Tensor | slice) -> Tensor:
        """There is no table of users.

        Raises:
            ValueError: Always; see state_of.
        """
        raise ValueError(f"{type(self).__name__} has no rows of users: see state_of")

    def share_of(self, known: RatingsCSR, item: Tensor) -> Tensor:
        """What scores of one user would lose without each of the ratings: leave-one-out.

        Without a rating those before it move one place towards the end. A share may be negative,
        and the shares of a score need not sum to it. It takes N + 1 states.

        Args:
            known: N ratings of one user; in order where it is read.
            item: (K,) int64 ids of the items that are scored.

        Returns:
            (N, K) float32: score(item | all) - score(item | all but one).
        """
        if known.now is None and known.time is not None and len(known.time):
            known = known._replace(now=known.time[-1:])  # also where the last one is left out
        places = torch.arange(len(known.item))
        (whole,) = self._scores_of(known, [places], item)
        shares = [
            whole - self._scores_of(known, [places[places != n] for n in block], item)
            for block in places.split(HISTORIES_AT_ONCE)
        ]
        return torch.cat(shares)

    def _scores_of(self, known: RatingsCSR, parts: list[Tensor], item: Tensor) -> Tensor:
        """(parts, K) scores of items for the ratings of one user at several sets of places."""
        indptr = torch.tensor([0, *(len(part) for part in parts)]).cumsum(dim=0)
        rows = torch.cat(parts)
        time = None if known.time is None else known.time[rows]
        now = None if known.now is None else known.now.expand(len(parts))
        state = self.state_of(RatingsCSR(indptr, known.item[rows], known.rating[rows], time, now))
        if self.items <= ITEMS_FOR_A_PAIR * len(item):
            return self.logits_block(state, 0, self.items)[:, item]
        pairs = state.repeat_interleave(len(item), dim=0), item.repeat(len(parts))
        return self.logits(*pairs).view(len(parts), len(item))


class ClosedForm(HistoryModel):
    """A history model that is fitted once, from counts of what lies in the histories."""

    sized_by_data: ClassVar[tuple[str, ...]] = ()
    """Buffers whose length follows from the training ratings; loading takes any length."""

    @abstractmethod
    def fit(self, histories: RatingsCSR, group: Group = ALONE) -> None:
        """Compute the weights.

        What is summed over workers are whole numbers, so the weights are the same to the digit on
        each of them, and for any number of workers.

        Args:
            histories: Training ratings of the users of this worker.
            group: The workers.
        """

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **given: Any
    ) -> None:
        for name in self.sized_by_data:
            found = state_dict.get(f"{prefix}{name}")
            if found is not None:
                setattr(self, name, torch.empty_like(found))
        super()._load_from_state_dict(state_dict, prefix, *args, **given)


def refuse_large_catalogue(model: str, items: int) -> None:
    """Refuse to solve for every pair of items of a large catalogue.

    Raises:
        RecrayError: There are more items than ITEM_LIMIT.
    """
    if items > ITEM_LIMIT:
        beside = "markov" if model == "next-ridge" else "item-knn"
        raise RecrayError(
            f"{model} solves for every pair of items: {items:,} items are too many, "
            f"{ITEM_LIMIT:,} are allowed; use {beside}"
        )
