"""Gibbs sampling: each draw against its formula, then what the whole learns, resumes and shares."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from recray.config import load_settings
from recray.errors import RecrayError
from recray.models import build_model
from recray.models.factorization import BPMFMean
from recray.models.objectives import BPMF, FoldInConfig, build_objective
from recray.models.objectives.normal_equations import Equations, GroupedRows
from recray.training.checkpoint import RunFolder
from recray.training.gibbs import GibbsSampler
from recray.training.gibbs_math import (
    Draws,
    RatedRows,
    RowPrior,
    divided_qr,
    draw_noise,
    draw_rows,
    draw_wishart,
    implicit_svd_features,
    normal,
    truncated_svd,
    with_zeros,
)
from recray.training.loop import TrainingRun
from recray.training.own_users import OwnUsers
from recray.training.shard import Shard, Workers

USERS, ITEMS = 90, 60
ALONE = Workers()
SMALL = [
    "model.dim=8", "objective.factors=3", "objective.side_rank=5",
    "objective.samples_per_epoch=4", "objective.burn_in=1",
]  # fmt: skip


def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def planted() -> tuple[Shard, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Stars 3 + rank 2 of spread 1 + noise of 0.1, at 40 % of the pairs; held-out pairs of it."""
    one = rng()
    stars = 3 + normal(one, USERS, 2) @ normal(one, 2, ITEMS) / 2**0.5
    stars += 0.1 * normal(one, USERS, ITEMS)
    chance = torch.from_numpy(one.random((USERS, ITEMS)))
    user, item = torch.nonzero(chance < 0.4).T
    out_user, out_item = torch.nonzero(chance > 0.9).T
    shard = Shard(user, item, stars[user, item].float(), OwnUsers.everyone(USERS))
    return shard, (out_user, out_item, stars[out_user, out_item])


def training_run(folder: Path, shard: Shard, changes=(), **given) -> TrainingRun:
    settings = load_settings("rating", None, [*SMALL, *changes])
    torch.manual_seed(settings.train.seed)
    arguments = {
        "settings": settings,
        "model": build_model(settings, len(shard.users), ITEMS),
        "objective": build_objective(settings, 1.0, 5.0),
        "shard": shard,
        "checkpoints": RunFolder(str(folder)),
        "workers": Workers(),
        "validate": None,
        "report": lambda _metrics: None,
    }
    return TrainingRun(**(arguments | given))


# ------------------------------------------------------------------------------------ the draws


def test_each_draw_brings_new_targets_and_weights_to_the_ratings_of_a_row():
    one = rng()
    vectors, other = normal(one, 4, 3), torch.tensor([2, 0, 3, 1, 2])
    numbered = GroupedRows.of(torch.tensor([0, 2, 2, 5]), torch.arange(5), 5, 3)
    ratings = RatedRows(numbered, other, 4)
    for _ in range(2):
        target, weight = normal(one, 5), torch.from_numpy(one.random(5))
        known = ratings.drawn_with(target, weight)
        for group in known.groups:
            given = known.equations(group, with_zeros(vectors))
            for place, row in enumerate(known.members(group).tolist()):
                numbers = torch.tensor(([0, 1], [], [2, 3, 4])[row], dtype=torch.int64)
                own = vectors[other[numbers]]
                weighted = own * weight[numbers, None]
                assert torch.allclose(given.matrix[place], weighted.T @ own)
                assert torch.allclose(given.right[place], weighted.T @ target[numbers])
    assert sorted(known.rows.tolist()) == [0, 1, 2]


