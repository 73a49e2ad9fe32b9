"""Runs that are stopped, cut off, or short of workers, rows and disk: without Ray, on gloo."""

import errno
import json
import os
import random
import re
import signal
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from recray.errors import RecrayError, StorageError, WorkerLost
from recray.storage import files, streams
from recray.training import resizing
from recray.training.checkpoint import RunFolder, TrainState
from recray.training.checkpoint.manifest import FORMAT
from recray.training.epochs import SGDEpochs
from recray.training.loop import TrainingRun
from recray.training.resizing import GroupEnds
from recray.training.run_metadata import RUN_FORMAT, WorkerChange
from recray.training.shard import LONG_TIMEOUT_S, Shard, Workers
from tests.test_training import metadata, part_of, saved, training_run, two_tastes

FILES = ["shared.safetensors", "users-00000-of-00001.safetensors", "manifest.json"]
PRIME = 31


def join(rank: int, size: int, rendezvous: str) -> Workers:
    torch.set_num_threads(1)
    if size > 1:
        dist.init_process_group("gloo", f"file://{rendezvous}", rank=rank, world_size=size)
    return Workers(rank, size)


def run_of(folder: Path, workers: Workers, rows: int, *changes: str) -> TrainingRun:
    """A run in float64 of the worker's part of the rows."""
    shard, _ = two_tastes()
    first = (column[:rows] for column in (shard.user, shard.item, shard.rating))
    mine = part_of(Shard(*first, shard.users), workers)
    run = training_run(folder, "dot-mse", mine, changes)
    run.model.double()
    return TrainingRun(**(vars(run) | {"workers": workers}))


# ---------------------------------------------------------------------------- uneven shards


def counts_for(workers: int) -> list[int]:
    return sorted({1, workers - 1, workers, workers + 1, PRIME} - {0})


def _train_each(rank: int, size: int, folder: str) -> None:
    workers = join(rank, size, f"{folder}/rendezvous")
    for rows in counts_for(size):
        for batch in ("all", "3"):
            out = Path(folder, f"{rows}-{batch}")
            settings = [f"train.batch_size={batch}", "train.epochs=2", "train.lr=0.01"]
            run_of(out, workers, rows, *settings).fit()
    if size > 1:
        dist.destroy_process_group()


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_workers_with_few_rows_or_none_end_together_and_as_one(tmp_path, size):
    mp.start_processes(_train_each, (size, str(tmp_path)), nprocs=size, start_method="fork")
    for rows in counts_for(size):
        assert RunFolder(str(tmp_path / f"{rows}-3")).train_state().epoch == 2
        one = run_of(
            tmp_path / f"one-{rows}", Workers(), rows,
            "train.batch_size=all", "train.epochs=2", "train.lr=0.01",
        )  # fmt: skip
        one.fit()
        found = RunFolder(str(tmp_path / f"{rows}-all")).latest().weights
        for name, table in one.checkpoints.latest().weights.items():
            assert torch.allclose(found[name], table, atol=1e-9), f"{name}, {rows} rows"


def _fall_silent(rank: int, size: int, folder: str) -> None:
    workers = join(rank, size, f"{folder}/rendezvous")
    workers = Workers(rank, size, timeout=0.5)
    workers.sum(torch.ones(1))
    if rank == 2:
        time.sleep(60)
    try:
        workers.sum(torch.ones(1))
    except WorkerLost as error:
        Path(folder, f"error-{rank}").write_text(str(error))
        os._exit(0)


def test_a_worker_that_falls_silent_is_missed(tmp_path):
    group = mp.start_processes(
        _fall_silent, (3, str(tmp_path)), nprocs=3, join=False, start_method="fork"
    )
    for rank in (0, 1):
        group.processes[rank].join(30)
    group.processes[2].kill()
    for rank in (0, 1):
        words = (tmp_path / f"error-{rank}").read_text()
        assert f"worker {rank} of 3" in words
        assert "has not answered for 0.5 s" in words


