"""What a checkpoint holds, and what the training loop asks of the place where it is kept."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

from pydantic import TypeAdapter
from torch import Tensor

from recray.errors import RecrayError
from recray.training.own_users import OwnUsers
from recray.training.run_metadata import EpochEntry
from recray.training.shard import Workers

OPTIMIZER = "optimizer/"
"""What the names of a runner's rows begin with; those of weights are their own."""


@dataclass
class TrainState:
    """How far a run has come.

    Args:
        epoch: Epochs done.
        step: Steps done of the epoch after these; 0 at its begin.
        best_epoch: The epoch with the best validation metric so far; 0 before the first.
        best_value: Its metric; None without validation rows.
        history: One entry per epoch.
        stopped: Whether patience ran out.
    """

    epoch: int = 0
    best_epoch: int = 0
    best_value: float | None = None
    history: list[EpochEntry] = field(default_factory=list)
    stopped: bool = False
    step: int = 0

    @property
    def name(self) -> str:
        """The name of its checkpoint."""
        return f"epoch-{self.epoch:05d}" + (f"-step-{self.step:09d}" if self.step else "")

    def is_end_of(self, epoch: int) -> bool:
        """Whether it is that at the end of an epoch, and not inside the next one."""
        return self.epoch == epoch and not self.step


STATE_OF = TypeAdapter(TrainState)


@dataclass(frozen=True)
class UserRows:
    """Rows of the users of one worker, of the model and of its runner.

    Args:
        users: Whose rows.
        tensors: Rows in the order of these users, on the first axis: weights by their names, and
            those of the runner by "optimizer/" and theirs.
    """

    users: OwnUsers
    tensors: dict[str, Tensor]

    def by_part(self) -> Iterator[tuple[int, slice]]:
        """Yield each part and its rows."""
        for part, (begin, end) in zip(self.users.parts, pairwise(self.users.begins), strict=True):
            yield part, slice(begin, end)

    @property
    def weights(self) -> dict[str, Tensor]:
        """Those of the model."""
        return {k: t for k, t in self.tensors.items() if not k.startswith(OPTIMIZER)}

    @property
    def optimizer(self) -> dict[str, Tensor]:
        """Those of the runner, by its own names."""
        return {
            k.removeprefix(OPTIMIZER): t for k, t in self.tensors.items() if k.startswith(OPTIMIZER)
        }


@dataclass(frozen=True)
class Checkpoint:
    """The content of one checkpoint.

    Args:
        weights: The model's weights by name; without the users' where `users` has them.
        optimizer: The runner's tensors by name, of the same kind.
        train_state: How far the run has come.
        losses: (workers, steps) float64 each worker's losses of the epoch that is going on.
        users: Rows of the users of this worker; none where the model has none, and where
            `weights` has those of all users by dense id.
    """

    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    train_state: TrainState
    losses: Tensor | None = None
    users: UserRows = field(default_factory=lambda: UserRows(OwnUsers.of((), (), 0), {}))

    @property
    def model_weights(self) -> dict[str, Tensor]:
        """All weights of this worker's model."""
        return self.weights | self.users.weights

    def check_compatible(
        self, expected: Mapping[str, Tensor], path: str, any_length: Collection[str] = ()
    ) -> None:
        """Refuse a checkpoint at `path` whose weights are not the model's, which are `expected`.

        Those named in `any_length` may be as long as they are.

        Raises:
            RecrayError: A name or a shape differs.
        """
        given = (self.model_weights, expected)
        found, own = ({n: tuple(t.shape) for n, t in w.items()} for w in given)
        for name in sorted(found.keys() | own.keys()):
            if found.get(name) != own.get(name) and name not in any_length:
                raise RecrayError(
                    f"{path} holds a checkpoint of another model: {name} is "
                    f"{_shape(found.get(name))}, this model's is {_shape(own.get(name))}"
                )


class CheckpointStore(Protocol):
    """Where a run keeps its checkpoints; all workers of a group call each method at once."""

    def restore(
        self, users: OwnUsers, tables: Collection[str], workers: Workers
    ) -> Checkpoint | None:
        """The checkpoint to go on from, the same for all workers.

        Args:
            users: Those of this worker; it has their rows.
            tables: Names of the weights that have a row for each user.
            workers: The group.
        """

    def save(self, checkpoint: Checkpoint, workers: Workers) -> None:
        """Keep one, of which each worker gives its users' rows, and worker 0 all else."""


def _shape(shape: tuple[int, ...] | None) -> str:
    return "not there" if shape is None else " x ".join(map(str, shape)) or "a number"
