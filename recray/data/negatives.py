"""Negative items of pairs: uniform or by popularity, with or without the known positives."""

# Shape letters: B = pairs in the batch, K = negatives of a pair, I = items.

import copy
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from recray.errors import RecrayError

POPULARITY_POWER = 0.75
"""Mikolov et al. (2013): between uniform and proportional."""
REDRAWS = 10


@dataclass(frozen=True)
class Negatives:
    """Negatives of a batch.

    Args:
        item: (B, K) int64 ids.
        weight: (B, K) 1, or 0 where no item that the user has not rated was found.
        log_share: (I,) log of the chance of each item in one draw; a batch may have a part of them.
        items: Number of items that are drawn from.
    """

    item: Tensor
    weight: Tensor
    log_share: Tensor
    items: int


def sampling_probabilities(items: int, popularity: Tensor | None) -> Tensor:
    """(I,) chance of each item in one draw: uniform, or popularity to the power of 0.75."""
    if popularity is None:
        return torch.full((items,), 1.0 / items, dtype=torch.float64)
    weight = popularity.double().clamp(min=1) ** POPULARITY_POWER
    return weight / weight.sum()


class NegativeSampler:
    """Draws negatives for pairs; every epoch others.

    Args:
        items: Number of items.
        count: Negatives of a pair, K.
        popularity: (I,) ratings of each item; None draws uniformly.
        known: (R,) int64 ascending user * items + item of pairs that must not be drawn; None
            allows every item, which with many items hardly differs.

    Raises:
        RecrayError: The catalogue cannot give so many.
    """

    def __init__(
        self,
        items: int,
        count: int,
        popularity: Tensor | None = None,
        known: Tensor | None = None,
    ) -> None:
        if count >= items:
            raise RecrayError(
                f"objective.negatives={count}: the catalogue of {items} items gives fewer"
            )
        self.items, self.count, self.known = items, count, known
        chance = sampling_probabilities(items, popularity)
        self.log_share = chance.log().float()
        self.edges = None if popularity is None else chance.cumsum(dim=0)

    def to(self, device: torch.device) -> Self:
        """The same sampler in the memory of a device, where it draws."""
        moved = copy.copy(self)
        moved.log_share = self.log_share.to(device)
        moved.edges = None if self.edges is None else self.edges.to(device)
        moved.known = None if self.known is None else self.known.to(device)
        return moved

    def draw(self, user: Tensor, generator: torch.Generator) -> Negatives:
        """Draw K negatives for each of B users."""
        item = self._items(user.shape[0] * self.count, generator).view(-1, self.count)
        weight = torch.ones(item.shape, device=item.device)
        if self.known is None or not len(self.known):
            return Negatives(item, weight, self.log_share, self.items)
        for _ in range(REDRAWS):
            bad = self._is_known(user, item)
            if not bad.any():
                return Negatives(item, weight, self.log_share, self.items)
            item = item.masked_scatter(bad, self._items(int(bad.sum()), generator))
        weight[self._is_known(user, item)] = 0.0
        return Negatives(item, weight, self.log_share, self.items)

    @property
    def _device(self) -> torch.device:
        return self.log_share.device

    def _items(self, size: int, generator: torch.Generator) -> Tensor:
        if self.edges is None:
            return torch.randint(0, self.items, (size,), generator=generator, device=self._device)
        place = torch.rand(size, generator=generator, dtype=torch.float64, device=self._device)
        return torch.searchsorted(self.edges, place, right=True).clamp(max=self.items - 1)

    def _is_known(self, user: Tensor, item: Tensor) -> Tensor:
        known = self.known if self.known is not None else item.new_zeros(0)
        key = user[:, None] * self.items + item
        place = torch.searchsorted(known, key).clamp(max=len(known) - 1)
        return known[place] == key