def test_work_of_unequal_length_is_waited_for_longer():
    assert Workers().with_long_timeout().timeout == LONG_TIMEOUT_S > Workers().timeout == 60


# ------------------------------------------------------------- kills and full disks while saving


class Disk:
    """Counts files written and folders renamed, and does something at the n-th one."""

    def __init__(self, monkeypatch, at: int, action) -> None:
        self.count, self.at, self.action = 0, at, action
        self.write, self.rename = files.synced, os.rename
        for module in (files, streams):
            monkeypatch.setattr(module, "synced", self.synced)
        monkeypatch.setattr(os, "rename", self.renamed)

    @contextmanager
    def synced(self, path):
        """Half of the n-th file is on the disk when the action comes."""
        with self.write(path) as stream:
            yield stream
        if self._is_due():
            os.truncate(path, path.stat().st_size // 2)
            self.action()

    def renamed(self, *given):
        if self._is_due():
            self.action()
        self.rename(*given)

    def _is_due(self) -> bool:
        self.count += 1
        return self.count == self.at


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def full():
    raise OSError(errno.ENOSPC, "No space left on device")


STEPS_OF_A_SAVE = 6  # who owns the folder, three files, the rename, and epochs.json


def _save_and_die(_index: int, folder: str, at: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        Disk(patch, at, kill)
        saved(RunFolder(folder), 2)


@pytest.mark.parametrize("at", range(1, STEPS_OF_A_SAVE + 1))
def test_a_kill_while_saving_leaves_the_checkpoint_before_or_the_new_one(tmp_path, at):
    folder = RunFolder(str(tmp_path))
    folder.reserve(metadata(workers=1))
    saved(folder, 1)
    context = mp.start_processes(
        _save_and_die, (str(tmp_path), at), nprocs=1, join=False, start_method="fork"
    )
    with pytest.raises(mp.ProcessExitedException, match="SIGKILL"):
        context.join(30)
    assert folder.train_state().epoch == (1 if at < STEPS_OF_A_SAVE else 2)
    saved(RunFolder(str(tmp_path)), 2)  # a new attempt clears up
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["epoch-00001", "epoch-00002"]


@pytest.mark.parametrize("at", range(1, STEPS_OF_A_SAVE + 1))
def test_a_full_disk_keeps_the_checkpoint_before_and_what_space_returns_to_goes_on(
    tmp_path, monkeypatch, at
):
    settings = ["train.epochs=3", "train.batch_size=64"]
    whole = run_of(tmp_path / "whole", Workers(), 200, *settings)
    whole.fit()
    run_of(tmp_path / "run", Workers(), 200, *settings, "train.epochs=1").fit()
    with monkeypatch.context() as patch:
        Disk(patch, at, full)
        with pytest.raises(StorageError, match="no space left") as failure:
            run_of(tmp_path / "run", Workers(), 200, *settings).fit()
    assert failure.value.exit_code == 3
    assert RunFolder(str(tmp_path / "run")).train_state().epoch == (
        1 if at < STEPS_OF_A_SAVE else 2
    )
    again = run_of(tmp_path / "run", Workers(), 200, *settings)
    again.fit()
    for name, table in whole.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], table), name


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("keep", [0, 0.5])
def test_when_every_checkpoint_is_cut_the_file_is_named(tmp_path, file, keep):
    folder = RunFolder(str(tmp_path))
    for epoch in (1, 2):
        saved(folder, epoch)
        path = tmp_path / "checkpoints" / f"epoch-{epoch:05d}" / file
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(RecrayError, match=rf"no checkpoint of .*{re.escape(file)}") as failure:
        folder.train_state()
    assert failure.value.exit_code == 2


# ------------------------------------------------------------------------- another run's folder


