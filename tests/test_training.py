"""The loop without any cluster: it learns what was planted, stops, resumes, and shares work."""

import json
import math
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from recray.config import load_settings, overridden
from recray.data.dataset import Prepared, Ratings
from recray.errors import RecrayError
from recray.models import build_model
from recray.models.objectives import build_objective
from recray.training import trainer
from recray.training.als import ALSEpochs
from recray.training.callbacks import Callbacks
from recray.training.checkpoint import Checkpoint, RunFolder, TrainState, UserRows
from recray.training.early_stopping import distrust_of_validation
from recray.training.loop import TrainingRun
from recray.training.own_users import OwnUsers, first_model
from recray.training.ray_train import TrainJob
from recray.training.run_metadata import RunMetadata, RunSummary
from recray.training.runners import epoch_runner
from recray.training.shard import BatchPlan, Shard, Workers, epoch_generator, shuffled_batches

SIZE, PARTS = 20, 5


def two_tastes() -> tuple[Shard, tuple[torch.Tensor, torch.Tensor]]:
    """20 x 20 ratings: 5 stars if user and item have the same parity, else 1; some are held out."""
    user, item = (
        ids.reshape(-1) for ids in torch.meshgrid(*[torch.arange(SIZE)] * 2, indexing="ij")
    )
    rating = torch.where((user + item) % 2 == 0, 5.0, 1.0)
    held_out = (user + 2 * item) % 7 == 0
    seen = ~held_out
    shard = Shard(user[seen], item[seen], rating[seen], OwnUsers.everyone(SIZE))
    return shard, (user[held_out], item[held_out])


def liked_only(shard: Shard) -> Shard:
    keep = shard.rating == 5
    return Shard(shard.user[keep], shard.item[keep], shard.rating[keep], shard.users)


def part_of(shard: Shard, workers: Workers, parts: int = PARTS) -> Shard:
    """The ratings of a worker's users, in local ids and float64. A user's part is their id modulo
    the number of parts, and the parts of a worker are every size-th one.
    """
    own, everyone = range(workers.rank, parts, workers.size), np.unique(shard.user.numpy())
    users = OwnUsers.of(own, [everyone[everyone % parts == part] for part in own], SIZE)
    place = torch.from_numpy(users.places(shard.user.numpy()))
    rows = torch.nonzero(place >= 0)[:, 0]
    rows = rows[torch.argsort(place[rows], stable=True)]
    return Shard(place[rows], shard.item[rows], shard.rating[rows].double(), users)


def training_run(folder: Path, preset: str, shard: Shard, changes=(), **given) -> TrainingRun:
    small = load_settings(preset).sized(1000, 1500).changed(model=SIZES, train={"patience": None})
    settings = overridden(small, changes)
    model = first_model(partial(build_model, settings), shard.users, SIZE, settings.train.seed)
    arguments = {
        "settings": settings,
        "model": model,
        "objective": build_objective(settings, 1.0, 5.0),
        "shard": shard,
        "checkpoints": RunFolder(str(folder)),
        "workers": Workers(),
        "validate": None,
        "report": lambda _metrics: None,
    }
    return TrainingRun(**(arguments | given))


RATING_RECIPES = [
    ("dot-mse", ["train.lr=0.05", "train.batch_size=64", "train.epochs=40"]),
    ("dot-bias-bce", ["train.lr=0.05", "train.epochs=40"]),
    ("mf-normalised", ["train.lr=0.05", "train.l2=0.001"]),
    ("gmf", ["train.lr=0.05", "train.epochs=60"]),
    ("neumf", ["train.lr=0.02", "train.epochs=100", "model.dropout=0.1"]),
    # The l2 of the preset is for real ratings; in so few without noise it leaves the mean alone.
    ("softmax-dnn", ["train.lr=0.02", "train.epochs=60", "train.l2=0.1"]),
]
RANKING_RECIPES = [
    ["objective.kind=logistic", "objective.reject_seen=true"],
    ["objective.kind=logistic", "objective.negatives=all"],
    ["objective.kind=bpr", "objective.reject_seen=true"],
    ["objective.kind=item-softmax", "objective.sampling=popularity", "objective.negatives=8"],
    ["objective.kind=item-softmax", "objective.negatives=all", "train.batch_size=7"],
    ["objective.kind=item-softmax", "model.kind=neumf", "model.dropout=0.1"],
    ["objective.kind=unobserved-class", "model.kind=softmax-dnn"],
]


