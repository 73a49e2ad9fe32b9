"""Measuring: planted answers, the same digits in any order, honest verdicts."""

import numpy as np
import pytest
import torch

from recray.config import EvaluateSettings
from recray.data.dataset import Ratings
from recray.errors import RecrayError
from recray.evaluation import evaluator
from recray.evaluation.beyond_accuracy import ItemTraits, add_list_metrics, exposure_metrics
from recray.evaluation.comparison import compare, summarise
from recray.evaluation.evaluator import Evaluator
from recray.evaluation.metrics import PerUserMetrics, compute_metrics, evaluate_block, rank_block
from recray.evaluation.protocol import Protocol
from recray.evaluation.report import parse_report, who_is_not_served
from recray.evaluation.segments import add_segments, segments_report
from recray.inference.history import History
from recray.inference.scorer import Scorer
from recray.models.factorization import Dot
from recray.reporting import terminal


def evaluate(bundle, *args, **kwargs):
    """The JSON of an evaluation."""
    return evaluator.evaluate(bundle, *args, **kwargs).plain()


def planted(users: int = 40, items: int = 12) -> tuple[Scorer, Ratings]:
    """A model that scores item i as -i for everybody; user u's only held-out item is u % items."""
    model = Dot(users, items, 1, "logit")
    with torch.no_grad():
        model.user_vectors.weight.fill_(1.0)
        model.item_vectors.weight[:, 0] = -torch.arange(items).float()
    none = Ratings(*(np.zeros(0, t) for t in (np.int32, np.int32, np.float32, np.int64)))
    user = np.arange(users, dtype=np.int32)
    stars = np.where(user % 2, 5.0, 1.0).astype(np.float32)
    targets = Ratings(user, user % items, stars, np.zeros(users, np.int64))
    return Scorer(model, None, History.of(none, users, items)), targets


def test_each_user_is_measured_by_the_rank_of_their_item():
    scorer, targets = planted()
    table = evaluate_block(scorer, targets, np.arange(40), EvaluateSettings(k=(3,)))
    rank = np.arange(40) % 12
    expected = np.where(rank < 3, 1 / (rank + 1), 0)
    assert table.values["mrr@3"] == pytest.approx(expected)
    assert table.shown.tolist() == [[40, 40, 40] + [0] * 9]


def with_list_metrics(scorer, targets, users, settings, vectors=None, genres=None, popular=None):
    """The metrics of what is shown, beside the others."""
    lists = rank_block(scorer, targets, users, settings)
    traits = ItemTraits(vectors, genres, scorer.popularity.numpy().astype(float))
    popular = np.full_like(lists.ranked.item, 99) if popular is None else popular
    table = compute_metrics(scorer, lists, settings)
    return add_list_metrics(table, lists, traits, popular, settings)


def test_coverage_novelty_and_gini_are_cut_at_each_k():
    # Everybody's list is 0, 1, 2, in order.
    scorer, targets = planted(users=6)
    scorer.popularity = torch.tensor([20.0, 10.0] + [1.0] * 10)  # 40 in all
    settings = EvaluateSettings(k=(1, 2, 3))
    parts = [with_list_metrics(scorer, targets, np.arange(a, a + 3), settings) for a in (3, 0)]
    group = exposure_metrics(PerUserMetrics.join(parts), settings)
    assert [group[f"coverage@{k}"] for k in (1, 2, 3)] == [1 / 12, 2 / 12, 3 / 12]
    bits = [1.0, 2.0, np.log2(40)]
    expected = [np.mean(bits[:k]) for k in (1, 2, 3)]
    assert [group[f"novelty@{k}"] for k in (1, 2, 3)] == pytest.approx(expected)
    # k equal counts among 12 items: sum of the k largest weights over 11 k, that is (12 - k) / 11.
    assert [group[f"gini@{k}"] for k in (1, 2, 3)] == pytest.approx([1.0, 10 / 11, 9 / 11])


def test_only_ratings_from_the_bar_on_are_relevant():
    scorer, targets = planted()
    settings = EvaluateSettings(k=(3,), relevant_from=4.0)
    values = evaluate_block(scorer, targets, np.arange(40), settings).values["recall@3"]
    assert np.isnan(values[::2]).all()
    assert not np.isnan(values[1::2]).any()


