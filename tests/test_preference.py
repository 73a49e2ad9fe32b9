"""What ratings say of liking: scales, the losses that use them, and lists that dislikes move."""

import math

import pytest
import torch

from recray.config import load_settings, translated
from recray.config.groups import ObjectiveSettings
from recray.data.negatives import Negatives
from recray.errors import RecrayError
from recray.models.batches import Batch
from recray.models.factorization import Dot
from recray.models.history import RatingsCSR
from recray.models.neural import NeuMf
from recray.models.objectives import (
    BINARY,
    Bpr,
    FoldInConfig,
    ImplicitALS,
    ItemSoftmax,
    Logistic,
    Preference,
    detect_scale,
)
from recray.models.objectives.ranking import all_logits
from recray.training.als import ALSEpochs
from recray.training.own_users import OwnUsers
from recray.training.shard import Shard, Workers

STARS, SIGN = Preference("stars", 1, 5), Preference("sign", -1, 1)
POSITION, COUNTS = Preference("position", 0, 20), Preference("counts", 1, 500)

# ------------------------------------------------------------------------------------ scales


@pytest.mark.parametrize(
    ("preference", "rating", "target", "weight"),
    [
        (STARS, [0.5, 1, 1.5, 2, 3, 4, 5], [0, 0.1, 0.3, 0.5, 0.75, 1, 1], None),
        (SIGN, [-1, 0, 1], [0, 0.5, 1], None),
        (SIGN, [-7.5, 3], [0, 1], None),
        (POSITION, [-1, 0, 7.5, 15, 20], [0, 0, 0.5, 1, 1], None),
        (COUNTS, [0, 1, math.e, 100], [0, 1, 1, 1], [1, 1, 2, 1 + math.log(100)]),
    ],
)
def test_targets_and_weights_of_ratings(preference, rating, target, weight):
    graded = preference.graded(torch.tensor(rating, dtype=torch.float64))
    assert graded.target.tolist() == pytest.approx(target)
    assert (
        (graded.weight is None)
        if weight is None
        else graded.weight.tolist() == pytest.approx(weight)
    )


def test_binary_uses_no_values():
    assert BINARY.graded(torch.tensor([1.0, 5.0])) is None
    assert Preference.of(ObjectiveSettings(preference="binary"), -3, 9) == BINARY
    assert Preference.of(ObjectiveSettings(), 4, 4) == BINARY, "ratings that are all equal"
    assert Preference.of(ObjectiveSettings(), 1, 5) == STARS
    assert Preference.of(ObjectiveSettings(scale="counts"), 1, 5) == Preference("counts", 1, 5)


@pytest.mark.parametrize(
    ("low", "high", "levels", "scale"),
    [
        (1, 5, (), "stars"),
        (0.5, 5, (), "stars"),
        (3, 5, (3, 4, 5), "stars"),
        (1, 4, (1, 2, 3, 4), "stars"),
        (-1, 1, (-1, 1), "sign"),
        (-1, 1, (-1, 0, 1), "sign"),
        (-1, 0, (-1, 0), "sign"),
        (-1, 1, (-1, 0.5, 1), "position"),
        (-9.95, 10, (), "position"),
        (0, 1, (0, 1), "position"),
        (0, 5, (), "position"),
        (1, 10, (), "position"),
        (0, 100, (), "position"),
        (1, 101, (), "counts"),
        (1, 352_698, (), "counts"),
    ],
)
def test_the_scale_follows_from_the_range(low, high, levels, scale):
    assert detect_scale(low, high, levels) == scale


@pytest.mark.parametrize(("low", "high"), [(-1, 10), (-10, 0), (-5, 3)])
def test_a_scale_below_zero_without_a_middle_is_named_with_the_setting(low, high):
    with pytest.raises(RecrayError) as error:
        detect_scale(low, high)
    for words in (f"from {low} to {high}", "objective.scale=", "objective.preference=binary"):
        assert words in str(error.value)
    assert Preference.of(ObjectiveSettings(preference="binary"), low, high) == BINARY
    assert Preference.of(ObjectiveSettings(scale="sign"), low, high).scale == "sign"


@pytest.mark.parametrize(
    ("preference", "rating", "speaks"),
    [
        (STARS, [1, 2.5, 3, 5], [False, False, True, True]),
        (SIGN, [-1, 0, 1], [False, False, True]),
        (POSITION, [0, 9, 10, 20], [False, False, True, True]),
        (Preference("position", 7, 10), [5, 7, 10], [False, True, True]),
        (COUNTS, [0, 1, 9], [False, True, True]),
        (BINARY, [1, 5], [True, True]),
    ],
)
def test_a_dislike_speaks_for_nothing(preference, rating, speaks):
    assert preference.speaks_for(torch.tensor(rating)).tolist() == speaks


def test_settings_of_before_are_binary_and_new_ones_graded():
    stored = load_settings("ranking").plain()
    assert translated(stored)["objective"]["preference"] == "graded"
    del stored["objective"]["preference"], stored["objective"]["scale"]
    assert translated(stored)["objective"]["preference"] == "binary"
    assert load_settings("ranking").objective.preference == "graded"
    stored = load_settings("rating").plain()
    del stored["objective"]["preference"]
    assert translated(stored) == stored, "it changes nothing there"


