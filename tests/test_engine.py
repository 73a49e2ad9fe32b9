"""Steps on the rows that a batch touches: the same numbers as steps on whole tables."""

import platform
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from recray.benchmarks.harness import own_memory
from recray.config import TrainSettings, load_settings
from recray.data.negatives import NegativeSampler
from recray.errors import RecrayError
from recray.models import build_model
from recray.models.base import Model
from recray.models.batches import Batch, UniqueIds, grouped_dot
from recray.models.factorization import DotBias
from recray.models.objectives import Mse, build_objective
from recray.training.collectives import SparseAllReduce
from recray.training.optimizers import (
    DenseStep,
    OptimizerChoice,
    describe,
    keep_freed_memory,
    precision_of,
)
from recray.training.own_users import OwnUsers, user_weights
from recray.training.shard import Workers
from recray.training.sparse import SparseStep
from tests.test_training import SIZE, training_run, two_tastes

ROWWISE = ("sgd", "adagrad", "lazy-adam")
PLANTED = [[0, 0], [0, 3], [2, 0], [0, 0], [5, 3], [2, 0], [0, 4]]
"""Pairs with users, items and whole pairs that occur several times."""


# -------------------------------------------------------------------------- ids of a batch


def test_ids_occur_once_and_know_their_places():
    given = torch.tensor([[7, 2], [2, 9], [7, 2]])
    touched = UniqueIds.of(given)
    assert touched.ids.tolist() == [2, 7, 9]
    assert torch.equal(touched.ids[touched.local], given)
    assert touched.order.tolist() == [1, 2, 5, 0, 4, 3]
    assert touched.offsets.tolist() == [0, 3, 5]


def test_rows_of_one_id_are_added_up():
    touched = UniqueIds.of(torch.tensor([4, 1, 4, 4]))
    rows = torch.tensor([[1.0, 10.0], [2.0, 20.0], [4.0, 40.0], [8.0, 80.0]])
    assert touched.combine(rows).tolist() == [[2.0, 20.0], [13.0, 130.0]]


def test_no_ids_touch_nothing():
    touched = UniqueIds.of(torch.zeros(0, 3, dtype=torch.int64))
    assert touched.ids.shape == (0,)
    assert touched.combine(torch.zeros(0, 2)).shape == (0, 2)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("pairs", [1, 4, 4096])
def test_products_and_their_gradients_are_those_of_autograd(count, pairs, monkeypatch):
    monkeypatch.setattr("recray.models.batches.PAIRS", pairs)
    generator = torch.Generator().manual_seed(0)
    user = torch.randint(0, 4, (9,), generator=generator)
    item = torch.randint(0, 5, (9, count), generator=generator)
    users, items = UniqueIds.of(user), UniqueIds.of(item)
    tables = [
        torch.randn(len(t.ids), 6, dtype=torch.float64, generator=generator).requires_grad_()
        for t in (users, items)
    ]
    plain = (tables[0][users.local][:, None] * tables[1][items.local]).sum(dim=-1)
    found = grouped_dot(*tables, users, items)
    assert torch.allclose(found, plain, atol=1e-12)
    slope = torch.randn(9, count, dtype=torch.float64, generator=generator)
    expected = torch.autograd.grad((plain * slope).sum(), tables)
    gradients = torch.autograd.grad((found * slope).sum(), tables)
    for one, other in zip(gradients, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-12)


# ---------------------------------------------------------------------- against dense tables


def batch_of(pairs: list[list[int]]) -> Batch:
    user, item = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).unbind(dim=1)
    rating = 1.0 + (user + 2 * item) % 5
    return Batch(user, item, rating.double(), torch.ones(len(user)).double(), len(user))


def whole_gradient(model: Model, batch: Batch, l2: float = 0.0) -> dict[str, torch.Tensor]:
    """The gradient of the mean squared error at every parameter, by autograd on whole tables."""
    error = (batch.rating - model(batch.user, batch.item)).square()
    loss = (error + l2 * model.l2_penalty(batch.user, batch.item)).mean()
    named = dict(model.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()))
    return dict(zip(named, found, strict=True))


def dot_bias(changes=(), weight_decay: float = 0.0) -> tuple[Model, TrainSettings]:
    torch.manual_seed(5)
    settings = load_settings("dot-mse", None, ["model.kind=dot-bias", "model.dim=3", *changes])
    settings = settings.changed(train={"weight_decay": weight_decay})
    return build_model(settings, 6, 5).double(), settings.train


