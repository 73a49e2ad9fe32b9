"""recray's own checkpoints: whole or absent, checked when read; Ray's are not used.

    RUN/run.json                     what this run is: settings, data, workers; written first
    RUN/epochs.json                  the history so far, for people and progress bars
    RUN/checkpoints/epoch-00007/     see manifest.py
    RUN/checkpoints/epoch-00007-step-000000120/   the same with losses, from inside the next epoch
    RUN/manifest.json                written when the run has finished

The names of checkpoints are for people. What a checkpoint holds is said by its manifest alone.
Randomness is a function of (seed, epoch, rank), so the epoch number is all of its state.
"""

import logging
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import TypeVar

from pydantic import ValidationError

from recray.config import build_settings, translated
from recray.errors import DamagedFile, RecrayError
from recray.inference.bundle_writer import TrainedModel
from recray.storage import MANIFEST, Folder, ManifestEntry, moved, refuse_taken
from recray.training.checkpoint.content import Checkpoint, TrainState
from recray.training.checkpoint.files import verify_file
from recray.training.checkpoint.group import EPOCHS, OWNER, GroupCheckpoints, write_history
from recray.training.checkpoint.manifest import StoredCheckpoint, list_checkpoints, refuse_format
from recray.training.checkpoint.reading import read_shared, read_user_tables
from recray.training.own_users import OwnUsers
from recray.training.run_metadata import (
    RUN_FORMAT,
    EpochEntry,
    RunMetadata,
    RunSummary,
    WorkerChange,
)
from recray.training.shard import Workers

T = TypeVar("T")
CHECKPOINTS = "checkpoints"
RUN = "run.json"
KIND = "run"
logger = logging.getLogger("recray")