@pytest.mark.parametrize(("preset", "changes"), RATING_RECIPES)
def test_learns_two_tastes(tmp_path, preset, changes):
    shard, (user, item) = two_tastes()
    run = training_run(tmp_path, preset, shard, changes)
    run.fit()
    truth = torch.where((user + item) % 2 == 0, 5.0, 1.0)
    with torch.no_grad():
        rmse = (run.model(user, item) - truth).square().mean().sqrt()
    assert rmse < 0.5, "guessing the mean scores 2"


def test_ranks_the_held_out_half_of_two_tastes_first(tmp_path):
    shard, (user, item) = two_tastes()
    run = training_run(tmp_path, "ranking", liked_only(shard))
    run.fit()
    liked = (user + item) % 2 == 0
    with torch.no_grad():
        score = run.model(user, item)
    assert score[liked].min() > score[~liked].max()


def ranking(changes):
    """A gradient recipe of two epochs' worth of the objective."""
    gradient = ["train.optimizer=adam", "train.l2=0", "train.lr=0.03", "train.batch_size=64"]
    return [*gradient, "train.epochs=40", *changes]


@pytest.mark.parametrize("changes", RANKING_RECIPES, ids=lambda c: ",".join(c))
def test_every_ranking_objective_tells_two_tastes_apart(tmp_path, changes):
    shard, (user, item) = two_tastes()
    run = training_run(tmp_path, "ranking", liked_only(shard), ranking(changes))
    run.fit()
    liked = (user + item) % 2 == 0
    with torch.no_grad():
        score = run.model.eval()(user, item)
    above = (score[liked][:, None] > score[~liked]).float().mean()
    assert above > 0.95, "guessing gives 0.5"


@pytest.mark.parametrize(
    ("preset", "changes"),
    [*RATING_RECIPES, ("ranking", []), *(("ranking", ranking(c)) for c in RANKING_RECIPES)],
)
def test_a_resumed_run_ends_with_the_same_bits(tmp_path, preset, changes):
    shard, _ = two_tastes()
    whole = training_run(tmp_path / "whole", preset, shard, [*changes, "train.epochs=6"])
    whole.fit()

    class Killed(Exception):
        pass

    def kill(metrics):
        if metrics["epoch"] == 3:
            raise Killed

    broken = training_run(
        tmp_path / "broken", preset, shard, [*changes, "train.epochs=6"], report=kill
    )
    with pytest.raises(Killed):
        broken.fit()
    resumed = training_run(tmp_path / "broken", preset, shard, [*changes, "train.epochs=6"])
    progress = resumed.fit()
    assert [entry["epoch"] for entry in progress.history] == [1, 2, 3, 4, 5, 6]
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


def validated_run(tmp_path, epochs: int):
    """A run whose validation is best in its second epoch, with a patience of two."""
    values = iter([1.0, 0.5, 0.6, 0.7, 0.8])
    return training_run(
        tmp_path,
        "dot-mse",
        two_tastes()[0],
        [f"train.epochs={epochs}", "train.patience=2"],
        validate=lambda _model: {"rmse": (next(values) ** 2, 1.0)},
    )


def test_the_best_epoch_is_kept_and_patience_stops(tmp_path):
    run = validated_run(tmp_path, epochs=50)
    progress = run.fit()
    assert (progress.epoch, progress.best_epoch, progress.stopped) == (4, 2, True)
    assert run.checkpoints.best().train_state.epoch == 2