def own_rows(model: Model, rank: int, size: int) -> tuple[OwnUsers, Model]:
    """Every size-th user, and the model with the rows of these alone."""
    users = OwnUsers.of([rank], [np.arange(rank, 6, size)], 6)
    mine = DotBias(len(users), 5, 3).double()
    mine.load_state_dict(users.own_rows(model.state_dict(), user_weights(model)))
    return users, mine


def take_steps(model: Model, settings: TrainSettings, batches: list[Batch], l2: float) -> None:
    step = SparseStep(model, settings, Workers(), max_pairs=9)
    for batch in batches:
        local = step.prepare(batch)
        small = step.batch_model
        step.take(Mse(l2).loss(small, local).mean(), 0)
    step.finish_steps()


class DenseAdagrad:
    """The textbook's: a sum for each row of the whole table."""

    def __init__(self, lr: float) -> None:
        self.lr, self.sums = lr, {}

    def change(self, name: str, gradient: torch.Tensor, _step: int) -> torch.Tensor:
        mean = gradient.square().mean(dim=1)
        self.sums[name] = self.sums.get(name, torch.zeros_like(mean)) + mean
        return -self.lr * gradient / (self.sums[name].sqrt() + 1e-8)[:, None]


class DenseLazyAdam:
    """The textbook's Adam, written out for whole tables, with rows masked that nobody touched."""

    def __init__(self, lr: float) -> None:
        self.lr, self.moments = lr, {}

    def change(self, name: str, gradient: torch.Tensor, step: int) -> torch.Tensor:
        touched = (gradient != 0).any(dim=1, keepdim=True)
        zeros = torch.zeros_like(gradient)
        first, second = self.moments.get(name, (zeros, zeros))
        first = torch.where(touched, 0.9 * first + 0.1 * gradient, first)
        second = torch.where(touched, 0.999 * second + 0.001 * gradient**2, second)
        self.moments[name] = first, second
        root = (second / (1 - 0.999**step)).sqrt() + 1e-8
        return torch.where(touched, -self.lr * first / (1 - 0.9**step) / root, zeros)


class DenseSgd:
    def __init__(self, lr: float) -> None:
        self.lr = lr

    def change(self, _name: str, gradient: torch.Tensor, _step: int) -> torch.Tensor:
        return -self.lr * gradient


DENSE = {"sgd": DenseSgd, "adagrad": DenseAdagrad, "lazy-adam": DenseLazyAdam}
STEPS = [batch_of(PLANTED), batch_of(PLANTED[2:4]), batch_of(PLANTED[::-1][:5]), batch_of(PLANTED)]


@pytest.mark.parametrize("l2", [0.0, 0.3])
@pytest.mark.parametrize("decay", [0.0, 0.5])
@pytest.mark.parametrize("optimizer", ROWWISE)
def test_an_optimizer_of_rows_is_the_dense_one_where_ids_repeat(optimizer, decay, l2):
    changes = [f"train.optimizer={optimizer}", "train.lr=0.1"]
    model, settings = dot_bias(changes, weight_decay=decay)
    dense, _ = dot_bias()
    take_steps(model, settings, STEPS, l2)
    reference = DENSE[optimizer](settings.lr)
    for step, batch in enumerate(STEPS, start=1):
        gradients = whole_gradient(dense, batch, l2)
        for name, parameter in dense.named_parameters():
            change = reference.change(name, gradients[name], step)
            ids = (batch.user if "user" in name else batch.item).unique()
            if optimizer != "sgd":
                change[ids] -= 0.1 * decay * parameter.data[ids]
            parameter.data += change
    for name, parameter in dense.named_parameters():
        found = model.get_parameter(name)
        assert torch.allclose(found, parameter, atol=1e-9), name
    assert torch.equal(model.user_vectors.weight[1], dot_bias()[0].user_vectors.weight[1])


def test_adam_of_rows_is_adam_where_every_row_is_touched():
    every = batch_of([[u, i] for u in range(6) for i in range(5)])
    model, settings = dot_bias(["train.optimizer=lazy-adam", "train.lr=0.1"])
    dense, _ = dot_bias()
    take_steps(model, settings, [every] * 5, l2=0.1)
    optimizer = torch.optim.Adam(dense.parameters(), lr=0.1)
    for _ in range(5):
        for name, gradient in whole_gradient(dense, every, 0.1).items():
            dense.get_parameter(name).grad = gradient
        optimizer.step()
    for name, parameter in dense.named_parameters():
        assert torch.allclose(model.get_parameter(name), parameter, atol=1e-9), name


