"""What a bundle knows of its users: every interaction, and which ones a measurement withholds.

`known` answers what lists leave out, `withheld` what a measurement looks for: two names, so that a
caller has to say which of the two is meant.
"""

# Shape letter: R = rows.

from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recray import schema
from recray.config import Settings
from recray.data.dataset import Prepared, Ratings, time_column
from recray.data.ids import FIT_SPLITS, FitOn
from recray.data.split import TEST, TRAIN
from recray.errors import DamagedFile
from recray.inference.checked_tables import NUMBERS, PART, check_rows, read_table, refuse_nulls
from recray.inference.history import History
from recray.models.base import Model
from recray.models.history import HistoryModel
from recray.storage import Folder

FILE = "interactions.parquet"
OF_BEFORE = ("history.parquet", "holdout.parquet")
"""Files of older bundles: train, valid and fold_in in the first, test in the second."""
FILTERED = schema.INTERACTION_PARTS.index(schema.FILTERED)


class Histories(NamedTuple):
    """What of the interactions stands for what.

    Args:
        rated: What the states of users follow from.
        seen: What lists leave out.
        learned: What the model learned from, of the users of its training; and all that is known
            of the others.
    """

    rated: History
    seen: History
    learned: History


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

    @classmethod
    def read(
        cls,
        folder: Folder,
        settings: Settings,
        users: int,
        items: int,
        all_users: int,
        all_items: int,
    ) -> Self:
        """Read the interactions of a bundle; of an older one, too, as it was written then.

        Raises:
            DamagedFile: A row has an id that there is not, or the file is damaged.
        """
        if folder.exists(FILE):
            table = read_table(folder, FILE, NUMBERS | PART)
            refuse_nulls(table, [*NUMBERS.keys() - {"timestamp"}], f"{folder}/{FILE}")
            part = table["part"].combine_chunks().dictionary_encode()
            names = part.dictionary.cast(pa.string())
            code = pc.index_in(names, pa.array(schema.INTERACTION_PARTS))
            if code.null_count or part.null_count:
                raise DamagedFile(f"{folder}/{FILE} is damaged: a row has an unknown part")
            rows = Ratings.of(table)
            codes = code.to_numpy().astype(np.int8)[part.indices.to_numpy()]
        else:
            tables = [read_table(folder, name, NUMBERS) for name in OF_BEFORE]
            before, test = map(Ratings.of, tables)
            # An older bundle does not say which rows validated, and takes all for training rows.
            rows, codes = _joined({TRAIN: before, TEST: test})
        check_rows(rows, all_users, all_items, f"{folder}/{FILE}")
        return cls(rows, codes, settings.train.fit_on, users, items, all_users)

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


def interaction_table(prepared: Prepared) -> pa.Table:
    """All interactions of a data set as schema.INTERACTIONS, those that filters dropped as well."""
    parts = {code: prepared.load(name) for code, name in enumerate(schema.PARTS)}
    rows, part = _joined(parts | {FILTERED: prepared.load_known()})
    times = time_column(rows.timestamp)
    names = pa.DictionaryArray.from_arrays(part, pa.array(schema.INTERACTION_PARTS))
    columns = [rows.user, rows.item, rows.rating, times, names]
    table = pa.table(columns, schema=schema.INTERACTIONS)
    return table if rows.place is None else table.append_column(schema.PLACE, [rows.place])


def _joined(parts: dict[int, Ratings]) -> tuple[Ratings, NDArray[np.int8]]:
    """All rows, sorted as Ratings are, and the code of each row's part."""
    joined, order = Ratings.joined(list(parts.values()))
    codes = [np.full(len(rows), code, np.int8) for code, rows in parts.items()]
    return joined.where(order), np.concatenate(codes)[order]
