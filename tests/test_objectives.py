"""Every objective against its formula in float64, and fold-in against the objective itself."""

import pytest
import torch

from recray.config import load_settings
from recray.errors import RecrayError
from recray.models.base import Statistics
from recray.models.batches import Batch
from recray.models.factorization import Dot, DotBias
from recray.models.objectives import (
    Bce,
    FoldInConfig,
    FoldInPrior,
    ImplicitALS,
    Mse,
    build_objective,
)
from recray.models.objectives.normal_equations import GroupedRows
from recray.models.objectives.row_solver import Priors, Spectrum, solve_positive, solve_rows

USERS, ITEMS, DIM = 5, 6, 3


def rated() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    user = torch.tensor([0, 0, 1, 2, 2, 2, 4])
    item = torch.tensor([0, 3, 1, 0, 2, 5, 4])
    return user, item, torch.tensor([5.0, 1.0, 3.0, 4.0, 2.0, 5.0, 3.0])


def batch_of(user: torch.Tensor, item: torch.Tensor, stars: torch.Tensor) -> Batch:
    return Batch(user, item, stars, torch.ones(len(user)), len(user))


def model_with_bias(output: str = "raw") -> DotBias:
    torch.manual_seed(1)
    model = DotBias(USERS, ITEMS, DIM, output).double()
    for table in (model.user_bias, model.item_bias, model.user_vectors, model.item_vectors):
        torch.nn.init.normal_(table.weight)
    ones = torch.ones(ITEMS, dtype=torch.float64)
    model.init_from_statistics(Statistics(3 * ones, ones, 1.0, 5.0))
    return model


def test_mse_is_the_squared_error_plus_the_touched_rows():
    model, (user, item, stars) = model_with_bias(), rated()
    rows = [t.weight for t in (model.user_vectors, model.user_bias)]
    columns = [t.weight for t in (model.item_vectors, model.item_bias)]
    for n in range(len(user)):
        u, i = user[n], item[n]
        guess = 3 + rows[0][u] @ columns[0][i] + rows[1][u, 0] + columns[1][i, 0]
        size = sum((r[u] ** 2).sum() for r in rows) + sum((c[i] ** 2).sum() for c in columns)
        expected = (stars[n] - guess) ** 2 + 0.1 * size
        assert Mse(0.1).loss(model, batch_of(user, item, stars))[n].item() == pytest.approx(
            expected.item()
        )


def test_bce_is_the_cross_entropy_of_the_scaled_rating():
    model, (user, item, stars) = model_with_bias("sigmoid"), rated()
    chance = (model(user, item) - 1) / 4
    target = (stars - 1) / 4
    expected = -(target * chance.log() + (1 - target) * (1 - chance).log())
    assert torch.allclose(
        Bce(0.0, 1.0, 5.0).loss(model, batch_of(user, item, stars.double())), expected
    )


@pytest.mark.parametrize("objective", [Mse(0.2), Bce(0.2, 1.0, 5.0)])
def test_gradients_equal_finite_differences(objective):
    model, (user, item, stars) = model_with_bias("sigmoid"), rated()
    stars = stars.double()
    objective.loss(model, batch_of(user, item, stars)).sum().backward()
    for parameter in model.parameters():
        flat, slope = parameter.data.reshape(-1), parameter.grad.reshape(-1)
        for place in range(0, len(flat), 4):
            values = []
            for step in (1e-6, -2e-6):
                flat[place] += step
                values.append(objective.loss(model, batch_of(user, item, stars)).sum().item())
            flat[place] += 1e-6
            assert slope[place].item() == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-5)


def whole_data_loss(w, h, pairs, unobserved_weight, l2) -> float:
    """The formula over every single pair."""
    total = 0.0
    for u in range(len(w)):
        for i in range(len(h)):
            score = (w[u] @ h[i]).item()
            total += unobserved_weight * score**2 + ((1 - score) ** 2 if (u, i) in pairs else 0)
    for u in range(len(w)):
        count = sum(p[0] == u for p in pairs)
        total += l2 * (count + unobserved_weight * len(h)) * (w[u] @ w[u]).item()
    for i in range(len(h)):
        count = sum(p[1] == i for p in pairs)
        total += l2 * (count + unobserved_weight * len(w)) * (h[i] @ h[i]).item()
    return total