def test_a_checkpoint_of_another_model_is_refused_and_stays(tmp_path):
    run_of(tmp_path, Workers(), 200, "train.epochs=1").fit()
    other = run_of(tmp_path, Workers(), 200, "train.epochs=2", "model.dim=5")
    with pytest.raises(RecrayError, match=r"another model: item_vectors.weight is 20 x 4, this mo"):
        other.fit()
    assert RunFolder(str(tmp_path)).train_state().epoch == 1


@pytest.mark.parametrize(
    ("name", "version"),
    [("run.json", RUN_FORMAT), ("checkpoints/epoch-00001/manifest.json", FORMAT)],
)
def test_another_version_s_run_is_refused(tmp_path, name, version):
    folder = RunFolder(str(tmp_path))
    folder.reserve(metadata(workers=1))
    saved(folder, 1)
    path = tmp_path / name
    content = json.loads(path.read_text()) | {"format": version + 1}
    content.pop("sha256", None)
    path.write_text(json.dumps(content))
    with pytest.raises(RecrayError, match=f"another version of recray: format {version + 1}"):
        folder.metadata(), folder.train_state()


# --------------------------------------------------------------------- another number of workers


def _train_some(rank: int, size: int, folder: str, epochs: int) -> None:
    workers = join(rank, size, f"{folder}-rendezvous-{epochs}")
    settings = ["train.batch_size=all", f"train.epochs={epochs}", "train.lr=0.01"]
    run_of(Path(folder), workers, 200, *settings).fit()
    if size > 1:
        dist.destroy_process_group()


def test_another_number_of_workers_goes_on_with_the_same_tables(tmp_path):
    """With all rows in each step the digits do not depend on who has them."""
    folder = str(tmp_path / "run")
    for size, epochs in ((2, 1), (4, 2), (1, 3), (3, 5), (2, 6)):
        mp.start_processes(_train_some, (size, folder, epochs), nprocs=size, start_method="fork")
    settings = ["train.batch_size=all", "train.epochs=6", "train.lr=0.01"]
    one = run_of(tmp_path / "one", Workers(), 200, *settings)
    one.fit()
    found = RunFolder(folder).latest()
    assert [e["epoch"] for e in found.train_state.history] == [1, 2, 3, 4, 5, 6]
    for name, table in one.checkpoints.latest().weights.items():
        assert torch.allclose(found.weights[name], table, atol=1e-9), name


def test_another_number_of_workers_is_remembered(tmp_path):
    folder = RunFolder(str(tmp_path))
    folder.reserve(metadata(workers=2))
    folder.reserve(metadata(workers=3))  # nothing was trained yet, nothing differs
    folder.reserve(metadata(workers=2), TrainState(step=7))
    assert [change.workers for change in folder.metadata().changes] == [3, 2]
    folder.reserve(metadata(workers=1), TrainState(epoch=4))
    assert folder.metadata().workers == 1
    assert folder.metadata().changes == (
        WorkerChange(epoch=0, workers=3),
        WorkerChange(epoch=0, workers=2),
        WorkerChange(epoch=4, workers=1),
    )


# ----------------------------------------------------------------- a machine that is taken away


def warned(run: TrainingRun) -> TrainingRun:
    """The run with a notice after the fifth step of its second epoch."""
    epochs: list[int] = []
    asked: list[int] = []

    def preempting() -> bool:
        asked.extend(epochs)
        return len(asked) == 6

    resizing.ASK_EVERY_S = 0.0  # after every step, and once after the first epoch
    given = {
        "report": lambda entry: epochs.append(entry["epoch"]),
        "preempting": preempting,
    }
    return TrainingRun(**(vars(run) | given))


