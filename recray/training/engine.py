"""How a run trains: which optimizer, on which rows, and what its workers exchange."""

from dataclasses import dataclass
from typing import Self

from recray.config import Settings, TrainSettings
from recray.training.rowwise import BREAK_EVEN, ROW_OPTIMIZERS


@dataclass(frozen=True)
class Engine:
    """What follows from the settings and the sizes of the data.

    Args:
        optimizer: Its name; auto is resolved.
        rowwise: Whether a step changes the rows only that its batch touches.
    """

    optimizer: str
    rowwise: bool

    @classmethod
    def of(cls, train: TrainSettings, rows: int, pairs: int | None, entries: int) -> Self:
        """Choose.

        A batch of more pairs than BREAK_EVEN of the tables' rows outgrows them: every row is
        updated, by a dense optimizer. Below that, rows that no pair of the batch has stay as they
        are: auto is lazy-adam, and sgd, which is the same either way, takes the touched rows.

        Args:
            train: The settings.
            rows: Ratings that all workers train on.
            pairs: Pairs of a rating: itself and its negatives; None where all items take part.
            entries: Users and items.
        """
        batch = rows if train.batch_size == "all" else min(rows, train.batch_size)
        dense = pairs is None or batch * pairs >= BREAK_EVEN * entries
        if train.optimizer == "auto":
            return cls("adam", False) if dense else cls("lazy-adam", True)
        if train.optimizer == "sgd":
            return cls("sgd", not dense)
        return cls(train.optimizer, train.optimizer in ROW_OPTIMIZERS)


def pairs_of(settings: Settings) -> int | None:
    """Pairs of a rating in a step: itself and its negatives; None where all items take part."""
    if not settings.ranks:
        return 1
    negatives = settings.objective.negatives
    return None if negatives == "all" else 1 + negatives