def test_a_whole_data_solve_is_the_minimum_over_all_pairs():
    user, item, _ = rated()
    pairs = set(zip(user.tolist(), item.tolist(), strict=True))
    objective = ImplicitALS(unobserved_weight=0.3, l2=0.05)
    torch.manual_seed(2)
    h = torch.randn(ITEMS, DIM, dtype=torch.float64)
    begins = torch.searchsorted(user, torch.arange(USERS + 1))
    w = objective.solve(h, begins, item, objective.gram(h), ITEMS)
    best = whole_data_loss(w, h, pairs, 0.3, 0.05)
    for u in range(USERS):
        for axis in range(DIM):
            for step in (1e-4, -1e-4):
                moved = w.clone()
                moved[u, axis] += step
                assert whole_data_loss(moved, h, pairs, 0.3, 0.05) > best


def test_a_solve_that_is_held_to_vectors_is_the_minimum_over_all_pairs():
    user, item, _ = rated()
    pairs = set(zip(user.tolist(), item.tolist(), strict=True))
    objective = ImplicitALS(unobserved_weight=0.3, l2=0.05)
    torch.manual_seed(2)
    w = torch.randn(USERS, DIM, dtype=torch.float64)
    expected = torch.randn(ITEMS, DIM, dtype=torch.float64)
    order = torch.argsort(item, stable=True)
    begins = torch.searchsorted(item[order], torch.arange(ITEMS + 1))
    h = objective.solve(
        w, begins, user[order], objective.gram(w), USERS, prior_mean=expected
    ).requires_grad_()
    error = sum((1 - w[u] @ h[i]) ** 2 for u, i in pairs) + 0.3 * (w @ h.T).square().sum()
    count = torch.bincount(item, minlength=ITEMS)
    held = (0.05 * (count + 0.3 * USERS) * (h - expected).square().sum(dim=1)).sum()
    (slope,) = torch.autograd.grad(error + held, h)
    assert slope.abs().max() < 1e-6


def test_solves_that_weigh_popular_items_more_are_the_minimum_over_all_pairs():
    user, item, _ = rated()
    count = torch.bincount(item, minlength=ITEMS).double()
    objective = ImplicitALS(0.3, 0.05, unobserved_power=0.5)
    c = (count + 1) ** 0.5 * ITEMS / ((count + 1) ** 0.5).sum()
    base = count + 0.3 * USERS * c
    ridge = 0.05 * base * (base / base.prod() ** (1 / ITEMS)) ** 0.3  # as ITEM_POWER is 1.3
    assert torch.allclose(objective.item_weights(count), c)
    torch.manual_seed(2)
    w = torch.randn(USERS, DIM, dtype=torch.float64)
    order = torch.argsort(item, stable=True)
    begins = torch.searchsorted(item[order], torch.arange(ITEMS + 1))
    spectrum = Spectrum.of(objective.gram(w))
    priors = Priors.of(spectrum, objective.item_ridge(count, USERS), c, None)
    of_items = GroupedRows.of(begins, user[order], USERS, DIM)
    h = solve_rows(of_items, w, spectrum, priors).requires_grad_()
    edges = torch.searchsorted(user, torch.arange(USERS + 1))
    gram = objective.gram(h.detach(), c)
    v = objective.solve(h.detach(), edges, item, gram, ITEMS).requires_grad_()
    rated_users = torch.bincount(user, minlength=USERS)

    def loss(users, items):
        scores = users @ items.T
        error = ((1 - scores[user, item]) ** 2).sum() + 0.3 * (c * scores.square()).sum()
        held = (ridge * items.square().sum(dim=1)).sum()
        return error + held + (0.05 * (rated_users + 0.3 * ITEMS) * (users**2).sum(dim=1)).sum()

    (of_h,) = torch.autograd.grad(loss(w, h), h)
    (of_v,) = torch.autograd.grad(loss(v, h.detach()), v)
    assert max(of_h.abs().max(), of_v.abs().max()) < 1e-6