def test_rows_are_drawn_from_the_posterior_of_a_linear_regression():
    one = rng()
    vectors, target, mean = normal(one, 4, 3), normal(one, 4), normal(one, 1, 3)
    root = normal(one, 3, 3)
    precision = root @ root.T + torch.eye(3)
    given = Equations((vectors.T @ vectors)[None], (vectors.T @ target)[None])
    inverse = torch.linalg.inv(vectors.T @ vectors + precision)
    best = inverse @ (vectors.T @ target + precision @ mean[0])
    middle = draw_rows(given, mean, precision, torch.zeros(1, 3))
    assert torch.allclose(middle[0], best)
    # A draw is linear in its noise, so unit noises give a root of the covariance.
    unit = torch.eye(3, dtype=torch.float64)
    away = torch.cat([draw_rows(given, mean, precision, unit[n : n + 1]) - best for n in range(3)])
    assert torch.allclose(away.T @ away, inverse)


def test_wishart_draws_have_their_mean_and_spread():
    scale = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    one = rng()
    draws = torch.stack([draw_wishart(torch.linalg.inv(scale), 6, one) for _ in range(4_000)])
    assert torch.allclose(draws.mean(dim=0), 6 * scale, rtol=0.04, atol=0.1)
    # Var of an entry: freedom * (s_ij^2 + s_ii s_jj).
    assert torch.allclose(
        draws.var(dim=0)[0, 1], torch.tensor(6 * (0.25 + 2.0)).double(), rtol=0.05
    )


def test_a_prior_learns_weights_and_precision_of_many_rows():
    one = rng()
    features = torch.cat([torch.ones(20_000, 1), normal(one, 20_000, 1)], dim=1).double()
    weights = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64)
    spread = torch.tensor([[0.5, 0.0], [0.3, 2.0]], dtype=torch.float64)
    prior = RowPrior(features, 2)
    prior.draw(features @ weights + normal(one, 20_000, 2) @ spread.T, one)
    assert torch.allclose(prior.weights, weights, atol=0.06)
    precision = torch.linalg.inv(spread @ spread.T)
    assert torch.allclose(prior.precision, precision, rtol=0.06, atol=0.1)


def test_noise_follows_many_ratings_and_the_typical_user_few():
    counts = torch.tensor([100_000.0, 0.0], dtype=torch.float64).repeat(2000)
    draws = Draws(7, 0, OwnUsers.everyone(len(counts)))
    weight, typical = draw_noise(counts * 4.0, counts, 2.0, draws, Workers())
    assert 1 / weight[0] == pytest.approx(4.0, rel=0.05)
    # Gamma(5/2, rate 5/2 * 2) has mean 1/2.
    assert weight[1::2].mean() == pytest.approx(0.5, rel=0.05)
    assert 2.0 < typical < 4.0


# --------------------------------------------------------------------------- tastes, the mean


def test_tastes_are_the_main_directions_of_who_rated_what():
    same = (torch.arange(USERS)[:, None] + torch.arange(ITEMS)) % 2 == 0  # two circles of users
    rated = torch.from_numpy(rng().random((USERS, ITEMS))) < torch.where(same, 0.8, 0.2)
    user, item, table = implicit_svd_features(
        *torch.nonzero(rated).T, OwnUsers.everyone(USERS), ITEMS, 3, Workers()
    )
    dense = rated.double()
    weighed = dense * dense.sum(dim=1, keepdim=True) ** -0.25 * dense.sum(dim=0) ** -0.25
    left, size, right = torch.linalg.svd(weighed)
    for found, wanted, rows in ((user, left, USERS), (item, right.T, ITEMS)):
        for place in range(2):
            direction = found[:, place] / rows**0.5 * size[0] / size[place]
            assert abs(direction @ wanted[:, place]).item() == pytest.approx(1, abs=1e-3)
    sums = dense @ table * dense.sum(dim=1, keepdim=True) ** -0.25
    assert torch.allclose(sums, user)


def test_compressing_is_the_truncated_singular_value_decomposition():
    left, right = normal(rng(), 9, 5), normal(rng(), 7, 5)
    u, size, v = torch.linalg.svd(left @ right.T, full_matrices=False)
    small = truncated_svd(left, right, 2, Workers())
    assert torch.allclose(small[0] @ small[1].T, u[:, :2] * size[:2] @ v[:2])
    wide = truncated_svd(left, right, 8, Workers())
    assert wide[0].shape == (9, 8)
    assert torch.allclose(wide[0] @ wide[1].T, left @ right.T)


