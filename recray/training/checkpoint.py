"""recray's own checkpoints: whole or absent, checked when read, none of Ray's.

    RUN/run.json                     what this run is: settings, data, workers; written first
    RUN/epochs.json                  the history so far, for people and progress bars
    RUN/checkpoints/epoch-00007/     weights, optimizer state, state.json, manifest last
    RUN/checkpoints/epoch-00007-step-000000120/   likewise, with the losses, inside the next epoch
    RUN/manifest.json                written when the run has finished

Randomness is a function of (seed, epoch, rank), so the epoch number is all of its state.
"""

import contextlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import safetensors.torch
from torch import Tensor

from recray.config import translated
from recray.errors import RecrayError
from recray.inference.bundle import TrainedModel
from recray.storage import MANIFEST, UNFINISHED, Folder, publish

CHECKPOINTS = "checkpoints"
EPOCHS = "epochs.json"
KIND = "run"
FORMAT = 1
"""Of run folders and checkpoints; another number is refused, not guessed at."""
log = logging.getLogger("recray")


@dataclass
class Progress:
    """How far a run has come.

    Args:
        epoch: Epochs done.
        step: Steps done of the epoch after these; 0 at its begin.
        best_epoch: The epoch with the best validation metric so far; 0 before the first.
        best_value: Its metric; None without validation rows.
        history: One entry per epoch: epoch, loss, validation metrics, and TIMINGS.
        stopped: Whether patience ran out.
    """

    epoch: int = 0
    best_epoch: int = 0
    best_value: float | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    stopped: bool = False
    step: int = 0

    def ended(self, epochs: int) -> bool:
        """Whether nothing is left to train of so many epochs."""
        return self.stopped or self.epoch >= epochs


@dataclass(frozen=True)
class Checkpoint:
    """The content of one checkpoint.

    Args:
        weights: The model's weights by name.
        optimizer: What the optimizer knows, by name.
        progress: How far the run has come.
        losses: (workers, steps) float64 each worker's losses of the epoch that is going on.
    """

    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    progress: Progress
    losses: Tensor | None = None

    def refuse_misfit(self, expected: Mapping[str, Tensor], path: str) -> None:
        """Refuse weights that are not those of the model.

        Args:
            expected: The model's weights by name.
            path: Where the checkpoint lies.

        Raises:
            RecrayError: A name or a shape differs.
        """
        there, wanted = (
            {n: tuple(t.shape) for n, t in w.items()} for w in (self.weights, expected)
        )
        for name in sorted(there.keys() | wanted.keys()):
            if there.get(name) != wanted.get(name):
                raise RecrayError(
                    f"{path} holds a checkpoint of another model: {name} is "
                    f"{_shape(there.get(name))}, this model's is {_shape(wanted.get(name))}"
                )


