"""Training on parts that are read while they are needed: every row once, exact, bounded."""

import weakref
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from recray import schema
from recray.config import load_settings
from recray.data.dataset import KIND, Prepared, part_name
from recray.errors import RecrayError
from recray.models.base import Statistics
from recray.schema import TIMINGS
from recray.storage import Folder, publish
from recray.training import trainer
from recray.training.checkpoint import RunFolder
from recray.training.loop import TrainingRun, build_run
from recray.training.own_users import OwnUsers
from recray.training.shard import BatchPlan, Shard, Workers, epoch_generator
from recray.training.streaming import StreamedShard
from recray.training.worker_rows import WorkerRows
from recray.tuning.trial import NoCheckpoints
from tests.test_training import SIZE, training_run, two_tastes

PARTS = 7
LIMIT = 120  # of about 340 rows in 7 parts


def columns(part: int) -> tuple[torch.Tensor, ...]:
    """The rows of the users of a part, in float64."""
    shard, _ = two_tastes()
    own = shard.user % PARTS == part
    return shard.user[own], shard.item[own], shard.rating[own].double()


def streamed(workers: Workers, read=columns, limit: int = LIMIT) -> StreamedShard:
    parts = range(workers.rank, PARTS, workers.size)
    users = OwnUsers.of(parts, [np.arange(part, SIZE, PARTS) for part in parts], SIZE)

    def local(part: int) -> tuple[torch.Tensor, ...]:
        user, item, rating = read(part)
        return users.local(user), item, rating

    return StreamedShard(local, {part: len(columns(part)[0]) for part in parts}, limit, users)


def resident(workers: Workers) -> Shard:
    shard = streamed(workers)
    return Shard(*(torch.cat(c) for c in zip(*shard.chunks(), strict=True)), shard.users)


def run_of(folder: Path, shard, workers: Workers, *changes: str, **given) -> TrainingRun:
    settings = ["train.lr=0.01", "train.epochs=4", *changes]
    run = training_run(folder, "dot-mse", shard, settings, **given)
    run.model.double()
    return TrainingRun(**(vars(run) | {"workers": workers}))


def tables(run: TrainingRun) -> dict[str, torch.Tensor]:
    run.fit()
    return run.checkpoints.latest().weights


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 16, 64, 1000])
def test_every_row_occurs_once_an_epoch_in_the_steps_of_the_plan(workers, batch_size):
    shards = [streamed(Workers(rank, workers)) for rank in range(workers)]
    plan = BatchPlan.of(tuple(shard.rows for shard in shards), batch_size)
    weights = []
    for rank, shard in enumerate(shards):
        batches = list(shard.batches(plan, epoch_generator(0, 0, rank)))
        assert [len(b.user) for b in batches] == [plan.batch] * plan.steps
        real = torch.cat([(b.user * SIZE + b.item)[b.weight > 0] for b in batches])
        whole = resident(Workers(rank, workers))
        assert (
            real.sort().values.tolist() == (whole.user * SIZE + whole.item).sort().values.tolist()
        )
        weights.append([int(b.weight.sum()) for b in batches])
    assert [sum(step) for step in zip(*weights, strict=True)] == [
        plan.valid_rows(step) for step in range(plan.steps)
    ]


def test_no_more_rows_are_in_memory_than_allowed():
    alive: list[weakref.ref] = []
    most = 0

    def read(part: int):
        nonlocal most
        rows = columns(part)
        alive.append(weakref.ref(rows[1]))
        held = [ref() for ref in alive]
        most = max(most, sum(len(tensor) for tensor in held if tensor is not None))
        return rows

    shard = streamed(Workers(), read)
    for _ in shard.batches(BatchPlan.of((shard.rows,), 16), epoch_generator(0, 0, 0)):
        pass
    assert LIMIT / 2 < most <= LIMIT < shard.rows


def test_parts_come_in_another_order_each_epoch_and_are_mixed():
    shard = streamed(Workers())
    epochs = [
        torch.cat(
            [b.user for b in shard.batches(BatchPlan.of((340,), 16), epoch_generator(0, e, 0))]
        )
        for e in (0, 1)
    ]
    assert not torch.equal(*epochs)
    first = epochs[0][:64] % PARTS
    assert len(first.unique()) > 1, "a window of one part after another is no shuffle"


def _train_part(rank: int, size: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}-r", rank=rank, world_size=size)
    workers = Workers(rank, size)
    run_of(Path(folder), streamed(workers), workers, "train.batch_size=1000").fit()
    dist.destroy_process_group()


def test_streamed_workers_take_the_steps_of_one_that_holds_everything(tmp_path):
    """In steps of all rows, so that their order does not matter."""
    one = run_of(tmp_path / "one", resident(Workers()), Workers(), "train.batch_size=all")
    wanted = tables(one)
    streaming = run_of(tmp_path / "s", streamed(Workers()), Workers(), "train.batch_size=1000")
    found = {"1 worker": tables(streaming)}
    for size in (2, 3):
        folder = str(tmp_path / f"w{size}")
        mp.start_processes(_train_part, (size, folder), nprocs=size, start_method="fork")
        found[f"{size} workers"] = RunFolder(folder).latest().weights
    for who, weights in found.items():
        for name, table in wanted.items():
            assert torch.allclose(weights[name], table, atol=1e-9), f"{name} of {who}"


