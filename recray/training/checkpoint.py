"""recray's own checkpoints: whole or absent, checked when read, none of Ray's.

    RUN/run.json                     what this run is: settings, data, workers; written first
    RUN/epochs.json                  the history so far, for people and progress bars
    RUN/checkpoints/epoch-00007/     weights, optimizer state, state.json, manifest last
    RUN/manifest.json                written when the run has finished

Randomness is a function of (seed, epoch, rank), so the epoch number is all of its state.
"""

import json
import logging
from dataclasses import asdict, dataclass, field
from typing import Any

import safetensors.torch
from torch import Tensor

from recray.errors import RecrayError
from recray.storage import Folder, publish

CHECKPOINTS = "checkpoints"
EPOCHS = "epochs.json"
KIND = "run"
log = logging.getLogger("recray")


@dataclass
class Progress:
    """How far a run has come.

    Args:
        epoch: Epochs done.
        best_epoch: The epoch with the best validation metric so far; 0 before the first.
        best_value: Its metric; None without validation rows.
        history: One entry per epoch: epoch, loss, seconds, and validation metrics.
        stopped: Whether patience ran out.
    """

    epoch: int = 0
    best_epoch: int = 0
    best_value: float | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    stopped: bool = False


@dataclass(frozen=True)
class Checkpoint:
    """The content of one checkpoint."""

    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    progress: Progress


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
            before = self.folder.read_json("run.json")
            if not resume:
                raise RecrayError(
                    f"{self.folder} holds a run already; give --resume to continue it, "
                    "or another folder"
                )
            for name in ("dataset", "fingerprint", "settings"):
                if before[name] != json.loads(json.dumps(facts[name])):
                    raise RecrayError(
                        f"{self.folder} is a run with other {_words(name, before, facts)}; "
                        "give another folder"
                    )
            return
        if self.folder.files():
            raise RecrayError(f"{self.folder} is not empty and holds no run; give another folder")

    def claim(self, facts: dict[str, Any]) -> None:
        """Make the folder this run's, before its first checkpoint; again is fine."""
        if not self.folder.exists("run.json"):
            self.folder.write_json("run.json", facts)

    def facts(self) -> dict[str, Any]:
        """What `claim` wrote.

        Raises:
            RecrayError: There is no run.
        """
        if not self.folder.exists("run.json"):
            raise RecrayError(f"{self.folder} holds no run; make one with `recray train`")
        facts: dict[str, Any] = self.folder.read_json("run.json")
        return facts

    def save(self, checkpoint: Checkpoint) -> None:
        """Publish a checkpoint; of the others only the best and the one before stay."""
        progress = checkpoint.progress
        target = self.folder.child(CHECKPOINTS).child(_name(progress.epoch))
        with publish(target, replace=True) as folder:
            folder.write_bytes("weights.safetensors", safetensors.torch.save(checkpoint.weights))
            folder.write_bytes(
                "optimizer.safetensors", safetensors.torch.save(checkpoint.optimizer)
            )
            folder.write_json("state.json", asdict(progress))
            folder.write_manifest("checkpoint", {"epoch": progress.epoch})
        self.folder.replace_bytes(EPOCHS, json.dumps(progress.history, indent=1).encode())
        parent = self.folder.child(CHECKPOINTS)
        keep = {progress.best_epoch, progress.epoch, progress.epoch - 1}
        before = parent.child(_name(progress.epoch - 1))
        if before.exists("state.json"):  # what it calls the best must be there if it is needed
            keep.add(before.read_json("state.json")["best_epoch"])
        for name in parent.folders():
            if name.startswith("epoch-") and name not in map(_name, keep):
                parent.delete(name)

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that is undamaged; None before the first epoch.

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
                log.warning("skipping a damaged checkpoint: %s", error)
        if problem is not None:
            raise RecrayError(f"no checkpoint of {self.folder} can be read: {problem}")
        return None

    def best(self) -> Checkpoint:
        """The checkpoint with the best validation metric.

        Raises:
            RecrayError: There is none, or it is damaged.
        """
        newest = self.latest()
        if newest is None:
            raise RecrayError(f"{self.folder} has no checkpoint yet; train it first")
        best = newest.progress.best_epoch
        return newest if newest.progress.epoch == best else self._read(_name(best))

    def _read(self, name: str) -> Checkpoint:
        folder = self.folder.child(CHECKPOINTS).child(name)
        folder.verify()
        return Checkpoint(
            safetensors.torch.load(folder.read_bytes("weights.safetensors")),
            safetensors.torch.load(folder.read_bytes("optimizer.safetensors")),
            Progress(**folder.read_json("state.json")),
        )

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return self.folder.published()

    def finish(self, summary: dict[str, Any]) -> None:
        """Mark the run as finished."""
        self.folder.write_manifest(KIND, summary)


def _name(epoch: int) -> str:
    return f"epoch-{epoch:05d}"


def _words(name: str, before: dict[str, Any], now: dict[str, Any]) -> str:
    if name == "settings":
        changed = [
            f"{group}.{key}={values[key]!r} (now {now['settings'][group][key]!r})"
            for group, values in before["settings"].items()
            if isinstance(values, dict)
            for key in values
            if values[key] != now["settings"][group].get(key)
        ]
        return "settings: " + (", ".join(changed) or f"preset {before['settings']['preset']}")
    if name == "dataset":
        return f"data: {before[name]} (now {now[name]})"
    return f"data: {before['dataset']} has changed since it began"
