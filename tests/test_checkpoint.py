"""Checkpoints that a group writes together: by owner, read by any number of workers.

The workers are threads, but for those that are killed.
"""

import hashlib
import json
import os
import random
import re
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from werkzeug.serving import WSGIRequestHandler

from recray.errors import RecrayError, StorageError
from recray.storage import Folder, files
from recray.training.checkpoint import OPTIMIZER, Checkpoint, RunFolder, TrainState, UserRows, group
from recray.training.checkpoint import files as tensor_files
from recray.training.own_users import OwnUsers
from recray.training.shard import Workers
from tests.s3_store import s3_store
from tests.test_stopping import Disk, join, kill

PARTS, USERS = 8, 50
SIZES = (1, 2, 3, 4)
TABLES = ["user_vectors.weight", "user_bias.weight"]
TABLE = torch.arange(USERS * 3, dtype=torch.float64).reshape(USERS, 3)


@dataclass(frozen=True)
class Meeting:
    """Where the threads of a group hand each other their texts."""

    barrier: threading.Barrier
    texts: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Threads(Workers):
    """Workers of one process."""

    meeting: Meeting | None = None

    def exchange(self, text: str) -> list[str]:
        self.meeting.texts[self.rank] = text
        self.meeting.barrier.wait(20)
        texts = [self.meeting.texts[rank] for rank in range(self.size)]
        self.meeting.barrier.wait(20)
        return texts


def in_group(size: int, work) -> list:
    """What `work(workers)` gives on each of so many workers, or the error that it raises."""
    meeting = Meeting(threading.Barrier(size))

    def one(rank: int):
        try:
            return work(Threads(rank, size, meeting=meeting))
        except RecrayError as error:
            return error

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(one, range(size)))


def own_users(workers: Workers, parts: int = PARTS) -> OwnUsers:
    """A worker's users; dense ids are in no order over parts."""
    part_of = torch.randperm(USERS, generator=torch.Generator().manual_seed(1)).numpy() % parts
    own = range(workers.rank, parts, workers.size)
    return OwnUsers.of(own, [(part_of == part).nonzero()[0] for part in own], USERS)


def content(epoch: int, workers: Workers, parts: int = PARTS) -> Checkpoint:
    """Rows that follow from the dense id and the epoch, and shared tensors of the epoch."""
    users = own_users(workers, parts)
    rows = {
        "user_vectors.weight": TABLE[users.ids] + epoch,
        "user_bias.weight": (TABLE[users.ids, :1] - epoch).float(),
        f"{OPTIMIZER}0.exp_avg": TABLE[users.ids] * epoch,
        f"{OPTIMIZER}odd": (users.ids % 2).bool(),
    }
    state = TrainState(epoch, 1, 0.5, [{"epoch": e, "loss": 1 / e} for e in range(1, epoch + 1)])
    shared = {
        "item_vectors.weight": torch.full((5, 3), float(epoch)),
        "user_net.weight": torch.ones(7, 2),
    }
    optimizer = {"steps": torch.tensor(epoch), "half": torch.ones(3, dtype=torch.bfloat16)}
    return Checkpoint(shared, optimizer, state, torch.ones(2, 2), UserRows(users, rows))


def assert_is(found: Checkpoint, epoch: int, workers: Workers, parts: int = PARTS) -> None:
    wanted = content(epoch, workers, parts)
    assert found.train_state == wanted.train_state
    for mine, given in (
        (found.weights, wanted.weights),
        (found.optimizer, wanted.optimizer),
        (found.users.tensors, wanted.users.tensors),
    ):
        assert mine.keys() == given.keys()
        for name, tensor in given.items():
            assert mine[name].dtype == tensor.dtype
            assert torch.equal(mine[name], tensor), name


def save(folder: Path | str, size: int, *epochs: int) -> list:
    def work(workers: Workers) -> None:
        run = RunFolder(str(folder))
        for epoch in epochs:
            run.save(content(epoch, workers), workers)

    return in_group(size, work)