class RunFolder:
    """A run on disk.

    Args:
        path: Local path or URI.
        warn: Whether worker 0 writes to the log which checkpoints are damaged; the driver of a
            training has done so before its workers begin.
    """

    def __init__(self, path: str, warn: bool = True) -> None:
        self.warn = warn
        self.folder = Folder(path)
        self.checkpoints = self.folder.child(CHECKPOINTS)
        self._group: GroupCheckpoints | None = None

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
        self.validate(metadata, resume=True)  # another run may have begun here since
        before = self.metadata()
        if before.workers != metadata.workers:
            now = state or TrainState()
            first = WorkerChange(epoch=0, workers=before.workers)
            change = WorkerChange(epoch=now.epoch, workers=metadata.workers)
            begun = now.epoch > 0 or now.step > 0
            changes = (*(before.changes or (first,)), change) if begun else before.changes
            update = {"workers": metadata.workers, "changes": changes}
            self.folder.write_json(RUN, before.model_copy(update=update).stored(self.folder.path))
        if self.finished:  # its last checkpoints were damaged since
            self.folder.delete(MANIFEST)
        write_history(self.folder, state or TrainState())

    def metadata(self) -> RunMetadata:
        """Read what `reserve` wrote.

        Raises:
            RecrayError: There is no run, another version of recray wrote it, or it is damaged.
        """
        if not self.folder.exists(RUN):
            raise RecrayError(f"{self.folder} holds no run; make one with `recray train`")
        content = self.folder.read_json(RUN)
        facts = content if isinstance(content, dict) else {}
        if not isinstance(facts.get("settings"), dict) or "prepared" not in facts:
            raise DamagedFile(f"{self.folder}/{RUN} is damaged: it does not say what the run is")
        refuse_format(content.get("format"), str(self.folder), RUN_FORMAT)
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

    # ------------------------------------------------------------- for the workers of a group

    def restore(
        self, users: OwnUsers, tables: Collection[str], workers: Workers
    ) -> Checkpoint | None:
        """Begin to train here, and read the checkpoint to go on from; see GroupCheckpoints."""
        self._group = GroupCheckpoints(self.folder, self.checkpoints, workers)
        return self._group.restore(users, tables, self.warn)

    def save(self, checkpoint: Checkpoint, workers: Workers | None = None) -> None:
        """Publish a checkpoint; of the others only the best and the one before stay."""
        if self._group is None:
            self._group = GroupCheckpoints(self.folder, self.checkpoints, workers or Workers())
        self._group.save(checkpoint)

    # ------------------------------------------------------------------------- for one reader

    def _newest(self, read: Callable[[StoredCheckpoint, list[StoredCheckpoint]], T]) -> T | None:
        """What `read` gives of the newest checkpoint of which it finds nothing damaged.

        Args:
            read: Receives a checkpoint, and all.

        Raises:
            RecrayError: There are checkpoints, and every one is damaged.
        """
        found = list_checkpoints(self.checkpoints)
        problems: list[RecrayError] = list(found.damaged.values())
        for one in found.whole:
            try:
                content = read(one, found.whole)
            except DamagedFile as error:
                problems.append(error)
                continue
            for problem in problems:
                logger.warning("skipping a damaged checkpoint: %s", problem)
            return content
        if problems:
            raise RecrayError(f"no checkpoint of {self.folder} can be read: {problems[-1]}")
        return None

    def latest(self) -> Checkpoint | None:
        """Read the newest checkpoint that is undamaged, with the weights of all users by dense id
        and without what the runner knows of them; None before the first epoch.

        Raises:
            RecrayError: There are checkpoints, and every one is damaged.
        """
        return self._newest(lambda one, _: self._whole(one))

    def train_state(self, check: bool = True) -> TrainState:
        """Read how far the newest undamaged checkpoint has come.

        Args:
            check: Whether to compare its files with their digests, or to believe the manifest.

        Raises:
            RecrayError: There are checkpoints, and every one is damaged.
        """

        def read(one: StoredCheckpoint, _: list[StoredCheckpoint]) -> TrainState:
            for entry in one.manifest.files if check else ():
                verify_file(self.checkpoints.child(one.name), entry)
            return one.state

        return self._newest(read) or TrainState()

    def trained_model(self) -> TrainedModel:
        """Read the best weights so far, with every epoch of the run.

        Raises:
            RecrayError: No epoch is finished yet.
        """
        best = self.best()
        return TrainedModel(best.weights, best.train_state.best_epoch, self.history())

    def best(self) -> Checkpoint:
        """Read the checkpoint with the best validation metric, as `latest` reads one.

        Raises:
            RecrayError: There is none, or it is damaged.
        """

        def read(newest: StoredCheckpoint, others: list[StoredCheckpoint]) -> Checkpoint | None:
            best = newest.state.best_epoch
            if not best:  # stopped inside the first epoch
                return None
            for one in (newest, *others):
                if one.state.is_end_of(best):
                    return self._whole(one)
            raise DamagedFile(f"{self.checkpoints} lacks {TrainState(epoch=best).name}")

        found = self._newest(read)
        if found is None:
            raise RecrayError(f"{self.folder} has no finished epoch yet; go on with --resume")
        return found

    def _whole(self, one: StoredCheckpoint) -> Checkpoint:
        folder, rows = self.checkpoints.child(one.name), one.manifest.users
        found = read_shared(folder, one.manifest)
        tables = {} if rows is None else read_user_tables(folder, rows)
        return replace(found, weights=found.weights | tables)

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return self.folder.published()

    def finish(self, summary: RunSummary) -> None:
        """Mark the run as finished; nothing of its checkpoints is read for that but manifests."""
        facts = self.metadata().stored(self.folder.path) | {"summary": summary.model_dump()}
        for name in self.folder.files(recursive=False):
            if name.startswith(OWNER):
                self.folder.delete(name)
        whole = list_checkpoints(self.checkpoints).whole
        if whole:  # after a kill the history may lack what its last checkpoint has
            write_history(self.folder, whole[0].state)
        known = [
            ManifestEntry(**entry.model_dump() | {"name": f"{CHECKPOINTS}/{one.name}/{entry.name}"})
            for one in whole
            for entry in one.manifest.files
        ]
        self.folder.write_manifest(KIND, facts, known)