def test_an_item_that_training_does_not_know_is_relevant_and_never_found():
    scorer, targets = planted()
    extra = Ratings(
        np.array([0], np.int32),
        np.array([99], np.int32),
        np.ones(1, np.float32),
        np.zeros(1, np.int64),
    )
    both = Ratings.concatenate([targets, extra])
    table = evaluate_block(scorer, both, np.array([0]), EvaluateSettings(k=(3,)))
    assert table.values["recall@3"].tolist() == [0.5]


def test_blocks_in_any_order_give_the_same_digits():
    scorer, targets = planted()
    settings = EvaluateSettings(k=(3, 5))
    cuts = [np.arange(a, a + 8) for a in range(0, 40, 8)]
    parts = [evaluate_block(scorer, targets, block, settings) for block in cuts]
    first, second = PerUserMetrics.join(parts), PerUserMetrics.join(parts[::-1])
    names = ["ndcg@3", "recall@5"]
    assert summarise(first, names) == summarise(second, names)


def test_the_interval_holds_the_mean_and_narrows_with_more_users():
    widths = []
    for users in (40, 4000):
        scorer, targets = planted(users)
        table = evaluate_block(scorer, targets, np.arange(users), EvaluateSettings(k=(3,)))
        value = summarise(table, ["recall@3"])["recall@3"]
        assert value.value == pytest.approx(table.values["recall@3"].mean())
        assert value.low <= value.value <= value.high
        widths.append(value.high - value.low)
    assert widths[1] < widths[0] / 5


@pytest.mark.parametrize("value", [0.1, 0.7, 1 / 3, 1.0, 0.0])
@pytest.mark.parametrize("users", [3, 60, 977])
def test_the_interval_of_a_constant_metric_holds_its_mean(value, users):
    (found,) = summarise(table_of("ndcg@10", [value] * users), ["ndcg@10"]).values()
    assert found.low <= found.value <= found.high
    assert found.high - found.low < 1e-12


def table_of(metric: str, values) -> PerUserMetrics:
    values = np.asarray(values, float)
    columns = {metric: values}
    if metric == "rmse":
        columns = {
            "squared_error": values,
            "absolute_error": values,
            "ratings": np.ones(len(values)),
        }
    return PerUserMetrics(np.arange(len(values)), columns, np.zeros((1, 3), np.int64))


def test_a_table_is_not_distinguishable_from_itself():
    values = np.random.default_rng(0).random(200)
    comparison = compare(table_of("ndcg@10", values), table_of("ndcg@10", values), "ndcg@10")
    assert comparison.sign == 0
    assert "not distinguishable from popularity" in comparison.words("popularity")


@pytest.mark.parametrize(("metric", "sign"), [("ndcg@10", 1), ("rmse", -1)])
def test_higher_is_better_but_for_errors(metric, sign):
    values = np.random.default_rng(0).random(200)
    high, low = table_of(metric, values + 0.1), table_of(metric, values)
    assert compare(high, low, metric).sign == sign
    assert compare(low, high, metric).sign == -sign


def test_noise_is_hardly_ever_called_a_difference():
    rng = np.random.default_rng(1)
    calls = [
        compare(
            table_of("ndcg@10", rng.random(100)), table_of("ndcg@10", rng.random(100)), "ndcg@10"
        )
        for _ in range(100)
    ]
    assert sum(c.sign != 0 for c in calls) <= 12  # 5 are expected, 13 have a chance of 1 in 1,000


def test_a_whole_evaluation_has_the_agreed_keys(make_bundle):
    report = evaluate(make_bundle(preset="dot-mse"), EvaluateSettings(k=(2,)))
    assert {
        "dataset",
        "preset",
        "users",
        "split",
        "metrics",
        "baselines",
        "verdict",
        "unseen",
    } <= set(report)
    assert set(report["metrics"]["ndcg@2"]) == {"value", "low", "high"}
    assert {"rmse", "mae"} <= set(report["metrics"])
    assert set(report["baselines"]) == {"popularity", "bias-only", "item-knn"}
    assert report["unseen"] == {"users": 2, "items": 1, "ratings": 3}
    assert report["users"] == 14
    names = "coverage novelty gini mean_popularity diversity genre_diversity serendipity"
    assert set(report["catalogue"]) == {f"{name}@2" for name in names.split()}
    assert report["coverage"] == report["catalogue"]["coverage@2"]
    assert all(
        set(b["catalogue"]) == set(report["catalogue"]) for b in report["baselines"].values()
    )


