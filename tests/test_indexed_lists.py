import numpy as np
import pytest
import torch

from recray.benchmarks.synthetic import make_bundle
from recray.inference import costs, index_build, indexed_lists
from recray.inference.bundle import Bundle
from recray.inference.catalog import Filters
from recray.inference.exact_lists import exact_top_k
from recray.inference.indexed_lists import _among
from recray.inference.queries import POPULAR
from recray.inference.raw_ratings import RawRating
from recray.inference.recommender import Recommender
from recray.inference.top_k import NONE, shared

ITEMS, USERS, RATED = 3000, 40, 20


@pytest.fixture(scope="module")
def recommender(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        for module in (index_build, indexed_lists, costs):
            patch.setattr(module, "INDEXED_ITEMS", 500)
        bundle = make_bundle(tmp_path_factory.mktemp("indexed"), USERS, ITEMS, RATED, dim=16)
        yield Recommender(Bundle.open_to_answer(bundle.folder.path))


@pytest.fixture
def thorough(recommender, monkeypatch):
    """Looks into all lists of the index, so that nothing is missed."""
    index = recommender.scorer.index
    every = index.facts.model_copy(update={"probes": index.lists})
    monkeypatch.setattr(index, "facts", every)
    return recommender.scorer


def compare(found, exact):
    np.testing.assert_array_equal(found.item, exact.item)
    np.testing.assert_allclose(found.score, exact.score, atol=1e-5)
    np.testing.assert_array_equal(found.source, exact.source)


@pytest.mark.parametrize("exclude_seen", [True, False])
@pytest.mark.parametrize("users", [1, 7])
@pytest.mark.parametrize("k", [1, 10, 100])
def test_lists_are_the_exact_ones_where_all_lists_are_looked_into(thorough, exclude_seen, users, k):
    queries = thorough.queries(np.arange(users))
    found = thorough.top_k(queries, k, exclude_seen)
    compare(found, exact_top_k(thorough, queries, k, exclude_seen, None))


@pytest.mark.parametrize("kept", [0, 5, 400, 499, 1500, 2999])
def test_filtered_lists_are_exact_where_few_items_are_kept_or_all_lists_looked_into(thorough, kept):
    queries = thorough.queries(np.arange(9))
    allowed = torch.zeros(ITEMS, dtype=torch.bool)
    allowed[torch.randperm(ITEMS)[:kept]] = True
    found = thorough.top_k(queries, 10, True, allowed)
    assert found.item.shape == (9, 10)
    compare(found, exact_top_k(thorough, queries, 10, True, allowed))


def test_few_probes_find_nearly_all_with_the_models_own_scores(recommender):
    scorer = recommender.scorer
    queries = scorer.queries(np.arange(USERS))
    found, exact = scorer.top_k(queries, 10), exact_top_k(scorer, queries, 10, True, None)
    assert scorer.index.facts.probes < scorer.index.lists
    assert shared(exact.item, found.item) > 0.9
    scores = scorer.scores(queries).numpy()
    np.testing.assert_allclose(found.score, np.take_along_axis(scores, found.item, 1), atol=1e-5)
    assert (np.diff(found.score) <= 0).all()


def test_what_a_user_has_seen_is_not_listed(recommender):
    scorer = recommender.scorer
    queries = scorer.queries(np.arange(USERS))
    found = scorer.top_k(queries, 100).item
    for user in range(USERS):
        assert not set(queries.seen.rows(user, user + 1).item) & set(found[user])


def test_a_list_is_not_short_where_the_index_finds_too_few(recommender, monkeypatch):
    scorer = recommender.scorer
    monkeypatch.setattr(scorer.index, "find", lambda *_: np.arange(3))
    queries = scorer.queries(np.arange(2))
    compare(scorer.top_k(queries, 10), exact_top_k(scorer, queries, 10, True, None))


def test_somebody_who_has_seen_nearly_all_gets_what_is_left(recommender):
    raw = [RawRating(item, 4.0) for item in range(1, ITEMS - 3)]
    answer = recommender.recommend_from(raw, 10)
    assert sorted(entry.item for entry in answer.items) == [ITEMS - 3, ITEMS - 2, ITEMS - 1, ITEMS]


def test_those_without_ratings_get_popular_items(recommender):
    scorer = recommender.scorer
    queries = scorer.queries_of_ratings([recommender._posted([], None).rated])
    assert queries.source[0] == POPULAR
    compare(scorer.top_k(queries, 50), exact_top_k(scorer, queries, 50, True, None))
    allowed = torch.arange(ITEMS) % 2 == 0
    compare(scorer.top_k(queries, 9, True, allowed), exact_top_k(scorer, queries, 9, True, allowed))


def test_users_together_get_what_each_gets_alone(recommender):
    together = recommender.recommend_many([1, 2, 3], 10)
    alone = [recommender.recommend(user, 10) for user in (1, 2, 3)]
    assert [one.item for one in together] == [one.item for one in alone]


def test_candidates_of_each_user_are_scored_exactly(recommender):
    scorer = recommender.scorer
    own = torch.tensor([0, 0, 1]), torch.tensor([5, 9, 7])
    found = scorer.rank_candidates(np.array([0, 1]), *own, 2).item
    assert sorted(found[0].tolist()) == [5, 9]
    assert found[1].tolist() == [7, NONE]


def test_a_plain_list_is_quick_and_a_filtered_one_has_a_price(recommender):
    assert costs.is_quick(recommender, Filters())
    assert not costs.is_quick(recommender, Filters(min_popularity=1))
    priced = recommender.costs
    assert priced.filtered > 0
    plain, filtered = (priced.of_list(10, f, 5, False) for f in (Filters(), Filters(year_from=1)))
    assert filtered == pytest.approx(plain + priced.filtered)


def test_seen_items_among_those_that_were_found():
    found, seen = np.array([2, 5, 9]), np.array([9, 1, 5, 30], np.int32)
    assert _among(found, seen).tolist() == [False, True, True]
    assert _among(found, seen[:0]).tolist() == [False] * 3
    assert _among(found[:0], seen).tolist() == []


def test_the_share_of_lists_that_others_have():
    lists, found = np.array([[1, 2], [3, NONE]]), np.array([[2, 9], [3, NONE]])
    assert shared(lists, found) == pytest.approx(2 / 3)
    assert shared(np.full((1, 2), NONE), np.full((1, 2), NONE)) is None
