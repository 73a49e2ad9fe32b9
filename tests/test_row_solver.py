"""Exact solves of many rows: against brute force, and divided over workers."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from recray.models.factorization import Dot, Hybrid
from recray.models.objectives import ImplicitALS, Preference, row_solver
from recray.models.objectives import normal_equations as numbers
from recray.models.objectives.normal_equations import Equations, GroupedRows
from recray.models.objectives.preference import Graded
from recray.models.objectives.row_solver import ConjugateGradients, Priors, Spectrum, solve_rows
from recray.training.als import ALSEpochs
from recray.training.divided_items import chunk_sizes, pack, unpack
from recray.training.own_users import OwnUsers
from recray.training.shard import Shard, Workers

ROWS, OTHERS, DIM = 40, 23, 6
EXACT = {"atol": 1e-10, "rtol": 1e-10}


def known(kind: str = "weighted") -> tuple[Tensor, Tensor, Graded | None]:
    """Rows of 0 to 23 ratings: begins, places, and what they say."""
    torch.manual_seed(3)
    lengths = torch.tensor([0, OTHERS, *torch.randint(0, OTHERS, (ROWS - 2,)).tolist()])
    places = torch.cat([torch.randperm(OTHERS)[:n] for n in lengths.tolist()])
    target, weight = torch.rand(2, len(places), dtype=torch.float64)
    graded = {"binary": None, "targets": Graded(target, None), "weighted": Graded(target, weight)}
    return torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]), places, graded[kind]


def sides(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Fixed vectors, their Gram matrix, and ridge, weight and mean of each row."""
    torch.manual_seed(4)
    fixed, mean = (torch.randn(n, DIM, dtype=torch.float64) for n in (OTHERS, ROWS))
    given = fixed, 0.3 * fixed.T @ fixed, 0.1 + torch.rand(ROWS), 0.5 + torch.rand(ROWS), mean
    return tuple(x.to(dtype) for x in given)


def by_hand(kind: str, pulled: bool) -> Tensor:
    (begins, places, graded), (fixed, gram, ridge, weights, mean) = known(kind), sides()
    found = []
    for row, (begin, end) in enumerate(zip(begins[:-1].tolist(), begins[1:].tolist(), strict=True)):
        matrix = weights[row] * gram + ridge[row] * torch.eye(DIM)
        right = ridge[row] * mean[row] if pulled else torch.zeros(DIM, dtype=torch.float64)
        for n in range(begin, end):
            vector = fixed[places[n]]
            weight = 1.0 if graded is None or graded.weight is None else graded.weight[n]
            matrix = matrix + weight * torch.outer(vector, vector)
            right = right + weight * (1.0 if graded is None else graded.target[n]) * vector
        found.append(torch.linalg.solve(matrix, right))
    return torch.stack(found)


def solved(kind: str, pulled: bool, dtype: torch.dtype = torch.float64, **given) -> Tensor:
    (begins, places, graded), (fixed, gram, ridge, weights, mean) = known(kind), sides(dtype)
    if graded is not None:
        graded = Graded(*(None if x is None else x.to(dtype) for x in graded))
    rows, spectrum = GroupedRows.of(begins, places, OTHERS, DIM, graded), Spectrum.of(gram)
    priors = Priors.of(spectrum, ridge, weights, mean if pulled else None)
    return solve_rows(rows, fixed, spectrum, priors, **given)


@pytest.mark.parametrize("pulled", [False, True])
@pytest.mark.parametrize("kind", ["binary", "targets", "weighted"])
@pytest.mark.parametrize("short", [0.0, 0.5, 9.0])  # of rows by their ratings: none, some, all
@pytest.mark.parametrize("gathered", [12, 1 << 18])  # numbers: two ratings, or all of them
def test_solves_are_those_of_each_row_alone(monkeypatch, kind, pulled, short, gathered):
    monkeypatch.setattr(numbers, "SHORT", short)
    monkeypatch.setattr(numbers, "CPU_NUMBERS", gathered)
    assert torch.allclose(solved(kind, pulled), by_hand(kind, pulled), **EXACT)