class RunFolder:
    """A run on disk.

    Args:
        path: Local path or URI.
    """

    def __init__(self, path: str) -> None:
        self.folder = Folder(path)

    def check(self, facts: dict[str, Any], resume: bool) -> None:
        """Make sure that the folder is free for a run, or holds this very run; writes nothing.

        Args:
            facts: What the run is; compared on resuming.
            resume: Whether to go on with a run that is there.

        Raises:
            RecrayError: The folder holds something else, or a run and `resume` is not set.
        """
        if self.folder.exists("run.json"):
            before = self.facts()
            if not resume:
                raise RecrayError(
                    f"{self.folder} holds a run already; give --resume to continue it, "
                    "or another folder"
                )
            for name in ("dataset", "fingerprint", "settings"):
                if before.get(name) != json.loads(json.dumps(facts[name])):
                    raise RecrayError(
                        f"{self.folder} is a run with other {_words(name, before, facts)}; "
                        "give another folder"
                    )
            return
        if self.folder.files():
            raise RecrayError(f"{self.folder} is not empty and holds no run; give another folder")

    def claim(self, facts: dict[str, Any], progress: Progress | None = None) -> None:
        """Make the folder this run's, before its first checkpoint; again is fine.

        Args:
            facts: What the run is. Another number of workers than before is noted.
            progress: How far it has come; None at its start.
        """
        if not self.folder.exists("run.json"):
            self.folder.write_json("run.json", {"format": FORMAT, **facts})
            return
        before = self.facts()
        if before.get("workers") != facts["workers"]:
            done = progress.epoch if progress is not None else 0
            change = {"epoch": done, "workers": facts["workers"]}
            changes = [*before.get("changes", []), change] if done else []
            now = {"workers": facts["workers"], "changes": changes}
            self.folder.write_json("run.json", before | now)
        if self.finished:  # its last checkpoints were damaged since
            self.folder.delete_file(MANIFEST)
        self._write_history(progress or Progress())
        parent = self.folder.child(CHECKPOINTS)
        for name in parent.folders():  # what a kill left half written
            if name.startswith(UNFINISHED):
                parent.delete(name)

    def facts(self) -> dict[str, Any]:
        """What `claim` wrote.

        Raises:
            RecrayError: There is no run, or another version of recray wrote it.
        """
        if not self.folder.exists("run.json"):
            raise RecrayError(f"{self.folder} holds no run; make one with `recray train`")
        facts: dict[str, Any] = self.folder.read_json("run.json")
        _refuse_format(facts, str(self.folder))
        return facts | {"settings": translated(facts["settings"])}

    def save(self, checkpoint: Checkpoint) -> None:
        """Publish a checkpoint; of the others only the best and the one before stay."""
        progress = checkpoint.progress
        target = self.folder.child(CHECKPOINTS).child(_name(progress.epoch, progress.step))
        with publish(target, replace=True) as folder:
            folder.write_bytes("weights.safetensors", safetensors.torch.save(checkpoint.weights))
            folder.write_bytes(
                "optimizer.safetensors", safetensors.torch.save(checkpoint.optimizer)
            )
            if checkpoint.losses is not None:
                losses = {"losses": checkpoint.losses}
                folder.write_bytes("losses.safetensors", safetensors.torch.save(losses))
            folder.write_json("state.json", asdict(progress))
            folder.write_manifest("checkpoint", {"format": FORMAT, "epoch": progress.epoch})
        self._write_history(progress)
        parent = self.folder.child(CHECKPOINTS)
        keep = {progress.best_epoch, progress.epoch, progress.epoch - 1}
        # What the one before calls the best must be there if it is needed; damaged, it never is.
        with contextlib.suppress(RecrayError):
            keep.add(parent.child(_name(progress.epoch - 1)).read_json("state.json")["best_epoch"])
        kept = {target.name, *map(_name, keep)}
        for name in parent.folders():
            if name.startswith("epoch-") and name not in kept:
                parent.delete(name)

    def _write_history(self, progress: Progress) -> None:
        self.folder.replace_bytes(EPOCHS, json.dumps(progress.history, indent=1).encode())

    def latest(self, warn: bool = True) -> Checkpoint | None:
        """The newest checkpoint that is undamaged; None before the first epoch.

        Args:
            warn: Tell of each damaged one, a line in the log.

        Raises:
            RecrayError: There are checkpoints, and every one is damaged.
        """
        parent = self.folder.child(CHECKPOINTS)
        names = [n for n in reversed(parent.folders()) if n.startswith("epoch-")]
        problem: RecrayError | None = None
        for name in names:
            try:
                return self._read(name)
            except RecrayError as error:
                problem = error
                if warn:
                    log.warning("skipping a damaged checkpoint: %s", error)
        if problem is not None:
            raise RecrayError(f"no checkpoint of {self.folder} can be read: {problem}")
        return None

    def progress(self) -> Progress:
        """How far the newest undamaged checkpoint has come.

        Raises:
            RecrayError: There are checkpoints, and every one is damaged.
        """
        newest = self.latest()
        return newest.progress if newest is not None else Progress()

    def trained_model(self) -> TrainedModel:
        """The best weights so far, with every epoch of the run.

        Raises:
            RecrayError: There is no checkpoint yet.
        """
        best = self.best()
        return TrainedModel(best.weights, best.progress.best_epoch, self.folder.read_json(EPOCHS))

    def best(self) -> Checkpoint:
        """The checkpoint with the best validation metric.

        Raises:
            RecrayError: There is none, or it is damaged.
        """
        newest = self.latest()
        if newest is None:
            raise RecrayError(f"{self.folder} has no checkpoint yet; train it first")
        best = newest.progress.best_epoch
        same = newest.progress.epoch == best and not newest.progress.step
        return newest if same else self._read(_name(best))

    def _read(self, name: str) -> Checkpoint:
        folder = self.folder.child(CHECKPOINTS).child(name)
        _refuse_format(folder.verify(), str(folder))
        progress = Progress(**folder.read_json("state.json"))
        names = ["weights", "optimizer", *(["losses"] if progress.step else [])]
        read = {
            name: safetensors.torch.load(folder.read_bytes(f"{name}.safetensors")) for name in names
        }
        losses = read["losses"]["losses"] if progress.step else None
        return Checkpoint(read["weights"], read["optimizer"], progress, losses)

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return self.folder.published()

    def finish(self, summary: dict[str, Any]) -> None:
        """Mark the run as finished."""
        self.folder.write_manifest(KIND, summary)


def _name(epoch: int, step: int = 0) -> str:
    return f"epoch-{epoch:05d}" + (f"-step-{step:09d}" if step else "")


def _refuse_format(facts: dict[str, Any], path: str) -> None:
    found = facts.get("format", FORMAT)
    if found != FORMAT:
        raise RecrayError(
            f"{path} was written by another version of recray: format {found}, this one reads "
            f"{FORMAT}; train again, or use that version"
        )


def _shape(shape: tuple[int, ...] | None) -> str:
    return "not there" if shape is None else " x ".join(map(str, shape)) or "a number"


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """{"train.lr": 0.1, "preset": ...} of {"train": {"lr": 0.1}, "preset": ...}."""
    plain = json.loads(json.dumps(settings))
    groups = {group: values for group, values in plain.items() if isinstance(values, dict)}
    flat = {f"{group}.{key}": v for group, values in groups.items() for key, v in values.items()}
    return flat | {name: v for name, v in plain.items() if name not in groups}


def _words(name: str, before: dict[str, Any], now: dict[str, Any]) -> str:
    if name == "settings":
        old, new = (_flat(facts.get("settings", {})) for facts in (before, now))
        return "settings: " + ", ".join(
            f"{key}={old.get(key)!r} (now {new.get(key)!r})"
            for key in sorted(old.keys() | new.keys())
            if old.get(key) != new.get(key)
        )
    if name == "dataset":
        return f"data: {before.get(name)} (now {now[name]})"
    return f"data: {before.get('dataset')} has changed since it began"
