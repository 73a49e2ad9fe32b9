"""The interface of an objective: a loss for each rating, and fold-in of new users.

A model does not know its loss. An objective gives the loss of each row of a batch or, for implicit
ALS, exact solves of all rows of one side. Its `fold_in_solver` finds the user state that minimises
the objective for a user's ratings while the items stay as they are.
"""

# Shape letters: B = pairs in the batch, N = ratings of one user, K = negatives of a pair,
# S = length of a user state.

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor

from recray.config import Settings
from recray.errors import RecrayError
from recray.models.base import LinearModel, Model
from recray.models.batches import Batch
from recray.models.history import RatingsCSR
from recray.models.objectives.fold_in import FoldIn, FoldInConfig
from recray.models.objectives.preference import Preference

Contributions = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From (N,) items and (N,) ratings of one user to (S,), the state without ratings, and (N, S), what
each rating adds to the state.
"""


class Objective(ABC):
    """A loss with its parameters."""

    prior_strengths: tuple[float, ...] = ()
    """The values of FoldInConfig.prior_strength to choose from; the last is taken where no
    validation rows can tell. Empty where the prior of fold-in has no strength.
    """

    @abstractmethod
    def check(self, model: Model) -> None:
        """Refuse a model that the objective cannot train.

        Raises:
            RecrayError: They do not go together.
        """

    @property
    def default_prior_strength(self) -> float:
        """The strength where no validation rows can tell."""
        return self.prior_strengths[-1] if self.prior_strengths else 0.0

    @abstractmethod
    def fold_in_solver(
        self, model: Model, config: FoldInConfig, popularity: Tensor | None
    ) -> FoldIn:
        """Prepare fold-in: compute everything that does not depend on the new users' ratings.

        Args:
            model: A trained model.
            config: Noise and strength of the prior, from the bundle.
            popularity: (items,) ratings of each item in training; None will do where the objective
                neither draws negatives nor weighs pairs by it.

        Returns:
            A function from the ratings of U users to their (U, S) best states, items fixed. The
            state of a user does not depend on the other users in the call.
        """

    def contributions(
        self, model: Model, config: FoldInConfig, popularity: Tensor | None
    ) -> Contributions | None:
        """The folded-in state as a sum over ratings; None where it is no such sum. The arguments
        are those of fold_in_solver.
        """
        return None

    def fold_in(self, model: Model, item: Tensor, rating: Tensor, config: FoldInConfig) -> Tensor:
        """(1, S) state of one new user; for several users fold_in_solver is faster."""
        return self.fold_in_solver(model, config, None)(RatingsCSR.one(item, rating))


class PairLoss(Objective):
    """An objective that is a mean over observed ratings, minimised in batches.

    Args:
        l2: Weight of the squared rows of each pair.
    """

    def __init__(self, l2: float) -> None:
        self.l2 = l2

    @abstractmethod
    def row_loss(self, model: Model, batch: Batch) -> Tensor:
        """(B,) loss of each rating without the l2 penalty."""

    def loss(self, model: Model, batch: Batch) -> Tensor:
        """(B,) loss of each rating with the l2 penalty."""
        value = self.row_loss(model, batch)
        if not self.l2:
            return value
        return value + self.l2 * model.l2_penalty(batch.user, batch.item, batch.ids)


def build_objective(settings: Settings, low: float, high: float) -> Objective:
    """Build the objective of the settings.

    Args:
        settings: Its `objective` group and `train.l2` are used.
        low: Lowest training rating.
        high: Highest training rating.

    Raises:
        RecrayError: objective.scale=auto, and no scale fits these two.
        ValueError: train.l2 is auto.
    """
    from recray.models.objectives import OBJECTIVES  # not at the top: these import this module

    group, objective = settings.objective, OBJECTIVES[settings.objective.kind]
    if settings.train.l2 == "auto":
        raise ValueError("train.l2=auto has no number yet: see Settings.sized")
    values = {**group.model_dump(), "l2": settings.train.l2, "low": low, "high": high}
    values["negatives"] = None if isinstance(group.negatives, str) else group.negatives
    values["half_life"] = settings.data.half_life
    values["by_popularity"] = group.sampling == "popularity"
    names = inspect.signature(objective).parameters
    if "preference" in names:
        values["preference"] = Preference.of(group, low, high)
    return objective(**{name: values[name] for name in names})


def require_raw_output(model: Model, objective: str) -> None:
    """Refuse a model whose output passes a sigmoid.

    Raises:
        RecrayError: The output passes one.
    """
    if getattr(model, "output", "raw") != "raw":
        raise RecrayError(f"objective.kind={objective} needs model.output=raw; for sigmoid use bce")


def as_linear(model: Model) -> LinearModel:
    """Narrow the type of a model to one that is linear in the user state.

    Raises:
        ValueError: It is not linear; Objective.check refuses it before training.
    """
    if not isinstance(model, LinearModel):
        raise ValueError(f"{type(model).__name__} is not linear in the user's state")
    return model