def test_where_validation_is_not_trusted_all_epochs_run_and_the_last_is_kept(tmp_path):
    run = validated_run(tmp_path, epochs=5)
    progress = replace(run, keep_last=True).fit()
    assert (progress.epoch, progress.best_epoch, progress.stopped) == (5, 5, False)
    assert [entry["rmse"] for entry in progress.history] == [1.0, 0.5, 0.6, 0.7, 0.8]


def data_of(valid: list[int], fold_in: list[int], users: int) -> Prepared:
    """A data set whose training knows the first `users` users; each list has a row a user."""

    class Data(Prepared):
        def load(self, split, parts=None):
            user = np.array({"valid": valid, "fold_in": fold_in}[split], np.int32)
            return Ratings(user, user, user.astype(np.float32), user.astype(np.int64))

    return Data(None, {"counts": {"users": users, "items": 99}})


@pytest.mark.parametrize(
    ("users", "cold", "held_out", "words"),
    [
        (49, 0, 0, "validation has 49 users, and 50 are needed to pick an epoch"),
        (50, 0, 0, None),
        (60, 30, 0, None),
        (60, 31, 0, "31 of 60 validation users are unknown to training"),
        (60, 60, 60, None),  # they are folded in
        (60, 60, 29, "31 of 60 validation users are unknown to training"),
        (0, 0, 0, None),
    ],
)
def test_few_or_mostly_unknown_validation_users_pick_no_epoch(users, cold, held_out, words):
    valid = list(range(users)) * 2
    known = list(range(users - held_out, users))
    data = data_of(sorted(valid), known, users - cold)
    assert distrust_of_validation(load_settings("ranking"), data) == words
    assert distrust_of_validation(load_settings("dot-mse"), data) is None
    final = load_settings("ranking", None, ["train.fit_on=train+valid"])
    assert distrust_of_validation(final, data) is None


def test_the_first_lines_of_a_run_say_that_validation_is_not_trusted(prepared, tmp_path):
    few = distrust_of_validation(load_settings("ranking"), prepared)
    settings = trainer.adapt_to_dataset(load_settings("ranking"), prepared)
    run = RunFolder(str(tmp_path / "run"))
    record = metadata(settings=settings)
    job = TrainJob(settings, prepared.folder, run.folder.path, "", keep_last=True)
    plan = trainer._Training(job, prepared, run, record, TrainState(), Callbacks(), few)._plan(1)
    words = "validation has 13 users, and 50 are needed to pick an epoch"
    assert f"train: {words}: all 12 epochs are run, the last is kept" in plan


def test_workers_that_begin_again_refuse_data_that_were_replaced_meanwhile(prepared, tmp_path):
    settings = load_settings("dot-mse")
    job = TrainJob(settings, prepared.folder, str(tmp_path / "run"), prepared.fingerprint)
    assert job.open_prepared().manifest == prepared.manifest
    facts = prepared.folder.read_json("manifest.json")
    facts["fingerprints"]["train"] = "0" * 64
    prepared.folder.write_json("manifest.json", facts)
    with pytest.raises(RecrayError, match=r"prepared was replaced while .*run trained on it"):
        job.open_prepared()


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(tmp_path):
    shard, _ = two_tastes()
    small = ["train.batch_size=32", "train.optimizer=sgd"]
    training_run(tmp_path, "dot-mse", shard, [*small, "train.epochs=2"]).fit()
    bad = training_run(tmp_path, "dot-mse", shard, [*small, "train.epochs=9", "train.lr=1e30"])
    with pytest.raises(RecrayError, match=r"train\.lr=1e\+30"):
        bad.fit()
    assert RunFolder(str(tmp_path)).latest().train_state.epoch == 2