def test_knowing_the_taste_beats_popularity_and_the_opposite_does_not(make_bundle):
    settings, beside = EvaluateSettings(k=(2,)), Protocol(("popularity",))
    good = evaluate(make_bundle("good"), settings, beside)
    bad = evaluate(make_bundle("bad", flip=True), settings, beside)
    assert "better than popularity" in good["verdict"]
    assert "better than popularity" not in bad["verdict"]
    assert "rmse" not in good["metrics"], "a ranking model predicts no stars"


def test_the_verdict_is_about_the_best_baseline(make_bundle):
    report = evaluate(make_bundle(), EvaluateSettings(k=(2,)))
    ndcg = {name: b["ndcg@2"]["value"] for name, b in report["baselines"].items()}
    assert ndcg["item-knn"] > ndcg["popularity"], "the neighbours of an item have its parity"
    assert "item-knn" in report["verdict"]
    assert "popularity" not in report["verdict"]


def test_errors_are_compared_with_the_best_that_predicts_stars(make_bundle):
    bundle = make_bundle(preset="dot-mse")
    verdict = evaluate(bundle, EvaluateSettings(k=(2,)))["verdict"].split("; ")
    assert verdict[0].startswith("rmse: ")
    assert "bias-only" in verdict[0]
    assert verdict[1].startswith("ndcg@2: ")
    beside = Protocol(("popularity",))
    assert evaluate(bundle, EvaluateSettings(k=(2,)), beside)["verdict"].startswith("ndcg@2: ")


def test_blocks_of_any_size_give_the_same_report(make_bundle, monkeypatch):
    bundle, reports = make_bundle(preset="dot-mse"), []
    for size in (1, 5, 256):
        monkeypatch.setattr("recray.evaluation.metrics.USER_BLOCK", size)
        whole = Evaluator(bundle, EvaluateSettings(k=(2,)))
        blocks = list(range(len(whole.blocks)))
        reports.append(whole.report([whole.measure_block(b) for b in reversed(blocks)]).plain())
    assert reports[0] == reports[1] == reports[2]


def test_a_cut_off_beyond_the_catalogue_is_refused(make_bundle):
    with pytest.raises(RecrayError, match="catalogue of 10 items"):
        Evaluator(make_bundle(), EvaluateSettings(k=(11,)))


def test_a_split_that_leaves_nobody_is_refused(make_bundle):
    bundle = make_bundle()
    with pytest.raises(RecrayError, match="nobody can be evaluated"):
        Evaluator(bundle, None, bundle.holdout.where(np.zeros(len(bundle.holdout), bool)))


def test_a_bar_that_no_rating_reaches_is_refused(make_bundle):
    with pytest.raises(RecrayError, match="has 6 stars or more"):
        evaluate(make_bundle(), EvaluateSettings(relevant_from=6.0))


def test_what_cannot_be_measured_cannot_be_told_apart():
    table = table_of("ndcg@10", np.full(5, np.nan))
    assert compare(table, table, "ndcg@10").sign == 0


def test_among_rated_films_those_of_training_count_as_found(make_bundle):
    bundle = make_bundle()
    protocol = Protocol(baselines=("popularity",), kind="rated")
    report = evaluate(bundle, protocol=protocol)
    users = set(bundle.holdout.user.tolist())
    everything = [
        (u, i)
        for rows in (bundle.interactions.before_test, bundle.holdout)
        for u, i in zip(rows.user.tolist(), rows.item.tolist(), strict=True)
        if u in users
    ]
    relevant = {u: len({i for v, i in everything if v == u}) for u in users}
    known = {
        u: len({i for v, i in everything if v == u and i < bundle.item_ids.known}) for u in users
    }
    expected = sum(min(known[u], 10) / relevant[u] for u in users) / len(users)
    assert report["metrics"]["recall@10"]["value"] == pytest.approx(expected)
    assert "rmse" not in report["metrics"]
    assert not report["protocol"]["honest"]


