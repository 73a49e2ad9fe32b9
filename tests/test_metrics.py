"""Every metric against a table worked out by hand."""

from math import log2

import numpy as np
import pytest

from recray.evaluation import beyond_accuracy, metrics

# Four people and lists of four: first and third place; third place only; nothing; no relevant item.
HITS = np.array([[1, 0, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]], bool)
RELEVANT = np.array([2, 5, 1, 0])
NAN = np.nan

BY_HAND = [
    ("recall", 1, [1 / 2, 0, 0, NAN]),
    ("recall", 4, [1, 1 / 5, 0, NAN]),
    ("precision", 1, [1, 0, 0, NAN]),
    ("precision", 3, [2 / 3, 1 / 3, 0, NAN]),
    ("precision", 4, [2 / 4, 1 / 4, 0, NAN]),
    ("hitrate", 2, [1, 0, 0, NAN]),
    ("hitrate", 3, [1, 1, 0, NAN]),
    ("mrr", 2, [1, 0, 0, NAN]),
    ("mrr", 4, [1, 1 / 3, 0, NAN]),
    # Average precision: the precision at each hit, over min(k, relevant).
    ("map", 1, [1, 0, 0, NAN]),
    ("map", 4, [(1 + 2 / 3) / 2, (1 / 3) / 4, 0, NAN]),
    # DCG: 1 / log2(rank + 1); the ideal list has min(k, relevant) hits at the top.
    ("ndcg", 1, [1, 0, 0, NAN]),
    ("ndcg", 3, [(1 + 1 / 2) / (1 + 1 / log2(3)), 0.5 / (1 + 1 / log2(3) + 1 / 2), 0, NAN]),
    (
        "ndcg",
        4,
        [(1 + 1 / 2) / (1 + 1 / log2(3)), 0.5 / (1 + 1 / log2(3) + 1 / 2 + 1 / log2(5)), 0, NAN],
    ),
]


@pytest.mark.parametrize(("name", "k", "expected"), BY_HAND)
def test_metric_agrees_with_the_table_worked_out_by_hand(name, k, expected):
    values = metrics.RANKING[name](HITS, RELEVANT, k)
    assert values.dtype == np.float64
    np.testing.assert_allclose(values, expected, rtol=1e-12)


def test_every_metric_has_a_line_in_the_table():
    assert {name for name, _, _ in BY_HAND} == set(metrics.RANKING)


@pytest.mark.parametrize("name", metrics.RANKING)
def test_a_list_of_relevant_items_only_is_perfect(name):
    values = metrics.RANKING[name](np.ones((1, 3), bool), np.array([3]), 3)
    np.testing.assert_allclose(values, [1.0], rtol=1e-12)


@pytest.mark.parametrize("name", metrics.RANKING)
@pytest.mark.parametrize("k", [0, -1, 5])
def test_a_cut_off_outside_the_list_is_refused(name, k):
    with pytest.raises(ValueError, match=f"between 1 and 4, got {k}"):
        metrics.RANKING[name](HITS, RELEVANT, k)


@pytest.mark.parametrize("name", metrics.RANKING)
def test_arrays_about_different_numbers_of_users_are_refused(name):
    with pytest.raises(ValueError, match="hits has 4 users, relevant has 3"):
        metrics.RANKING[name](HITS, RELEVANT[:3], 2)


def test_coverage_counts_items_not_places():
    assert beyond_accuracy.coverage(np.array([7, 0, 1, 0])) == 0.5


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        ([3, 3, 3], 0.0),
        ([0, 0, 9], 1.0),
        ([9, 0, 0], 1.0),  # the order of items does not matter
        ([1, 0], 1.0),
        # Ascending 0, 1, 3 with weights -2, 0, 2: 6 / (2 * 4).
        ([1, 3, 0], 6 / 8),
        # Ascending 1, 2, 3, 4 with weights -3, -1, 1, 3: 10 / (3 * 10).
        ([4, 1, 3, 2], 1 / 3),
    ],
)
def test_gini_is_0_for_equal_places_and_1_for_one_item(shown, expected):
    assert beyond_accuracy.gini(np.array(shown)) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("shown", [[0, 0, 0], [5]])
def test_gini_of_nothing_or_of_one_item_is_not_a_number(shown):
    assert np.isnan(beyond_accuracy.gini(np.array(shown)))


def test_information_is_bits_of_the_share_and_never_infinite():
    # Eight ratings: shares 1/2, 1/4, 1/8, and one item without any, which counts as 1 of 8.
    np.testing.assert_allclose(
        beyond_accuracy.self_information(np.array([4.0, 2, 1, 0])), [1, 2, 3, 3]
    )


def test_novelty_is_the_mean_over_what_is_shown():
    surprise = np.array([[1.0, 2, 6], [1, 2, 6], [1, 2, 6]])
    shown = np.array([[1, 1, 1], [1, 0, 0], [0, 0, 0]], bool)
    np.testing.assert_allclose(beyond_accuracy.mean_of_shown(surprise, shown, 3), [3, 1, NAN])
    np.testing.assert_allclose(beyond_accuracy.mean_of_shown(surprise, shown, 2), [1.5, 1, NAN])
