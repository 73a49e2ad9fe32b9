"""Ratings that came later train and never move a split; what starting warm saved."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from recray.data import feedback
from recray.data.feedback import with_log
from recray.data.feedback_events import LoggedRating
from recray.data.feedback_log import LogWriter, RatingsLog
from recray.data.formats.layout import FileRange
from recray.data.source import detect_source
from recray.data.spill import Rows
from recray.errors import RecrayError
from recray.evaluation.promotion import NotComparable
from recray.inference.history import UserRatings
from recray.inference.recommender import Recommender
from recray.pipelines.refresh import (
    FULL,
    WARM,
    RefreshRequest,
    Trained,
    _better,
    _comparable,
    saved,
)
from recray.storage import Folder
from recray.training.grown import grown
from recray.training.own_users import OwnUsers
from recray.training.warm_start import read_start_weights


def rows(*given, part=None):
    user, item, rating, time = (np.array(column) for column in zip(*given, strict=True))
    codes = None if part is None else np.array(part, np.int8)
    return Rows(user, item, rating.astype(np.float32), time, codes)


def test_what_is_rated_again_keeps_its_place_and_what_is_new_is_left_over():
    source = rows((1, 10, 3, 100), (1, 20, 4, 101), (2, 10, 5, 102))
    later = rows((1, 20, 1, 900), (1, 30, 2, 901), (3, 10, 4, 902))
    again, rest = feedback.rerate(source, later)
    assert again.rating.tolist() == [3, 1, 5]
    assert again.timestamp.tolist() == [100, 101, 102]
    assert list(zip(rest.user.tolist(), rest.item.tolist(), strict=True)) == [(1, 30), (3, 10)]


@pytest.mark.parametrize(
    ("how", "rating"), [("last", 2), ("mean", 2.75), ("sum", 11), ("count", 4), ("max", 5)]
)
def test_repeats_in_the_log_follow_the_rule_of_the_source(how, rating):
    source = rows((1, 10, 3, 100), (1, 10, 5, 101), (1, 20, 4, 102))
    later = rows((1, 10, 1, 900), (1, 10, 2, 900), (2, 10, 4, 901))
    found = feedback.with_source(later, source, how)
    assert list(zip(found.user.tolist(), found.item.tolist(), strict=True)) == [(1, 10), (2, 10)]
    assert found.rating.tolist() == [rating, 1 if how == "count" else 4]
    assert found.timestamp.tolist() == [900, 901]


def test_the_rest_trains_and_everything_is_in_order():
    source = rows((1, 10, 3, 100), (2, 10, 5, 102))
    later = rows((1, 5, 2, 901), (3, 10, 4, 902))
    both, which = feedback.append(source, np.array([2, 1], np.int8), later, split=0)
    assert both.user.tolist() == [1, 1, 2, 3]
    assert both.item.tolist() == [5, 10, 10, 10]
    assert which.tolist() == [0, 2, 1, 0]


def test_an_empty_log_or_source_changes_nothing():
    some, none = rows((1, 10, 3, 100)), rows((1, 10, 3, 100)).at(np.zeros(1, bool))
    assert feedback.rerate(some, none)[0] is some
    assert len(feedback.rerate(none, some)[1].user) == 1


@pytest.fixture
def log(tmp_path):
    return RatingsLog.of(str(tmp_path / "log"), "sample", (False, False))


def test_a_source_gets_the_latest_of_each_pair_and_another_identity(log):
    given = detect_source("sample")
    writer = LogWriter(log)
    writer.append(
        [LoggedRating(1, 1, 2.0, "a", 1_000_000), LoggedRating(9999, 2, 5.0, "b", 2_000_000)]
    )
    writer.append(
        [LoggedRating(1, 1, 4.0, "c", 3_000_000), LoggedRating(1, 99_999, 4.0, "d", 4_000_000)]
    )
    more, added = with_log(given, log)
    assert added.ratings == 2
    assert (added.users, added.unknown_items, added.damaged_parts) == (2, 1, [])
    assert more.identity != given.identity
    assert with_log(given, log)[0].identity == more.identity
    (piece,) = more.ranges[len(given.ranges) :]
    assert isinstance(piece, FileRange)
    folder, name = piece.file.path.rsplit("/", 1)
    table = Folder(folder).read_table(name)
    assert table.to_pylist() == [
        {"user": 9999, "item": 2, "rating": 5.0, "timestamp": 2},
        {"user": 1, "item": 1, "rating": 4.0, "timestamp": 3},
    ]
    assert log.read().parts == 2, "what is written for the workers is no part of the log"
    with feedback.snapshot_while(more):
        assert log.folder.child("snapshots").files()
    assert not log.folder.child("snapshots").files()


def test_where_ratings_are_added_up_each_of_them_counts(tmp_path):
    given = detect_source("sample")
    log = RatingsLog.of(str(tmp_path / "log"), "sample", (False, False), "sum")
    came = [(1, 1, 2.0, "a", 1), (9, 2, 5.0, "b", 2), (1, 1, 4.0, "c", 3)]
    LogWriter(log).append([LoggedRating(*one) for one in came])
    every, added = with_log(given, log, "sum")
    assert added.ratings == 2, "pairs, however often each was rated"
    path = every.ranges[-1].file.path
    stars = Folder(path.rsplit("/", 1)[0]).read_table(path.rsplit("/", 1)[1])["rating"]
    assert stars.to_pylist() == [2.0, 5.0, 4.0]


def test_an_empty_log_leaves_the_source_alone(log):
    given = detect_source("sample")
    assert with_log(given, log)[0] is given


def test_a_log_of_other_data_is_refused(tmp_path, log):
    given = detect_source("sample")
    other = RatingsLog.of(str(tmp_path / "other"), "elsewhere", (False, False))
    with pytest.raises(RecrayError, match="holds ratings of elsewhere, not of sample"):
        with_log(given, other)
    LogWriter(log).append([LoggedRating(1, 99_999, 4.0, "a", 1)])
    with pytest.raises(RecrayError, match="none of an item of sample"):
        with_log(given, log)


def test_a_bundle_of_the_same_data_starts_with_its_own_rows(make_bundle, prepared):
    bundle = make_bundle()
    (start,) = read_start_weights([bundle.folder.path], prepared)
    assert start.kind == "dot"
    assert "user_vectors.weight" not in start.weights, "a worker takes the rows of its users alone"
    found = start.of_users(OwnUsers.of((0,), [np.array([1, 4])], prepared.users)).weights
    for name, value in bundle.model.state_dict().items():
        assert found[name].equal(value[[1, 4]] if "user" in name else value), name


def test_a_user_whom_the_bundle_does_not_know_is_folded_in(make_bundle, prepared, monkeypatch):
    bundle = make_bundle()
    # The last user of the data is taken for one whom the bundle was not trained on.
    last = bundle.model.users - 1
    own = prepared.load("train")
    mine = own.user == last
    monkeypatch.setattr("recray.training.grown.places_of", unknown(last))
    weights = grown(bundle, prepared)["user_vectors.weight"]
    item = torch.from_numpy(own.item[mine].astype(np.int64))
    rated = UserRatings(item, torch.from_numpy(own.rating[mine]))
    (expected,) = Recommender(bundle).scorer.queries_of_ratings([rated]).embedding
    assert torch.allclose(weights[last], expected)
    assert weights[:last].equal(bundle.model.state_dict()["user_vectors.weight"][:last])


def test_an_item_that_the_bundle_does_not_know_is_solved_from_those_who_rated_it(
    make_bundle, prepared, monkeypatch
):
    bundle = make_bundle()
    new, users = 3, bundle.model.users
    monkeypatch.setattr("recray.training.grown.places_of", unknown_item(new, bundle.model.items))
    vectors = grown(bundle, prepared)["item_vectors.weight"]
    own = prepared.load("train")
    mine = own.item == new
    rated = np.bincount(own.user[mine], minlength=users)
    target = np.minimum(own.rating[mine] / 4, 1)  # of 3 stars and more
    liked = np.bincount(own.user[mine], target, minlength=users)
    user = bundle.model.user_vectors.weight.detach().double()
    unobserved_weight, l2 = bundle.objective.unobserved_weight, bundle.objective.l2
    weight = torch.from_numpy(rated + unobserved_weight)
    ridge = l2 * (rated.sum() + unobserved_weight * users) * torch.eye(2, dtype=torch.float64)
    right = user.T @ torch.from_numpy(liked)
    expected = torch.linalg.solve(user.T @ (weight[:, None] * user) + ridge, right)
    assert torch.allclose(vectors[new].double(), expected, atol=1e-6)
    others = torch.arange(bundle.model.items) != new
    assert vectors[others].equal(bundle.model.item_vectors.weight.detach()[others])


def test_a_bundle_of_another_split_of_the_same_data_is_refused(make_bundle, prepared):
    bundle = make_bundle()
    prepared.manifest["settings"]["split"]["seed"] = 1
    with pytest.raises(RecrayError, match=r"another split of tiny \(seed=0\)"):
        read_start_weights([bundle.folder.path], prepared)


def test_data_that_train_on_the_hold_out_are_refused_before_training(
    make_bundle, prepared, monkeypatch
):
    live, said = make_bundle(), []
    order = RefreshRequest("registry", "out")
    assert _comparable(prepared, live, order, said.append)
    test = prepared.load("test")
    monkeypatch.setattr(type(prepared), "load", lambda *_: test)
    with pytest.raises(NotComparable, match="knows 15 ratings of the hold-out"):
        _comparable(prepared, live, order, said.append)
    assert not said
    assert not _comparable(prepared, live, replace(order, force=True), said.append)
    assert "goes on, as --force says" in said[0]


def test_a_bucket_without_new_users_folds_nobody_in(make_bundle, prepared, monkeypatch):
    bundle, train = make_bundle(), prepared.load("train")
    last = bundle.model.users - 1
    halves = [train.where(train.user != last), train.where(train.user == last)]
    monkeypatch.setattr("recray.training.grown.places_of", unknown(last))
    whole = grown(bundle, prepared)
    prepared.manifest["buckets"] = 2
    monkeypatch.setattr(type(prepared), "load", lambda _self, _split, parts: halves[parts[0]])
    for name, value in grown(bundle, prepared).items():
        assert value.equal(whole[name]), name


def test_a_model_without_rows_of_users_keeps_the_items_that_it_knows(
    make_bundle, prepared, monkeypatch
):
    bundle, new = make_bundle(preset="sequence"), 3
    last = bundle.model.users - 1
    monkeypatch.setattr("recray.training.grown.places_of", unknown(last))
    for name, value in grown(bundle, prepared).items():
        assert value.equal(bundle.model.state_dict()[name]), f"{name}: a new user has no row"
    monkeypatch.setattr("recray.training.grown.places_of", unknown_item(new, bundle.model.items))
    weights, before = grown(bundle, prepared), bundle.model.state_dict()["item_vectors.weight"]
    others = torch.arange(bundle.model.items) != new
    assert weights["item_vectors.weight"][others].equal(before[others])
    assert torch.allclose(weights["item_vectors.weight"][new], before.mean(dim=0))


def unknown_item(item, items):
    def places(dense, known):
        place = np.where(dense < known, dense, -1).astype(np.int64)
        if known == items:
            place[item] = -1
        return place

    return places


def unknown(user):
    def places(dense, known):
        place = np.where(dense < known, dense, -1).astype(np.int64)
        if len(place) > user:
            place[user] = -1
        return place

    return places


@pytest.mark.parametrize(
    ("metric", "warm", "full", "taken"),
    [
        ("ndcg@10", [0.1, 0.3], [0.2], WARM),
        ("ndcg@10", [0.1], [0.2, 0.1], FULL),
        ("ndcg@10", [0.2], [0.2], WARM),
        ("rmse", [0.9], [0.8], FULL),
        ("rmse", [0.7, 0.9], [0.8], WARM),
    ],
)
def test_what_validates_better_is_taken(metric, warm, full, taken):
    def trained(values):
        return Trained(None, "", [{"epoch": 1, metric: value} for value in values])

    assert _better(trained(warm), trained(full), metric)[1] == taken
    assert _better(trained(warm), None, metric)[1] == WARM
    assert _better(Trained(None, "", [{"epoch": 1}]), trained(full), metric)[1] == WARM


def test_what_a_warm_start_saved():
    def epochs(*values):
        return [
            {"epoch": n, "ndcg@10": value, "rmse": value, "seconds": 2.0}
            for n, value in enumerate(values, 1)
        ]

    spared = saved(epochs(0.2, 0.31, 0.3), epochs(0.1, 0.2, 0.3, 0.25), "ndcg@10")
    assert spared.model_dump() == {
        "metric": "ndcg@10",
        "warm_epochs": 2,
        "full_epochs": 3,
        "warm_seconds": 4.0,
        "full_seconds": 6.0,
    }
    assert saved(epochs(0.8), epochs(0.9, 0.85), "rmse").warm_epochs == 1
    assert saved(epochs(0.1), epochs(0.2), "ndcg@10").warm_epochs is None
    assert saved([{"epoch": 1}], epochs(1.0), "ndcg@10") is None
