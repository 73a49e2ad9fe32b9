"""Folding in for models whose user state is a function of the history: it is that function."""

from torch import Tensor

from recray.errors import RecrayError
from recray.models.base import Model
from recray.models.history import ClosedForm, HistoryModel
from recray.models.objectives.base import Objective
from recray.models.objectives.fold_in import FoldIn, FoldInConfig


class FoldsByHistory(Objective):
    """An objective of history models."""

    def fold_in_solver(
        self, model: Model, config: FoldInConfig, popularity: Tensor | None = None
    ) -> FoldIn:
        """The state function of the model.

        Raises:
            ValueError: A caller's mistake: another kind of model.
        """
        if not isinstance(model, HistoryModel):
            raise ValueError(f"{type(model).__name__} does not score by history")
        return model.state_of


class ByHistory(FoldsByHistory):
    """The objective of models in closed form, which are fitted once, by ClosedForm.fit."""

    def check(self, model: Model) -> None:
        """Refuse a model that is trained by gradients.

        Raises:
            RecrayError: It is one.
        """
        if not isinstance(model, ClosedForm):
            raise RecrayError(
                f"objective.kind=closed-form does not train a {type(model).__name__}; use it with "
                "markov, next-ridge, ease, item-knn or recent-popular"
            )