@pytest.mark.parametrize("solver", ["exact", "cg"])
def test_solves_without_a_single_solution_end_in_one_line(tmp_path, solver):
    changes = ["train.l2=0", "model.dim=64", f"train.solver={solver}"]  # of 20 items
    run = training_run(tmp_path, "ranking", two_tastes()[0], changes)
    with pytest.raises(
        RecrayError, match=r"l2 of 0: .* no single solution; give a larger train.l2"
    ):
        run.fit()


def test_solves_that_are_not_finite_name_no_learning_rate(tmp_path, monkeypatch):
    monkeypatch.setattr(ALSEpochs, "_loss", lambda _self: math.nan)
    run = training_run(tmp_path, "ranking", two_tastes()[0], ["train.l2=0.5"])
    with pytest.raises(RecrayError, match=r"nan in epoch 1 with train.l2=0.5; use a larger tr"):
        run.fit()


# ------------------------------------------------------------------------------- step plan


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
@pytest.mark.parametrize("total", ["1", "W-1", "W", "W+1", "31"])
def test_every_row_occurs_once_and_every_worker_takes_every_step(workers, total):
    count = max(1, eval(total, {"W": workers}))
    rows = tuple(
        len(range(rank, count, workers + 1)) for rank in range(workers)
    )  # some are left out
    plan = BatchPlan.of(rows, 4)
    weights = []
    for rank, count in enumerate(rows):
        ids = torch.arange(count)
        generator = epoch_generator(0, 0, rank)
        batches = list(shuffled_batches((ids, ids, ids.float()), plan, generator))
        assert len(batches) == plan.steps
        assert all(len(b.user) == plan.batch for b in batches)
        real = torch.cat([b.user[b.weight > 0] for b in batches])
        assert sorted(real.tolist()) == list(range(count))
        weights.append([int(b.weight.sum()) for b in batches])
    assert [sum(step) for step in zip(*weights, strict=True)] == [
        plan.valid_rows(step) for step in range(plan.steps)
    ]


def test_a_batch_of_all_is_one_step():
    assert BatchPlan.of((10, 7), "all").steps == 1


# ------------------------------------------------------------------------------ many workers


WHOLE = ["train.batch_size=all", "train.lr=0.1"]
SHARED = {
    "dot-mse": ("dot-mse", [*WHOLE, "train.optimizer=sgd"]),
    "adam": ("dot-mse", [*WHOLE, "train.lr=0.01", "train.weight_decay=0.5"]),
    "mf-normalised": ("mf-normalised", [*WHOLE, "train.optimizer=sgd"]),
    "neumf": ("neumf", [*WHOLE, "train.optimizer=sgd"]),
    "all-items": ("neumf-ranking", [*WHOLE, "train.lr=0.01", "model.dropout=0"]),
    "ranking": ("ranking", []),
    "sequence": ("sequence", [*WHOLE, "train.optimizer=sgd", "model.dropout=0"]),
    "adagrad": ("dot-mse", [*WHOLE, "train.optimizer=adagrad", "train.weight_decay=0.1"]),
    "lazy-adam": ("softmax-dnn", [*WHOLE, "train.optimizer=lazy-adam", "train.lr=0.01"]),
}
SIZES = {"dim": 4, "mlp_dim": 4, "layers": [16, 8], "levels": [1, 5]}


def _train_part(rank: int, size: int, folder: str, recipe: str, address: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=size)
    shard, _ = two_tastes()
    preset = SHARED[recipe][0]
    if "ranking" in preset:
        shard = liked_only(shard)
    workers = Workers(rank, size)
    mine = part_of(shard, workers)
    given = ["train.epochs=4", *SHARED[recipe][1]]
    run = training_run(Path(folder), preset, mine, given, workers=workers)
    run.model.double()
    run.fit()
    if size == 2:
        assert_no_table_of_everyone(run, mine)
    dist.destroy_process_group()


def assert_no_table_of_everyone(run: TrainingRun, mine: Shard) -> None:
    """Among all tensors of the process only those of this worker's users have a row for each."""
    assert 0 < len(mine.users) < SIZE
    tables = {name for name in run.model.embeddings() if "user_" in name}
    for name in tables:
        assert len(run.model.get_submodule(name).weight) == len(mine.users)


