"""p values and their correction: against all sign flips, against Holm by hand; users are drawn."""

from itertools import product

import numpy as np
import pytest

from recray.evaluation.comparison import Bootstrap, compare_all, holm, sign_flip, summarise
from recray.evaluation.metrics import PerUserMetrics

SHOWN = np.zeros((1, 3), np.int64)


def table_of(values, users=None) -> PerUserMetrics:
    values = np.asarray(values, float)
    users = np.arange(len(values)) if users is None else np.asarray(users)
    return PerUserMetrics(users, {"ndcg@10": values}, SHOWN)


def rated(errors, ratings) -> PerUserMetrics:
    columns = {"squared_error": errors, "absolute_error": errors, "ratings": ratings}
    return PerUserMetrics(
        np.arange(len(errors)), {n: np.asarray(c, float) for n, c in columns.items()}, SHOWN
    )


def test_holm_by_hand():
    # Ascending .01 .02 .03 .04 times 4 3 2 1, each no less than the one before.
    assert holm(np.array([0.04, 0.01, 0.03, 0.02])) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm(np.array([0.5, 0.9])) == pytest.approx([1.0, 1.0])
    found = holm(np.array([0.02, np.nan, 0.04]))  # what was not compared is no comparison
    assert found[[0, 2]] == pytest.approx([0.04, 0.04])
    assert np.isnan(found[1])


def test_the_p_value_is_the_share_of_all_sign_flips_that_are_as_far():
    rng = np.random.default_rng(0)
    first, second = rng.random(11) + 0.1, rng.random(11)
    change = first - second
    flips = [abs(np.dot(signs, change)) for signs in product((-1, 1), repeat=11)]
    exact = np.mean(np.array(flips) >= abs(change.sum()) - 1e-12)
    (found,) = sign_flip(table_of(first), [(table_of(second), "ndcg@10")])
    assert found == pytest.approx(exact, abs=0.02)  # four standard errors of 9,999 flips


def test_errors_swap_with_their_numbers_of_ratings_and_take_the_root():
    rng = np.random.default_rng(2)
    errors, ratings = rng.random((2, 9)) * 4, np.ones((2, 9)) * rng.integers(1, 5, 9)
    observed = np.subtract(*np.sqrt(errors.sum(axis=1) / ratings.sum(axis=1)))
    far = []
    for swaps in product((False, True), repeat=9):
        mixed = np.where(swaps, errors[::-1], errors)
        rmse = np.sqrt(mixed.sum(axis=1) / ratings.sum(axis=1))
        far.append(abs(rmse[0] - rmse[1]) >= abs(observed) - 1e-12)
    tables = [rated(e, r) for e, r in zip(errors, ratings, strict=True)]
    (found,) = sign_flip(tables[0], [(tables[1], "rmse")])
    assert found == pytest.approx(np.mean(far), abs=0.02)


def test_users_beyond_one_draw_of_coins_are_added_up(monkeypatch):
    rng = np.random.default_rng(3)
    first, second = table_of(rng.random(70)), table_of(rng.random(70) + 0.03)
    (whole,) = sign_flip(first, [(second, "ndcg@10")])
    monkeypatch.setattr("recray.evaluation.comparison.BYTES", 2)
    (pieces,) = sign_flip(first, [(second, "ndcg@10")])
    assert whole == pytest.approx(pieces, abs=0.03)
    assert 0.0 < whole < 1.0


def test_what_is_the_same_or_cannot_be_measured_is_no_difference():
    same = table_of(np.random.default_rng(0).random(50))
    nothing = table_of(np.full(50, np.nan))
    p = sign_flip(same, [(same, "ndcg@10"), (nothing, "ndcg@10")])
    assert p[0] == 1.0
    assert np.isnan(p[1])


def test_among_many_comparisons_one_that_is_just_significant_no_longer_counts():
    rng = np.random.default_rng(5)
    model = rng.normal(size=400)
    others = {f"other {n}": table_of(rng.normal(size=400)) for n in range(9)}
    noise = rng.normal(size=400)
    others["close"] = table_of(model - noise - 0.095)
    others["far"] = table_of(model - noise - 1.0)
    tables = {"model": table_of(model)} | others
    drawn = Bootstrap.of(tables, {name: ["ndcg@10"] for name in tables})
    family = [(name, "ndcg@10") for name in others]
    found = dict(zip(others, compare_all(drawn, tables, "model", family), strict=True))
    alone = compare_all(drawn, tables, "model", [("close", "ndcg@10")])[0]
    assert alone.sign == 1
    assert alone.p == found["close"].p
    assert found["close"].sign == 0
    assert found["close"].low > 0, "the interval is that of one comparison"
    assert found["far"].sign == 1
    assert "p 0.0011 after Holm" in found["far"].words("far")


def test_users_with_several_targets_are_drawn_whole():
    rng = np.random.default_rng(7)
    each = rng.random(60)
    one = table_of(each)
    five = table_of(np.repeat(each, 5), np.repeat(np.arange(60), 5))
    a, b = (summarise(table, ["ndcg@10"])["ndcg@10"] for table in (one, five))
    assert (a.value, a.low, a.high) == pytest.approx((b.value, b.low, b.high))
    other = table_of(rng.random(60))
    tables = {"model": five, "other": table_of(np.repeat(other.values["ndcg@10"], 5), five.user)}
    assert sign_flip(tables["model"], [(tables["other"], "ndcg@10")]) == pytest.approx(
        sign_flip(one, [(other, "ndcg@10")])
    )
    assert five.users == 60


def test_a_mean_over_targets_weighs_users_by_their_targets():
    table = table_of([1.0, 0.0, 0.0, np.nan], [0, 1, 1, 1])
    assert summarise(table, ["ndcg@10"])["ndcg@10"].value == pytest.approx(1 / 3)