MODELS = [
    ("dot-mse", []),
    ("dot-bias-bce", []),
    ("mf-normalised", []),
    ("hybrid", ["objective.kind=mse", "objective.negatives=4"]),
    ("hybrid", ["objective.kind=logistic", "objective.negatives=3"]),
    ("gmf", []),
    ("neumf", []),
    ("neumf", ["objective.kind=bpr"]),
    ("softmax-dnn", ["model.levels=[1,2,3,4,5]"]),
    ("softmax-dnn", ["objective.kind=unobserved-class", "model.levels=[1,2,3,4,5]"]),
    ("dot-mse", ["objective.kind=item-softmax", "objective.sampling=popularity"]),
    ("dot-mse", ["objective.kind=logistic", "objective.reject_seen=true"]),
]


@pytest.mark.parametrize(("preset", "changes"), MODELS)
def test_every_model_and_objective_steps_alike_on_touched_rows_and_whole_tables(preset, changes):
    """Plain descent is the same either way, so whatever differs is the small model's."""
    given = ["train.optimizer=sgd", "train.l2=0.02", "train.lr=0.05", "model.dim=3"]
    if preset == "hybrid":
        given += ["model.item_features=[genre:a,genre:b]"]
    settings = load_settings(preset, None, [*given, *changes]).sized(1000, 1500)
    sizes = {"mlp_dim": 3, "layers": [4, 3]}
    settings = settings.changed(model=sizes, train={"weight_decay": 0})
    objective = build_objective(settings, 1.0, 5.0)
    ends = []
    for kind in (DenseStep, SparseStep):
        torch.manual_seed(2)
        model = build_model(settings, 6, 9).double()
        if preset == "hybrid":
            model.describe_items(torch.eye(9, 2))
        generator = torch.Generator().manual_seed(3)
        sampler = None
        if settings.ranks:
            known = torch.tensor(sorted({u * 9 + i for u, i in PLANTED}))
            popular = torch.arange(9.0) if settings.objective.sampling == "popularity" else None
            taken = known if settings.objective.reject_seen else None
            sampler = NegativeSampler(9, settings.objective.negatives, popular, taken)
        extra = {"max_pairs": 99} if kind is SparseStep else {}
        step = kind(model, settings.train, Workers(), **extra)
        for whole in STEPS:
            drawn = sampler.draw(whole.user, generator) if sampler else None
            batch = step.prepare(replace(whole, negatives=drawn))
            loss = objective.loss(step.batch_model, batch)
            step.take((loss * batch.weight).mean(), 0)
        ends.append(model.state_dict())
    for name, tensor in ends[0].items():
        assert torch.allclose(ends[1][name], tensor, atol=1e-9), name


def test_padding_is_not_touched():
    model, settings = dot_bias(["train.optimizer=lazy-adam"])
    step = SparseStep(model, settings, Workers(), max_pairs=9)
    whole = batch_of([[2, 3], [0, 0]])
    local = step.prepare(replace(whole, num_valid=1))
    assert len(local.user) == 1
    assert local.ids.users.ids.tolist() == [2]


# ------------------------------------------------------------------------------ the choice


@pytest.mark.parametrize(
    ("optimizer", "batch", "pairs", "chosen"),
    [
        ("auto", 38_999, 1, ("lazy-adam", True)),
        ("auto", 39_000, 1, ("adam", False)),
        ("auto", 7_800, 5, ("adam", False)),
        ("auto", "all", 1, ("adam", False)),
        ("auto", 1, None, ("adam", False)),
        ("adam", 1, 1, ("adam", False)),
        ("sgd", 38_999, 1, ("sgd", True)),
        ("sgd", 39_000, 1, ("sgd", False)),
        ("adagrad", 5000, 1, ("adagrad", True)),
    ],
)
def test_a_batch_that_outgrows_the_tables_takes_all_rows(optimizer, batch, pairs, chosen):
    train = TrainSettings(optimizer=optimizer, batch_size=batch)
    choice = OptimizerChoice.of(train, rows=1_000_000, pairs=pairs, entries=100_000)
    assert (choice.optimizer, choice.sparse) == chosen


def test_tables_that_stay_in_the_cache_take_all_rows():
    train = TrainSettings(optimizer="auto", batch_size=100)
    assert OptimizerChoice.of(train, 1_000_000, 1, entries=16_383) == OptimizerChoice("adam", False)
    assert OptimizerChoice.of(train, 1_000_000, 1, entries=16_384) == OptimizerChoice(
        "lazy-adam", True
    )


