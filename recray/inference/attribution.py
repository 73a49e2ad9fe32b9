"""Why an item is in a list: what each rated item adds to its score."""

# Shape letters: N = ratings of one user, K = length of a list, S = length of a user state.

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from recray.inference.scorer import Ranker
from recray.inference.similarity import Directions
from recray.models.base import LinearModel
from recray.models.objectives import Contributions

SHOWN = 3
"""Rated items named for each recommended one."""
SAME = 1e-3


@dataclass(frozen=True)
class Reasons:
    """What speaks for the items of one list.

    Args:
        share: (N, K) what each rated item adds to the score of each item of the list.
        exact: Whether the shares and what does not depend on the ratings make up the scores;
            otherwise they are an estimate.
    """

    share: Tensor
    exact: bool

    def best(self, place: int) -> list[tuple[int, float]]:
        """The rated items that add most to one item: their places and their shares."""
        share, rated = torch.sort(self.share[:, place], descending=True, stable=True)
        pairs = zip(rated[:SHOWN].tolist(), share[:SHOWN].tolist(), strict=True)
        return [(place, value) for place, value in pairs if value > 0]


class Why:
    """Takes scores apart over the ratings behind them.

    Where folding in is a linear solve, a score is a sum over the ratings, and the shares are exact
    for whoever was folded in, or trained to the same optimum. Elsewhere they are the cosines of the
    item vectors, of the ratings that are not below the user's mean.

    Args:
        ranker: The model, its objective and its history.
        directions: Of the item vectors; None if the model has none.
    """

    def __init__(self, ranker: Ranker, directions: Directions | None) -> None:
        self.ranker, self.directions = ranker, directions

    @cached_property
    def _shares(self) -> Contributions | None:
        objective = self.ranker.objective
        return objective.contributions(self.ranker.model, self.ranker.noise) if objective else None

    @torch.no_grad()
    def reasons(self, state: Tensor, item: Tensor, rating: Tensor, shown: Tensor) -> Reasons:
        """What speaks for items of a list.

        Args:
            state: (1, S) state that the list was made from.
            item: (N,) rated items, each once.
            rating: (N,) stars.
            shown: (K,) items of the list.
        """
        model = self.ranker.model
        if self._shares is not None and isinstance(model, LinearModel) and len(item):
            base, parts = self._shares(item, rating)
            rows = model.item_rows(shown).to(parts.dtype)
            share = parts @ rows.T
            rest = rows @ base + model.item_offset(shown)
            score = model.logits(state.expand(len(shown), -1), shown)
            exact = torch.allclose(share.sum(dim=0) + rest, score.to(parts.dtype), SAME, SAME)
            return Reasons(share, bool(exact))
        return Reasons(self._likeness(item, rating, shown), False)

    def _likeness(self, item: Tensor, rating: Tensor, shown: Tensor) -> Tensor:
        if self.directions is None or not len(item):
            return torch.zeros(len(item), len(shown))
        liked = (rating >= rating.mean())[:, None]
        return (self.directions.unit(item) @ self.directions.unit(shown).T) * liked
