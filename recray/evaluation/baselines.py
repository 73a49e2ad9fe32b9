"""What stands beside every model in an evaluation, fitted on the same history."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from recray.errors import RecrayError, unknown_name
from recray.inference.history import History
from recray.inference.scorer import Scorer
from recray.models.base import Model
from recray.models.baselines import Popularity
from recray.models.item_item import Ease, HistoryModel, ItemKnn
from recray.models.objectives import FoldIn, Objective
from recray.models.objectives.fold_in import fold_in_each

NAMES = ("popularity", "bias-only", "item-knn", "ease")
ITEM_LIMIT = 12_000
"""Above so many items EASE is refused, and item-kNN is measured only when asked for by name."""


class AsHistory(Objective):
    """Folding in for models whose user state is the history itself."""

    def check(self, model: Model) -> None:
        """Refuse every model: nothing is trained.

        Raises:
            ValueError: A caller's mistake.
        """
        raise ValueError(f"{type(model).__name__} is not trained by its history")

    def fold_in_solver(
        self, model: Model, noise: float, popularity: Tensor | None = None
    ) -> FoldIn:
        """Make the state of the items that a user rated; the ratings themselves are not used.

        Raises:
            ValueError: A caller's mistake: another kind of model.
        """
        if not isinstance(model, HistoryModel):
            raise ValueError(f"{type(model).__name__} does not score by history")
        state_of = model.state_of
        return fold_in_each(lambda item, _rating: state_of(item)[0])


def choose(asked: Iterable[str] | None, items: int) -> tuple[str, ...]:
    """The baselines to measure, in the order of NAMES.

    Args:
        asked: Names; None takes popularity, bias-only and, in a catalogue that is not too large,
            item-knn.
        items: Size of the catalogue.

    Raises:
        RecrayError: A name is unknown, none is given, or EASE is asked for where its memory grows
            too large.
    """
    if asked is None:
        return NAMES[:3] if items <= ITEM_LIMIT else NAMES[:2]
    names = set(asked)
    for name in sorted(names - set(NAMES)):
        raise unknown_name("baseline", name, NAMES)
    if not names:
        raise RecrayError(f"--baselines needs at least one of {', '.join(NAMES)}")
    if "ease" in names and items > ITEM_LIMIT:
        raise RecrayError(
            f"ease solves for every pair of items: {items:,} items are too many, {ITEM_LIMIT:,} "
            "are allowed; use item-knn"
        )
    return tuple(name for name in NAMES if name in names)


def build(names: Iterable[str], history: History, users: int, items: int) -> dict[str, Scorer]:
    """Fit baselines on the history of the users that training knows.

    Args:
        names: As choose returns them.
        history: What users have rated.
        users: Users that training knows.
        items: Items that training knows.
    """
    popularity = Popularity(users, items)
    popularity.init_from_statistics(history.statistics(users, items))
    popular = Scorer(popularity, None, history)

    def from_history(model: HistoryModel) -> Scorer:
        indptr = history.indptr[: users + 1]
        items_of_users = torch.tensor(history.item[: indptr[-1]], dtype=torch.int64)
        model.fit(torch.from_numpy(indptr), items_of_users)
        return Scorer(model, AsHistory(), history, popularity=popular.popularity)

    made: dict[str, Callable[[], Scorer]] = {
        "popularity": lambda: popular,
        "bias-only": lambda: Scorer(popular.bias_only, None, history),
        "item-knn": lambda: from_history(ItemKnn(users, items)),
        "ease": lambda: from_history(Ease(users, items)),
    }
    return {name: made[name]() for name in names}