def test_the_first_line_tells_the_optimizer_and_what_is_approximate():
    settings = load_settings("dot-mse", None, ["train.local_sgd_steps=8", "train.batch_size=8192"])
    assert describe(settings, 162_541, 59_047, 25_000_000, workers=2) == (
        "train: 25,000,000 ratings of 162,541 users and 59,047 items; lazy-adam (auto) on the rows "
        "that a batch touches, 8,192 ratings a step; 2 workers; "
        "APPROXIMATE: items and layers are averaged every 8 steps"
    )


def test_half_of_the_digits_are_enough_to_learn(tmp_path):
    shard, (user, item) = two_tastes()
    changes = ["train.lr=0.02", "train.epochs=60", "train.precision=bf16"]
    run = training_run(tmp_path, "neumf", shard, [*changes, "train.optimizer=lazy-adam"])
    run.fit()
    truth = torch.where((user + item) % 2 == 0, 5.0, 1.0)
    with torch.no_grad():
        assert (run.model(user, item) - truth).square().mean().sqrt() < 0.7


def test_few_digits_are_those_of_the_weights_as_they_are_now():
    layer, given = torch.nn.Linear(3, 2), torch.ones(1, 3)
    with precision_of(TrainSettings(precision="bf16"), torch.device("cpu")):
        layer(given).sum().backward()
        with torch.no_grad():
            layer.weight.fill_(2.0)
            layer.bias.zero_()
        assert layer(given).tolist() == [[6.0, 6.0]]


@pytest.mark.parametrize("optimizer", ["adagrad", "lazy-adam"])
@pytest.mark.parametrize(("preset", "changes"), [("dot-mse", []), ("neumf", ["train.l2=0.001"])])
def test_a_run_on_touched_rows_resumes_with_the_same_bits(tmp_path, preset, changes, optimizer):
    shard, (user, item) = two_tastes()
    lr = {"adagrad": 0.3, "lazy-adam": 0.05}[optimizer]
    changes = [*changes, f"train.optimizer={optimizer}", "train.batch_size=16", f"train.lr={lr}"]
    whole = training_run(tmp_path / "whole", preset, shard, [*changes, "train.epochs=30"])
    whole.fit()
    truth = torch.where((user + item) % 2 == 0, 5.0, 1.0)
    with torch.no_grad():
        rmse = (whole.model(user, item) - truth).square().mean().sqrt()
    assert rmse < 0.5, "guessing the mean scores 2"

    def kill(metrics):
        if metrics["epoch"] == 3:
            raise KeyboardInterrupt

    given = [*changes, "train.epochs=30"]
    broken = training_run(tmp_path / "broken", preset, shard, given, report=kill)
    with pytest.raises(KeyboardInterrupt):
        broken.fit()
    resumed = training_run(tmp_path / "broken", preset, shard, given)
    resumed.fit()
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


# --------------------------------------------------------------------------- several workers


