"""Where a worker trains: auto takes a GPU where each has one; one that is not there is one line."""

import pytest
import torch

from recray.config import TrainSettings, load_settings
from recray.errors import RecrayError
from recray.runtime.session import LOCAL
from recray.training import epochs, trainer
from recray.training.devices import check_device, device_of, gpus_at, with_device
from recray.training.loop import TrainingRun
from recray.training.runners import epoch_runner
from recray.training.shard import Workers, epoch_generator
from recray.training.worker_rows import on_cpu
from tests.on_gpu import Gpu, OnGpu, to_gpu
from tests.test_training import liked_only, training_run, two_tastes


@pytest.fixture
def gpus(monkeypatch):
    """Give this machine a number of GPUs."""

    def give(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)

    return give


@pytest.mark.parametrize(
    ("preset", "changes", "count", "workers", "device"),
    [
        ("neumf", [], 0, 1, "cpu"),
        ("neumf", [], 1, 1, "cuda"),
        ("neumf", [], 2, 2, "cuda"),
        ("neumf", [], 1, 2, "cpu"),
        ("rating", [], 1, 1, "cpu"),
        ("ranking", [], 1, 1, "cuda"),
        ("item-knn", [], 1, 1, "cpu"),
        ("dot-mse", ["train.max_rows_in_memory=20"], 1, 1, "cpu"),
        ("dot-mse", ["train.max_rows_in_memory=2000"], 1, 1, "cuda"),
    ],
)
def test_auto_is_a_gpu_where_each_worker_has_one(
    gpus, prepared, preset, changes, count, workers, device
):
    gpus(count)
    settings = load_settings(preset, None, ["train.device=auto", *changes])
    found = with_device(settings, prepared, workers, lambda: gpus_at(LOCAL))
    assert found.train.device == device
    assert device_of(found.train).type == device


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_device_that_is_named_is_not_asked_for(prepared, device):
    settings = load_settings("neumf", None, [f"train.device={device}"])
    assert with_device(settings, prepared, 1, lambda: 1 / 0) == settings


@pytest.mark.parametrize(
    ("count", "workers", "words"),
    [
        (0, 1, "train.device=cuda: this machine has no GPU that torch can use; give cpu"),
        (1, 3, "train.device=cuda with --workers 3: this machine has 1 GPU, one is needed"),
    ],
)
def test_a_gpu_that_is_not_there_is_refused_in_one_line(gpus, prepared, count, workers, words):
    gpus(count)
    settings = load_settings("neumf", None, ["train.device=cuda"])
    with pytest.raises(RecrayError, match=words) as error:
        check_device(settings.train, workers, LOCAL)
    assert "\n" not in str(error.value)
    if workers == 1:
        fitted = trainer.adapt_to_dataset(settings, prepared)
        with pytest.raises(RecrayError, match=words):
            trainer.check_trainable(fitted, prepared, 1, LOCAL)


def test_a_worker_without_the_gpu_that_it_was_promised_says_so(gpus):
    gpus(0)
    with pytest.raises(RecrayError, match=r"train\.device=cuda: there is no GPU"):
        device_of(TrainSettings(device="cuda"))


@pytest.mark.parametrize(("preset", "optimizer"), [("rating", "gibbs"), ("ease", "closed-form")])
def test_what_runs_on_the_cpu_alone_says_so(preset, optimizer):
    words = f"train.device=cuda does not go with train.optimizer={optimizer}, which runs on the CPU"
    with pytest.raises(RecrayError, match=words):
        load_settings(preset, None, ["train.device=cuda"])


# ------------------------------------------------------------------- epochs on a stand-in for one

FAMILIES = {
    "every row": ("dot-mse", ["train.batch_size=64"]),
    "touched rows": ("dot-mse", ["train.batch_size=16", "train.optimizer=lazy-adam"]),
    "item means": ("mf-normalised", ["train.batch_size=64", "train.optimizer=adagrad"]),
    "neumf": ("neumf", ["train.batch_size=64"]),
    "unseen negatives": (
        "neumf-ranking",
        ["objective.kind=logistic", "objective.negatives=3", "objective.reject_seen=true"],
    ),
    "popular negatives": (
        "neumf-ranking",
        [
            "objective.kind=item-softmax",
            "objective.negatives=3",
            "objective.sampling=popularity",
            "train.batch_size=32",
            "train.optimizer=adagrad",
        ],
    ),
    "all items": ("neumf-ranking", ["train.batch_size=8"]),
    "classes": ("softmax-dnn", ["train.batch_size=16", "train.optimizer=adagrad"]),
    "conjugate gradients": ("ranking", ["train.solver=cg", "objective.unobserved_power=0.5"]),
    "all items, logistic": ("neumf-ranking", ["objective.kind=logistic", "train.batch_size=8"]),
    "sequence": ("sequence", ["train.batch_size=8"]),
    "sequence, few items": ("sequence", ["train.batch_size=8", "objective.negatives=5"]),
    "exact solves": ("ranking", []),
    "exact solves of features": ("hybrid", ["model.item_features=[genre:a,genre:b]"]),
}


def two_epochs(run: TrainingRun) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Train; the losses, and what a checkpoint holds of the optimizer."""
    runner = epoch_runner(run.model, run.objective, run.shard, run.settings, Workers())
    losses = [runner.run(epoch)[0] for epoch in range(2)]
    return losses, runner.state() | runner.user_state()


@pytest.mark.parametrize("family", FAMILIES)
def test_epochs_on_a_gpu_touch_no_tensor_of_the_cpu_and_end_alike(tmp_path, monkeypatch, family):
    """A stand-in: see tests/on_gpu.py. Nothing here says that a GPU computes the same."""
    preset, changes = FAMILIES[family]
    monkeypatch.setattr(epochs, "epoch_generator", lambda *of: epoch_generator(*of[:3]))

    def run() -> TrainingRun:
        shard, _ = two_tastes()
        if "ranking" in preset:
            shard = liked_only(shard)
        return training_run(tmp_path, preset, shard, changes)

    one, other = run(), run()
    losses, _ = two_epochs(one)
    with Gpu():
        to_gpu(other.model)
        found, state = two_epochs(other)
        back = on_cpu(other.model)
    assert found == pytest.approx(losses)
    assert not state or any(isinstance(value, OnGpu) for value in state.values())
    for name, value in one.model.state_dict().items():
        mine = back.state_dict()[name]
        assert not isinstance(mine, OnGpu)
        assert torch.allclose(mine, value, atol=1e-6), name


def test_the_stand_in_refuses_tensors_of_both():
    with Gpu():
        there = torch.ones(3, device="cuda")
        assert (there * 2).cpu().tolist() == [2, 2, 2]
        with pytest.raises(RuntimeError, match="of the CPU and of the GPU"):
            there + torch.ones(3)
        with pytest.raises(RuntimeError, match="at places of the GPU"):
            torch.ones(3)[there.long()]
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
