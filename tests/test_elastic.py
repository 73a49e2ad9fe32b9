"""Groups that grow and shrink, and failures told apart; no Ray is started."""

import pytest
import torch
from click.testing import CliRunner

from recray.cli import cli
from recray.config import load_settings
from recray.errors import NodeTaken, NotPlaced, RecrayError, WorkerLost
from recray.runtime import ray_errors
from recray.runtime.session import workers_at
from recray.runtime.worker_range import WorkerRange
from recray.training import elastic, resizing
from recray.training.checkpoint import RunFolder, TrainState
from recray.training.elastic import ElasticTraining
from recray.training.failures import lost_peer, machine_failures_told
from recray.training.ray_train import TrainJob
from recray.training.resizing import GroupEnds, ResizeWatch
from recray.training.shard import LONG_TIMEOUT_S, Workers
from recray.tuning import distributed_trial
from recray.tuning.distributed_trial import cause_of
from tests.test_training import metadata

# ---------------------------------------------------------------------------------- --workers


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (4, WorkerRange(4, 1, 4)),
        ("4", WorkerRange(4, 1, 4)),
        ("1..4", WorkerRange(1, 1, 4)),
        (" 2 .. 4 ", WorkerRange(2, 2, 4)),
        ("4..4", WorkerRange(4, 4, 4)),
    ],
)
def test_workers_are_a_number_or_a_range(given, expected):
    assert WorkerRange.of(given) == expected
    assert WorkerRange.of(expected) is expected


def test_workers_are_named_as_they_were_given():
    for given in ("1", "4", "1..4", "4..4"):
        assert str(WorkerRange.of(given)) == given


@pytest.mark.parametrize("given", [0, "0", "0..3", "4..1", "1..", "..3", "1...3", "-1", "x", "1.5"])
def test_other_workers_are_refused_in_one_line(given):
    with pytest.raises(RecrayError, match=r"give a number such as 2, or a range") as refused:
        WorkerRange.of(given)
    assert "\n" not in str(refused.value)


def test_the_command_refuses_them_in_one_line(tmp_path):
    for given in ("0", "4..1", "1.."):
        words = ["train", "prepared", "--out", str(tmp_path / "run"), "--workers", given]
        done = CliRunner().invoke(cli, words)
        assert done.exit_code == 2
        assert done.output.startswith(f"Error: --workers {given}: ")
        assert done.output.count("\n") == 1


def test_on_this_machine_a_range_is_its_maximum():
    assert workers_at("1..3", "local") == WorkerRange(3, 1, 3)
    assert workers_at("1..3", "auto") == WorkerRange(1, 1, 3)


# ------------------------------------------------------------------------------ after a group


@pytest.fixture
def training(tmp_path, monkeypatch):
    """A run whose groups end as the script says: (how it ends, epochs done, workers left)."""

    def train(workers: str, script: list, max_failures: int = 1):
        wanted, folder = WorkerRange.of(workers), RunFolder(str(tmp_path / "run"))
        record = metadata(workers=wanted.start)
        folder.reserve(record)
        sizes, said, state, left = [], [], TrainState(), 0

        def fit(_worker, _config, _folder, count, _gpus, _starts):
            nonlocal left
            end, state.epoch, left = script.pop(0)
            sizes.append(count)
            if isinstance(end, Exception):
                raise end
            return end

        for name, stand_in in {
            "fit": fit,
            "workers_left": lambda most, *_others: min(most, left),
            "usable_nodes": list,
            "require_shared": lambda _folder: None,
            "request_workers": lambda *_request: None,
            "capacity": lambda: type("Capacity", (), {"max_cpus": left}),
        }.items():
            monkeypatch.setattr(elastic, name, stand_in)
        monkeypatch.setattr(RunFolder, "train_state", lambda _self, **_how: state)
        job = TrainJob(record.settings, "prepared", "run", "")
        group = ElasticTraining(job, folder, record, wanted, said.append)
        group.run(max_failures, local_mode=False)
        changes = [(c.epoch, c.workers) for c in folder.metadata().changes]
        return sizes, changes, said

    return train