@pytest.mark.parametrize("rows", [3, ROWS])  # few are solved one by one
def test_the_objective_solves_few_rows_and_many(rows):
    (begins, places, graded), (fixed, gram, _, _, mean) = known(), sides()
    objective, end = ImplicitALS(0.3, 0.05), begins[rows]
    given = fixed, begins[: rows + 1], places[:end], gram, OTHERS, mean[:rows]
    found = objective.solve(*given, graded.rows(0, end))
    every, spectrum = GroupedRows.of(begins, places, OTHERS, DIM, graded), Spectrum.of(gram)
    ridge = 0.05 * (begins.diff().double() + 0.3 * OTHERS)
    expected = solve_rows(every, fixed, spectrum, Priors.of(spectrum, ridge, None, mean))
    assert torch.allclose(found, expected[:rows], **EXACT)


def test_float32_is_within_a_millionth_of_float64():
    exact, rounded = by_hand("weighted", True), solved("weighted", True, torch.float32).double()
    assert ((rounded - exact).norm(dim=1) <= 1e-6 * exact.norm(dim=1)).all()


def test_rows_that_steps_do_not_solve_are_solved_by_elimination(monkeypatch):
    monkeypatch.setattr(numbers, "SHORT", 0.0)
    monkeypatch.setattr(row_solver, "MOST_STEPS", 1)
    monkeypatch.setattr(ConjugateGradients, "take", lambda self, steps: self.solution)
    assert torch.allclose(solved("weighted", True), by_hand("weighted", True), **EXACT)


def test_counted_steps_come_nearer_with_each_and_begin_where_they_are_told(monkeypatch):
    monkeypatch.setattr(numbers, "SHORT", 0.0)
    exact = by_hand("weighted", False)
    near = exact + 0.01
    found = [solved("weighted", False, start=near, steps=steps) for steps in (0, 1, 2, 6)]
    errors = [(solution - exact).norm().item() for solution in found]
    assert errors[0] == pytest.approx(0.01 * exact.numel() ** 0.5)
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-9  # as many steps as unknowns


def test_a_row_without_any_ridge_is_solved_too():
    (begins, places, graded), (fixed, gram, *_) = known("binary"), sides()
    spectrum, zero = Spectrum.of(gram), torch.zeros(ROWS, dtype=torch.float64)
    rows = GroupedRows.of(begins, places, OTHERS, DIM, graded)
    found = solve_rows(rows, fixed, spectrum, Priors.of(spectrum, zero, None, None))
    own = fixed[places[begins[1] : begins[2]]]
    expected = torch.linalg.solve(own.T @ own + gram, own.sum(dim=0))
    assert torch.allclose(found[1], expected, **EXACT)


def test_packed_equations_are_the_same_again_and_half_as_long():
    torch.manual_seed(0)
    matrix = torch.randn(5, DIM, DIM)
    given = Equations(matrix + matrix.mT, torch.randn(5, DIM))
    packed = pack(given, torch.tensor([[3, 1], [0, 4]]))  # those of two workers
    assert packed.shape == (2, 1, DIM * (DIM + 1) + 2 * DIM)
    for part, rows in zip(packed, ([3, 1], [0, 4]), strict=True):
        found = unpack(part)
        assert torch.equal(found.matrix, given.matrix[rows])
        assert torch.equal(found.right, given.right[rows])


@pytest.mark.parametrize("workers", [2, 3, 4])
@pytest.mark.parametrize("items", [1, 7, 512, 1500])
def test_shares_of_items_are_even_and_hold_all(items, workers):
    sizes = chunk_sizes(items, workers, 64, torch.device("cpu"))
    assert all(size % 2 == 0 for size in sizes)
    assert items <= workers * sum(sizes) < items + 2 * workers


# --------------------------------------------------------------------------- several workers

USERS, ITEMS = 31, 45
KINDS: dict[str, Callable[[int], tuple[Dot | Hybrid, ImplicitALS]]] = {
    "dot": lambda users: (Dot(users, ITEMS, DIM, "logit"), ImplicitALS(0.3, 0.05)),
    "weighted": lambda users: (
        Dot(users, ITEMS, DIM, "logit"),
        ImplicitALS(0.3, 0.05, Preference("counts"), unobserved_power=0.5),
    ),
    "hybrid": lambda users: (Hybrid(users, ITEMS, DIM, ("a", "b", "c")), ImplicitALS(0.3, 0.05)),
}


