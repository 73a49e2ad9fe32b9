"""What lists show beside accuracy, against sums over pairs; groups by gender and age."""

from itertools import combinations

import numpy as np
import pyarrow as pa
import pytest

from recray.config import EvaluateSettings
from recray.evaluation.beyond_accuracy import (
    ItemTraits,
    add_list_metrics,
    cosine_distance,
    jaccard_distance,
    mean_distance,
    serendipity,
)
from recray.evaluation.evaluator import Evaluator
from recray.evaluation.metrics import PerUserMetrics, RankedBatch
from recray.evaluation.protocol import Protocol
from recray.evaluation.segments import by_age, by_gender
from recray.inference.top_k import NONE, TopK
from recray.inference.user_features import UserFeatures
from recray.reporting import terminal

LISTS = np.array([[0, 1, 2, 3], [3, 2, NONE, NONE], [4, NONE, NONE, NONE]])
THERE = LISTS != NONE


def by_hand(distance, k: int) -> list[float]:
    """The mean over all pairs of items in the first k places; nan without a pair."""
    means = []
    for row in LISTS:
        pairs = [distance(a, b) for a, b in combinations(row[row != NONE][:k].tolist(), 2)]
        known = [value for value in pairs if value is not None]
        means.append(np.mean(known) if known else np.nan)
    return means


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_diversity_by_vectors_is_the_mean_of_one_less_cosine_over_pairs(k):
    vectors = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    found = mean_distance(cosine_distance(unit[LISTS]), THERE, k)
    expected = by_hand(lambda a, b: 1 - float(unit[a] @ unit[b]), k)
    np.testing.assert_allclose(found, expected, atol=1e-6)


GENRES = [{"a", "b"}, {"b"}, {"c"}, set(), {"a", "b", "c"}]


@pytest.mark.parametrize("k", [2, 3, 4])
def test_diversity_by_genre_leaves_items_without_genres_out(k):
    table = np.array([[g in names for g in "abc"] for names in GENRES])

    def jaccard(a, b):
        both, either = GENRES[a] & GENRES[b], GENRES[a] | GENRES[b]
        return 1 - len(both) / len(either) if GENRES[a] and GENRES[b] else None

    found = mean_distance(jaccard_distance(table[LISTS]), THERE, k)
    np.testing.assert_allclose(found, by_hand(jaccard, k), rtol=1e-6)


def test_serendipity_counts_hits_that_the_popular_list_of_the_same_length_lacks():
    listed = np.array([[5, 1, 7, 2], [1, 2, 3, 4]])
    hits = np.array([[1, 1, 0, 1], [1, 1, 1, 1]], bool)
    popular = np.array([[1, 9, 2, 8], [4, 3, 2, 1]])
    assert serendipity(listed, hits, popular, 1).tolist() == [1.0, 1.0]
    assert serendipity(listed, hits, popular, 2).tolist() == [1 / 2, 1.0]  # 1 is expected
    assert serendipity(listed, hits, popular, 3).tolist() == [1 / 3, 1 / 3]
    assert serendipity(listed, hits, popular, 4).tolist() == [1 / 4, 0.0]


def test_lists_of_any_length_are_measured_in_pieces_of_any_size(monkeypatch):
    rng = np.random.default_rng(1)
    listed = np.stack([rng.permutation(30)[:6] for _ in range(9)])
    place = np.arange(9)
    lists = RankedBatch(
        place, place, listed[:, 2].astype(np.int64), np.ones(9, np.float32), np.ones(9, bool),
        TopK(listed, np.zeros((9, 6), np.float32), np.zeros(9, np.int8)),
        listed == listed[:, 2:3],
    )  # fmt: skip
    unit = rng.normal(size=(30, 4)).astype(np.float32)
    traits = ItemTraits(unit, rng.random((30, 5)) < 0.4, np.arange(30.0))
    table = PerUserMetrics(place, {}, np.zeros((2, 30), np.int64))
    popular = np.stack([rng.permutation(30)[:6] for _ in range(9)])
    settings = EvaluateSettings(k=(3, 6))
    whole = add_list_metrics(table, lists, traits, popular, settings).values
    monkeypatch.setattr("recray.evaluation.beyond_accuracy.PAIR_CELLS", 80)
    pieces = add_list_metrics(table, lists, traits, popular, settings).values
    assert whole.keys() == pieces.keys()
    for name, column in whole.items():
        assert not np.isnan(column).all(), name
        np.testing.assert_array_equal(column, pieces[name])
    assert whole["mean_popularity@3"].tolist() == listed[:, :3].mean(axis=1).tolist()