def test_a_group_grows_after_an_epoch_and_shrinks_with_notice_and_without(training):
    sizes, changes, said = training(
        "2..4",
        [("room", 3, 4), ("taken", 5, 3), (WorkerLost("worker 1 died"), 7, 2), (None, 9, 0)],
    )
    assert sizes == [2, 4, 3, 2]
    assert changes == [(0, 2), (3, 4), (5, 3), (7, 2)]
    assert said[0] == "train: there is room for more workers: a checkpoint after epoch 3"
    assert "goes on with 4 workers instead of 2; the digits are not those" in said[1]
    assert said[2] == "train: a node is taken away: a checkpoint after epoch 5"
    assert said[4] == "train: worker 1 died; again after epoch 7, 1 of 1"


def test_a_number_of_workers_shrinks_to_what_is_left_and_grows_back(training):
    sizes, changes, _ = training("3", [("taken", 2, 1), ("room", 4, 3), (None, 9, 0)])
    assert sizes == [3, 1, 3]
    assert changes == [(0, 3), (2, 1), (4, 3)]


def test_below_the_minimum_the_run_ends_in_one_line_and_is_kept(training, tmp_path):
    with pytest.raises(RecrayError, match=r"2\.\.4.*room for 1, the fewest are 2.*after epoch 5"):
        training("2..4", [("taken", 5, 1)])
    assert RunFolder(str(tmp_path / "run")).metadata().workers == 2


def test_only_losses_without_notice_count_as_failures(training):
    taken, lost = NodeTaken("the node of worker 1 was taken away"), WorkerLost("worker 0 died")
    training("1..2", [(taken, 1, 2), (taken, 1, 2), (lost, 2, 2), (None, 3, 0)])
    with pytest.raises(WorkerLost, match="a worker was lost 2 times, --max-failures is 1"):
        training("1..2", [(lost, 1, 2), (NotPlaced("no room"), 1, 2)])


def test_workers_that_never_found_room_end_the_run_and_are_not_tried_again(training):
    with pytest.raises(NotPlaced, match="no room"):
        training("2", [(NotPlaced("no room"), 0, 2)])


# --------------------------------------------------------------------------- when a group ends


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(resizing.time, "monotonic", lambda: now[0])
    return now


def test_a_notice_ends_the_group_after_a_step_though_steps_become_slower(clock):
    """Steps take 1 ms until shortly before the notice, and 20 ms from then on."""
    saved: list[int] = []
    watch = ResizeWatch(lambda: clock[0] >= 100, None, saved.append, Workers())

    def train() -> None:
        for step in range(1, 10**6):
            clock[0] += 0.001 if clock[0] < 99 else 0.02
            watch.after_step(step)

    with pytest.raises(GroupEnds, match="taken"):
        train()
    assert len(saved) == 1
    assert 100 <= clock[0] <= 107


def test_a_group_grows_only_after_an_epoch_and_not_at_once(clock):
    watch = ResizeWatch(lambda: False, lambda: clock[0] >= 50, lambda _step: None, Workers())
    for second in range(200):
        clock[0] = second
        watch.after_step(second)

    def train() -> None:
        for second in range(200):
            clock[0] = second
            watch.after_epoch()

    watch.begun = 0.0
    with pytest.raises(GroupEnds, match="room"):
        train()
    assert clock[0] == 60, "asked at 30 s, where there is no room yet, and again at 60 s"


# ------------------------------------------------------------------------ failures told apart

GLOO = "[/gloo/transport/tcp/pair.cc:553] "


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (f"{GLOO}Connection closed by peer [10.0.0.1]:18335", "died: its connection was closed"),
        (f"{GLOO}Read error [::1]:1: Connection reset by peer", "died"),
        (f"{GLOO}writev [10.0.0.1]:1: Broken pipe", "died"),
        ("Operation timed out!", "has not answered for 20.3 s"),
        (f"{GLOO}Timed out waiting 60000ms for recv operation", "has not answered for 20.3 s"),
        ("inconsistent tensor size, expected tensor [3] and src [4]", None),
        ("op.preamble.length <= op.nbytes. 668 vs 8", None),
        ("CUDA error: device-side assert triggered", None),
        ("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes", None),
    ],
)
def test_only_a_gone_or_silent_peer_is_a_lost_worker(words, expected):
    found = lost_peer(RuntimeError(words), 20.3)
    assert found == expected if expected is None else expected in found