# ------------------------------------------------------------------------------ exact solves

USER = torch.tensor([0, 0, 1, 2, 2, 2, 4])
ITEM = torch.tensor([0, 3, 1, 0, 2, 5, 4])
RATING = torch.tensor([5.0, 1.0, 3.0, 4.0, 2.0, 5.0, 1.0])


def start(dim: int = 3) -> Dot:
    torch.manual_seed(2)
    model = Dot(5, 6, dim, "logit").double()
    for table in model.embeddings().values():
        torch.nn.init.normal_(table.weight)
    return model


@pytest.mark.parametrize("preference", [STARS, SIGN, POSITION, COUNTS])
def test_a_graded_fold_in_is_the_least_squares_solution(preference):
    objective, model = ImplicitALS(0.3, 0.05, preference), start()
    item, rating = ITEM[3:6], RATING[3:6] - 3 * (preference is SIGN)
    h = model.item_vectors.weight.detach().numpy()
    graded = preference.graded(rating)
    weight = torch.ones(3) if graded.weight is None else graded.weight
    matrix, right = 0.3 * h.T @ h + 0.05 * (3 + 0.3 * 6) * torch.eye(3).numpy(), 0
    for i, p, w in zip(item.tolist(), graded.target.tolist(), weight.tolist(), strict=True):
        matrix = matrix + w * h[i][:, None] * h[i][None, :]
        right = right + w * p * h[i]
    expected = torch.linalg.solve(torch.tensor(matrix), torch.as_tensor(right))
    state = objective.fold_in(model, item, rating, FoldInConfig())[0]
    assert torch.allclose(state.double(), expected, atol=1e-6)
    base, parts = objective.contributions(model, FoldInConfig(), None)(item, rating)
    assert torch.allclose((base + parts.sum(dim=0)).double(), expected, atol=1e-6)


@pytest.mark.parametrize("preference", [STARS, COUNTS])
def test_epochs_of_graded_solves_reach_the_minimum_of_the_formula(preference):
    """The slope over both sides is 0 after many epochs, and the loss is that of the formula."""
    model, objective = start(2), ImplicitALS(0.3, 0.05, preference)
    shard = Shard(USER, ITEM, RATING.double(), OwnUsers.everyone(5))
    epochs = ALSEpochs(model, objective, shard, Workers())
    for epoch in range(300):
        loss, _ = epochs.run(epoch)
    w, h = (model.embeddings()[name].weight for name in ("user_vectors", "item_vectors"))
    graded = preference.graded(RATING.double())
    weight = 1 if graded.weight is None else graded.weight
    rated = (weight * (graded.target - (w[USER] * h[ITEM]).sum(dim=1)).square()).sum()
    whole = rated + 0.3 * (w @ h.T).square().sum()
    assert loss == pytest.approx(whole.item(), rel=1e-6)
    users, items = torch.bincount(USER, minlength=5), torch.bincount(ITEM, minlength=6)
    held = (0.05 * (users + 0.3 * 6) * w.square().sum(dim=1)).sum()
    held = held + (0.05 * (items + 0.3 * 5) * h.square().sum(dim=1)).sum()
    for slope in torch.autograd.grad(whole + held, [w, h]):
        assert slope.abs().max() < 1e-4


def test_binary_solves_do_not_see_values():
    tables = []
    for rating in (RATING, torch.full_like(RATING, 5.0)):
        model = start()
        shard = Shard(USER, ITEM, rating, OwnUsers.everyone(5))
        ALSEpochs(model, ImplicitALS(0.3, 0.05), shard, Workers()).run(0)
        tables.append(model.item_vectors.weight)
    assert torch.equal(*tables)


# ---------------------------------------------------------------------- losses by the formula

NEGATIVES = torch.tensor([[1, 2], [4, 3]])
DRAWN = Negatives(
    NEGATIVES,
    torch.tensor([[1.0, 1.0], [1.0, 0.0]], dtype=torch.float64),
    torch.tensor([0.3, 0.1, 0.2, 0.1, 0.2, 0.1], dtype=torch.float64).log(),
    6,
)
BATCH = Batch(USER[:2], ITEM[:2], torch.tensor([5.0, 1.0]).double(), torch.ones(2), 2, DRAWN)


def softplus(x: float) -> float:
    return math.log(1 + math.exp(x))


def logistic(own: float, others: list[float], share: list[float]) -> tuple[float, float, float]:
    return softplus(-own), softplus(own), sum(softplus(s) for s in others)


def bpr(own: float, others: list[float], share: list[float]) -> tuple[float, float, float]:
    count = len(others)
    ahead = sum(softplus(s - own) for s in others) / count
    return ahead, sum(softplus(own - s) for s in others) / count, 0.0


def item_softmax(own: float, others: list[float], share: list[float]) -> tuple[float, float, float]:
    weighed = sum(math.exp(s) / q for s, q in zip(others, share[1:], strict=True))
    first = math.exp(own) / share[0]
    mean = weighed / (6 * len(others))  # of exp(s) over the 6 items, by the draws
    return -math.log(first / (first + weighed)), softplus(own - math.log(mean)), 0.0


