"""Gibbs sampling: each draw against its formula, then what the whole learns, resumes and shares."""

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
from recray.training.checkpoint import RunFolder
from recray.training.gibbs import GibbsSampler
from recray.training.gibbs_math import (
    RowPrior,
    draw_noise,
    draw_rows,
    draw_wishart,
    implicit_svd_features,
    normal,
    normal_equations,
    truncated_svd,
)
from recray.training.loop import TrainingRun
from recray.training.own_users import OwnUsers
from recray.training.shard import Shard, Workers

USERS, ITEMS = 90, 60
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


def test_normal_equations_are_sums_over_each_rows_ratings():
    vectors, target = normal(rng(), 5, 3), normal(rng(), 5)
    system = normal_equations(vectors, target, torch.tensor([0, 2, 2, 5]))
    for row, places in enumerate(([0, 1], [], [2, 3, 4])):
        matrix = sum((torch.outer(vectors[n], vectors[n]) for n in places), torch.zeros(3, 3))
        right = sum((vectors[n] * target[n] for n in places), torch.zeros(3))
        assert torch.allclose(system[row, :, :3], matrix.double())
        assert torch.allclose(system[row, :, 3], right.double())


def test_rows_are_drawn_from_the_posterior_of_a_linear_regression():
    one = rng()
    vectors, target, mean = normal(one, 4, 3), normal(one, 4), normal(one, 1, 3)
    root = normal(one, 3, 3)
    precision = root @ root.T + torch.eye(3)
    system = normal_equations(vectors, target, torch.tensor([0, 4]))
    inverse = torch.linalg.inv(vectors.T @ vectors + precision)
    best = inverse @ (vectors.T @ target + precision @ mean[0])
    middle = draw_rows(system, mean, precision, torch.zeros(1, 3))
    assert torch.allclose(middle[0], best)
    # A draw is linear in its noise, so unit noises give a root of the covariance.
    unit = torch.eye(3, dtype=torch.float64)
    away = torch.cat([draw_rows(system, mean, precision, unit[n : n + 1]) - best for n in range(3)])
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
    prior = RowPrior(features, 2, 20_000, Workers())
    prior.draw(features @ weights + normal(one, 20_000, 2) @ spread.T, one)
    assert torch.allclose(prior.weights, weights, atol=0.06)
    precision = torch.linalg.inv(spread @ spread.T)
    assert torch.allclose(prior.precision, precision, rtol=0.06, atol=0.1)


def test_noise_follows_many_ratings_and_the_typical_user_few():
    counts = torch.tensor([100_000.0, 0.0], dtype=torch.float64).repeat(2000)
    weight, typical = draw_noise(counts * 4.0, counts, 2.0, rng())
    assert 1 / weight[0] == pytest.approx(4.0, rel=0.05)
    # Gamma(5/2, rate 5/2 * 2) has mean 1/2.
    assert weight[1::2].mean() == pytest.approx(0.5, rel=0.05)
    assert 2.0 < typical < 4.0


# --------------------------------------------------------------------------- tastes, the mean


def test_tastes_are_the_main_directions_of_who_rated_what():
    same = (torch.arange(USERS)[:, None] + torch.arange(ITEMS)) % 2 == 0  # two circles of users
    rated = torch.from_numpy(rng().random((USERS, ITEMS))) < torch.where(same, 0.8, 0.2)
    everyone, pairs = OwnUsers.everyone(USERS), torch.nonzero(rated).T
    user, item, table = implicit_svd_features(*pairs, everyone, ITEMS, 3, Workers())
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


def sampler(**sizes) -> GibbsSampler:
    shard, _ = planted()
    model = BPMFMean(USERS, ITEMS, 12).double()
    model.mean.fill_(3.0)
    sizes = {"factors": 3, "side_rank": 5, "samples_per_epoch": 2, "burn_in": 0} | sizes
    return GibbsSampler(model, BPMF(**sizes), shard, 0, Workers())


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

    def remember(system, mean, _precision, _noise):
        seen.append(system)
        return mean

    epochs, one = sampler(), rng()
    epochs.weight = torch.from_numpy(one.random(USERS))
    monkeypatch.setattr("recray.training.gibbs.draw_rows", remember)
    user, item = epochs.shard.user, epochs.shard.item
    target = normal(one, len(user))
    for own, other, draw in ((user, item, "_draw_users"), (item, user, "_draw_items")):
        fixed = (epochs.item_rows if own is user else epochs.user_rows).clone()
        getattr(epochs, draw)(target, one)
        for row in (0, 17, 59):
            expected = torch.zeros(4, 5, dtype=torch.float64)
            for n in torch.nonzero(own == row)[:, 0].tolist():
                vector = torch.cat([fixed[other[n], :-1], torch.ones(1)])
                left = torch.cat([vector, (target[n] - fixed[other[n], -1])[None]])
                expected += epochs.weight[user[n]] * torch.outer(vector, left)
            assert torch.allclose(seen[-1][row], expected)


def test_the_size_of_blocks_changes_nothing(monkeypatch):
    whole = sampler()
    monkeypatch.setattr("recray.training.gibbs.RATING_BLOCK", 100)
    monkeypatch.setattr("recray.training.gibbs.ROW_BLOCK", 4)
    cut = sampler()
    assert len(cut.item_blocks) > 10
    assert torch.equal(torch.cat(cut.item_blocks), torch.arange(ITEMS))
    whole.run(0)
    cut.run(0)
    everybody = torch.arange(USERS)
    scores = [e.model.score(e.model.user_state(everybody)) for e in (whole, cut)]
    assert torch.allclose(*scores, atol=1e-8)


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


def _train_part(rank: int, size: int, folder: str) -> None:
    torch.set_num_threads(1)
    address = f"file://{folder}-rendezvous"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=size)
    shard, _ = planted()
    # The last worker has no users at all.
    part = max(size - 1, 1)
    own = shard.user % part == rank
    ids = np.arange(rank, USERS, part) if rank < part else np.zeros(0, np.int64)
    users = OwnUsers.of([rank], [ids], USERS)
    mine = Shard(users.local(shard.user[own]), shard.item[own], shard.rating[own].double(), users)
    run = training_run(Path(folder), mine, ["train.epochs=3"], workers=Workers(rank, size))
    run.model.double()
    run.fit()
    dist.destroy_process_group()


def test_several_workers_draw_the_samples_of_one(tmp_path):
    models = []
    for size in (1, 2, 3):
        folder = tmp_path / f"w{size}"
        mp.start_processes(_train_part, (size, str(folder)), nprocs=size, start_method="fork")
        model = BPMFMean(USERS, ITEMS, 8).double()
        model.load_state_dict(RunFolder(str(folder)).latest().weights)
        models.append(model)
    everybody = torch.arange(USERS)
    one, *several = (model.score(model.user_state(everybody)) for model in models)
    for scores in several:
        assert torch.allclose(scores, one, atol=1e-6)
    # A state may turn with the item vectors; what it means may not.
    item, rating = torch.tensor([3, 8, 20]), torch.tensor([5.0, 1.0, 4.0])
    first, *others = (model.score(folded(model, item, rating)) for model in models)
    for scores in others:
        assert torch.allclose(scores, first, atol=1e-5)


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
