"""recray's own checkpoints: whole or absent, checked when read; Ray's are not used.

    RUN/run.json                     what this run is: settings, data, workers; written first
    RUN/epochs.json                  the history so far, for people and progress bars
    RUN/checkpoints/epoch-00007/     weights, optimizer state, state.json, manifest last
    RUN/checkpoints/epoch-00007-step-000000120/   the same with losses, from inside the next epoch
    RUN/manifest.json                written when the run has finished

The names of checkpoints are for people. What a checkpoint holds is said by its state.json alone.
Randomness is a function of (seed, epoch, rank), so the epoch number is all of its state.
"""

import json
import logging
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import Protocol

import safetensors.torch
from pydantic import JsonValue, TypeAdapter, ValidationError
from torch import Tensor

from recray.config import build_settings, translated
from recray.errors import DamagedFile, RecrayError
from recray.inference.bundle_writer import TrainedModel
from recray.storage import MANIFEST, UNFINISHED, Folder, moved, publish, refuse_taken
from recray.training.run_metadata import (
    RUN_FORMAT,
    EpochEntry,
    RunMetadata,
    RunSummary,
    WorkerChange,
)

CHECKPOINTS = "checkpoints"
EPOCHS = "epochs.json"
RUN = "run.json"
STATE = "state.json"
KIND = "run"
logger = logging.getLogger("recray")


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


_STATE = TypeAdapter(TrainState)


@dataclass(frozen=True)
class Checkpoint:
    """The content of one checkpoint.

    Args:
        weights: The model's weights by name.
        optimizer: The optimizer's tensors by name.
        train_state: How far the run has come.
        losses: (workers, steps) float64 each worker's losses of the epoch that is going on.
    """

    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    train_state: TrainState
    losses: Tensor | None = None

    def check_compatible(
        self, expected: Mapping[str, Tensor], path: str, any_length: Collection[str] = ()
    ) -> None:
        """Refuse a checkpoint at `path` whose weights are not the model's, which are `expected`.

        Those named in `any_length` may be as long as they are.

        Raises:
            RecrayError: A name or a shape differs.
        """
        found, own = ({n: tuple(t.shape) for n, t in w.items()} for w in (self.weights, expected))
        for name in sorted(found.keys() | own.keys()):
            if found.get(name) != own.get(name) and name not in any_length:
                raise RecrayError(
                    f"{path} holds a checkpoint of another model: {name} is "
                    f"{_shape(found.get(name))}, this model's is {_shape(own.get(name))}"
                )


class CheckpointStore(Protocol):
    """Where a run keeps its checkpoints; see RunFolder."""

    def latest(self, warn: bool = True) -> Checkpoint | None:
        """The newest one that can be read."""

    def save(self, checkpoint: Checkpoint) -> None:
        """Keep one."""


