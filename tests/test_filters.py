"""Filters, variety, reasons and many at once; ranking with filters against ranking without."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recray.data.ids import IdMap
from recray.data.split import TRAIN
from recray.errors import RecrayError
from recray.inference.bundle import Bundle
from recray.inference.catalog import Filters
from recray.inference.history import History
from recray.inference.interactions import Interactions
from recray.inference.lookup import GenreCount
from recray.inference.recommendations import mmr_rerank
from recray.inference.recommender import Recommendations, Recommender
from recray.inference.scorer import Scorer
from recray.models.factorization import Dot, DotBias
from recray.models.objectives import FoldInConfig, FoldInPrior, ImplicitALS, Mse
from recray.storage import Manifest

from .conftest import ITEMS, USERS, gave, raw
from .test_recommender import ratings

GENRES = ("Comedy", "Drama", "War")
MANY = 24


def dense(answer) -> list[int]:
    return [(entry.item - 100) // 10 for entry in answer.items]


@pytest.fixture
def recommender(make_bundle):
    return Recommender(make_bundle())


# ------------------------------------------------------------------- ranking with filters


def test_years_the_wrong_way_round_are_refused():
    assert Filters(year_from=1990, year_to=1990).year_to == 1990
    with pytest.raises(RecrayError, match="year_from=1996 is after year_to=1992"):
        Filters(year_from=1996, year_to=1992)


facts = st.tuples(st.sets(st.sampled_from(GENRES)), st.sampled_from([0, *range(1990, 1996)]))
ids = st.lists(st.integers(-3, MANY + 3), max_size=8)
year = st.none() | st.integers(1989, 1996)
spans = st.tuples(year, year).filter(lambda span: None in span or span[0] <= span[1])
wishes = st.builds(
    lambda span, **given: Filters(year_from=span[0], year_to=span[1], **given),
    spans,
    exclude=ids,
    candidates=st.none() | ids,
    genres=st.lists(st.sampled_from([*GENRES, "war"]), max_size=2),
    not_genres=st.lists(st.sampled_from(GENRES), max_size=2),
    min_popularity=st.integers(0, 3),
)


def planted(genres, years, seed) -> Recommender:
    """A model of few distinct scores, so that many are equal."""
    torch.manual_seed(seed)
    model = Dot(3, MANY, 2, "logit")
    with torch.no_grad():
        for table in (model.user_vectors, model.item_vectors):
            table.weight.copy_(torch.randint(-2, 3, table.weight.shape))
    pairs = {(user, int(i)) for user in range(3) for i in torch.randperm(MANY)[:5]}
    table = {
        "title": [f"Film {i}" for i in range(MANY)],
        "year": np.array(years),
        "genres": [sorted(own) for own in genres],
    }
    ids = (IdMap(np.arange(3), 3), IdMap(np.arange(MANY), MANY))
    rows = ratings(pairs)
    part = np.full(len(rows), TRAIN, np.int8)
    return Recommender(
        Bundle(
            None, Manifest.model_validate({"files": [], "version": "v"}),
            {"fold_in": {"noise": 1.0}, "rating_range": [1, 5]}, {}, None, model, None, *ids,
            pa.table(table), Interactions(rows, part, "train", 3, MANY, 3), [],
        )
    )  # fmt: skip


def passes(filters: Filters, item: int, genres: set[str], year: int, popularity: float) -> bool:
    """The filters as one would say them."""
    own = {name.casefold() for name in genres}
    return (
        item not in filters.exclude
        and (filters.candidates is None or item in filters.candidates)
        and (not filters.genres or bool(own & {name.casefold() for name in filters.genres}))
        and not own & {name.casefold() for name in filters.not_genres}
        and (filters.year_from is None or year >= filters.year_from)
        and (filters.year_to is None or 0 < year <= filters.year_to)
        and popularity >= filters.min_popularity
    )


@settings(max_examples=200)
@given(
    st.lists(facts, min_size=MANY, max_size=MANY),
    wishes,
    st.integers(0, 9),
    st.booleans(),
    st.data(),
)
def test_filtered_is_unfiltered_with_the_others_removed(facts, filters, seed, exclude_seen, data):
    genres = [set(GENRES), *(own for own, _ in facts[1:])]  # so that every genre is known
    years = [year for _, year in facts]
    made = planted(genres, years, seed)
    everything = made.recommend(0, MANY, exclude_seen).items
    popularity = made.scorer.popularity.tolist()
    expected = [
        entry
        for entry in everything
        if passes(filters, i := entry.item, genres[i], years[i], popularity[i])
    ]
    k = data.draw(st.integers(1, MANY))
    assert made.recommend(0, k, exclude_seen, filters).items == expected[:k]
    varied = dataclasses.replace(filters, diversity=data.draw(st.sampled_from([0.3, 1.0])))
    shown = [entry.item for entry in made.recommend(0, k, exclude_seen, varied).items]
    assert len(shown) == len(set(shown)) == min(k, len(expected))
    assert set(shown) <= {entry.item for entry in expected}


def test_genres_are_known_by_name_in_any_case(recommender):
    answer = recommender.recommend(int(raw(0)), 5, False, Filters(genres=("drama",)))
    assert {tuple(entry.genres) for entry in answer.items} == {("Drama",)}
    with pytest.raises(RecrayError, match="did you mean 'Drama'"):
        recommender.recommend(int(raw(0)), 5, False, Filters(genres=("Drma",)))


def test_text_and_number_ids_that_are_not_there_exclude_nothing(recommender):
    plain = recommender.recommend(int(raw(0)), 5)
    assert recommender.recommend(int(raw(0)), 5, True, Filters(exclude=["x", 10**30, -1])) == plain
    for nobody in ([], ["x", -1]):
        assert recommender.recommend(int(raw(0)), 5, True, Filters(candidates=nobody)).items == []


# ------------------------------------------------------------------------------- variety


def by_hand(unit, score, k, diversity) -> list[int]:
    """MMR as its formula says, pair by pair."""
    spread = (score.max() - score.min()) or 1.0
    chosen: list[int] = []
    while len(chosen) < min(k, len(score)):
        value = {}
        for p in range(len(score)):
            likeness = max((float(unit[p] @ unit[c]) for c in chosen), default=-1.0)
            relevance = float((score[p] - score.min()) / spread)
            value[p] = (1 - diversity) * relevance - diversity * likeness
        rest = [p for p in value if p not in chosen]
        chosen.append(max(rest, key=lambda p: (round(value[p], 5), -p)))
    return chosen


@settings(max_examples=60)
@given(st.integers(1, 12), st.integers(1, 12), st.floats(0, 1), st.integers(0, 999))
def test_variety_follows_the_formula(pool, k, diversity, seed):
    rng = np.random.default_rng(seed)
    unit = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(pool, 3))), dim=-1)
    score = np.sort(rng.random(pool).astype(np.float32))[::-1].copy()
    found = mmr_rerank(unit, score, k, diversity).tolist()
    assert found == by_hand(unit.numpy(), score, k, diversity)


def test_variety_puts_the_other_taste_second(recommender):
    plain = recommender.recommend(int(raw(0)), 4, False)
    varied = recommender.recommend(int(raw(0)), 4, False, Filters(diversity=0.9))
    assert [i % 2 for i in dense(plain)] == [0, 0, 0, 0]
    assert [i % 2 for i in dense(varied)][:2] == [0, 1]
    assert varied.items[0] == plain.items[0]


@pytest.mark.parametrize("diversity", [-0.1, 1.1, float("nan")])
def test_variety_beyond_its_range_is_refused(diversity):
    with pytest.raises(RecrayError, match="0 to 1"):
        Filters(diversity=diversity)


# ------------------------------------------------------------------------------- reasons


@pytest.mark.parametrize(("kind", "strength"), [("ials", 0.0), ("ials", 0.75), ("mse", 0.0)])
def test_prior_and_shares_of_a_folded_in_user_make_up_the_state(kind, strength):
    torch.manual_seed(3)
    if kind == "mse":
        model, objective = DotBias(8, 9, 4), Mse(0.0)
        for table in (model.user_bias, model.item_bias, model.user_vectors, model.item_vectors):
            torch.nn.init.normal_(table.weight)
    else:
        model, objective = Dot(8, 9, 4, "logit"), ImplicitALS(0.3, 0.05)
        torch.nn.init.normal_(model.item_vectors.weight)
        torch.nn.init.normal_(model.user_vectors.weight)
    config = FoldInConfig(0.8, strength)
    item, rating = torch.tensor([1, 4, 7]), torch.tensor([5.0, 2.0, 4.0])
    with torch.no_grad():
        state = objective.fold_in(model, item, rating, config)[0]
        base, parts = objective.contributions(model, config, None)(item, rating)
    assert parts.shape == (3, len(state))
    assert torch.allclose((base + parts.sum(dim=0)).float(), state, atol=1e-5)
    assert bool(base.abs().max() > 0.01) is (kind == "mse" or strength > 0)
    if kind == "mse":
        prior = FoldInPrior.of(model, 0.8)
        assert not torch.allclose(base, prior.mean)  # the ratings pull away from the prior


@pytest.mark.parametrize("preset", ["ranking", "dot-mse"])
def test_the_reasons_are_of_the_same_taste_and_exact_for_somebody_new(make_bundle, preset):
    recommender = Recommender(make_bundle(preset=preset))
    rated = [gave(i, 5.0) for i in (1, 3, 4)]
    answer = recommender.recommend_from(rated, 3, True, Filters(explain=True))
    for entry in answer.items:
        why = entry.why
        assert why.kind == "exact"
        names = [(w.item - 100) // 10 % 2 for w in why.items]
        assert names[0] == (entry.item - 100) // 10 % 2
        assert all(w.share > 0 for w in why.items)
        assert [w.share for w in why.items] == sorted((w.share for w in why.items), reverse=True)


def test_a_state_that_the_ratings_do_not_make_up_is_explained_approximately(recommender):
    answer = recommender.recommend(int(raw(1)), 2, False, Filters(explain=True))
    assert {entry.why.kind for entry in answer.items} == {"approximate"}


def test_models_without_such_a_sum_give_likeness_and_say_so(make_bundle):
    recommender = Recommender(make_bundle(preset="dot-bias-bce"))
    rated = [gave(1, 5.0), gave(2, 5.0), gave(3, 1.0)]  # 3 was not liked
    answer = recommender.recommend_from(rated, 3, True, Filters(explain=True, genres=("Drama",)))
    for entry in answer.items:
        assert entry.why.kind == "approximate"
        assert [w.item for w in entry.why.items] == [int(raw(1))]


@pytest.mark.parametrize("preset", ["ranking", "dot-mse", "dot-bias-bce"])
@pytest.mark.parametrize("preference", ["graded", "binary"])
def test_a_disliked_film_is_no_reason(make_bundle, preset, preference):
    changes = [f"objective.preference={preference}"] * (preset == "ranking")
    recommender = Recommender(make_bundle(preset=preset, changes=changes))
    rated = [gave(1, 2.0), gave(3, 4.0), gave(5, 1.0)]  # all of one taste
    filters = Filters(explain=True, genres=("Drama",))
    answer = recommender.recommend_from(rated, 3, True, filters)
    reasons = {w.item for entry in answer.items for w in entry.why.items}
    assert reasons == {int(raw(3))}
    answer = recommender.recommend_from(
        [each._replace(rating=1.0) for each in rated], 3, True, filters
    )
    assert all(entry.why.items == [] for entry in answer.items)


def test_popular_items_have_no_reasons(recommender):
    answer = recommender.recommend_from([], 2, True, Filters(explain=True))
    assert all(entry.why.items == [] for entry in answer.items)


# ---------------------------------------------------------------------------- many at once


@pytest.mark.parametrize("preset", ["ranking", "dot-mse"])
@pytest.mark.parametrize("block", [ITEMS, 3 * ITEMS, 1 << 24])
@pytest.mark.parametrize(
    "filters", [Filters(), Filters(genres=("War",), diversity=0.5, explain=True)]
)
def test_many_at_once_are_as_one_by_one(make_bundle, monkeypatch, preset, block, filters):
    monkeypatch.setattr("recray.inference.recommender.SCORES_AT_ONCE", block)
    recommender = Recommender(make_bundle(preset=preset))
    new = [gave(1, 5.0), gave(2, 2.0)]
    askers = [int(raw(u)) for u in range(USERS + 2)] + [new, [], new[:1], int(raw(3))]
    together = recommender.recommend_many(askers, 4, True, filters)
    for asker, answer in zip(askers, together, strict=True):
        assert isinstance(answer, Recommendations)
        alone = (
            recommender.recommend_from(asker, 4, True, filters)
            if isinstance(asker, list)
            else recommender.recommend(asker, 4, True, filters)
        )
        assert answer.source == alone.source
        assert dense(answer) == dense(alone)
        for one, other in zip(answer.items, alone.items, strict=True):
            assert one.score == pytest.approx(other.score, abs=1e-5)
        assert answer.why == alone.why


def test_who_cannot_be_answered_does_not_stop_the_others(recommender):
    bad = [gave(1, 99.0)]
    answers = recommender.recommend_many([int(raw(0)), 7, bad, "x"], 2)
    assert isinstance(answers[0], Recommendations)
    assert [str(answer) for answer in answers[1:]] == [
        "no user 7 in tiny",
        "rating 99 is off the scale of 1 to 5",
        "no user 'x' in tiny",
    ]
    assert recommender.recommend_many([], 2) == []


def test_own_history_of_a_trained_user_gives_their_own_list():
    """Two hundred users of four tastes; training to the optimum, then everybody as if new."""
    torch.manual_seed(0)
    users, items, dim = 200, 120, 8
    liked = torch.rand(users, items) < torch.where(
        torch.arange(users)[:, None] % 4 == torch.arange(items) % 4, 0.5, 0.05
    )
    user, item = torch.nonzero(liked, as_tuple=True)
    model, objective = Dot(users, items, dim, "logit"), ImplicitALS(0.2, 0.015)
    by_item = torch.argsort(item, stable=True)
    begins = torch.searchsorted(user, torch.arange(users + 1))
    item_begins = torch.searchsorted(item[by_item], torch.arange(items + 1))
    w, h = model.user_vectors.weight.data, model.item_vectors.weight.data
    for _ in range(8):
        w[:] = objective.solve(h, begins, item, objective.gram(h), items)
        h[:] = objective.solve(w, item_begins, user[by_item], objective.gram(w), users)
    w[:] = objective.solve(h, begins, item, objective.gram(h), items)
    pairs = set(zip(user.tolist(), item.tolist(), strict=True))
    scorer = Scorer(model, objective, History.of(ratings(pairs), users, items))
    warm = scorer.rank(np.arange(users), 10).item
    same = 0
    for one in range(users):
        rated = scorer.history.of_user(one)
        scores = scorer.scores(scorer.queries_of_ratings([rated]))
        scores[0, rated[0]] = -torch.inf
        same += len(set(warm[one].tolist()) & set(torch.topk(scores[0], 10).indices.tolist()))
    assert same / (10 * users) >= 0.95


# ------------------------------------------------------------------------------- facts


def test_what_is_known_of_a_user(recommender):
    facts = recommender.user(int(raw(0)))
    assert (facts.ratings, facts.in_training, facts.source) == (5, True, "model")
    assert facts.genres == [GenreCount("Comedy", 5), GenreCount("War", 5)]
    assert [(h.item, h.rating) for h in facts.highest] == [
        (int(raw(i)), stars) for i, stars in ((0, 5.0), (6, 5.0), (2, 4.0), (8, 4.0), (4, 3.0))
    ]
    with pytest.raises(KeyError):
        recommender.user(7)


def test_what_is_known_of_an_item(recommender):
    facts = recommender.item(int(raw(3)))
    assert (facts.title, facts.imdb, facts.tmdb) == ("Film 3 (1993)", "tt0000003", 3)
    assert facts.ratings == int(recommender.scorer.popularity[3]) > 0
    cold = recommender.item(int(raw(ITEMS)))
    assert (cold.ratings, cold.in_training) == (0, False)
    with pytest.raises(KeyError):
        recommender.item(7)


def test_pairs_are_scored_as_lists_are_and_cold_ones_say_so(make_bundle):
    stars = Recommender(make_bundle("stars", preset="dot-mse"))
    pairs = [(0, 1), (USERS, 1), (USERS + 1, 1), (0, ITEMS)]
    named = [(int(raw(u)), int(raw(i))) for u, i in pairs] + [("x", "y"), (int(raw(0)), 7)]
    scored = stars.score_pairs(named)
    assert [entry.source for entry in scored] == ["model", "fold_in", "fold_in", *["cold"] * 3]
    for place in (0, 1, 2):
        listed = stars.recommend(named[place][0], ITEMS, False).items
        own = next(entry for entry in listed if entry.item == named[place][1])
        assert scored[place].score == pytest.approx(own.score, abs=1e-5)
    base = stars.scorer.bias_only
    assert scored[4].score == pytest.approx(float(base.mean), abs=1e-5)
    ranking = Recommender(make_bundle("ranking")).score_pairs(named)
    assert [entry.score is None for entry in ranking] == [*[False] * 3, *[True] * 3]
    assert stars.score_pairs([]) == []
