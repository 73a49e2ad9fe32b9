"""Ranked lists against a brute force; nothing seen, nothing twice, ties by id."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recray.config import load_settings
from recray.data.dataset import Ratings
from recray.errors import RecrayError
from recray.evaluation.evaluator import evaluate
from recray.inference.catalog import Filters
from recray.inference.history import History
from recray.inference.inspect_user import inspect_user
from recray.inference.recommender import Recommender
from recray.inference.scorer import Scorer
from recray.inference.top_k import NONE, best_of_one, top_k
from recray.models.factorization import Dot
from recray.models.objectives import FoldInConfig, ImplicitALS
from recray.training.checks import described_k, resolved_k

from .conftest import ITEMS, USERS, gave, raw


def brute_force(scores: np.ndarray, seen: set[tuple[int, int]], k: int) -> list[list[int]]:
    """The obvious way: sort every user's unseen items by score, then by id."""
    lists = []
    for user, row in enumerate(scores):
        unseen = [item for item in range(len(row)) if (user, item) not in seen]
        lists.append(sorted(unseen, key=lambda item, row=row: (-row[item], item))[:k])
    return lists


def ratings(pairs) -> Ratings:
    user, item = (np.array(c, np.int32) for c in zip(*sorted(pairs), strict=True))
    return Ratings(user, item, np.ones(len(user), np.float32), np.zeros(len(user), np.int64))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_lists_equal_the_brute_force_ties_included(data):
    users, items = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 9))
    k = data.draw(st.integers(1, items))
    cell = st.tuples(st.integers(0, users - 1), st.integers(0, items - 1))
    seen = data.draw(st.sets(cell, min_size=1, max_size=users * items))
    model = Dot(users, items, 2, "logit")
    with torch.no_grad():  # few distinct values, so that many scores are equal
        for table in (model.user_vectors, model.item_vectors):
            values = data.draw(
                st.lists(
                    st.integers(-1, 1), min_size=table.weight.numel(), max_size=table.weight.numel()
                )
            )
            table.weight.copy_(torch.tensor(values).reshape(table.weight.shape))
    history = History.of(ratings(seen), users, items)
    ranked = Scorer(model, None, history).rank(np.arange(users), k)
    scores = (model.user_vectors.weight @ model.item_vectors.weight.T).detach().numpy()
    found = [[int(i) for i in row if i != NONE] for row in ranked.item]
    assert found == brute_force(scores, seen, k)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_long_rows_are_cut_like_the_brute_force_ties_included(data):
    k, items = data.draw(st.integers(1, 4)), data.draw(st.integers(100, 700))
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    levels = np.array([-np.inf, -3.5, -0.0, 0.0, 1e-3, 7.0], np.float32)
    chances = np.array([3.0, 2, 2, 2, data.draw(st.sampled_from([0, 0.02, 2])), 0.02])
    scores = rng.choice(levels, (3, items), p=chances / chances.sum())
    scores[2, rng.permutation(items)[2:]] = -np.inf  # too few are left
    item, best = top_k(scores, k)
    gone = {(int(u), int(i)) for u, i in np.argwhere(np.isneginf(scores))}
    assert [[i for i in row if i != NONE] for row in item.tolist()] == brute_force(scores, gone, k)
    assert np.array_equal(best, -np.sort(-scores, axis=1)[:, :k])
    for row in range(3):
        alone, score = best_of_one(scores[row : row + 1], k)
        known = ~np.isneginf(score[0])
        assert alone[0][known].tolist() == item[row][known].tolist()


@pytest.mark.parametrize("exclude_seen", [True, False])
def test_lists_of_blocks_of_items_are_merged_to_those_of_the_whole(monkeypatch, exclude_seen):
    torch.manual_seed(0)
    model = Dot(5, 23, 2, "logit")
    with torch.no_grad():  # many equal scores
        for table in (model.user_vectors, model.item_vectors):
            table.weight.copy_(table.weight.sign())
    history = History.of(
        ratings({(u, (7 * u + 3 * n) % 23) for u in range(5) for n in range(9)}), 7, 23
    )
    scorer, users = Scorer(model, None, history), np.arange(7)  # 5 and 6: by popularity
    whole = scorer.rank(users, 16, exclude_seen)
    for size in (1, 4, 22):
        monkeypatch.setattr("recray.inference.scorer.ITEM_BLOCK", size)
        blocks = scorer.rank(users, 16, exclude_seen)
        assert np.array_equal(blocks.item, whole.item)
        assert np.array_equal(blocks.score, whole.score)


