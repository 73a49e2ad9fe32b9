"""What a bundle knows of its users: every interaction, and which ones a measurement withholds.

`known` answers what lists leave out, `withheld` what a measurement looks for: two names, so that a
caller has to say which of the two is meant.
"""

# Shape letter: R = rows.

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recray import schema
from recray.data.dataset import Prepared, Ratings
from recray.data.ids import FIT_SPLITS, FitOn
from recray.data.split import TEST
from recray.inference.history import History, UserHistories
from recray.models.base import Model
from recray.models.history import HistoryModel

FILTERED = schema.INTERACTION_PARTS.index(schema.FILTERED)


class Histories(NamedTuple):
    """What of the interactions stands for what.

    Args:
        rated: What the states of users follow from.
        seen: What lists leave out.
        learned: What the model learned from, of the users of its training; and all that is known
            of the others.
    """

    rated: UserHistories
    seen: UserHistories
    learned: UserHistories


@dataclass(frozen=True)
class Interactions:
    """Every interaction of the users and items of a bundle.

    Args:
        rows: Sorted as Ratings are; each pair of user and item once.
        part: (R,) int8 code of schema.INTERACTION_PARTS of each row.
        fit_on: What the model learned from, as train.fit_on.
        users: Users that the model knows; those from here on were not in its training.
        items: Items that the model knows.
        all_users: Users that have an id.
    """

    rows: Ratings
    part: NDArray[np.int8]
    fit_on: FitOn
    users: int
    items: int
    all_users: int

    @property
    def known(self) -> Ratings:
        """All interactions: what lists leave out."""
        return self.rows

    @property
    def withheld(self) -> Ratings:
        """The test rows, which a measurement looks for and everything else knows."""
        return self.rows.where(self.part == TEST)

    @property
    def before_test(self) -> Ratings:
        """What is known while the test rows are withheld: train, valid and fold_in."""
        return self.rows.where((self.part != TEST) & (self.part != FILTERED))

    @property
    def used(self) -> Ratings:
        """What the model has learned from, or was chosen by."""
        return self.kept if self.fit_on == "all" else self.before_test

    @property
    def kept(self) -> Ratings:
        """All but the rows that a filter kept from training."""
        return self.rows.where(self.part != FILTERED)

    @property
    def filtered_history(self) -> History:
        """The rows of each user that a filter kept from training."""
        return History.of(self.rows.where(self.part == FILTERED), self.all_users, self.items)

    def for_service(self, model: Model) -> "Histories":
        """What answers follow from, and what lists leave out: everything that is known."""
        every = np.ones(len(self.part), bool)
        return self._histories(model, self.part != FILTERED, every)

    def for_measurement(self, model: Model, all_users: int = 0) -> "Histories":
        """What scores follow from, and what lists leave out, with the test rows withheld.

        Rows that a filter kept from training are no part of the protocol: they are ranked.

        Args:
            model: The model that is measured.
            all_users: Users that may be measured, if more than have an id here.
        """
        before = (self.part != FILTERED) & (self.part != TEST)
        return self._histories(model, before, before, all_users)

    def _histories(
        self,
        model: Model,
        may_learn: NDArray[np.bool_],
        seen: NDArray[np.bool_],
        all_users: int = 0,
    ) -> "Histories":
        trained = self.rows.user < self.users
        fitted = np.zeros(len(schema.INTERACTION_PARTS), bool)
        fitted[[schema.PARTS.index(name) for name in FIT_SPLITS[self.fit_on]]] = True
        learned = may_learn & (fitted[self.part] | ~trained)
        # A state that is a function of the history follows from all of it; a trained row does not.
        rated = may_learn if isinstance(model, HistoryModel) else learned
        made: list[tuple[NDArray[np.bool_], History]] = []

        def history(chosen: NDArray[np.bool_]) -> History:
            for mask, before in made:
                if (mask == chosen).all():
                    return before  # one copy in memory
            rows = self.rows if chosen.all() else self.rows.where(chosen)
            made.append(
                (chosen, History.of(rows, max(all_users, self.all_users), self.items, type(model)))
            )
            return made[-1][1]

        return Histories(history(rated), history(seen), history(learned))

    def emptied(self) -> "Interactions":
        """The same without any row."""
        none = Ratings.of(schema.RATINGS.empty_table())
        sizes = self.users, self.items, self.all_users
        return Interactions(none, np.zeros(0, np.int8), self.fit_on, *sizes)


def interactions_of(prepared: Prepared) -> tuple[Ratings, NDArray[np.int8]]:
    """All interactions of a data set, those that filters dropped as well, and (R,) their codes of
    schema.INTERACTION_PARTS; sorted as Ratings are.
    """
    parts = {code: prepared.load(name) for code, name in enumerate(schema.PARTS)}
    return joined_parts(parts | {FILTERED: prepared.load_known()})


def joined_parts(parts: dict[int, Ratings]) -> tuple[Ratings, NDArray[np.int8]]:
    """All rows, sorted as Ratings are, and the code of each row's part."""
    joined, order = Ratings.joined(list(parts.values()))
    codes = [np.full(len(rows), code, np.int8) for code, rows in parts.items()]
    return joined.where(order), np.concatenate(codes)[order]
