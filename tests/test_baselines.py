"""Item-kNN and EASE against formulas written out in numpy; what may stand beside a model."""

import numpy as np
import pytest
import torch

from recray.data.dataset import Ratings
from recray.errors import RecrayError
from recray.evaluation import baselines
from recray.inference.history import History
from recray.inference.scorer import NONE
from recray.models import item_item
from recray.models.item_item import Cooccurrence, Ease, ItemKnn

USERS, ITEMS = 30, 13


@pytest.fixture
def seen() -> np.ndarray:
    """(30, 13) of 0 and 1; user 29 has seen nothing, and nobody has seen item 12."""
    seen = np.random.default_rng(1).random((USERS, ITEMS)) < 0.35
    seen[USERS - 1], seen[:, ITEMS - 1] = False, False
    return seen.astype(float)


def fitted(model, seen: np.ndarray):
    user, item = np.nonzero(seen)
    begins = np.searchsorted(user, np.arange(len(seen) + 1))
    model.fit(torch.from_numpy(begins), torch.from_numpy(item))
    return model


def scores(model) -> np.ndarray:
    return model.score(model.user_state(torch.arange(USERS))).numpy()


def knn_by_hand(seen: np.ndarray, kept: int, shrink: float) -> np.ndarray:
    both = seen.T @ seen
    root = np.sqrt(np.diag(both))
    near = both / (np.outer(root, root) + shrink)
    np.fill_diagonal(near, 0)
    weight = np.zeros_like(near)
    for item in range(ITEMS):
        best = sorted(range(ITEMS), key=lambda j, item=item: (-near[item, j], j))[:kept]
        weight[item, best] = near[item, best]
    return seen @ weight.T


@pytest.mark.parametrize(("kept", "shrink"), [(3, 0.5), (5, 10.0), (50, 1.0)])
def test_item_knn_adds_the_similarities_of_the_nearest(seen, kept, shrink, monkeypatch):
    monkeypatch.setattr(item_item, "COUNT_BLOCK", 4)
    model = fitted(ItemKnn(USERS, ITEMS, kept, shrink), seen)
    np.testing.assert_allclose(scores(model), knn_by_hand(seen, kept, shrink), rtol=1e-5)


def test_ease_is_the_ridge_regression_of_each_item_on_the_others(seen, monkeypatch):
    monkeypatch.setattr(item_item, "COUNT_BLOCK", 4)
    model = fitted(Ease(USERS, ITEMS, l2=2.0), seen)
    expected = np.zeros((ITEMS, ITEMS))
    for item in range(ITEMS):  # not the closed form: one regression at a time
        rest = np.arange(ITEMS) != item
        x, y = seen[:, rest], seen[:, item]
        expected[rest, item] = np.linalg.solve(x.T @ x + 2.0 * np.eye(ITEMS - 1), x.T @ y)
    np.testing.assert_allclose(model.weight.numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(scores(model), seen @ expected, atol=1e-5)


@pytest.mark.parametrize("make", [ItemKnn, Ease])
def test_a_pair_scores_as_in_a_block_and_anybody_is_exactly_their_history(seen, make, monkeypatch):
    monkeypatch.setattr(item_item, "PAIR_BLOCK", 7)
    model = fitted(make(USERS, ITEMS), seen)
    user, item = (torch.from_numpy(a.ravel()) for a in np.indices((USERS, ITEMS)))
    pairs = model(user, item).reshape(USERS, ITEMS)
    np.testing.assert_allclose(pairs.numpy(), scores(model), rtol=1e-5, atol=1e-7)
    own = torch.from_numpy(np.flatnonzero(seen[3]))
    assert torch.equal(model.state_of(own), model.user_state(torch.tensor([3])))


def test_counts_of_two_items_are_exact(seen):
    user, item = np.nonzero(seen)
    begins = torch.from_numpy(np.searchsorted(user, np.arange(USERS + 1)))
    both = Cooccurrence(begins, torch.from_numpy(item), ITEMS)
    assert np.array_equal(both.rows(2, 9).numpy(), (seen.T @ seen)[2:9])


@pytest.mark.parametrize("name", ["item-knn", "ease"])
def test_somebody_not_in_training_is_ranked_by_their_history_or_by_popularity(seen, name):
    user, item = (a.astype(np.int32) for a in np.nonzero(seen))
    ratings = Ratings(user, item, np.ones(len(user), np.float32), np.zeros(len(user), np.int64))
    history = History.of(ratings, USERS, ITEMS)
    scorer = baselines.build([name], history, 20, ITEMS)[name]  # training knows users 0..19
    ranked = scorer.rank(np.array([5, 25, 29]), 4)
    assert ranked.source.tolist() == [0, 1, 2]
    expected = scorer.model.score(scorer.model.state_of(torch.from_numpy(np.flatnonzero(seen[25]))))
    expected[0, np.flatnonzero(seen[25])] = -torch.inf
    assert ranked.item[1].tolist() == torch.argsort(-expected[0], stable=True)[:4].tolist()
    popular = np.argsort(-seen[:20].sum(axis=0), kind="stable")
    assert ranked.item[2].tolist() == popular[:4].tolist()
    assert not (ranked.item == NONE).any()


def test_the_default_leaves_out_what_a_large_catalogue_makes_slow():
    assert baselines.choose(None, 12_000) == ("popularity", "bias-only", "item-knn")
    assert baselines.choose(None, 12_001) == ("popularity", "bias-only")


def test_baselines_are_chosen_by_name_in_a_fixed_order():
    assert baselines.choose(["ease", "popularity", "ease"], 100) == ("popularity", "ease")
    assert baselines.choose(["item-knn"], 10**6) == ("item-knn",)


@pytest.mark.parametrize(
    ("names", "items", "words"),
    [
        (["ease"], 12_001, "12,001 items are too many, 12,000 are allowed"),
        (["item-kn"], 10, "unknown baseline 'item-kn': did you mean 'item-knn'"),
        ([], 10, "needs at least one of popularity, bias-only, item-knn, ease"),
    ],
)
def test_a_baseline_that_cannot_be_measured_is_refused(names, items, words):
    with pytest.raises(RecrayError, match=words):
        baselines.choose(names, items)
