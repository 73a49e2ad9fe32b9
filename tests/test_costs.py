"""Prices of lists: their formula, and that they are measured once for each opened bundle."""

import pytest

from recray.inference import costs
from recray.inference.catalog import NO_FILTERS, Filters
from recray.inference.costs import Costs, price_of_filters, price_of_lists, price_of_scores
from recray.inference.recommender import Recommender

from .conftest import COLD, ITEMS, USERS, NextNumber, gave, raw

MADE = Costs(items=1000, known=0.001, new=0.01, without=0.1)


@pytest.mark.parametrize(
    ("k", "filters", "ratings", "new", "seconds"),
    [
        (10, NO_FILTERS, 99, False, 0.001 + 10 * costs.ITEM),
        (10, NO_FILTERS, 20, True, 0.01 + 20 * costs.RATING + 10 * costs.ITEM),
        (
            10,
            Filters(diversity=0.5),
            0,
            False,
            0.001 + 10 * (costs.ITEM + costs.PICK + 300 * costs.LIKENESS),
        ),
        (
            2,
            Filters(explain=True),
            30,
            False,
            0.001 + 2 * (costs.ITEM + costs.REASON + 30 * costs.SHARE) + 30 * 0.1,
        ),
    ],
)
def test_the_price_of_a_list(k, filters, ratings, new, seconds):
    assert MADE.of_list(k, filters, ratings, new) == pytest.approx(seconds)


def test_each_user_has_a_price_of_their_own(make_bundle):
    recommender = Recommender(make_bundle())
    recommender.costs = MADE
    known, cold = int(raw(0)), int(raw(USERS))
    count = recommender.user(known).ratings
    users = [known, cold, [gave(0), gave(1)], [], 10**6]
    prices = price_of_lists(recommender, users, 5)
    item = 5 * costs.ITEM
    folded = recommender.user(cold).ratings
    assert prices == pytest.approx(
        [
            0.001 + item,
            0.01 + item + folded * costs.RATING,
            0.01 + item + 2 * costs.RATING,
            0.01 + item,
            0.001 + item,
        ]
    )
    since = price_of_lists(recommender, [known], 5, NO_FILTERS, lambda _user: [gave(2)])
    assert since == pytest.approx([0.01 + item + (count + 1) * costs.RATING])
    why = price_of_lists(recommender, [known], 1, Filters(explain=True))
    assert why[0] - MADE.known == pytest.approx(count * 0.1, rel=0.01)


def test_the_price_of_filters_and_scores(make_bundle):
    recommender = Recommender(make_bundle())
    recommender.costs = MADE
    assert price_of_filters(Filters(exclude=[1, 2], candidates=[3])) == pytest.approx(
        3 * costs.GIVEN
    )
    known, cold = int(raw(0)), int(raw(USERS + COLD - 1))
    pairs = [(known, 1), (known, 2), (cold, 1)]
    assert price_of_scores(recommender, pairs) == pytest.approx(3 * costs.PAIR + 0.01)


@pytest.mark.parametrize("kind", [None, NextNumber])
def test_a_model_is_measured_once(make_bundle, monkeypatch, kind):
    import dataclasses

    ran = []

    def seconds(work):
        work()
        ran.append(work)
        return 0.3

    monkeypatch.setattr(costs, "_seconds", seconds)
    bundle = make_bundle()
    if kind is not None:
        bundle = dataclasses.replace(bundle, model=kind(USERS, ITEMS))
    recommender = Recommender(bundle)
    assert recommender.costs is recommender.costs
    assert (recommender.costs.known > 0, recommender.costs.new > 0) == (True, True)
    assert (recommender.costs.without > 0) == (kind is not None)
    assert len(ran) == (2 if kind is None else 3)


def test_measured_seconds_are_rounded_up_to_a_power_of_two():
    assert [costs._rounded_up(s) for s in (0.0, 0.25, 0.26, 3.0)] == [0.0, 0.25, 0.5, 4.0]