def restore(folder: Path | str, size: int) -> list:
    return in_group(size, lambda w: RunFolder(str(folder)).restore(own_users(w), TABLES, w))


@pytest.mark.parametrize("written", SIZES)
def test_any_number_of_workers_reads_what_any_other_wrote(tmp_path, written, monkeypatch):
    monkeypatch.setattr(tensor_files, "READ_BYTES", 700)  # some neighbours in one read
    save(tmp_path, written, 1)
    for size in SIZES:
        for rank, found in enumerate(restore(tmp_path, size)):
            assert_is(found, 1, Workers(rank, size))
    whole = RunFolder(str(tmp_path)).best()
    assert torch.equal(whole.weights["user_vectors.weight"], TABLE + 1)
    assert torch.equal(whole.weights["user_bias.weight"], (TABLE[:, :1] - 1).float())
    users = [f"users-{rank:05d}-of-{written:05d}.safetensors" for rank in range(written)]
    names = sorted(os.listdir(tmp_path / "checkpoints/epoch-00001"))
    assert names == ["manifest.json", "shared.safetensors", *users]


def test_the_files_are_those_of_safetensors(tmp_path):
    save(tmp_path, 1, 1)
    folder = tmp_path / "checkpoints/epoch-00001"
    rows, shared = (
        safetensors.torch.load((folder / f"{name}.safetensors").read_bytes())
        for name in ("users-00000-of-00001", "shared")
    )
    ids = own_users(Workers()).ids[: len(rows["00000/ids"])]
    assert torch.equal(rows["00000/user_vectors.weight"], TABLE[ids] + 1)
    assert torch.equal(shared["weights/item_vectors.weight"], torch.ones(5, 3))


def test_workers_without_parts_save_and_go_on(tmp_path):
    def work(workers: Workers) -> None:
        RunFolder(str(tmp_path)).save(content(1, workers, parts=2), workers)
        found = RunFolder(str(tmp_path)).restore(own_users(workers, parts=2), TABLES, workers)
        assert_is(found, 1, workers, parts=2)

    assert in_group(3, work) == [None] * 3


def test_rows_of_other_users_are_refused(tmp_path):
    save(tmp_path, 2, 1)
    two = in_group(2, lambda w: RunFolder(str(tmp_path)).restore(own_users(w, parts=4), TABLES, w))
    assert {str(error) for error in two} == {
        f"{tmp_path}/checkpoints/epoch-00001 is of other users than those of the data set; "
        "train again"
    }


# ------------------------------------------------------------------- reads that fail, and damage


class Failing:
    """A filesystem that fails a number of times to open a file."""

    def __init__(self, filesystem, left: list[int]) -> None:
        self.filesystem, self.left = filesystem, left

    def open_input_file(self, path):
        if self.left[0]:
            self.left[0] -= 1
            raise OSError(5, "Input/output error")
        return self.filesystem.open_input_file(path)


@pytest.mark.parametrize("times", [1, 99])
def test_a_read_that_fails_is_tried_again_and_is_no_damage(tmp_path, monkeypatch, times):
    save(tmp_path, 2, 1, 2)
    left, locate = [times], Folder.locate

    def located(folder, name=""):
        filesystem, path = locate(folder, name)
        return (Failing(filesystem, left) if name.startswith("users-00001") else filesystem), path

    monkeypatch.setattr(files, "STORE_RETRY_SECONDS", 0.0)
    monkeypatch.setattr(Folder, "locate", located)
    found = restore(tmp_path, 2)
    if times == 1:
        assert [one.train_state.epoch for one in found] == [2, 2]
        return
    one, two = map(str, found)  # the second worker could not read, and both end with its line
    assert one == two
    assert re.fullmatch(r"cannot read .*/users-00001-of-00002.safetensors: .*Input/output.*", one)