def _reduce_part(rank: int, size: int, folder: str) -> None:
    torch.set_num_threads(1)
    address = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=size)
    begins, rows = _deficient()
    found = divided_qr(rows[begins[rank] : begins[rank + 1]], Workers(rank, size))
    torch.save(found, f"{folder}/qr-{rank}")
    dist.destroy_process_group()


def _deficient() -> tuple[list[int], torch.Tensor]:
    """Where the rows of three workers begin, and 12 rows: two columns of zeros, three of rank 2."""
    one = rng()
    rows = normal(one, 12, 2) @ normal(one, 2, 3)
    return [0, 9, 12, 12], torch.cat([torch.zeros(12, 2), rows], dim=1)


def test_a_divided_table_of_few_directions_is_reduced_like_a_whole_one(tmp_path):
    mp.start_processes(_reduce_part, (3, str(tmp_path)), nprocs=3, start_method="fork")
    found = [torch.load(tmp_path / f"qr-{rank}") for rank in range(3)]
    _, rows = _deficient()
    assert all(torch.equal(r, found[0][1]) for _, r in found)
    q, r = torch.cat([q for q, _ in found]), found[0][1]
    assert torch.allclose(q @ r, rows, atol=1e-12)
    # Inside the two directions Q is orthogonal: lengths and angles of the rows are those of R.
    assert torch.allclose(rows.T @ rows, r.T @ r, atol=1e-12)


def sampler(shard: Shard | None = None, workers: Workers = ALONE, **sizes) -> GibbsSampler:
    shard = shard or planted()[0]
    model = BPMFMean(len(shard.users), ITEMS, 12).double()
    model.mean.fill_(3.0)
    sizes = {"factors": 3, "side_rank": 5, "samples_per_epoch": 2, "burn_in": 0} | sizes
    return GibbsSampler(model, BPMF(**sizes), shard, 0, workers)


def test_the_model_is_the_mean_of_the_samples_after_burn_in():
    epochs = sampler(samples_per_epoch=1, burn_in=1)
    model, samples = epochs.model, []
    for epoch in range(4):
        epochs.run(epoch)
        mine, other = epochs.user_rows, epochs.item_rows
        dots = mine[:, :-1] @ other[:, :-1].T + mine[:, -1:] + other[:, -1]
        samples.append(3.0 + epochs.unit * dots)
    scores = model.score(model.user_state(torch.arange(USERS)))
    assert torch.allclose(scores, torch.stack(samples[1:]).mean(dim=0), atol=1e-9)


def test_a_rating_counts_by_its_users_noise_on_both_sides(monkeypatch):
    seen = []

    def remember(given, mean, _precision, _noise):
        seen.append(given)
        return mean

    epochs, one = sampler(), rng()
    epochs.weight = torch.from_numpy(one.random(USERS))
    monkeypatch.setattr("recray.training.gibbs.draw_rows", remember)
    user, item = epochs.shard.user, epochs.shard.item
    target = normal(one, len(user))
    sides = ((user, item, "_draw_users"), (item, user, "_draw_items"))
    for own, other, draw in sides:
        fixed = (epochs.item_rows if own is user else epochs.user_rows).clone()
        draws = Draws(0, 0, epochs.shard.users)
        getattr(epochs, draw)(target, draws if own is user else draws.shared)
        ratings = epochs.by_user if own is user else epochs.by_item
        order = ratings.grouped.rows.tolist()
        for row in (0, 17, 59):
            matrix, right = torch.zeros(4, 4).double(), torch.zeros(4).double()
            for n in torch.nonzero(own == row)[:, 0].tolist():
                vector = torch.cat([fixed[other[n], :-1], torch.ones(1)])
                matrix += epochs.weight[user[n]] * torch.outer(vector, vector)
                right += epochs.weight[user[n]] * vector * (target[n] - fixed[other[n], -1])
            assert torch.allclose(seen[-1].matrix[order.index(row)], matrix)
            assert torch.allclose(seen[-1].right[order.index(row)], right)