def trained_by(size: int, folder: Path, recipe: str) -> dict[str, torch.Tensor]:
    address = f"file://{folder}-rendezvous"
    arguments = (size, str(folder), recipe, address)
    mp.start_processes(_train_part, arguments, nprocs=size, start_method="fork")
    return RunFolder(str(folder)).latest().weights


@pytest.mark.parametrize("recipe", SHARED)
def test_several_workers_take_the_steps_of_one(tmp_path, recipe):
    one = trained_by(1, tmp_path / "one", recipe)
    for size in (2, 3):
        several = trained_by(size, tmp_path / f"w{size}", recipe)
        for name, tensor in one.items():
            assert torch.allclose(several[name], tensor, atol=1e-9), f"{name} with {size} workers"


# ------------------------------------------------------------------------------- checkpoints


def saved(folder: RunFolder, epoch: int, best: int = 1) -> None:
    weights = {"table": torch.full((2, 2), float(epoch))}
    history = [{"epoch": e} for e in range(1, epoch + 1)]
    users = UserRows(OwnUsers.everyone(3), {"user_vectors.weight": torch.full((3, 2), epoch / 2)})
    state = TrainState(epoch, best, 1.0, history)
    folder.save(Checkpoint(weights, {}, state, users=users), Workers())


def test_the_best_and_the_last_two_checkpoints_stay(tmp_path):
    folder = RunFolder(str(tmp_path))
    for epoch in range(1, 7):
        saved(folder, epoch, best=min(epoch, 2))
    names = sorted(os.listdir(tmp_path / "checkpoints"))
    assert names == ["epoch-00002", "epoch-00005", "epoch-00006"]
    assert folder.best().weights["table"][0, 0] == 2


@pytest.mark.parametrize(
    "file", ["shared.safetensors", "users-00000-of-00001.safetensors", "manifest.json"]
)
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_a_damaged_checkpoint_is_skipped_for_the_one_before(tmp_path, caplog, file, damage):
    folder = RunFolder(str(tmp_path))
    saved(folder, 1)
    saved(folder, 2)
    path = tmp_path / "checkpoints" / "epoch-00002" / file
    content = bytearray(path.read_bytes())
    if damage == "delete":
        path.unlink()
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content if damage == "flip" else content[: len(content) // 2])
    assert folder.latest().train_state.epoch == 1
    assert len(caplog.records) == 1


def test_when_no_checkpoint_is_whole_the_file_is_named(tmp_path):
    folder = RunFolder(str(tmp_path))
    saved(folder, 1)
    (tmp_path / "checkpoints" / "epoch-00001" / "shared.safetensors").write_bytes(b"")
    with pytest.raises(RecrayError, match=r"shared\.safetensors"):
        folder.latest()


def metadata(**changes) -> RunMetadata:
    values = {"dataset": "a", "prepared": "p", "fingerprint": "f", "workers": 1}
    return RunMetadata(**values | {"settings": load_settings("dot-mse")} | changes)


def test_a_run_folder_is_not_taken_over_in_silence(tmp_path):
    RunFolder(str(tmp_path)).validate(metadata(), resume=False)
    RunFolder(str(tmp_path)).reserve(metadata())
    with pytest.raises(RecrayError, match="--resume"):
        RunFolder(str(tmp_path)).validate(metadata(), resume=False)
    RunFolder(str(tmp_path)).validate(metadata(), resume=True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dataset": "b"}, r"a \(now b\)"),
        ({"fingerprint": "g"}, "has changed"),
        (
            {"settings": load_settings("dot-mse", None, ["train.lr=0.5"])},
            r"train\.lr=0\.001 \(now 0\.5\)",
        ),
    ],
)
def test_resuming_something_else_is_refused(tmp_path, changes, words):
    RunFolder(str(tmp_path)).reserve(metadata())
    with pytest.raises(RecrayError, match=words):
        RunFolder(str(tmp_path)).validate(metadata(**changes), resume=True)