def test_without_a_power_all_items_weigh_the_same():
    objective, count = ImplicitALS(0.3, 0.05), torch.tensor([0.0, 4.0])
    assert objective.item_weights(count) is None
    assert objective.item_ridge(count, 7).tolist() == objective.ridge(count, 7).tolist()


@pytest.mark.parametrize("dim", [1, 5, 31, 32, 33, 64])
def test_solves_by_halves_are_those_of_the_whole_system(dim):
    torch.manual_seed(0)
    root = torch.randn(7, dim, dim, dtype=torch.float64)
    matrix = root @ root.mT + torch.eye(dim)
    right = torch.randn(7, dim, 1, dtype=torch.float64)
    solved = solve_positive(matrix, right)
    assert torch.allclose(solved, torch.linalg.solve(matrix, right), atol=1e-9)


def test_a_user_without_ratings_gets_the_zero_vector():
    objective = ImplicitALS(0.3, 0.05)
    h = torch.randn(ITEMS, DIM, dtype=torch.float64)
    begins = torch.tensor([0, 0])
    none = torch.zeros(0, dtype=torch.int64)
    assert torch.all(objective.solve(h, begins, none, objective.gram(h), ITEMS) == 0)


def test_folding_in_a_users_own_ratings_gives_their_trained_row():
    user, item, _ = rated()
    objective, model = ImplicitALS(0.3, 0.05), Dot(USERS, ITEMS, DIM, "logit")
    h = model.item_vectors.weight.detach()
    begins = torch.searchsorted(user, torch.arange(USERS + 1))
    w = objective.solve(h, begins, item, objective.gram(h), ITEMS)
    state = objective.fold_in(model, item[user == 2], torch.ones(3), FoldInConfig())
    assert torch.allclose(state[0], w[2], atol=1e-6)


def stationary(objective, model, item, stars, noise) -> torch.Tensor:
    """Slope of (loss / scale + prior) at the folded-in state; zero at the optimum."""
    state = objective.fold_in(model, item, stars, FoldInConfig(noise)).double().requires_grad_()
    prior = FoldInPrior.of(model, noise)
    linear = (model.item_rows(item) * state).sum(dim=-1) + model.item_offset(item)
    if isinstance(objective, Mse):
        loss = ((stars - linear) ** 2).sum() / (2 * noise)
    else:
        target = (stars - 1) / 4
        loss = (torch.nn.functional.softplus(linear) - target * linear).sum()
    loss = loss + 0.5 * (prior.precision * (state[0] - prior.mean) ** 2).sum()
    return torch.autograd.grad(loss, state)[0]


def test_folding_in_stars_is_a_ridge_regression():
    slope = stationary(
        Mse(0.0), model_with_bias(), torch.tensor([1, 4]), torch.tensor([5.0, 2.0]), 0.8
    )
    assert slope.abs().max() < 1e-5


def test_folding_in_for_cross_entropy_is_a_logistic_regression():
    objective, model = Bce(0.0, 1.0, 5.0), model_with_bias("sigmoid")
    slope = stationary(objective, model, torch.tensor([1, 4]), torch.tensor([5.0, 2.0]), 0.8)
    assert slope.abs().max() < 1e-5


def test_nobody_in_particular_gets_the_mean_user():
    model = model_with_bias()
    none = torch.zeros(0, dtype=torch.int64)
    state = Mse(0.0).fold_in(model, none, torch.zeros(0), FoldInConfig())
    mean = model.user_state(torch.arange(USERS)).mean(dim=0)
    assert torch.allclose(state[0].double(), mean, atol=1e-6)


@pytest.mark.parametrize(
    ("preset", "change", "words"),
    [
        ("dot-mse", ["model.kind=dot-bias", "model.output=sigmoid"], "output=raw"),
        ("dot-bias-bce", ["model.output=raw"], "probability"),
        ("ranking", ["model.kind=dot-bias"], "model.kind=dot"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(preset, change, words):
    from recray.models import build_model

    settings = load_settings(preset, None, change).sized(1000, 1500)
    with pytest.raises(RecrayError, match=words):
        build_objective(settings, 1.0, 5.0).check(build_model(settings, 3, 3))