def test_every_system_is_measured_by_the_vectors_of_the_evaluated_model(make_bundle):
    bundle = make_bundle()
    for baselines in (("popularity", "item-knn"), ("item-knn",)):  # popularity asked for or not
        evaluator = Evaluator(bundle, EvaluateSettings(k=(3,)), protocol=Protocol(baselines))
        report = evaluator.report([evaluator.measure_block(0)])
        lists = {n: s.rank(evaluator.blocks[0], 3).item for n, s in evaluator.scorers.items()}
        vectors = bundle.model.item_vectors_for_similarity().detach().numpy()
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        for name, listed in lists.items():
            found = {"model": report.catalogue, **{
                n: b.catalogue for n, b in report.baselines.items()
            }}[name]  # fmt: skip
            pairs = [
                np.mean([1 - unit[a] @ unit[b] for a, b in combinations(row[row != NONE], 2)])
                for row in listed
            ]
            assert found["diversity@3"] == pytest.approx(np.mean(pairs), abs=1e-6)
        assert report.catalogue["serendipity@3"] > 0
    assert report.baselines.keys() == {"item-knn"}


def test_popularity_finds_nothing_beyond_itself(make_bundle):
    report = Evaluator(make_bundle(), EvaluateSettings(k=(3,)), protocol=Protocol(("popularity",)))
    found = report.report([report.measure_block(0)]).baselines["popularity"].catalogue
    assert found["serendipity@3"] == 0.0


# Groups of users.

FACTS = UserFeatures(
    np.array([17, 18, 24, 56, 30, -1]), np.array(["F", "M", "M", None, "M", "F"], object)
)


def groups(found) -> dict[str, list[int]]:
    return {name: np.flatnonzero(chosen).tolist() for name, chosen in found}


def test_users_are_grouped_by_brackets_of_age_and_by_gender_with_the_unknown_last():
    user = np.arange(6)
    assert groups(by_age(FACTS, user)) == {
        "under 18": [0], "18-24": [1, 2], "25-34": [4], "56+": [3], "unknown": [5],
    }  # fmt: skip
    assert groups(by_gender(FACTS, user)) == {"M": [1, 2, 4], "F": [0, 5], "unknown": [3]}
    assert list(groups(by_gender(FACTS, user)))[-1] == "unknown"


def test_without_facts_there_are_no_groups():
    nobody = UserFeatures(np.full(6, -1), np.full(6, None, object))
    for facts in (None, nobody):
        assert not groups(by_age(facts, np.arange(6)))
        assert not groups(by_gender(facts, np.arange(6)))


def test_rare_genders_share_a_group():
    gender = np.array([f"g{n:02}" for n in range(12)] + ["g11", "g11"], object)
    found = groups(by_gender(UserFeatures(np.full(14, -1), gender), np.arange(14)))
    assert next(iter(found)) == "g11"
    assert len(found["other"]) == 4
    assert len(found) == 9


def test_a_bundle_carries_age_and_gender_and_groups_stand_side_by_side(prepared, make_bundle):
    before = make_bundle("before")
    assert before.user_features is None
    assert not before.folder.exists("users.parquet")
    users = prepared.folder.read_table("users.parquet")
    age = np.where(np.arange(len(users)) % 2, 20, 40)
    for name, values in (("age", age.tolist()), ("gender", ["M", "F"] * (len(users) // 2))):
        field = users.schema.field(name)
        place = users.column_names.index(name)
        users = users.set_column(place, field, pa.array(values, field.type))
    prepared.folder.write_table("users.parquet", users)
    bundle = make_bundle("after")
    assert bundle.version == before.version, "answers do not depend on it"
    assert bundle.user_features.age.tolist() == age.tolist()
    evaluator = Evaluator(bundle, EvaluateSettings(k=(2,)))
    report = evaluator.report([evaluator.measure_block(0)])
    age_groups, gender = report.slices.age, report.slices.gender
    assert {name: group.users for name, group in age_groups.items()} == {"18-24": 7, "35-44": 7}
    assert age_groups["35-44"].systems == gender["M"].systems
    table = evaluator.measure_block(0)["model"]
    men = table.values["ndcg@2"][table.user % 2 == 0]
    assert gender["M"].systems["model"]["ndcg@2"] == pytest.approx(men.mean())
    text = terminal.evaluation(report, slices=True)
    assert "users by gender" in text
    assert "users by age" in text
