"""One contract for every registered model."""

import inspect
import subprocess
import sys
from itertools import pairwise

import pytest
import torch

from recray.config import MODEL_SETTINGS, ModelSettings, load_settings
from recray.errors import RecrayError
from recray.models import MODELS, base, build_model
from recray.models.base import Statistics
from recray.models.factorization import Dot
from recray.models.history import ClosedForm, HistoryModel, RatingsCSR
from recray.models.neural import Gmf

USERS, ITEMS = 7, 9


def statistics() -> Statistics:
    generator = torch.Generator().manual_seed(3)
    torch.randint(0, USERS, (60,), generator=generator)  # the users, whom no model asks for
    item = torch.randint(0, ITEMS, (60,), generator=generator)
    stars = torch.randint(1, 6, (60,), generator=generator).double()

    def sums(values):
        return torch.zeros(ITEMS, dtype=torch.float64).index_add_(0, item, values)

    return Statistics(sums(stars), sums(torch.ones_like(stars)), 1.0, 5.0)


def histories() -> RatingsCSR:
    """Everybody has three items or more, in an order that is not that of the ids."""
    rows = [torch.randperm(ITEMS, generator=torch.Generator().manual_seed(u)) for u in range(USERS)]
    known = RatingsCSR.of([(row[: 3 + u % 4], torch.ones(3 + u % 4)) for u, row in enumerate(rows)])
    return known._replace(time=40_000 * torch.arange(len(known.item)))


def states(model):
    if isinstance(model, HistoryModel):
        return model.state_of(histories())
    return model.user_state(torch.arange(USERS))


def score_pairs(model, user, item):
    if isinstance(model, HistoryModel):
        return model.activation(model.logits(states(model)[user], item))
    return model(user, item)


def built(kind: str, **changes):
    arguments = {"users": USERS, "items": ITEMS} | changes
    sizes = {"dim": 4, "mlp_dim": 3, "layers": (6, 5), "levels": (1.0, 2.5, 5.0)}
    sizes["item_features"] = ("a", "b")
    wanted = inspect.signature(MODELS[kind]).parameters
    arguments |= {name: size for name, size in sizes.items() if name in wanted}
    return MODELS[kind](**arguments)


def make(kind: str, **changes):
    torch.manual_seed(0)
    model = built(kind, **changes)
    model.init_from_statistics(statistics())
    if isinstance(model, ClosedForm):
        model.fit(histories())
    if kind == "hybrid":
        model.describe_items(torch.eye(2).repeat(ITEMS, 1)[:ITEMS])
    for name, parameter in model.named_parameters():
        if name.endswith("bias.weight"):  # biases start at 0, which would hide a missing one
            torch.nn.init.normal_(parameter)
    return model.eval()


CASES = [(kind, {}) for kind in MODELS]
CASES += [("dot-bias", {"output": "sigmoid"}), ("softmax-dnn", {"product": True})]
every_model = pytest.mark.parametrize(
    ("kind", "changes"), CASES, ids=["-".join([k, *c]) for k, c in CASES]
)


@every_model
@pytest.mark.parametrize("size", [0, 1, 2, 7])
def test_one_score_per_pair(kind, changes, size):
    ids = torch.arange(size)
    assert score_pairs(make(kind, **changes), ids, ids).shape == (size,)


@every_model
def test_a_block_of_scores_equals_the_scores_of_its_pairs(kind, changes):
    model = make(kind, **changes)
    with torch.no_grad():
        block = model.score(states(model))
        user, item = torch.meshgrid(torch.arange(USERS), torch.arange(ITEMS), indexing="ij")
        pairs = score_pairs(model, user.reshape(-1), item.reshape(-1)).reshape(USERS, ITEMS)
    assert torch.allclose(block, pairs, atol=1e-5)


@every_model
def test_blocks_of_items_join_to_the_whole(kind, changes, monkeypatch):
    model = make(kind, **changes)
    state = states(model)
    whole = model.score(state)
    monkeypatch.setattr("recray.models.base.ITEM_BLOCK", 4)
    assert torch.allclose(model.score(state), whole, atol=1e-6)


@every_model
def test_says_what_its_scores_are(kind, changes):
    assert make(kind, **changes).score_type in ("rating", "logit")


@every_model
def test_weights_survive_a_round_trip(kind, changes):
    model, other = make(kind, **changes), MODELS[kind]
    fresh = make(kind, **changes)
    for tensor in fresh.state_dict().values():
        tensor.zero_()
    fresh.load_state_dict(model.state_dict())
    ids = torch.arange(USERS)
    assert isinstance(fresh, other)
    assert torch.equal(score_pairs(fresh, ids, ids), score_pairs(model, ids, ids))


@every_model
def test_every_parameter_moves_the_score(kind, changes):
    model = make(kind, **changes)
    ids = torch.arange(USERS)
    if list(model.parameters()):
        score_pairs(model, ids, ids).sum().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


@every_model
def test_a_state_that_follows_from_the_history_is_that_of_its_own_user(kind, changes):
    model = make(kind, **changes)
    if isinstance(model, HistoryModel):
        known = histories()
        for user, (begin, end) in enumerate(pairwise(known.indptr.tolist())):
            alone = RatingsCSR.one(known.item[begin:end], known.rating[begin:end])
            alone = model.state_of(alone._replace(time=known.time[begin:end]))[0]
            assert torch.allclose(alone, states(model)[user], atol=1e-6)