@pytest.mark.parametrize("content", ["[]", "{}", '{"settings": {}}', '{"settings": 1}', '{"form'])
def test_a_damaged_run_file_is_named_in_one_line(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(RecrayError, match=r"run\.json is damaged: ") as error:
        RunFolder(str(tmp_path)).validate(metadata(), resume=True)
    assert "\n" not in str(error.value)


def test_a_kill_before_the_last_history_was_written_leaves_none_out(tmp_path):
    folder = RunFolder(str(tmp_path))
    folder.reserve(metadata())
    saved(folder, 1)
    before = (tmp_path / "epochs.json").read_text()
    saved(folder, 2)
    (tmp_path / "epochs.json").write_text(before)
    values = {"run": "run", "epochs": 2, "best_epoch": 1, "best": {}, "stopped_early": False}
    folder.finish(RunSummary(**values))
    assert [entry["epoch"] for entry in folder.history()] == [1, 2]


def test_the_history_is_there_to_be_read_while_training(tmp_path):
    shard, _ = two_tastes()
    training_run(tmp_path, "dot-mse", shard, ["train.epochs=3"]).fit()
    assert [e["epoch"] for e in json.loads((tmp_path / "epochs.json").read_text())] == [1, 2, 3]


def test_workers_start_from_the_same_weights_and_shuffle_apart():
    first, second = (epoch_generator(0, 0, rank) for rank in (0, 1))
    assert not torch.equal(
        torch.randperm(50, generator=first), torch.randperm(50, generator=second)
    )
    again = epoch_generator(0, 0, 0)
    assert torch.equal(
        torch.randperm(50, generator=again), torch.randperm(50, generator=epoch_generator(0, 0, 0))
    )


def test_alternating_epochs_lower_the_whole_loss(tmp_path):
    shard, _ = two_tastes()
    run = training_run(tmp_path, "ranking", liked_only(shard))
    epochs = epoch_runner(run.model, run.objective, run.shard, run.settings, Workers())
    losses = [epochs.run(epoch)[0] for epoch in range(4)]
    assert losses == sorted(losses, reverse=True)


def test_the_best_epoch_of_the_checkpoint_before_is_still_there(tmp_path):
    folder = RunFolder(str(tmp_path))
    for epoch, best in ((1, 1), (2, 1), (3, 1), (4, 4)):
        saved(folder, epoch, best)
    (tmp_path / "checkpoints" / "epoch-00004" / "shared.safetensors").write_bytes(b"")
    assert folder.best().train_state.epoch == 1


def test_a_run_that_was_stopped_inside_its_first_epoch_has_nothing_to_export(tmp_path):
    folder = RunFolder(str(tmp_path))
    with pytest.raises(RecrayError, match="no finished epoch yet"):
        folder.trained_model()
    folder.save(Checkpoint({"table": torch.ones(2)}, {}, TrainState(step=7)), Workers())
    with pytest.raises(RecrayError, match="no finished epoch yet; go on with --resume"):
        folder.trained_model()


def test_a_run_file_cut_by_a_kill_is_never_seen(tmp_path):
    folder = RunFolder(str(tmp_path))
    folder.reserve(metadata())
    assert [f.name for f in tmp_path.iterdir()] == ["run.json"]


def test_a_loss_that_explodes_tells_the_step_and_keeps_the_checkpoint_before(tmp_path):
    shard, _ = two_tastes()
    changes = ["train.optimizer=sgd", "train.lr=1e12", "train.batch_size=64", "train.epochs=3"]
    run = training_run(tmp_path, "dot-mse", shard, changes)
    with pytest.raises(
        RecrayError, match=r"step \d of epoch 1 with train.lr=1e\+12 and train.l2=.*; use a"
    ):
        run.fit()
    assert run.checkpoints.latest() is None
