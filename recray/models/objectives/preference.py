"""What a rating says of liking: a target and a weight, the same for training, fold-in and reasons.

The squared loss of a rating is weight * (target - score)^2; the formulas of the other losses are
in recray.models.objectives.ranking.
"""

# Shape letters: R = ratings.

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from recray.config import ObjectiveSettings
from recray.errors import RecrayError

Scale = Literal["stars", "sign", "position", "counts"]
FULL_STARS = 4.0
"""Stars from which on a film is liked as much as one can: ml-100k's 4 and 5 differ in taste less
than users differ in how they use the two.
"""
NO_STARS, STEEPNESS = 0.75, 0.4
"""Below 2 stars the target falls from 0.5 by 0.4 a star: 0.1 at 1 star, 0 at 0.75."""
FULL_POSITION = 0.75
"""The same as a position between the lowest and the highest rating; 4 of 1..5 is there."""
MAX_RATING = 100.0
"""Highest value of a rating scale; what exceeds it is counted: plays, minutes."""
OFF_CENTRE = 0.05
"""How far the middle of a scale with negative ratings may be from 0, as a share of the scale."""


class Graded(NamedTuple):
    """What R ratings say of liking.

    Args:
        target: (R,) 0 for a dislike to 1 for a like.
        weight: (R,) how sure that is; None where each weighs 1.
    """

    target: Tensor
    weight: Tensor | None

    def rows(self, first: int, last: int) -> "Graded":
        """Those of the ratings first..last-1, without a copy."""
        weight = None if self.weight is None else self.weight[first:last]
        return Graded(self.target[first:last], weight)

    def times(self, factor: Tensor) -> "Graded":
        """The same with each weight times a (R,) factor."""
        return Graded(self.target, factor if self.weight is None else self.weight * factor)

    def at(self, places: Tensor) -> "Graded":
        """Those of the ratings at (B,) places."""
        return Graded(self.target[places], None if self.weight is None else self.weight[places])


@dataclass(frozen=True)
class Preference:
    """Turns ratings into targets and weights.

    Args:
        scale: What the ratings mean; None: a rating is a like, whatever its value (binary).
        low: Lowest training rating; only `position` uses it.
        high: Highest training rating; only `position` uses it.
    """

    scale: Scale | None = None
    low: float = 0.0
    high: float = 1.0

    @classmethod
    def of(cls, settings: ObjectiveSettings, low: float, high: float) -> "Preference":
        """Read the settings; where the scale is `auto`, the range decides.

        Raises:
            RecrayError: The scale is `auto`, and the range fits none.
        """
        if settings.preference == "binary" or low == high:
            return cls()
        scale = detect_scale(low, high) if settings.scale == "auto" else settings.scale
        return cls(scale, low, high)

    @classmethod
    def for_reasons(cls, settings: ObjectiveSettings, low: float, high: float) -> "Preference":
        """What ratings mean to a reader, also where the objective uses no scale or all values."""
        try:
            return cls.of(settings.model_copy(update={"preference": "graded"}), low, high)
        except RecrayError:  # nobody can tell which of them are dislikes
            return cls()

    def graded(self, rating: Tensor) -> Graded | None:
        """Targets and weights of (R,) ratings; None where both are 1 for each (binary)."""
        if self.scale is None:
            return None
        if self.scale == "stars":
            # One star says less than a quarter of a like: who gives it to ten films of a genre
            # would else be shown more of it, since 0.25 is above the score of most films.
            low = (rating - NO_STARS) * STEEPNESS
            return Graded(torch.minimum(rating / FULL_STARS, low).clamp(0, 1), None)
        if self.scale == "sign":
            return Graded((rating.sign() + 1) / 2, None)
        if self.scale == "position":
            return Graded((self._position(rating) / FULL_POSITION).clamp(0, 1), None)
        # Hu, Koren and Volinsky (2008), section 4: how often something was played says how sure it
        # is that the user likes it, and the logarithm keeps a favourite from outweighing the rest.
        return Graded((rating > 0).to(rating.dtype), 1 + rating.clamp(min=1).log())

    def speaks_for(self, rating: Tensor) -> Tensor:
        """(R,) bool: whether a rating is no dislike, and so may be the reason for an item."""
        if self.scale == "stars":
            return rating >= 3
        if self.scale == "position":
            return self._position(rating) >= 0.5
        if self.scale is None:
            return torch.ones_like(rating, dtype=torch.bool)
        return rating > 0

    def _position(self, rating: Tensor) -> Tensor:
        # No scale begins above 1: where 7 is the lowest of 7..10, the lower ratings are filtered.
        low = min(self.low, 1.0)
        return (rating - low) / (self.high - low)


BINARY = Preference()
"""Any rating is a like."""


def detect_scale(low: float, high: float, rating_levels: Collection[float] = ()) -> Scale:
    """Find what ratings mean, from the lowest and the highest one in training.

    Args:
        low: Lowest rating.
        high: Highest rating.
        rating_levels: All different ratings, where they are few; nothing where they are not known.

    Raises:
        RecrayError: Some are negative, and 0 is not the middle.
    """
    if low < 0:
        if rating_levels and all(level in (-1, 0, 1) for level in rating_levels):
            return "sign"
        if abs(low + high) / 2 > OFF_CENTRE * (high - low):
            raise RecrayError(
                f"ratings from {low:g} to {high:g}: below 0, and 0 is not the middle, so it cannot "
                "be told which of them are dislikes; give objective.scale=sign (below 0) or "
                "position (the lower half), or objective.preference=binary to use none of them"
            )
        return "position"
    if high > MAX_RATING:
        return "counts"
    return "stars" if low >= 0.5 and 4 <= high <= 5 else "position"
