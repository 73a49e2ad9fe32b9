"""How a group of workers writes a checkpoint together, and all go on from the same one.

Worker 0 alone decides: which checkpoint is read, and when a new one is whole. The others do as it
says, or all of them end with the same line. A group owns its run while it is the last one that
has begun there, so of two runs in one folder the earlier one ends when it wants to save.
"""

import json
import logging
import uuid
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recray import errors
from recray.errors import DamagedFile, RecrayError
from recray.storage import (
    MANIFEST,
    UNFINISHED,
    Folder,
    ManifestEntry,
    is_uri,
    storage_errors,
    swap_in,
)
from recray.training.checkpoint.content import OPTIMIZER, Checkpoint, TrainState
from recray.training.checkpoint.files import in_file_order, write_tensors
from recray.training.checkpoint.manifest import (
    FORMAT,
    HEADER,
    IDS,
    LOSSES,
    SHARED,
    WEIGHTS,
    CheckpointManifest,
    Column,
    PartRows,
    StoredCheckpoint,
    UserFiles,
    list_checkpoints,
)
from recray.training.checkpoint.reading import read_checkpoint
from recray.training.own_users import OwnUsers
from recray.training.shard import Workers

EPOCHS = "epochs.json"
OWNER = f"{UNFINISHED}owner-"
"""What the names of the empty files begin with that say which group trains in a folder."""
Answer = dict[str, Any]
logger = logging.getLogger("recray")


@dataclass
class GroupCheckpoints:
    """One worker's view of the checkpoints of a run that its group trains.

    Args:
        run: The run's folder.
        checkpoints: That of its checkpoints.
        workers: The group.
        owner: Name of the file that says that the group owns the run; "" before it does.
        states: What worker 0 knows of the checkpoints that lie there, by their folders; None where
            one is damaged or unfinished.
    """

    run: Folder
    checkpoints: Folder
    workers: Workers
    owner: str = ""
    states: dict[str, TrainState | None] = field(default_factory=dict)

    def begin(self) -> tuple[list[StoredCheckpoint], list[str]]:
        """Take the run over.

        Returns:
            Its checkpoints, newest first, and what is wrong with others; on worker 0 alone.

        Raises:
            RecrayError: The folder cannot be read or written; on all workers.
        """
        listed, problems = list[StoredCheckpoint](), list[str]()

        def take() -> str:
            owner = _take_over(self.run)
            found = list_checkpoints(self.checkpoints)
            listed.extend(found.whole)
            problems.extend(map(str, found.damaged.values()))
            self.states = {one.name: one.state for one in found.whole}
            self.states |= dict.fromkeys([*found.damaged, *found.unfinished])
            return owner

        self.owner = str(self._by_first(take))
        return listed, problems

    # --------------------------------------------------------------------------------- reading

    def restore(
        self, users: OwnUsers, tables: Collection[str], warn: bool = True
    ) -> Checkpoint | None:
        """Read the newest checkpoint that no worker finds damaged; None where there are none.

        Args:
            users: Those of this worker.
            tables: Names of the weights that have a row for each of them.
            warn: Write one line to the log for each damaged one, on worker 0.

        Raises:
            RecrayError: There are checkpoints, and every one is damaged; or one cannot be read,
                which is no damage. On all workers.
        """
        listed, problems = self.begin()

        def choose() -> Answer:
            if not listed:
                return {"problems": problems}
            one = listed.pop(0)
            return {"name": one.name, "manifest": one.manifest.content()}

        while True:
            chosen = self._by_first(choose)
            if "name" not in chosen:
                break
            found = self._read_together(chosen, users, tables)
            if isinstance(found, Checkpoint):
                for problem in problems if warn else ():  # only worker 0 has some
                    logger.warning("skipping a damaged checkpoint: %s", problem)
                return found
            if self.workers.rank == 0:
                problems.append(found)
        if chosen["problems"]:
            last = chosen["problems"][-1]
            raise RecrayError(f"no checkpoint of {self.run} can be read: {last}")
        return None

    def _read_together(
        self, chosen: Answer, users: OwnUsers, tables: Collection[str]
    ) -> Checkpoint | str:
        """Read one on all workers; returns what is wrong with it where a worker finds damage."""
        folder = self.checkpoints.child(chosen["name"])
        given = folder, CheckpointManifest.model_validate(chosen["manifest"]), users, tables
        read = list[Checkpoint]()
        answers = self._ask(lambda: read.append(read_checkpoint(*given)))
        failed = [one for one in answers if "error" in one]
        for one in failed:
            if one["error"] != DamagedFile.__name__:
                raise _as_error(one)
        return str(_as_error(failed[0])) if failed else read[0]

    # --------------------------------------------------------------------------------- writing

    def save(self, checkpoint: Checkpoint) -> None:
        """Publish a checkpoint; of the others only the best and the one before stay.

        Raises:
            StorageError: The disk of a worker is full or not writable.
            RecrayError: Another group has begun in the folder. Both on all workers.
        """
        if not self.owner:
            self.begin()
        state = checkpoint.train_state
        folder = self.checkpoints.child(self._name_while_written(state))
        answers = self._ask(lambda: self._write(folder, checkpoint))
        failed = [one for one in answers if "error" in one]
        written = [one["value"] for one in answers if one.get("value")]
        self._by_first(lambda: self._finish(folder, state, written, failed))

    def _name_while_written(self, state: TrainState) -> str:
        """Where the files of a checkpoint are written: nowhere else than by this group.

        On a disk the folder is renamed at the end. In a store the manifest, which comes last,
        makes it a checkpoint.
        """
        mark = self.owner.removeprefix(OWNER)
        hidden = "" if is_uri(self.run.path) else UNFINISHED
        return f"{hidden}{state.name}.{mark}"

    def _write(self, folder: Folder, checkpoint: Checkpoint) -> Answer:
        """Write this worker's files; returns what the manifest will say of them."""
        answer: Answer = {"files": []}
        rank, size, users = self.workers.rank, self.workers.size, checkpoint.users
        if users.tensors and users.users.parts:
            rows = {IDS: users.users.ids, **users.tensors}
            sections = [
                {f"{part:05d}/{name}": tensor[at] for name, tensor in rows.items()}
                for part, at in users.by_part()
            ]
            name = f"users-{rank:05d}-of-{size:05d}.safetensors"
            written = write_tensors(folder, name, sections)
            places = [(HEADER, slice(0, 0)), *users.by_part()]
            answer["files"].append(written.entry.model_dump())
            answer["rows"] = UserFiles(
                users=users.users.total,
                columns={n: Column.of(t) for n, t in in_file_order(rows)},
                files={
                    name: [
                        PartRows(part=part, rows=at.stop - at.start, **section._asdict())
                        for (part, at), section in zip(places, written.sections, strict=True)
                    ]
                },
            ).model_dump()
        if rank == 0:
            shared = {f"{WEIGHTS}{n}": t for n, t in checkpoint.weights.items()}
            shared |= {f"{OPTIMIZER}{n}": t for n, t in checkpoint.optimizer.items()}
            shared |= {} if checkpoint.losses is None else {LOSSES: checkpoint.losses}
            answer["files"].append(write_tensors(folder, SHARED, [shared]).entry.model_dump())
        return answer

    def _finish(
        self, folder: Folder, state: TrainState, written: Sequence[Answer], failed: Sequence[Answer]
    ) -> None:
        """Make it a checkpoint, on worker 0, if every worker has written its files."""
        try:
            if not self.run.exists(self.owner):
                raise RecrayError(
                    f"{self.run}: another run has begun in this folder since, and trains there; "
                    "this one ends. Give each run a folder of its own"
                )
            if failed:
                raise _as_error(failed[0])
            manifest = CheckpointManifest(
                format=FORMAT,
                state=state,
                files=[ManifestEntry(**entry) for one in written for entry in one["files"]],
                users=_joined([UserFiles(**one["rows"]) for one in written if "rows" in one]),
            )
            folder.write_json(MANIFEST, manifest.content())
            if not is_uri(folder.path):
                with storage_errors(folder.path):
                    swap_in(Path(folder.path), Path(self.checkpoints.child(state.name).path))
        except BaseException:
            folder.delete()
            raise
        write_history(self.run, state)
        self._delete_outdated(state, folder.name if is_uri(folder.path) else state.name)

    def _delete_outdated(self, newest: TrainState, name: str) -> None:
        others = {n: state for n, state in self.states.items() if n != name}
        keep = {newest.best_epoch, newest.epoch, newest.epoch - 1}
        # What the epoch before calls the best must be there in case the newest is damaged.
        before = (s for s in others.values() if s is not None and s.is_end_of(newest.epoch - 1))
        keep |= {state.best_epoch for state in before}
        self.states[name] = newest
        for other, state in others.items():
            later = state is None or (state.epoch, state.step) >= (newest.epoch, newest.step)
            if state is None or later or state.step or state.epoch not in keep:
                self.checkpoints.delete_folder(other)
                del self.states[other]

    # ------------------------------------------------------------------------- talking to all

    def _ask(self, work: Callable[[], object]) -> list[Answer]:
        """Do something on every worker; returns what it gave on each, or the error that it had."""
        try:
            answer: Answer = {"value": work()}
        except RecrayError as error:
            answer = {"error": type(error).__name__, "line": str(error)}
        texts = self.workers.with_long_timeout().exchange(json.dumps(answer))
        return [json.loads(text) if text else {} for text in texts]

    def _by_first(self, work: Callable[[], object]) -> Any:
        """Do something on worker 0 alone; all get what it gave, or raise the error that it had."""
        first = self._ask(lambda: work() if self.workers.rank == 0 else None)[0]
        if "error" in first:
            raise _as_error(first)
        return first["value"]


