"""Objectives that rank, against their formulas in float64, and their folding against themselves."""

import math

import pytest
import torch

from recray.data.negatives import Negatives
from recray.errors import RecrayError
from recray.models.batches import Batch
from recray.models.factorization import Dot
from recray.models.history import RatingsCSR
from recray.models.neural import NeuMf, SoftmaxDnn
from recray.models.objectives import (
    Bpr,
    FoldInConfig,
    ItemSoftmax,
    Logistic,
    RatingClassification,
    UnobservedClass,
)
from recray.models.objectives.ranking import all_logits

USERS, ITEMS = 4, 6
USER = torch.tensor([0, 0, 1, 3])
ITEM = torch.tensor([0, 3, 1, 5])
STARS = torch.tensor([5.0, 1.0, 3.0, 5.0], dtype=torch.float64)
NEGATIVES = torch.tensor([[1, 2], [4, 3], [0, 0], [2, 4]])
WEIGHTS = torch.tensor([[1.0, 1.0], [1.0, 0.0], [1.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
SHARE = torch.tensor([0.3, 0.1, 0.2, 0.1, 0.2, 0.1], dtype=torch.float64)
BATCH = Batch(
    USER, ITEM, STARS, torch.ones(4), 4, Negatives(NEGATIVES, WEIGHTS, SHARE.log(), len(SHARE))
)


def dot():
    torch.manual_seed(3)
    model = Dot(USERS, ITEMS, 3, "logit").double()
    for table in model.embeddings().values():
        torch.nn.init.normal_(table.weight)
    return model


def network(score_type="logit"):
    torch.manual_seed(3)
    return SoftmaxDnn(USERS, ITEMS, 3, (5, 4), (1.0, 3.0, 5.0), 0.0, score_type).double()


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def scores_of(model, row):
    """The score of a row's item, and its negatives with their weights."""
    w, h = model.user_vectors.weight, model.item_vectors.weight
    own = (w[USER[row]] @ h[ITEM[row]]).item()
    others = [(w[USER[row]] @ h[i]).item() for i in NEGATIVES[row]]
    return own, list(zip(others, NEGATIVES[row].tolist(), WEIGHTS[row].tolist(), strict=True))


def logistic(own, others, item):
    return -math.log(sigmoid(own)) - sum(w * math.log(sigmoid(-s)) for s, _, w in others)


def bpr(own, others, item):
    pairs = [-math.log(sigmoid(own - s)) for s, _, w in others if w]
    return sum(pairs) / len(pairs)


def item_softmax(own, others, item):
    corrected = [s - math.log(SHARE[i]) for s, i, w in others if w and i != item]
    top = own - math.log(SHARE[item])
    return -math.log(math.exp(top) / sum(math.exp(s) for s in [top, *corrected]))


SAMPLED = [
    (Logistic(0.0, 2, False, 0.1), logistic),
    (Bpr(0.0, 2, False), bpr),
    (ItemSoftmax(0.0, 2, False), item_softmax),
]
names = [type(objective).__name__ for objective, _ in SAMPLED]


@pytest.mark.parametrize(("objective", "formula"), SAMPLED, ids=names)
def test_sampled_losses_are_their_formulas(objective, formula):
    model = dot()
    losses = objective.row_loss(model, BATCH)
    for row in range(len(USER)):
        expected = formula(*scores_of(model, row), ITEM[row].item())
        assert losses[row].item() == pytest.approx(expected)


@torch.no_grad()
def test_the_unrated_class_is_that_of_the_negatives():
    model, objective = network(), UnobservedClass(0.0, 2, False)
    losses = objective.row_loss(model, BATCH)
    for row in range(len(USER)):
        state = model.user_state(USER[row : row + 1])
        own = torch.softmax(model.class_logits(state, ITEM[row : row + 1])[0], 0)
        expected = -math.log(own[{1.0: 0, 3.0: 1, 5.0: 2}[STARS[row].item()]])
        for item, weight in zip(NEGATIVES[row], WEIGHTS[row], strict=True):
            chance = torch.softmax(model.class_logits(state, item[None])[0], 0)
            expected -= weight.item() * math.log(chance[3])
        assert losses[row].item() == pytest.approx(expected)


def test_classes_are_the_cross_entropy_of_the_nearest_level():
    model = network("rating")
    losses = RatingClassification(0.0).row_loss(model, BATCH)
    chance = torch.softmax(model.class_logits(model.user_state(USER), ITEM), dim=1)
    expected = -chance[torch.arange(4), torch.tensor([2, 0, 1, 2])].log()
    assert torch.allclose(losses, expected)
    stars = model(USER, ITEM)
    assert torch.allclose(stars, chance @ torch.tensor([1.0, 3.0, 5.0], dtype=torch.float64))


def test_the_score_of_the_network_is_the_log_odds_of_being_rated():
    model = network()
    chance = torch.softmax(model.class_logits(model.user_state(USER), ITEM), dim=1)[:, :3].sum(
        dim=1
    )
    assert torch.allclose(model(USER, ITEM), torch.logit(chance))


def test_losses_against_all_items_are_their_formulas():
    model = dot()
    scores = model.user_vectors.weight[[0, 1]] @ model.item_vectors.weight.T
    row, item = torch.tensor([0, 0, 1]), torch.tensor([0, 3, 1])
    uniform = torch.full((ITEMS,), 1 / ITEMS, dtype=torch.float64)

    softmax = ItemSoftmax(0.0, None, False).full_loss(scores, row, item, uniform)
    chance = torch.softmax(scores, dim=1)
    assert softmax[0].item() == pytest.approx(-(chance[0, 0] * chance[0, 3]).log().item())
    assert softmax[1].item() == pytest.approx(-chance[1, 1].log().item())

    whole = Logistic(0.0, None, False, 0.25).full_loss(scores, row, item, uniform)
    rated = -torch.sigmoid(scores[0, [0, 3]]).log().sum()
    every = -torch.sigmoid(-scores[0]).log().sum()
    assert whole[0].item() == pytest.approx((rated + 0.25 * every).item())

    drawn = Logistic(0.0, 3, False, 0.25).full_loss(scores, row, item, uniform)
    assert drawn[0].item() == pytest.approx((rated + 2 * 3 * every / ITEMS).item())

    pairs = Bpr(0.0, 3, False).full_loss(scores, row, item, uniform)
    expected = -torch.sigmoid(scores[1, 1] - scores[1]).log().mean()
    assert pairs[1].item() == pytest.approx(expected.item())


@pytest.mark.parametrize("objective", [o for o, _ in SAMPLED], ids=names)
def test_gradients_equal_finite_differences(objective):
    model = NeuMf(USERS, ITEMS, 3, 2, (4, 3), 0.0, "logit").double()
    objective.row_loss(model, BATCH).sum().backward()
    for parameter in model.parameters():
        flat, slope = parameter.data.reshape(-1), parameter.grad.reshape(-1)
        for place in range(0, len(flat), 5):
            values = []
            for step in (1e-6, -2e-6):
                flat[place] += step
                values.append(objective.row_loss(model, BATCH).sum().item())
            flat[place] += 1e-6
            expected = (values[0] - values[1]) / 2e-6
            assert slope[place].item() == pytest.approx(expected, rel=1e-4, abs=1e-8)


FOLDED = [
    (Logistic(0.0, 2, False, 0.1), "dot"),
    (Logistic(0.0, None, False, 0.1), "dot"),
    (Bpr(0.0, 2, False), "dot"),
    (ItemSoftmax(0.0, None, False), "dot"),
    (ItemSoftmax(0.0, 2, True), "neumf"),
    (UnobservedClass(0.0, 2, False), "softmax"),
]


@pytest.mark.parametrize(("objective", "kind"), FOLDED, ids=lambda v: str(type(v).__name__))
def test_what_somebody_rated_is_folded_in_above_the_rest(objective, kind):
    torch.manual_seed(0)
    model = {
        "dot": lambda: Dot(50, 12, 4, "logit"),
        "neumf": lambda: NeuMf(50, 12, 4, 4, (8, 4), 0.0, "logit"),
        "softmax": lambda: SoftmaxDnn(50, 12, 4, (8, 4), (1.0, 5.0), 0.0, "logit"),
    }[kind]()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    chosen = torch.tensor([2, 7])
    popularity = torch.arange(12.0)
    state = objective.fold_in_solver(model, FoldInConfig(), popularity)(
        RatingsCSR.one(chosen, torch.tensor([5.0, 5.0]))
    )
    assert state.shape == (1, model.user_state(torch.tensor([0])).shape[1])
    with torch.no_grad():
        mean = model.user_state(torch.arange(50)).mean(dim=0, keepdim=True)
        folded, typical = all_logits(model, state)[0], all_logits(model, mean)[0]
    rest = [i for i in range(12) if i not in (2, 7)]
    gain = (folded[chosen].mean() - folded[rest].mean()).item()
    assert gain > (typical[chosen].mean() - typical[rest].mean()).item() + 0.2
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), "folding in must not change the model"


def test_objectives_refuse_models_that_do_not_fit():
    with pytest.raises(RecrayError, match=r"needs rating levels: use model.kind=softmax-dnn"):
        UnobservedClass(0.0, 2, False).check(dot())
    with pytest.raises(RecrayError, match="needs rating levels"):
        RatingClassification(0.0).check(dot())