@pytest.mark.parametrize("damage", ["flip", "cut", "delete"])
def test_all_fall_back_together_from_whatever_file_is_damaged(tmp_path, caplog, damage):
    save(tmp_path / "made", 2, 1, 2)
    names = sorted(os.listdir(tmp_path / "made/checkpoints/epoch-00002"))
    assert len(names) == 4
    for name in names:
        run = tmp_path / name
        shutil.copytree(tmp_path / "made", run)
        break_file(run / "checkpoints/epoch-00002" / name, damage)
        caplog.clear()
        for rank, found in enumerate(restore(run, 3)):
            assert_is(found, 1, Workers(rank, 3))
        assert len(caplog.records) == 1
        assert RunFolder(str(run)).train_state().epoch == 1
        save(run, 3, 2)
        assert sorted(os.listdir(run / "checkpoints")) == ["epoch-00001", "epoch-00002"]
        assert RunFolder(str(run)).train_state().epoch == 2


def break_file(path: Path, damage: str) -> None:
    if damage == "delete":
        path.unlink()
        return
    bytes_ = bytearray(path.read_bytes())
    if damage == "flip":
        bytes_[len(bytes_) * 3 // 4] ^= 1
    path.write_bytes(bytes_ if damage == "flip" else bytes_[: len(bytes_) // 2])


def test_where_all_are_damaged_all_workers_end_with_one_line(tmp_path):
    save(tmp_path, 2, 1, 2)
    for path in tmp_path.glob("checkpoints/*/users-00001*"):
        break_file(path, "flip")
    lines = {str(error) for error in restore(tmp_path, 2)}
    assert len(lines) == 1
    assert re.match(r"no checkpoint of .*users-00001-of-00002.safetensors is damaged", lines.pop())


# ------------------------------------------------------------------------- kills and full disks


def _save_until_killed(rank: int, folder: str, at: int, killed: int) -> None:
    workers = join(rank, 2, f"{folder}-meeting")
    with pytest.MonkeyPatch.context() as patch:
        if rank == killed:
            Disk(patch, at, kill)
        run = RunFolder(folder)
        for epoch in range(2, 9):
            run.save(content(epoch, workers), workers)
    dist.destroy_process_group()


@pytest.mark.parametrize("seed", range(6))
def test_a_kill_at_any_time_leaves_a_whole_checkpoint(tmp_path, seed):
    dice, folder = random.Random(seed), str(tmp_path / "run")
    save(folder, 2, 1)
    arguments = (folder, dice.randint(1, 6), dice.randint(0, 1))
    context = mp.start_processes(
        _save_until_killed, arguments, nprocs=2, join=False, start_method="fork"
    )
    for process in context.processes:
        process.join(30)
    assert any(process.exitcode for process in context.processes)
    last = RunFolder(folder).train_state().epoch
    for rank, found in enumerate(restore(folder, 3)):
        assert_is(found, last, Workers(rank, 3))
    save(folder, 3, last + 1)
    kept = {f"epoch-{epoch:05d}" for epoch in (1, last, last + 1)}
    assert {*os.listdir(f"{folder}/checkpoints")} == kept


def test_one_full_disk_ends_all_workers_with_its_line(tmp_path, monkeypatch):
    save(tmp_path, 3, 1)
    write = tensor_files.write_from

    def full(folder, name, work):
        if name.startswith("users-00002"):
            raise StorageError(f"cannot write {folder}: no space left")
        return write(folder, name, work)

    monkeypatch.setattr(tensor_files, "write_from", full)
    errors = save(tmp_path, 3, 2)
    assert len({str(error) for error in errors}) == 1
    assert [error.exit_code for error in errors] == [3] * 3
    assert os.listdir(tmp_path / "checkpoints") == ["epoch-00001"]


# --------------------------------------------------------------------------- two runs, one folder


def test_of_two_runs_in_one_folder_the_earlier_one_ends(tmp_path):
    earlier, later = RunFolder(str(tmp_path)), RunFolder(str(tmp_path))
    earlier.save(content(1, Workers()), Workers())
    assert later.restore(own_users(Workers()), TABLES, Workers()).train_state.epoch == 1
    with pytest.raises(RecrayError, match="another run has begun in this folder since") as failure:
        earlier.save(content(2, Workers()), Workers())
    assert failure.value.exit_code == 2
    assert "\n" not in str(failure.value)
    later.save(content(2, Workers()), Workers())
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["epoch-00001", "epoch-00002"]
    assert later.train_state().epoch == 2
    assert len(list(tmp_path.glob(f"{group.OWNER}*"))) == 1


# ------------------------------------------------------------------------------ the earlier form


def save_old(folder: Path, whole: Checkpoint) -> None:
    """Write a checkpoint of format 1, with all rows in one file."""
    state = whole.train_state
    at = folder / f"checkpoints/epoch-{state.epoch:05d}"
    at.mkdir(parents=True)
    for name, tensors in (("weights", whole.weights), ("optimizer", whole.optimizer)):
        (at / f"{name}.safetensors").write_bytes(safetensors.torch.save(tensors))
    (at / "state.json").write_text(json.dumps(asdict(state)))
    entries = [
        {
            "name": path.name,
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in sorted(at.iterdir())
    ]
    facts = {"kind": "checkpoint", "format": 1, "epoch": state.epoch, "files": entries}
    (at / "manifest.json").write_text(json.dumps(facts))


def test_a_checkpoint_of_the_earlier_form_is_read_and_the_next_is_of_the_new(tmp_path):
    new = content(1, Workers())
    ids = new.users.users.ids
    rows = {name: torch.empty_like(tensor) for name, tensor in new.users.tensors.items()}
    for name, tensor in new.users.tensors.items():
        rows[name][ids] = tensor
    known = {n.removeprefix(OPTIMIZER): t for n, t in rows.items() if n.startswith(OPTIMIZER)}
    tables = {n: t for n, t in rows.items() if not n.startswith(OPTIMIZER)}
    save_old(
        tmp_path,
        Checkpoint(new.weights | tables, new.optimizer | known, new.train_state),
    )
    assert torch.equal(RunFolder(str(tmp_path)).best().weights["user_vectors.weight"], TABLE + 1)
    for rank, found in enumerate(restore(tmp_path, 3)):
        assert_is(found, 1, Workers(rank, 3))
    save(tmp_path, 3, 2)
    for rank, found in enumerate(restore(tmp_path, 2)):
        assert_is(found, 2, Workers(rank, 2))


# ---------------------------------------------------------------------------- requests of a store


@pytest.fixture
def requests(monkeypatch):
    """What a store on loopback is asked, as (method, path)."""
    asked: list[tuple[str, str]] = []
    monkeypatch.setattr(
        WSGIRequestHandler,
        "log_request",
        lambda handler, *_: asked.append((handler.command, handler.path)),
    )
    with s3_store(monkeypatch):
        yield asked


def test_a_checkpoint_takes_few_requests_of_a_store_and_reads_nothing_back(requests):
    size = 3
    runs = [RunFolder("s3://data/run") for _ in range(size)]

    def save_one(epoch: int) -> list[str]:
        requests.clear()
        assert in_group(size, lambda w: runs[w.rank].save(content(epoch, w), w)) == [None] * size
        return [method for method, _ in requests]

    save_one(1)  # and the begin
    assert sorted(save_one(2)) == ["HEAD"] + ["PUT"] * (size + 3)
    save_one(3)
    asked = save_one(4)  # the second is outdated
    assert len(asked) == size + 4 + 5, "a folder is deleted by five, however many files it has"
    kept = [name.partition(".")[0] for name in Folder("s3://data/run/checkpoints").folders()]
    assert kept == ["epoch-00001", "epoch-00003", "epoch-00004"]
    for rank, found in enumerate(restore("s3://data/run", 2)):
        assert_is(found, 4, Workers(rank, 2))