def write_history(run: Folder, state: TrainState) -> None:
    """Write the history for those who follow the run."""
    run.replace_bytes(EPOCHS, json.dumps(state.history, indent=1).encode())


def _as_error(answer: Answer) -> RecrayError:
    kind = getattr(errors, answer["error"], RecrayError)
    found: RecrayError = kind(answer["line"])
    return found


def _joined(rows: Sequence[UserFiles]) -> UserFiles | None:
    """The rows of all workers.

    Raises:
        ValueError: They have other tensors, or two have the same part.
    """
    if not rows:
        return None
    files = {name: parts for one in rows for name, parts in one.files.items()}
    numbers = [one.part for parts in files.values() for one in parts if one.part != HEADER]
    if len({*numbers}) < len(numbers) or any(one.columns != rows[0].columns for one in rows):
        raise ValueError("the rows of the workers do not fit together")
    return UserFiles(users=rows[0].users, columns=rows[0].columns, files=files)


def _take_over(run: Folder) -> str:
    """Make a group the owner of a run: the last one that has begun there.

    Its file gets a number above all others. Of two groups that begin at the same time both leave
    the greater name, so that one of them stays.
    """

    def owners() -> list[str]:
        return [name for name in run.files(recursive=False) if name.startswith(OWNER)]

    numbers = [int(n.removeprefix(OWNER).partition("-")[0]) for n in owners()]
    own = f"{OWNER}{max(numbers, default=0) + 1:05d}-{uuid.uuid4().hex[:6]}"
    run.write_bytes(own, b"")
    for name in owners():
        if name < own:
            run.delete(name)
    return own