# -------------------------------------------------------------------------------- the whole


def test_planted_stars_are_found_again(tmp_path):
    shard, (user, item, stars) = planted()
    run = training_run(tmp_path, shard, ["train.epochs=15"])
    run.fit()
    with torch.no_grad():
        rmse = (run.model(user, item) - stars).square().mean().sqrt()
    assert rmse < 0.2, "the noise alone is 0.1, guessing the mean scores 1"


def test_a_resumed_run_ends_with_the_same_bits(tmp_path):
    shard, _ = planted()
    whole = training_run(tmp_path / "whole", shard, ["train.epochs=5"])
    whole.fit()
    for epochs in (2, 5):  # within the burn-in and after it
        training_run(tmp_path / "broken", shard, [f"train.epochs={epochs}"]).fit()
    resumed = RunFolder(str(tmp_path / "broken")).latest().weights
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed[name]), name


def test_seed_and_epoch_alone_decide_the_draws():
    def drawn(seed: int, epoch: int) -> torch.Tensor:
        epochs = sampler()
        epochs.seed = seed  # the start stays that of seed 0
        epochs.run(epoch)
        return epochs.user_rows

    assert torch.equal(drawn(0, 1), drawn(0, 1))
    assert not torch.allclose(drawn(0, 1), drawn(1, 1))
    assert not torch.allclose(drawn(0, 1), drawn(0, 2))


PARTS = 5


def part(shard: Shard, rank: int, size: int) -> Shard:
    """The rows of one of several workers, in float64; part 2 is empty, so is worker 2 of 3."""
    part_of = torch.tensor([0, 1, 3, 4])[torch.arange(USERS) * 7 % 11 % 4]
    parts = range(rank, PARTS, size)
    own = OwnUsers.of(parts, [torch.nonzero(part_of == p)[:, 0].numpy() for p in parts], USERS)
    mine = torch.isin(shard.user, own.ids)
    local = own.local(shard.user[mine])
    order = torch.argsort(local, stable=True)
    columns = (column[mine][order] for column in (shard.item, shard.rating.double()))
    return Shard(local[order], *columns, own)


@dataclass(frozen=True)
class Listening(Workers):
    """One of two who meets nobody, and remembers what it would sum."""

    shapes: list[tuple[int, ...]] = field(default_factory=list)

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        self.shapes.append(tuple(value.shape))
        return value

    def begin_exchange(self, parts: torch.Tensor):
        self.shapes.append(tuple(parts.shape))
        return (lambda: None), parts.clone()

    def begin_gather(self, value: torch.Tensor):
        self.shapes.append(tuple(value.shape))
        return (lambda: None), value.expand(self.size, *value.shape).clone()


def test_nothing_of_a_user_is_summed_over_workers():
    workers = Listening(rank=0, size=2)
    epochs = sampler(part(planted()[0], 0, 2), workers)
    epochs.run(0)
    own = len(epochs.shard.users)
    assert len(epochs.user_rows) == len(epochs.weight) == epochs.model.users == own
    assert own not in (0, USERS, ITEMS)
    assert not any({own, USERS} & set(shape) for shape in workers.shapes)
    assert any(ITEMS in shape for shape in workers.shapes)


def _draw_part(rank: int, size: int, folder: str) -> None:
    torch.set_num_threads(1)
    address = f"file://{folder}/rendezvous-{size}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=size)
    epochs = sampler(part(planted()[0], rank, size), Workers(rank, size), burn_in=1)
    for epoch in range(3):
        epochs.run(epoch)
    model, own = epochs.model, epochs.shard.users.ids
    scores = model.score(model.user_state(torch.arange(len(own))))
    folded_in = folded(model, torch.tensor([3, 8, 20]), torch.tensor([5.0, 1.0, 4.0]))
    found = own, scores, model.score(folded_in), epochs.typical, epochs.item_rows
    torch.save(found, f"{folder}/found-{size}-{rank}")
    dist.destroy_process_group()