# Slices against cases worked out by hand.


ITEMS = 200
SETTINGS = EvaluateSettings(k=(2,))


def columns(user, item) -> Ratings:
    user, item = np.array(user, np.int32), np.array(item, np.int32)
    return Ratings(user, item, np.ones(len(user), np.float32), np.zeros(len(user), np.int64))


def planted_slices() -> dict[str, PerUserMetrics]:
    """Everybody is shown items 0 and 1: users 0..4 know 0, 1, 19, 20 and 100 others."""
    known = [0, 1, 19, 20, 100]
    user = np.repeat(np.arange(5), known)
    item = np.concatenate([np.arange(ITEMS - n, ITEMS) for n in known])
    model = Dot(5, ITEMS, 1, "logit")
    with torch.no_grad():
        model.user_vectors.weight.fill_(1.0)
        model.item_vectors.weight[:, 0] = -torch.arange(ITEMS).float()
    scorer = Scorer(model, None, History.of(columns(user, item), 5, ITEMS))
    scorer.popularity = torch.full((ITEMS,), 4.0)
    scorer.popularity[0], scorer.popularity[1] = 50.0, 49.0
    scorer.popularity[2], scorer.popularity[3] = 5.0, 4.0
    # Held out: 0 for all; 1 for user 0; 2 and 3 for user 1; an unknown item for user 2.
    held_out = columns([0, 0, 1, 1, 1, 2, 2, 3, 4], [0, 1, 0, 2, 3, 0, ITEMS + 5, 0, 150])
    lists = rank_block(scorer, held_out, np.arange(5), SETTINGS)
    return {
        "model": add_segments(
            compute_metrics(scorer, lists, SETTINGS), lists, scorer, SETTINGS, np.array(known)
        )
    }


def test_users_are_grouped_by_what_is_known_of_them():
    users = segments_report(planted_slices(), SETTINGS).users
    assert {name: group.users for name, group in users.items()} == {
        "0": 1,
        "1-19": 2,
        "20-49": 1,
        "100+": 1,
    }
    recall = {name: group.systems["model"]["recall@2"] for name, group in users.items()}
    assert recall == pytest.approx({"0": 1.0, "1-19": (1 / 3 + 1 / 2) / 2, "20-49": 1, "100+": 0})


def test_held_out_items_are_grouped_by_how_often_they_are_rated():
    items = segments_report(planted_slices(), SETTINGS).items
    assert {name: group.ratings for name, group in items.items()} == {
        "head": 4,  # item 0
        "middle": 2,  # items 1 and 2
        "tail": 3,  # items 3, 150 and the unknown one
    }
    recall = {name: group.systems["model"]["recall@2"] for name, group in items.items()}
    assert recall == {"head": 1.0, "middle": 0.5, "tail": 0.0}


def test_words_say_who_is_not_served():
    slices = segments_report(planted_slices(), SETTINGS)
    assert who_is_not_served(slices) == (
        "Who is not served: recall@2 is 1.000 of the films with 50 ratings or more, 0.000 of those "
        "with fewer than 5 ratings and 0.500 of those with 5 to 49 ratings. Whoever likes films "
        "with under 50 ratings, 5 of 9 held-out ratings, is served less."
    )
    slices.items["middle"].systems["model"]["recall@2"] = 0.24
    assert who_is_not_served(slices).endswith("is hardly served.")
    del slices.items["head"]
    assert not who_is_not_served(slices), "nothing to compare with"


def test_a_report_has_every_slice_and_the_terminal_shows_them_when_asked(make_bundle):
    whole = evaluate(make_bundle(preset="dot-mse"), SETTINGS)
    groups = whole["slices"]
    assert sum(g["users"] for g in groups["users"].values()) == whole["users"]
    assert {"users", "model", *whole["baselines"]} == set(groups["users"]["1-19"])
    report = parse_report(whole)
    assert "users by known ratings" in terminal.evaluation(report, slices=True)
    assert "users by known ratings" not in terminal.evaluation(report)