class RunFolder:
    """A run on disk.

    Args:
        path: Local path or URI.
    """

    def __init__(self, path: str) -> None:
        self.folder = Folder(path)
        self.checkpoints = self.folder.child(CHECKPOINTS)
        self._written: dict[str, TrainState] = {}  # no need to read these back at each save

    def __str__(self) -> str:
        return str(self.folder)

    def validate(self, metadata: RunMetadata, resume: bool) -> None:
        """Make sure that the folder is free for a run, or holds this very run; writes nothing.

        Raises:
            RecrayError: The folder holds something else, or a run and `resume` is not set.
        """
        holds_run = self.folder.exists(RUN)
        refuse_taken(self.folder, holds_run, "run", resume)
        if not holds_run:
            return
        difference = self.metadata().difference(metadata)
        if difference:
            raise RecrayError(
                f"{self.folder} is a run with other {difference}; give another folder"
            )

    def reserve(self, metadata: RunMetadata, state: TrainState | None = None) -> None:
        """Make the folder this run's, before its first checkpoint; calling it again does no harm.

        Args:
            metadata: What the run is. Another number of workers than before is noted.
            state: How far it has come; None at its start.
        """
        if not self.folder.exists(RUN):
            self.folder.write_json(RUN, metadata.stored(self.folder.path))
            return
        before = self.metadata()
        if before.workers != metadata.workers:
            done = state.epoch if state is not None else 0
            first = WorkerChange(epoch=0, workers=before.workers)
            change = WorkerChange(epoch=done, workers=metadata.workers)
            changes = (*(before.changes or (first,)), change) if done else before.changes
            update = {"workers": metadata.workers, "changes": changes}
            self.folder.write_json(RUN, before.model_copy(update=update).stored(self.folder.path))
        if self.finished:  # its last checkpoints were damaged since
            self.folder.delete(MANIFEST)
        self._write_history(state or TrainState())
        for name in self.checkpoints.folders():  # what a kill left half written
            if name.startswith(UNFINISHED):
                self.checkpoints.delete(name)

    def metadata(self) -> RunMetadata:
        """Read what `reserve` wrote.

        Raises:
            RecrayError: There is no run, or another version of recray wrote it.
        """
        if not self.folder.exists(RUN):
            raise RecrayError(f"{self.folder} holds no run; make one with `recray train`")
        content = self.folder.read_json(RUN)
        _refuse_format(content, str(self.folder))
        settings = build_settings(translated(content["settings"]))
        prepared = moved.found(self.folder.path, "prepared", content)
        try:
            return RunMetadata(**content | {"settings": settings, "prepared": prepared})
        except ValidationError as error:
            raise DamagedFile(f"{self.folder}/{RUN} is damaged: {error}") from error

    def history(self) -> list[EpochEntry]:
        """Read the entries of all epochs so far."""
        entries: list[EpochEntry] = self.folder.read_json(EPOCHS)
        return entries

    def save(self, checkpoint: Checkpoint) -> None:
        """Publish a checkpoint; of the others only the best and the one before stay."""
        state = checkpoint.train_state
        target = self.checkpoints.child(_name(state))
        with publish(target, replace=True) as folder:
            folder.write_bytes("weights.safetensors", safetensors.torch.save(checkpoint.weights))
            folder.write_bytes(
                "optimizer.safetensors", safetensors.torch.save(checkpoint.optimizer)
            )
            if checkpoint.losses is not None:
                losses = {"losses": checkpoint.losses}
                folder.write_bytes("losses.safetensors", safetensors.torch.save(losses))
            folder.write_json(STATE, asdict(state))
            folder.write_manifest("checkpoint", {"format": RUN_FORMAT, "epoch": state.epoch})
        self._write_history(state)
        self._written[target.name] = state
        self._delete_outdated(state)

    def _delete_outdated(self, newest: TrainState) -> None:
        states = {name: state for state, name in self._states(self._written)[0]}
        keep = {newest.best_epoch, newest.epoch, newest.epoch - 1}
        # What the epoch before calls the best must be there in case the newest is damaged.
        before = (s for s in states.values() if _is_end_of(newest.epoch - 1, s))
        keep |= {state.best_epoch for state in before}
        for name, state in states.items():
            if name != _name(newest) and (state.step or state.epoch not in keep):
                self.checkpoints.delete(name)

    def _write_history(self, state: TrainState) -> None:
        self.folder.replace_bytes(EPOCHS, json.dumps(state.history, indent=1).encode())

    def latest(self, warn: bool = True) -> Checkpoint | None:
        """Read the newest checkpoint that is undamaged; None before the first epoch.

        Args:
            warn: Write one line to the log for each damaged one.

        Raises:
            RecrayError: There are checkpoints, and every one is damaged.
        """
        states, problems = self._states()
        newest: Checkpoint | None = None
        for _, name in states:
            try:
                newest = self._read(name)
                break
            except RecrayError as error:
                problems.append(error)
        if newest is None and problems:
            raise RecrayError(f"no checkpoint of {self.folder} can be read: {problems[-1]}")
        for problem in problems if warn else ():
            logger.warning("skipping a damaged checkpoint: %s", problem)
        return newest

    def train_state(self) -> TrainState:
        """Read how far the newest undamaged checkpoint has come.

        Raises:
            RecrayError: There are checkpoints, and every one is damaged.
        """
        newest = self.latest()
        return newest.train_state if newest else TrainState()

    def trained_model(self) -> TrainedModel:
        """Read the best weights so far, with every epoch of the run.

        Raises:
            RecrayError: There is no checkpoint yet.
        """
        best = self.best()
        return TrainedModel(best.weights, best.train_state.best_epoch, self.history())

    def best(self) -> Checkpoint:
        """Read the checkpoint with the best validation metric.

        Raises:
            RecrayError: There is none, or it is damaged.
        """
        newest = self.latest()
        if newest is None:
            raise RecrayError(f"{self.folder} has no checkpoint yet; train it first")
        best = newest.train_state.best_epoch
        if _is_end_of(best, newest.train_state):
            return newest
        for state, name in self._states()[0]:
            if _is_end_of(best, state):
                return self._read(name)
        return self._read(_name(TrainState(epoch=best)))  # says what is missing or damaged

    def _states(
        self, known: Mapping[str, TrainState] | None = None
    ) -> tuple[list[tuple[TrainState, str]], list[RecrayError]]:
        """States and names of all checkpoints, newest first, and the errors of unreadable ones.

        Args:
            known: States that need not be read, by name.
        """
        found: list[tuple[TrainState, str]] = []
        problems: list[RecrayError] = []
        for name in self.checkpoints.folders():
            if not name.startswith(UNFINISHED):
                try:
                    found.append(((known or {}).get(name) or self._state(name), name))
                except RecrayError as error:
                    problems.append(error)
        return sorted(found, key=lambda item: (item[0].epoch, item[0].step), reverse=True), problems

    def _state(self, name: str) -> TrainState:
        try:
            return _STATE.validate_python(self.checkpoints.child(name).read_json(STATE))
        except ValidationError as error:
            raise DamagedFile(f"{self.checkpoints}/{name}/{STATE} is damaged") from error

    def _read(self, name: str) -> Checkpoint:
        folder = self.checkpoints.child(name)
        _refuse_format(folder.verify().facts, str(folder))
        state = self._state(name)
        files = ["weights", "optimizer", *(["losses"] if state.step else [])]
        read = {
            file: safetensors.torch.load(folder.read_bytes(f"{file}.safetensors")) for file in files
        }
        losses = read["losses"]["losses"] if state.step else None
        return Checkpoint(read["weights"], read["optimizer"], state, losses)

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return self.folder.published()

    def finish(self, summary: RunSummary) -> None:
        """Mark the run as finished."""
        facts = self.metadata().stored(self.folder.path) | {"summary": summary.model_dump()}
        self.folder.write_manifest(KIND, facts)


def _is_end_of(epoch: int, state: TrainState) -> bool:
    """Whether a checkpoint was written at the end of that epoch, and not inside the next one."""
    return state.epoch == epoch and not state.step


def _name(state: TrainState) -> str:
    return f"epoch-{state.epoch:05d}" + (f"-step-{state.step:09d}" if state.step else "")


def _refuse_format(facts: Mapping[str, JsonValue], path: str) -> None:
    found = facts.get("format", RUN_FORMAT)
    if found != RUN_FORMAT:
        raise RecrayError(
            f"{path} was written by another version of recray: format {found}, this one reads "
            f"{RUN_FORMAT}; train again, or use that version"
        )


def _shape(shape: tuple[int, ...] | None) -> str:
    return "not there" if shape is None else " x ".join(map(str, shape)) or "a number"