@pytest.mark.parametrize("preset", ["dot-mse", "ranking"])
def test_a_resumed_streamed_run_ends_with_the_same_bits(tmp_path, preset):
    drawn = ["train.batch_size=32"]
    if preset == "ranking":
        kind = ["objective.kind=logistic", "objective.sampling=popularity", "train.l2=0"]
        drawn += [*kind, "train.optimizer=adam"]

    def run(name: str, epochs: int) -> TrainingRun:
        changes = ["train.lr=0.01", f"train.epochs={epochs}", *drawn]
        return training_run(tmp_path / name, preset, streamed(Workers()), changes)

    def single(part):
        user, item, rating = columns(part)
        return user, item, rating.float()

    whole, first, rest = (run(n, e) for n, e in (("whole", 4), ("cut", 2), ("cut", 4)))
    for made in (whole, first, rest):
        object.__setattr__(made, "shard", streamed(Workers(), single))
        made.fit()
    for name, table in whole.model.state_dict().items():
        assert torch.equal(rest.model.state_dict()[name], table), name


def test_what_is_compiled_may_be_streamed(tmp_path, monkeypatch):
    compiled: list[str] = []

    def compile(function, mode):
        compiled.append(mode)
        return lambda batch: function(batch) * 1

    monkeypatch.setattr(torch, "compile", compile)
    given = ["train.optimizer=adam", "train.batch_size=16"]
    plain = tables(run_of(tmp_path / "a", streamed(Workers()), Workers(), *given))
    assert not compiled
    changes = [*given, "train.compile=true"]
    found = tables(run_of(tmp_path / "b", streamed(Workers()), Workers(), *changes))
    assert compiled == ["default"]
    for name, table in plain.items():
        assert torch.equal(found[name], table), name


# --------------------------------------------------------------------- from a prepared data set


@pytest.fixture
def in_parts(prepared, tmp_path) -> Prepared:
    """The small data set with its users in four parts."""
    with publish(Folder(str(tmp_path / "in-parts"))) as folder:
        for name in ("items.parquet", "users.parquet"):
            folder.write_table(name, prepared.folder.read_table(name))
        for split in schema.SPLITS:
            rows = prepared.folder.read_table(part_name(split, 0))
            for part in range(4):
                own = pc.equal(pc.bit_wise_and(rows["user"], 3), part)
                folder.write_table(part_name(split, part), rows.filter(own))
        facts = {k: v for k, v in prepared.manifest.items() if k not in ("kind", "files")}
        folder.write_manifest(KIND, facts | {"buckets": 4})
    return Prepared.open(str(tmp_path / "in-parts"))


def settings_of(*changes: str):
    small = ["model.dim=4", "train.batch_size=4", "train.epochs=2", "train.patience=null"]
    return load_settings("dot-mse", None, [*small, *changes])


def test_validation_of_a_streamed_worker_is_that_of_one_that_holds_everything(in_parts):
    found, biases = {}, []
    for limit in ("null", "18"):
        settings = settings_of(f"train.max_rows_in_memory={limit}", "evaluate.k=2")
        rows = WorkerRows(settings, in_parts, Workers())
        assert rows.streamed == (limit == "18")
        run = build_run(settings, in_parts, NoCheckpoints(), Workers(), lambda _: None)
        with torch.no_grad():
            found[limit] = run.validate(run.model.eval())
        assert sorted(rows.shard.users.ids.tolist()) == list(range(in_parts.users))
        ones = torch.ones(in_parts.items)
        bias = rows._biases(Statistics(3.0 * ones, ones, 1.0, 5.0)).user_bias
        biases.append(bias[torch.argsort(rows.users.ids)])
    assert torch.equal(*biases)
    assert biases[0].count_nonzero() == in_parts.users
    assert found["18"].keys() == found["null"].keys()
    for name, sums in found["null"].items():
        assert found["18"][name] == pytest.approx(sums), name


def test_a_streamed_run_on_a_prepared_data_set_trains_and_validates(in_parts, tmp_path):
    settings = settings_of("train.max_rows_in_memory=18")
    entries: list[dict] = []
    folder = str(tmp_path / "run")
    build_run(settings, in_parts, RunFolder(folder), Workers(), entries.append).fit()
    assert [set(entry) >= {"loss", "rmse", *TIMINGS} for entry in entries] == [True, True]


@pytest.mark.parametrize(
    ("preset", "changes", "words"),
    [
        ("ranking", [], "objective.kind=ials needs all ratings of a worker in memory"),
        ("rating", [], "objective.kind=bpmf needs all ratings"),
        ("neumf-ranking", [], "objective.negatives=all needs all ratings"),
        ("mf-normalised", [], "train.batch_size=all needs all ratings"),
        (
            "dot-mse",
            ["train.max_rows_in_memory=5"],
            "is too few: the largest part, or a worker's batc",
        ),
        ("dot-mse", ["train.batch_size=30"], "batch, has 30 ratings"),
    ],
)
def test_what_cannot_be_streamed_is_refused(in_parts, preset, changes, words):
    limit = [] if any("in_memory" in c for c in changes) else ["train.max_rows_in_memory=18"]
    small = ["evaluate.k=2", "model.dim=64"] if preset == "rating" else ["evaluate.k=2"]
    if preset.startswith(("dot", "neumf")) and "train.batch_size=30" not in changes:
        small.append("train.batch_size=4")
    settings = load_settings(preset, None, [*limit, *small, *changes])
    with pytest.raises(RecrayError, match=words):
        trainer.check_trainable(trainer.adapt_to_dataset(settings, in_parts), in_parts, 1, "local")
