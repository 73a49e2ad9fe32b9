"""Folding many people in at once: each as if alone, each at the minimum."""

import pytest
import torch

from recray.models.factorization import Dot
from recray.models.neural import NeuMf, SoftmaxDnn
from recray.models.objectives import (
    Bpr,
    ItemSoftmax,
    Logistic,
    Mse,
    RatingClassification,
    RatingsCSR,
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
    folding = objective.fold_in_solver(model, 1.0, torch.arange(12.0))
    together = folding(KNOWN)
    alone = torch.cat([folding(RatingsCSR.one(item, stars)) for item, stars in KNOWN.each()])
    assert torch.allclose(together, alone, atol=1e-3)
    spread = model.user_state(torch.arange(50)).std(dim=0).max()
    assert (together[0] - together[3]).abs().max() > 0.1 * spread, "they rated other films"
