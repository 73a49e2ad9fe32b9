"""Folding many people in at once: each as if alone, each at the minimum."""

import numpy as np
import pytest
import torch

from recray.config import load_settings
from recray.data.dataset import Ratings
from recray.evaluation.fold_in import NewUsers, best_strength, choose_fold_in
from recray.inference.bundle_writer import TrainedModel
from recray.models.factorization import Dot
from recray.models.history import RatingsCSR
from recray.models.neural import NeuMf, SoftmaxDnn
from recray.models.objectives import (
    Bpr,
    FoldInConfig,
    ImplicitALS,
    ItemSoftmax,
    Logistic,
    Mse,
    RatingClassification,
    UnobservedClass,
)
from recray.models.objectives.fold_in import lbfgs_rows

BEGINS = torch.tensor([0, 2, 3, 3, 7])
ITEM = torch.tensor([2, 7, 0, 1, 3, 5, 11])
STARS = torch.tensor([5.0, 1.0, 3.0, 5.0, 1.0, 3.0, 5.0])
KNOWN = RatingsCSR(BEGINS, ITEM, STARS)


def test_every_row_reaches_its_own_minimum():
    torch.manual_seed(0)
    centre = torch.randn(6, 5, dtype=torch.float64)
    width = torch.tensor([1.0, 10, 100, 1, 0.1], dtype=torch.float64)

    def loss(state):
        return (width * (state - centre).square()).sum(dim=1) + (state - centre)[:, 0] ** 4

    found = lbfgs_rows(loss, torch.zeros(6, 5, dtype=torch.float64))
    assert (found - centre).abs().max() < 1e-2, "the start is about 1 away"
    assert loss(found).max() < 1e-6


def test_a_row_that_has_arrived_does_not_wander_while_others_go_on():
    near, far = torch.tensor([[1e-3, 0.0]]), torch.tensor([[80.0, -55.0]])

    def loss(state):
        return (1 + state.square().sum(dim=1)).log()

    alone = lbfgs_rows(loss, near)
    assert torch.equal(lbfgs_rows(loss, torch.cat([near, far]))[:1], alone)


def test_blocks_hold_so_many_ratings_but_at_least_one_person():
    parts = [part.indptr.tolist() for part in KNOWN.blocks(3)]
    assert parts == [[0, 2, 3, 3], [0, 4]]
    assert torch.equal(torch.cat([part.item for part in KNOWN.blocks(3)]), ITEM)
    assert [part.indptr.tolist() for part in KNOWN.blocks(1)] == [[0, 2], [0, 1, 1], [0, 4]]


CASES = {
    "mse": (Mse(0.0), lambda: NeuMf(50, 12, 4, 4, (8, 4), 0.0, "rating")),
    "classes": (
        RatingClassification(0.0),
        lambda: SoftmaxDnn(50, 12, 4, (8, 4), (1.0, 3.0, 5.0), 0.0),
    ),
    "logistic": (Logistic(0.0, None, False, 0.1), lambda: Dot(50, 12, 4, "logit")),
    "bpr": (Bpr(0.0, 2, False), lambda: Dot(50, 12, 4, "logit")),
    "softmax": (ItemSoftmax(0.0, 2, True), lambda: NeuMf(50, 12, 4, 4, (8, 4), 0.0, "logit")),
    "unrated": (
        UnobservedClass(0.0, 2, False),
        lambda: SoftmaxDnn(50, 12, 4, (8, 4), (1.0, 3.0, 5.0), 0.0, "logit"),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_people_folded_in_together_are_as_if_alone(name):
    objective, build = CASES[name]
    torch.manual_seed(1)
    model = build()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    folding = objective.fold_in_solver(model, FoldInConfig(), torch.arange(12.0))
    together = folding(KNOWN)
    alone = torch.cat([folding(RatingsCSR.one(item, stars)) for item, stars in KNOWN.each()])
    assert torch.allclose(together, alone, atol=1e-3)
    spread = model.user_state(torch.arange(50)).std(dim=0).max()
    assert (together[0] - together[3]).abs().max() > 0.1 * spread, "they rated other films"


# ------------------------------------------------------------------- the strength of the prior


def rows(pairs) -> Ratings:
    """Ratings of 4 stars, sorted by user."""
    user, item = np.array(sorted(pairs), np.int32).reshape(-1, 2).T
    return Ratings(user, item, np.full(len(user), 4, np.float32), np.zeros(len(user), np.int64))


def best_with(wanted: range) -> float:
    """The strength where 20 users rated three of the items 10 to 19 and want `wanted`.

    The mean user likes the items 0 to 9 alone, and what the 20 users rated says nothing of these.
    """
    model, objective = Dot(20, 20, 2, "logit"), ImplicitALS(0.1, 1.0)
    with torch.no_grad():
        model.user_vectors.weight[:] = torch.tensor([20.0, 0.0])
        model.item_vectors.weight[:10] = torch.tensor([1.0, 0.0])
        model.item_vectors.weight[10:] = torch.tensor([0.0, 1.0])
    known = rows({(u, 10 + (u + n) % 5) for u in range(20) for n in range(3)})
    valid = rows({(u, item) for u in range(20) for item in wanted})
    settings = load_settings("ranking")
    users = NewUsers.of(known, valid, 20, settings.evaluate)
    return best_strength(model, objective, users, settings)


def test_the_prior_is_strong_where_new_users_want_what_the_mean_user_likes():
    assert best_with(range(5)) == 1.0


def test_the_prior_is_left_out_where_new_users_want_more_of_what_they_rated():
    assert best_with(range(15, 20)) == 0.0


def test_without_validation_rows_the_prior_is_the_mean_user():
    assert best_with(range(0)) == 1.0


def test_new_users_have_their_first_ratings_known_and_are_shown_none_of_their_known_ones():
    known = rows({(u, (u + n) % 30) for u in range(9) for n in range(u)})  # user u has u ratings
    valid = rows({(u, 30 + u % 2) for u in range(9)} | {(3, 99)})  # 99: unknown to the model
    users = NewUsers.of(known, valid, 40, load_settings("ranking").evaluate)
    assert len(users.relevant) == 8, "user 0 has no known rating"
    assert users.relevant.sum(axis=1).tolist() == [1] * 8
    who, first = users.with_ratings(3)
    assert who.tolist() == [2, 3, 4, 5, 6, 7]  # the places of the users 3 to 8
    assert first.indptr.tolist() == list(range(0, 19, 3))
    for place, row in enumerate(who.tolist()):
        items = first.of_user(place).item
        assert len(items.unique()) == 3
        assert not users.allowed[row, items].any()
        assert int((~users.allowed[row]).sum()) == row + 1


def test_the_choice_is_stored_in_the_trained_model(prepared, make_bundle):
    bundle = make_bundle()
    trained = TrainedModel(bundle.model.state_dict(), 1, bundle.training)
    chosen = choose_fold_in(prepared, trained, bundle.settings)
    assert chosen.prior_strength in ImplicitALS.prior_strengths
    seen = bundle.settings.changed(train={"fit_on": "train+valid"})
    assert choose_fold_in(prepared, trained, seen).prior_strength == 1.0
    assert bundle.fold_in == FoldInConfig(0.9**2, 0.0)