def test_several_workers_draw_the_samples_of_one(tmp_path):
    several = []
    for size in (1, 2, 3):
        mp.start_processes(_draw_part, (size, str(tmp_path)), nprocs=size, start_method="fork")
        found = [torch.load(tmp_path / f"found-{size}-{rank}") for rank in range(size)]
        scores = torch.zeros(USERS, ITEMS, dtype=torch.float64)
        for own, rows, *_ in found:
            scores[own] = rows
        for _, _, *shared in found[1:]:  # what is shared is the same on each, to the bit
            assert all(
                torch.equal(*map(torch.as_tensor, x))
                for x in zip(shared, found[0][2:], strict=True)
            )
        several.append((scores, *found[0][2:]))
    (one, folded_in, typical, items), *others = several
    for scores, other_folded, other_typical, other_items in others:
        assert torch.allclose(scores, one, rtol=0, atol=1e-9)
        # A state may turn with the item vectors; what it means may not.
        assert torch.allclose(other_folded, folded_in, rtol=0, atol=1e-9)
        assert other_typical == pytest.approx(typical, rel=1e-9)
        assert torch.allclose(other_items, items, rtol=0, atol=1e-9)


# ---------------------------------------------------------------------------------- fold-in


def folded(model: BPMFMean, item: torch.Tensor, rating: torch.Tensor) -> torch.Tensor:
    return BPMF(3, 5, 1, 1).fold_in(model, item, rating, FoldInConfig())


def test_folding_in_is_the_minimum_of_error_and_prior():
    torch.manual_seed(4)
    model = BPMFMean(USERS, ITEMS, 3).double()
    root = torch.randn(4, 4).double()
    model.prior_precision.copy_(root @ root.T + torch.eye(4))
    model.prior_mean.copy_(torch.randn(4))
    model.taste_rows.copy_(torch.randn(ITEMS, 4))
    model.noise.fill_(0.5)
    item, stars = torch.tensor([2, 9, 30]), torch.tensor([5.0, 1.0, 2.0])
    state = folded(model, item, stars)[0].detach().requires_grad_()
    centre = model.prior_mean + model.taste_rows[item].sum(dim=0) / 3**0.25
    guess = model.item_rows(item).detach() @ state + model.item_offset(item).detach()
    away = state - centre
    loss = (stars - guess).square().sum() / 0.5 + away @ model.prior_precision @ away
    assert torch.autograd.grad(loss, state)[0].abs().max() < 1e-9


def test_folding_in_a_users_own_ratings_gives_nearly_their_predictions(tmp_path):
    shard, _ = planted()
    run = training_run(tmp_path, shard, ["train.epochs=10"])
    run.fit()
    differences = []
    with torch.no_grad():
        for user in range(USERS):
            own = shard.user == user
            rated = shard.item[own], shard.rating[own]
            state = run.objective.fold_in(run.model, *rated, FoldInConfig())
            trained = run.model.user_state(torch.tensor([user]))
            differences.append(run.model.score(state) - run.model.score(trained))
    assert torch.cat(differences).square().mean().sqrt() < 0.1, "the stars' own spread is 1"


def test_nobody_in_particular_gets_the_prior_mean():
    model = BPMFMean(USERS, ITEMS, 3)
    model.prior_mean.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    none = torch.zeros(0, dtype=torch.int64)
    assert torch.allclose(folded(model, none, none.float())[0], model.prior_mean)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["model.kind=dot-bias"], "model.kind=bpmf"),
        (["model.dim=2"], "objective.factors=2 or less"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(changes, words):
    settings = load_settings("rating", None, changes)
    with pytest.raises(RecrayError, match=words):
        build_objective(settings, 1.0, 5.0).check(build_model(settings, 3, 3))


def test_bayes_and_gibbs_go_together():
    with pytest.raises(RecrayError, match="bpmf needs gibbs"):
        load_settings("rating", None, ["train.optimizer=adam"])