def test_a_device_error_that_comes_late_is_no_lost_worker(monkeypatch):
    class Work:
        def wait(self, _timeout):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\ntimed out")

    monkeypatch.setattr(torch.distributed, "all_reduce", lambda _value, async_op: Work())
    with (
        pytest.raises(RecrayError, match=r"worker 1 of 2 .*: CUDA out of memory. Tried .* 2 GiB;"),
        machine_failures_told(1, 2),
    ):
        Workers(1, 2).sum(torch.ones(1))


@pytest.mark.parametrize(
    ("error", "advised"),
    [
        (MemoryError(), True),
        (MemoryError("Unable to allocate 9 GiB for an array"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `x`\nmore"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), False),
        (torch.AcceleratorError("CUDA error: device-side assert triggered"), False),
    ],
)
def test_only_what_lacks_memory_is_advised_to_take_less(error, advised):
    with pytest.raises(RecrayError) as told, machine_failures_told(0, 1):
        raise error
    assert ("give more workers" in str(told.value)) == advised
    assert "\n" not in str(told.value)


def test_a_bug_of_a_worker_stays_what_it_is(monkeypatch):
    def all_reduce(_value, async_op):
        raise RuntimeError("The size of tensor a (3) must match the size of tensor b (4)")

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    with pytest.raises(RuntimeError, match="must match"), machine_failures_told(0, 2):
        Workers(0, 2).begin_sum(torch.ones(1))


class Failed(Exception):
    """As Ray Train's: by rank what the workers raised."""

    def __init__(self, controller: Exception | None = None, **workers: Exception) -> None:
        self.worker_failures = {int(name[1:]): error for name, error in workers.items()}
        self.controller_failure = controller


class WorkerGroupStartupFailedError(Exception):
    """By name as Ray's."""


class WorkerGroupStartupTimeoutError(Exception):
    """By name as Ray's."""


@pytest.mark.parametrize(
    ("raised", "expected", "words"),
    [
        (Failed(w0=WorkerLost("waited"), w1=RecrayError("full")), RecrayError, "full"),
        (Failed(w0=WorkerLost("waited in vain")), WorkerLost, "waited in vain"),
        (Failed(w0=WorkerLost("waited"), w1=RuntimeError("shapes")), None, ""),
        (Failed(WorkerGroupStartupTimeoutError()), NotPlaced, "had no room for them"),
        (Failed(WorkerGroupStartupFailedError()), WorkerLost, "died while the group began"),
        (Failed(ValueError("a bug of the controller")), None, ""),
    ],
)
def test_what_ray_raises_is_told_apart(raised, expected, words):
    found = ray_errors.group_failure(raised, 4)
    assert type(found) is (expected or type(None))
    assert words in str(found)


# --------------------------------------------------------------------- teams of several workers


@pytest.mark.parametrize(
    "end", [None, KeyboardInterrupt(), SystemExit(1), WorkerLost("worker 1 died")]
)
def test_a_trial_whose_workers_were_stopped_has_not_failed(end):
    with pytest.raises(WorkerLost, match=r"stopped before it ended|died"):
        cause_of(end)


def test_a_trial_whose_worker_raised_an_error_has_failed_with_it():
    shapes = RuntimeError("shapes, by gloo")
    assert cause_of(Failed(w0=WorkerLost("waited"), w1=shapes)) is shapes
    assert str(cause_of(RecrayError("no memory"))) == "no memory"


def test_the_workers_of_a_trial_wait_long_for_what_the_search_decides(monkeypatch):
    waited = []

    class Listening(Workers):
        def sum_floats(self, *values):
            waited.append(self.timeout)
            return [float(len(waited) < 2)]

    states = iter([TrainState(), TrainState(1), TrainState(2), TrainState(3)])
    run = type("Run", (), {"epochs": lambda _self: states})()
    monkeypatch.setattr(distributed_trial, "build_run", lambda *_: run)
    monkeypatch.setattr(distributed_trial.NoTestDataset, "open", lambda _path: None)
    settings = load_settings("dot-mse").plain()
    distributed_trial._train_epochs({"settings": settings, "prepared": ""}, Listening(1, 2))
    assert waited == [LONG_TIMEOUT_S] * 2
    assert next(states).epoch == 3, "the second answer was to leave"