FAMILIES = [(Logistic, logistic), (Bpr, bpr), (ItemSoftmax, item_softmax)]


def build(family, preference, negatives=2):
    more = (0.1,) if family is Logistic else ()
    return family(0.0, negatives, False, *more, preference)


@pytest.mark.parametrize(("family", "formula"), FAMILIES)
@pytest.mark.parametrize("preference", [STARS, COUNTS])
def test_sampled_losses_mix_liking_and_disliking(family, formula, preference):
    model = start()
    losses = build(family, preference).row_loss(model, BATCH)
    graded = preference.graded(BATCH.rating)
    for row in range(2):
        scores = (model.user_vectors.weight[USER[row]] @ model.item_vectors.weight.T).tolist()
        drawn = NEGATIVES[row, : 2 - row].tolist()  # the second row's second draw weighs nothing
        share = DRAWN.log_share[[int(ITEM[row]), *drawn]].exp().tolist()
        own, others = scores[int(ITEM[row])], [scores[i] for i in drawn]
        like, dislike, rest = formula(own, others, share)
        p, w = graded.target[row].item(), 1 if graded.weight is None else graded.weight[row].item()
        assert losses[row].item() == pytest.approx(w * (p * like + (1 - p) * dislike) + rest)


def test_losses_against_all_items_mix_liking_and_disliking():
    model = start()
    scores = model.user_vectors.weight[[0]] @ model.item_vectors.weight.T
    row, item, rating = torch.tensor([0, 0]), torch.tensor([0, 3]), torch.tensor([5.0, 1.0])
    uniform, graded = torch.full((6,), 1 / 6).double(), STARS.graded(rating.double())
    s = scores[0].tolist()
    total = math.log(sum(math.exp(x) for x in s))

    def loss(family):
        return build(family, STARS, None).full_loss(scores, row, item, uniform, graded).item()

    every = 0.1 * sum(softplus(x) for x in s)
    expected = softplus(-s[0]) + 0.1 * softplus(-s[3]) + 0.9 * softplus(s[3]) + every
    assert loss(Logistic) == pytest.approx(expected)
    mean = total - math.log(6)
    expected = total - s[0] + 0.1 * (total - s[3]) + 0.9 * softplus(s[3] - mean)
    assert loss(ItemSoftmax) == pytest.approx(expected)
    expected = sum(softplus(x - s[0]) + 0.1 * softplus(x - s[3]) for x in s) / 6
    expected += 0.9 * sum(softplus(s[3] - x) for x in s) / 6
    assert loss(Bpr) == pytest.approx(expected)


@pytest.mark.parametrize("family", [Logistic, Bpr, ItemSoftmax])
def test_a_row_without_negatives_has_a_loss_and_a_gradient(family):
    model, nothing = start(), torch.zeros(2, 2, dtype=torch.float64)
    drawn = Negatives(NEGATIVES, nothing, DRAWN.log_share, DRAWN.items)
    batch = Batch(USER[:2], ITEM[:2], torch.tensor([5.0, 1.0]).double(), torch.ones(2), 2, drawn)
    loss = build(family, STARS).row_loss(model, batch)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert loss.max() < 10
    assert torch.isfinite(model.item_vectors.weight.grad).all()


# ------------------------------------------------------------------------- dislikes move lists


@pytest.mark.parametrize("family", ["ials", "Logistic", "Bpr", "ItemSoftmax", "neumf"])
def test_a_disliked_film_pushes_down_the_films_like_it(family):
    """Forty items of two kinds, users of one kind each: who dislikes some gets the other kind."""
    torch.manual_seed(0)
    model = NeuMf(60, 40, 4, 4, (8, 4), 0.0, "logit") if family == "neumf" else None
    model = model or Dot(60, 40, 4, "logit")
    kind = torch.arange(40) % 2
    sides = [t for t in model.embeddings().items() if t[0].split(".")[-1].startswith("item")]
    for table in model.embeddings().values():
        torch.nn.init.normal_(table.weight, std=0.3)
    for _, table in sides:
        table.weight.data[:, 0] += 1.5 * (2 * kind - 1)
    known = torch.arange(0, 12)
    stars = torch.where(kind[known] == 0, 1.0, 5.0)
    objective = {
        "ials": ImplicitALS(0.3, 0.05, STARS),
        "Logistic": build(Logistic, STARS, None),
        "Bpr": build(Bpr, STARS),
        "ItemSoftmax": build(ItemSoftmax, STARS, None),
        "neumf": build(ItemSoftmax, STARS, None),
    }[family]
    fold_in = objective.fold_in_solver(model, FoldInConfig(), None)
    lists = []
    for rating in (stars, torch.full((12,), 5.0)):
        with torch.no_grad():
            scores = all_logits(model, fold_in(RatingsCSR.one(known, rating)))[0]
        lists.append(scores[12:].topk(10).indices + 12)
    of_disliked = [int((kind[best] == 0).sum()) for best in lists]
    assert of_disliked[0] < of_disliked[1]
    assert of_disliked[0] <= 2