def _take_part(rank: int, size: int, folder: str, optimizer: str, dense: bool) -> None:
    """Three steps of the planted pairs; worker r has the pairs of users r, r + size, ..."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}-{size}", rank=rank, world_size=size
    )
    changes = [f"train.optimizer={optimizer}", "train.lr=0.1"]
    model, settings = dot_bias(changes, weight_decay=0.2)
    users, model = own_rows(model, rank, size)
    step = SparseStep(model, settings, Workers(rank, size), max_pairs=7)
    if step.all_reduce is not None:  # several workers
        step.all_reduce.dense = dense
    for batch in STEPS:
        pairs = torch.stack([batch.user, batch.item], dim=1)[batch.user % size == rank]
        batch_of_part = replace(batch_of(pairs.tolist()), user=users.local(pairs[:, 0]))
        local = step.prepare(batch_of_part)
        error = Mse(0.0).loss(step.batch_model, local).sum()
        step.take(error / batch.num_valid, 0)
    step.finish_steps()
    weights = model.state_dict()
    rows = {name: weights.pop(name) for name in user_weights(model)} | step.user_state()
    known = {"ids": users.ids, "rows": rows, "shared": weights | step.state()}
    torch.save(known, f"{folder}-{size}-{rank}")
    dist.destroy_process_group()


def part(size: int, rank: int, folder: Path, optimizer: str, dense: bool = False) -> dict:
    path = Path(f"{folder}-{size}-{rank}")
    if not path.exists():
        given = (size, str(folder), optimizer, dense)
        mp.start_processes(_take_part, given, nprocs=size, start_method="fork")
    found: dict = torch.load(path)
    return found


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("optimizer", ROWWISE)
def test_several_workers_take_the_steps_of_one_on_touched_rows(tmp_path, optimizer, dense):
    one = part(1, 0, tmp_path / "w", optimizer)
    for size in (2, 3, 4):
        for rank in range(size):
            several = part(size, rank, tmp_path / "w", optimizer, dense)
            rows = {name: tensor[several["ids"]] for name, tensor in one["rows"].items()}
            for name, tensor in (one["shared"] | rows).items():
                own = (several["shared"] | several["rows"])[name]
                same = torch.allclose(own.double(), tensor.double(), atol=1e-9)
                assert own.shape == tensor.shape, name
                assert same, f"{name} of worker {rank} of {size}"


def _average(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/r", rank=rank, world_size=2)
    changes = ["train.optimizer=sgd", "train.lr=0.1", "train.local_sgd_steps=2"]
    model, settings = dot_bias(changes)
    users, model = own_rows(model, rank, 2)
    step = SparseStep(model, settings, Workers(rank, 2), max_pairs=7)
    for number in range(2):
        batch = batch_of([[rank, 0], [rank, 1 + rank]])
        local = step.prepare(replace(batch, user=users.local(batch.user)))
        loss = Mse(0.0).loss(step.batch_model, local).mean()
        step.take(loss, number)
    step.finish_steps()
    torch.save(model.state_dict(), f"{folder}/{rank}")
    dist.destroy_process_group()


def test_averaging_is_the_mean_of_what_each_worker_made_alone(tmp_path):
    mp.start_processes(_average, (str(tmp_path),), nprocs=2, start_method="fork")
    found = [torch.load(tmp_path / str(rank)) for rank in (0, 1)]
    alone = []
    for rank in (0, 1):
        model, settings = dot_bias(["train.optimizer=sgd", "train.lr=0.1"])
        take_steps(model, settings, [batch_of([[rank, 0], [rank, 1 + rank]])] * 2, l2=0.0)
        alone.append(model.state_dict())
    for name, tensor in found[0].items():
        if "user" in name:  # each worker has the rows of its own users
            for rank in (0, 1):
                assert torch.allclose(found[rank][name], alone[rank][name][rank::2], atol=1e-12)
            continue
        assert torch.equal(tensor, found[1][name]), name
        expected = (alone[0][name] + alone[1][name]) / 2
        assert torch.allclose(tensor, expected, atol=1e-12), name


@pytest.mark.parametrize(
    ("most", "size", "dense"), [(10, 2, False), (100, 2, True), (60, 4, True), (40, 4, False)]
)
def test_an_exchange_moves_the_fewer_bytes(most, size, dense):
    exchange = SparseAllReduce(100, 3, most, Workers(0, size))
    assert exchange.dense == dense
    received = {False: (size - 1) * most, True: 2 * (size - 1) / size * 100}[dense]
    assert exchange.received == pytest.approx(received * 4)


def test_all_of_the_sample_is_one_batch(tmp_path):
    shard, _ = two_tastes()
    changes = ["train.optimizer=adagrad", "train.batch_size=100000", "train.epochs=2"]
    run = training_run(tmp_path, "dot-mse", shard, changes)
    assert run.fit().epoch == 2
    assert len(shard.user) < SIZE * SIZE


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["train.batch_size=1000000"], r"train\.batch_size=1000000: the data set has \d+ ratings"),
        (
            ["objective.kind=item-softmax", "objective.negatives=all", "train.batch_size=10000"],
            r"train\.batch_size=10000: the data set has \d+ users",
        ),
        (["objective.kind=bpr", "objective.negatives=500", "train.batch_size=4"], "negatives=500"),
    ],
)
def test_what_the_data_cannot_give_is_refused_before_anything_starts(prepared, changes, words):
    from recray.training import trainer

    settings = load_settings("dot-mse", None, ["evaluate.k=1", *changes])
    with pytest.raises(RecrayError, match=words):
        trainer.check_trainable(settings, prepared, 1, "local")


@pytest.mark.parametrize(
    "changes",
    [
        ["train.optimizer=adagrad", "objective.kind=item-softmax", "objective.negatives=all"],
        ["train.optimizer=lazy-adam", "train.compile=true"],
    ],
)
def test_optimizers_of_rows_refuse_what_needs_all_rows(changes):
    with pytest.raises(RecrayError, match=r"train\.optimizer=.*use adam"):
        load_settings("dot-mse", None, changes)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_what_a_step_frees_stays_for_the_next_one():
    keep_freed_memory()
    held = [torch.ones(1_000_000) for _ in range(25)]
    before = own_memory("VmRSS")
    del held
    assert own_memory("VmRSS") > before - 50e6