def trained(kind: str, rank: int, size: int, steps: int | None) -> dict[str, Tensor]:
    """Three epochs on the users rank, rank + size, ... of a planted set."""
    torch.manual_seed(7)
    liked = torch.rand(USERS, ITEMS) < torch.linspace(0.02, 0.9, ITEMS)
    liked[:, 0] = False  # nobody has rated item 0
    user, item = torch.nonzero(liked).T
    rating = torch.randint(1, 9, (len(user),)).double()
    torch.manual_seed(8)
    whole, _ = KINDS[kind](USERS)
    if isinstance(whole, Hybrid):
        whole.describe_items(torch.randn(ITEMS, 3))
    ids = torch.arange(rank, USERS, size)
    model, objective = KINDS[kind](len(ids))
    weights = {
        k: v[ids] if k == "user_vectors.weight" else v for k, v in whole.state_dict().items()
    }
    model.load_state_dict(weights)
    own = user % size == rank
    users = OwnUsers.of((rank,), [ids.numpy()], USERS)
    shard = Shard(user[own] // size, item[own], rating[own], users)
    epochs = ALSEpochs(model.double(), objective, shard, Workers(rank, size), steps)
    losses = [epochs.run(epoch)[0] for epoch in range(3)]
    return model.state_dict() | {"ids": ids, "losses": torch.tensor(losses)}


def _train(rank: int, size: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meet-{size}", rank=rank, world_size=size)
    found = {(k, s): trained(k, rank, size, s) for k in KINDS for s in (None, 2)}
    torch.save(found, f"{folder}/{size}-{rank}")
    dist.destroy_process_group()


@pytest.mark.parametrize("size", [2, 3, 4])
def test_several_workers_solve_what_one_solves(tmp_path: Path, size):
    mp.start_processes(_train, (size, str(tmp_path)), nprocs=size, start_method="fork")
    parts = [torch.load(tmp_path / f"{size}-{rank}") for rank in range(size)]
    for kind, steps in parts[0]:
        one = trained(kind, 0, 1, steps)
        every = [part[kind, steps] for part in parts]
        for part in every:
            ids = part.pop("ids")
            expected = one["user_vectors.weight"][ids]
            assert torch.allclose(part.pop("user_vectors.weight"), expected, atol=1e-9), kind
        assert torch.allclose(sum(part.pop("losses") for part in every), one["losses"], atol=1e-9)
        for name, value in every[0].items():
            assert torch.allclose(value, one[name], atol=1e-9), (kind, name)
            for other in every[1:]:
                assert torch.equal(other[name], value), "items are the same on each, to the bit"


# --------------------------------------------------------------------------- inside an epoch


@pytest.mark.parametrize("epoch", [0, 1])
def test_an_epoch_that_goes_on_between_two_phases_ends_as_an_unbroken_one(epoch):
    def fresh() -> ALSEpochs:
        torch.manual_seed(8)
        model, objective = KINDS["dot"](USERS)
        user, item = torch.nonzero(torch.rand(USERS, ITEMS) < 0.2).T
        shard = Shard(user, item, torch.ones(len(user)), OwnUsers.everyone(USERS))
        return ALSEpochs(model, objective, shard, Workers())

    unbroken, saved = fresh(), {}

    def save(step: int) -> None:
        weights = {k: v.clone() for k, v in unbroken.model.state_dict().items()}
        saved[step] = weights, unbroken.losses_so_far().clone()

    unbroken.on_step(save)
    loss = unbroken.run(epoch)
    assert sorted(saved) == ([1, 2] if epoch == 0 else [1])
    for step, (weights, losses) in saved.items():
        resumed = fresh()
        resumed.model.load_state_dict(weights)
        resumed.continue_at(step, losses)
        assert resumed.run(epoch) == loss
        for name, value in unbroken.model.state_dict().items():
            assert torch.equal(resumed.model.state_dict()[name], value), name