def test_the_lowest_ids_win_where_a_tie_is_torn():
    scores = np.array([[1.0, 2.0, 1.0, 1.0, 1.0]], np.float32)
    item, best = top_k(scores, 3)
    assert item.tolist() == [[1, 0, 2]]
    assert best.tolist() == [[2.0, 1.0, 1.0]]


def test_too_few_items_leave_empty_places():
    scores = np.array([[-np.inf, 3.0, -np.inf]], np.float32)
    assert top_k(scores, 3)[0].tolist() == [[1, NONE, NONE]]


def test_any_set_of_users_is_ranked_like_one_by_one():
    torch.manual_seed(0)
    model = Dot(7, 9, 3, "logit")
    history = History.of(ratings({(u, (u * u) % 9) for u in range(7)}), 7, 9)
    scorer = Scorer(model, None, history)
    chosen = np.array([6, 2, 5])
    together = scorer.rank(chosen, 4).item
    alone = [scorer.rank(np.array([user]), 4).item[0] for user in chosen]
    assert np.array_equal(together, alone)


def test_somebody_unknown_with_history_is_folded_in_and_without_gets_popular_items():
    torch.manual_seed(0)
    model, objective = Dot(2, 6, 3, "logit"), ImplicitALS(0.2, 0.01)
    pairs = {(0, 1), (1, 1), (0, 3), (2, 4), (3, 4), (4, 4)}
    scorer = Scorer(model, objective, History.of(ratings(pairs), 6, 6))
    ranked = scorer.rank(np.array([0, 2, 5]), 2)
    assert ranked.source.tolist() == [0, 1, 2]
    assert ranked.item[2].tolist() == [4, 1]  # popularity counts users unknown to training
    state = objective.fold_in(model, torch.tensor([4]), torch.ones(1), FoldInConfig())
    expected = torch.topk(model.score(state)[0].index_fill(0, torch.tensor([4]), -torch.inf), 2)
    assert ranked.item[1].tolist() == expected.indices.tolist()


def test_items_come_with_raw_ids_titles_and_genres(make_bundle):
    answer = Recommender(make_bundle()).recommend(int(raw(1)), k=1, exclude_seen=False)
    assert answer.source == "model"
    item = answer.items[0]
    dense = (item.item - 100) // 10
    assert item.title == f"Film {dense} ({1990 + dense})"
    assert (item.year, item.genres) == (1990 + dense, ["Drama"])


