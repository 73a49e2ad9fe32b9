"""Checkpoints of a run: whole or absent, checked when read, the rows of users by their workers."""

from recray.training.checkpoint.content import (
    OPTIMIZER,
    Checkpoint,
    CheckpointStore,
    TrainState,
    UserRows,
)
from recray.training.checkpoint.group import EPOCHS
from recray.training.checkpoint.run_folder import CHECKPOINTS, RUN, RunFolder

__all__ = [
    "CHECKPOINTS",
    "EPOCHS",
    "OPTIMIZER",
    "RUN",
    "Checkpoint",
    "CheckpointStore",
    "RunFolder",
    "TrainState",
    "UserRows",
]