RECIPES = {
    "dot-mse": ("dot-mse", ["train.batch_size=8"]),
    "dropout": ("neumf", ["train.batch_size=8", "model.dropout=0.3"]),
    "negatives": (
        "neumf-ranking",
        ["objective.kind=logistic", "objective.negatives=3", "objective.reject_seen=true"],
    ),
    "users": ("neumf-ranking", ["train.batch_size=2"]),
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_notice_leads_to_a_checkpoint_between_steps_that_goes_on_exactly(
    tmp_path, monkeypatch, recipe
):
    monkeypatch.setattr(resizing, "ASK_EVERY_S", resizing.ASK_EVERY_S)  # comes back
    preset, changes = RECIPES[recipe]
    shard, _ = two_tastes()
    settings = ["train.batch_size=8", "train.epochs=3", *changes]

    def run(name: str) -> TrainingRun:
        return training_run(tmp_path / name, preset, shard, settings)

    whole = run("whole")
    whole.fit()
    with pytest.raises(GroupEnds, match="taken"):
        warned(run("taken")).fit()
    folder = RunFolder(str(tmp_path / "taken"))
    left = folder.train_state()
    assert (left.epoch, left.step) == (1, 5)
    assert folder.best().train_state.step == 0, "the best weights are those at the end of an epoch"
    again = run("taken")
    progress = again.fit()
    for name, table in whole.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], table), name
    losses = [e["loss"] for e in whole.checkpoints.latest().train_state.history]
    assert [e["loss"] for e in progress.history] == losses
    assert not [n for n in os.listdir(tmp_path / "taken" / "checkpoints") if "step" in n]


def _train_warned(rank: int, size: int, folder: str, taken: bool) -> None:
    workers = join(rank, size, f"{folder}-{taken}-{size}")
    run = run_of(Path(folder), workers, 200, "train.batch_size=16", "train.epochs=3")
    if taken:
        with pytest.raises(GroupEnds, match="taken"):
            warned(run).fit()
        os._exit(0)
    run.fit()
    dist.destroy_process_group()


def test_two_workers_save_between_the_same_steps_and_go_on_exactly(tmp_path):
    for name, taken in (("whole", False), ("taken", True), ("taken", False)):
        folder = str(tmp_path / name)
        mp.start_processes(_train_warned, (2, folder, taken), nprocs=2, start_method="fork")
        if taken:
            assert RunFolder(folder).train_state().step == 5
    whole, again = (RunFolder(str(tmp_path / name)).latest() for name in ("whole", "taken"))
    for name, table in whole.weights.items():
        assert torch.equal(again.weights[name], table), name


def test_with_other_workers_the_epoch_begins_again_from_the_tables(tmp_path, monkeypatch):
    def never(*_given):
        raise AssertionError("the steps of two workers are not those of one")

    monkeypatch.setattr(SGDEpochs, "continue_at", never)
    arguments = (2, str(tmp_path / "run"), True)
    mp.start_processes(_train_warned, arguments, nprocs=2, start_method="fork")
    run = run_of(tmp_path / "run", Workers(), 200, "train.batch_size=16", "train.epochs=3")
    assert [e["epoch"] for e in run.fit().history] == [1, 2, 3]


# -------------------------------------------------------------------------------- random kills


def _train_slowly(_index: int, folder: str) -> None:
    torch.set_num_threads(1)
    run_of(Path(folder), Workers(), 300, "train.epochs=25", "train.batch_size=8").fit()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_a_run_killed_again_and_again_ends_with_the_same_bits(tmp_path, seed):
    begun = time.perf_counter()
    mp.start_processes(_train_slowly, (str(tmp_path / "whole"),), nprocs=1, start_method="fork")
    whole_s = time.perf_counter() - begun
    dice, kills = random.Random(seed), 0
    while True:
        context = mp.start_processes(
            _train_slowly, (str(tmp_path / "run"),), nprocs=1, join=False, start_method="fork"
        )
        if kills < 8:
            time.sleep(dice.uniform(0.02, 0.3) * whole_s)
            context.processes[0].kill()
        context.processes[0].join()
        if context.processes[0].exitcode == 0:
            break
        kills += 1
    assert kills, "it ended before it could be killed"
    whole, again = (RunFolder(str(tmp_path / name)).latest() for name in ("whole", "run"))
    assert again.train_state.epoch == 25
    for name, table in whole.weights.items():
        assert torch.equal(again.weights[name], table), name
