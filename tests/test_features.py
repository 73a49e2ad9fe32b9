"""Features of items, and a model that places rare items by them."""

import numpy as np
import pyarrow as pa
import torch

from recray.data.features import feature_matrix, feature_names
from recray.models.factorization import Hybrid

TABLE = pa.table({"genres": [["War", "Drama"], [], ["Drama"]], "year": [1994, 2001, 0]})
NAMES = ["decade:1990", "decade:2000", "genre:Drama", "genre:War"]


def test_features_are_genres_and_decades_in_order():
    assert feature_names(TABLE) == NAMES


def test_rows_of_features_have_length_1():
    third = 3**-0.5
    expected = [[third, 0, third, third], [0, 1, 0, 0], [0, 0, 1, 0]]
    assert np.allclose(feature_matrix(TABLE, NAMES), expected)


def test_features_that_training_did_not_have_are_left_out():
    assert feature_matrix(TABLE, ["genre:War"]).tolist() == [[1.0], [0.0], [0.0]]


def test_an_item_without_a_vector_of_its_own_scores_by_its_features():
    model = Hybrid(2, 3, 2, NAMES, "logit")
    model.describe_items(torch.from_numpy(feature_matrix(TABLE, NAMES)))
    with torch.no_grad():
        model.item_vectors.weight.zero_()
        model.feature_vectors.copy_(torch.tensor([[0.0, 0], [0, 0], [1, 2], [0, 0]]))
        model.feature_bias.copy_(torch.tensor([0.0, 0.5, 0, 0]))
        model.user_vectors.weight.copy_(torch.tensor([[1.0, 0], [0, 1]]))
    user, item = torch.tensor([0, 1, 0, 0]), torch.tensor([2, 2, 1, 0])
    assert torch.allclose(model(user, item), torch.tensor([1.0, 2.0, 0.5, 3**-0.5]))


def test_features_explain_what_items_of_weight_share_and_nothing_of_a_row_is_lost():
    model = Hybrid(2, 3, 2, NAMES, "logit")
    model.describe_items(torch.from_numpy(feature_matrix(TABLE, NAMES)))
    rows, weight = torch.tensor([[1.0, 0], [0, 2], [3, 3]]), torch.tensor([1.0, 2, 6])
    with torch.no_grad():
        model.set_item_rows(rows, weight)
    assert torch.allclose(model.item_rows(slice(None)), rows)
    vectors = model.feature_vectors.detach().clone().requires_grad_()
    left = weight[:, None] * (rows - model.features @ vectors).square()
    (slope,) = torch.autograd.grad(left.sum() + 3 * vectors.square().sum(), vectors)
    assert slope.abs().max() < 1e-5, "3 is the mean weight"