def test_dot_is_the_product_of_its_rows():
    model = make("dot")
    user, item = model.user_vectors.weight[3], model.item_vectors.weight[5]
    assert model(torch.tensor([3]), torch.tensor([5])).item() == pytest.approx((user @ item).item())


def test_dot_bias_adds_mean_and_biases():
    model = make("dot-bias")
    expected = (
        model.user_vectors.weight[3] @ model.item_vectors.weight[5]
        + model.user_bias.weight[3, 0]
        + model.item_bias.weight[5, 0]
        + statistics().mean
    )
    score = model(torch.tensor([3]), torch.tensor([5])).item()
    assert score == pytest.approx(expected.item(), abs=1e-5)


def test_a_sigmoid_output_stays_on_the_scale():
    model = make("dot-bias", output="sigmoid")
    torch.nn.init.constant_(model.item_bias.weight, 1000.0)
    ids = torch.arange(USERS)
    assert torch.all(model(ids, ids) == 5.0)
    torch.nn.init.constant_(model.item_bias.weight, -1000.0)
    assert torch.all(model(ids, ids) == 1.0)


def test_mf_normalised_starts_from_each_films_mean():
    model = make("mf-normalised")
    torch.nn.init.zeros_(model.user_vectors.weight)
    torch.nn.init.zeros_(model.user_bias.weight)
    torch.nn.init.zeros_(model.item_bias.weight)
    seen = statistics()
    expected = (seen.item_sum / seen.item_count).float()
    scores = model(torch.zeros(ITEMS, dtype=torch.int64), torch.arange(ITEMS))
    assert torch.allclose(scores, expected, atol=1e-5)


def test_popularity_scores_by_share():
    seen = statistics()
    model = make("popularity")
    scores = model(torch.zeros(ITEMS, dtype=torch.int64), torch.arange(ITEMS))
    assert torch.allclose(scores, (seen.item_count / 60).float())


def test_bias_only_shrinks_by_five():
    model = MODELS["bias-only"](users=2, items=2)
    # Item 0 has 4 and 2 stars, item 1 has 5 and 5: mean 4, deviations -2 and +2 in all.
    pairs = torch.tensor([[0, 0], [1, 0], [0, 1], [1, 1]])
    stars = torch.tensor([4.0, 2.0, 5.0, 5.0])
    sums = torch.tensor([6.0, 10.0]), torch.tensor([2.0, 2.0])
    model.init_from_statistics(Statistics(*sums, 2.0, 5.0))
    assert model.item_bias.tolist() == pytest.approx([-2 / 7, 2 / 7])
    model.fit_users(pairs[:, 0], pairs[:, 1], stars)
    assert model.user_bias.tolist() == pytest.approx([1 / 7, -1 / 7])


def test_a_baseline_cannot_be_trained():
    with pytest.raises(RecrayError, match="baseline"):
        build_model(load_settings("ranking", None, ["model.kind=popularity"]), 3, 3)


def test_an_unknown_model_is_named_with_its_nearest():
    with pytest.raises(RecrayError, match="did you mean 'dot-bias'"):
        build_model(load_settings("dot-mse", None, ["model.kind=dotbias"]), 3, 3)


@pytest.mark.parametrize(("kind", "settings"), MODEL_SETTINGS.items())
def test_a_model_takes_the_settings_that_the_table_of_effects_lists(kind, settings):
    parameters = inspect.signature(MODELS[kind]).parameters
    assert set(settings) == parameters.keys() & ModelSettings.model_fields.keys()


@pytest.mark.parametrize("mean", [3.5, -0.4])
def test_a_gmf_of_ratings_starts_near_the_mean_and_learns_levels_of_items_at_once(mean):
    torch.manual_seed(0)
    model = Gmf(30, 30, 50)
    count = torch.full((30,), 30.0)
    model.init_from_statistics(Statistics(mean * count, count, mean - 1, mean + 1))
    user, item = (ids.flatten() for ids in torch.meshgrid(*[torch.arange(30)] * 2, indexing="ij"))
    assert model(user, item).sub(mean).abs().max() < 0.3
    rating = mean + torch.where(item % 2 == 0, 1.0, -1.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(6):
        optimizer.zero_grad()
        error = (model(user, item) - rating).square().mean()
        error.backward()
        optimizer.step()
    assert error < 0.5, "the mean alone has an error of 1, vectors around 0 one of 0.75"


def test_moments_of_users_do_not_depend_on_how_many_are_summed_at_once(monkeypatch):
    torch.manual_seed(0)
    model = Dot(50, 4, 3)
    state = model.user_vectors.weight.detach().double()
    monkeypatch.setattr(base, "USER_BLOCK", 7)
    mean, variance = model.user_moments()
    assert torch.allclose(mean, state.mean(dim=0))
    assert torch.allclose(variance, state.var(dim=0, correction=0))


def test_models_whose_weights_come_at_once_do_not_load_the_compiler_of_torch():
    """That takes 2.5 s, and on the meta device whatever fills a tensor loads it."""
    code = """
import sys, torch
from recray.models.base import WithoutDraws
from tests.test_models import CASES, built
for kind, changes in CASES:
    with WithoutDraws(), torch.device("meta"):
        built(kind, **changes)
    assert "torch._dynamo" not in sys.modules, kind
"""
    subprocess.run([sys.executable, "-c", code], check=True)