def test_nothing_that_was_rated_is_recommended(make_bundle):
    recommender = Recommender(make_bundle())
    for user in range(USERS):
        known = recommender.bundle.interactions.known
        seen = set(known.item[(known.user == user) & (known.item < ITEMS)].tolist())
        assert len(seen) == 5, "three to train, one to validate, one to test"
        shown = {(i.item - 100) // 10 for i in recommender.recommend(int(raw(user)), ITEMS).items}
        assert not seen & shown
        assert seen | shown == set(range(ITEMS))


@pytest.mark.parametrize("preset", ["ranking", "dot-mse"])
def test_somebody_new_gets_their_own_taste(make_bundle, preset):
    recommender = Recommender(make_bundle(preset=preset))
    answer = recommender.recommend_from([gave(1, 5.0), gave(3, 5.0)], k=3)
    assert answer.source == "fold_in"
    assert all(((i.item - 100) // 10) % 2 == 1 for i in answer.items)


def test_no_ratings_give_popular_items(make_bundle):
    answer = Recommender(make_bundle()).recommend_from([], k=2)
    assert answer.source == "popular"
    assert len(answer.items) == 2


def test_of_several_ratings_of_one_item_the_last_counts(make_bundle):
    recommender = Recommender(make_bundle(preset="dot-mse"))
    once = recommender.recommend_from([gave(1, 1.0)], k=3)
    twice = recommender.recommend_from([gave(1, 5.0), gave(1, 1.0)], k=3)
    assert once == twice


@pytest.mark.parametrize(
    ("given_ratings", "k", "words"),
    [
        ([gave(1, 6.0)], 3, "off the scale of 1 to 5"),
        ([], 0, "out of range: 1 to 10"),
        ([], 11, "out of range: 1 to 10"),
    ],
)
def test_what_cannot_be_used_is_named(make_bundle, given_ratings, k, words):
    with pytest.raises(RecrayError, match=words):
        Recommender(make_bundle()).recommend_from(given_ratings, k)


def test_a_decimal_rating_given_once_more_is_no_new_one(make_bundle):
    recommender = Recommender(make_bundle())
    seen = recommender.scorer.seen
    recommender.scorer.seen = replace(seen, rating=np.full_like(seen.rating, 3.7))
    sources = [recommender.user(int(raw(0)), [gave(0, r)]).source for r in (3.7, 3.6)]
    assert sources == ["model", "fold_in"]


@pytest.mark.parametrize("user", [1, 10**20])
def test_an_unknown_user_is_a_key_error(make_bundle, user):
    with pytest.raises(KeyError):
        Recommender(make_bundle()).recommend(user)


def test_similar_items_point_the_same_way(make_bundle):
    answer = Recommender(make_bundle()).similar(int(raw(2)), k=4)
    assert {(i.item - 100) // 10 for i in answer.items} == {0, 4, 6, 8}


# Predicted ratings stay on the scale, wherever they are shown; the order is that before the cut.


@pytest.fixture
def loud(make_bundle) -> Recommender:
    """Predicts 20 to 22 for one taste and 0 for the other, on a scale of 1 to 5."""
    bundle = make_bundle(preset="dot-mse")
    with torch.no_grad():
        bundle.model.user_vectors.weight *= 20
    assert bundle.rating_range == (1.0, 5.0)
    return Recommender(bundle)


def test_lists_show_ratings_within_the_scale_in_the_order_of_the_uncut_scores(loud):
    listed = loud.recommend(int(raw(0)), ITEMS, exclude_seen=False)
    half = ITEMS // 2
    assert listed.item == [*range(ITEMS - 2, -1, -2), *range(1, ITEMS, 2)]
    assert listed.score == [5.0] * half + [1.0] * half
    varied = loud.recommend(int(raw(0)), 3, filters=Filters(diversity=0.3))
    assert set(varied.score) <= {1.0, 5.0}


def test_predictions_and_scores_of_pairs_stay_within_the_scale(loud):
    user, item = np.zeros(ITEMS, np.int64), np.arange(ITEMS)
    assert set(loud.scorer.predict(user, item).tolist()) == {1.0, 5.0}
    pairs = [(int(raw(0)), int(raw(n))) for n in range(ITEMS)]
    assert {pair.score for pair in loud.score_pairs(pairs)} == {1.0, 5.0}
    held_out = inspect_user(loud, int(raw(0)), 3).held_out
    assert held_out
    assert all(film.score is None or 1 <= film.score <= 5 for film in held_out)


def test_popularity_of_somebody_unknown_is_a_count_and_is_not_cut(loud):
    loud.scorer.popularity = torch.arange(ITEMS) + 4.0
    listed = loud.recommend_from([], 3)
    assert listed.source == "popular"
    assert listed.score == [ITEMS + 3.0, ITEMS + 2.0, ITEMS + 1.0]


def test_errors_are_those_of_predictions_within_the_scale(loud):
    metrics = evaluate(loud.bundle).metrics
    assert metrics["rmse"].value <= 4, "no error within the scale of 1 to 5 is larger"
    assert metrics["mae"].value <= 4


# A catalogue that is smaller than usual lists.


def test_a_list_is_as_long_as_a_small_catalogue_unless_its_length_is_asked_for(make_bundle):
    recommender = Recommender(make_bundle())
    assert recommender.check_k(None) == 10
    small = Recommender(make_bundle("small"))
    small.items = replace(small.items, known=6)
    assert small.check_k(None) == 6
    assert small.check_k(6) == 6
    for k in (0, 7):
        with pytest.raises(RecrayError, match=f"k={k} is out of range: 1 to 6"):
            small.check_k(k)


def test_a_small_catalogue_is_measured_whole_unless_another_length_is_asked_for():
    usual, asked = load_settings("ranking"), load_settings("ranking", None, ["evaluate.k=20"])
    small, large = SimpleNamespace(items=6), SimpleNamespace(items=10)
    assert resolved_k(usual, small) == {"k": (6,)}
    assert resolved_k(usual, large) == {}
    assert resolved_k(asked, small) == {}, "refused by check_evaluation"
    cut = load_settings("ranking", None, ["evaluate.k=6"])
    assert described_k(cut, small) == [
        "train: lists are measured at 6 (evaluate.k), all items of the catalogue"
    ]
    assert described_k(usual, large) == []


def test_a_number_that_no_item_has_is_no_title(make_bundle):
    recommender = Recommender(make_bundle())
    assert recommender.find_item("Film 3") == int(raw(3))
    with pytest.raises(RecrayError, match="no item '1993'"):
        recommender.find_item("1993")  # the year of Film 3 is in its title
