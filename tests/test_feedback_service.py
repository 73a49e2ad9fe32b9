"""Ratings that come while a model serves: kept, known to every replica, counted once."""

import json
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from recray.data import feedback_log
from recray.data.feedback_events import LoggedRating, events_of
from recray.data.feedback_log import LogWriter, RatingsLog
from recray.errors import RecrayError, StorageError
from recray.inference.recommender import Recommender
from recray.serving.ab_test import ABTest, compare_lists, hash_fraction
from recray.serving.app import build_app
from recray.serving.auth import new_key, parse_key
from recray.serving.feedback_service import FeedbackService
from recray.serving.guard import ServiceMetrics
from recray.serving.options import ServiceLimits, ServiceOptions
from recray.storage import Folder

from .conftest import ITEMS, USERS, raw

INTEGERS = (False, False)
NEW = 77_777


def given(user=1, item=110, rating=4.0, key="k", received=1_000_000):
    return LoggedRating(user, item, rating, key, received)


@pytest.fixture
def log(tmp_path):
    return RatingsLog.of(str(tmp_path / "ratings"), "tiny", INTEGERS)


@pytest.fixture
def recommender(make_bundle):
    return Recommender(make_bundle())


@pytest.fixture
def replica(recommender, log):
    """Start a replica of a service that shares the log; gives its client and its feedback."""
    started = []

    def start():
        kept = FeedbackService(RatingsLog.open(log.folder.path))
        kept.start()
        started.append(kept)
        return TestClient(
            build_app(recommender, feedback=kept), raise_server_exceptions=False
        ), kept

    yield start
    for kept in started:
        kept.stop()


def until(true):
    """Wait for what another thread does."""
    deadline = time.monotonic() + 60
    while not true() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert true()


def body(user, item, rating=5, key=None):
    return {"user": int(user), "item": int(raw(item)), "rating": rating, "key": key or f"{item}"}


# ------------------------------------------------------------------------------------ the log


def test_what_is_written_is_read_in_the_order_it_came(log):
    one, two = LogWriter(log), LogWriter(log)
    two.append([given(2, key="b", received=2), given(4, key="d", received=4)])
    one.append([given(1, key="a", received=1)])
    one.append([given(3, key="c", received=3)])
    contents = log.read()
    assert [g.key for g in contents.ratings] == ["a", "b", "c", "d"]
    assert (contents.parts, contents.damaged, contents.repeated) == (3, [], 0)


def test_text_ids_are_kept_as_text(tmp_path):
    log = RatingsLog.of(str(tmp_path / "t"), "shop", (True, True))
    LogWriter(log).append([given("zoë", "a/b")])
    assert RatingsLog.open(log.folder.path).read().ratings == [given("zoë", "a/b")]


def test_many_small_parts_become_one_and_say_the_same(log, monkeypatch):
    monkeypatch.setattr(feedback_log, "TOGETHER", 4)
    writer = LogWriter(log)
    for n in range(17):
        writer.append([given(user=n, key=str(n), received=n)])
        writer.tidy(log.names())
    levels = sorted(name.split("-")[1] for name in log.names())
    assert levels == ["0", "2"]
    contents = log.read()
    assert [g.key for g in contents.ratings] == [str(n) for n in range(17)]


def test_parts_that_are_put_together_keep_the_latest_of_a_pair_and_what_was_taken_back(
    log, monkeypatch
):
    monkeypatch.setattr(feedback_log, "TOGETHER", 2)
    writer = LogWriter(log)
    before = given(item=120, key="old")
    first = writer.append([before])
    events = [given(key="a", rating=1.0), given(key="b", received=2_000_000)]
    writer.append(events)
    back = given(item=120, rating=None, key="c", received=3_000_000)
    writer.append([back])
    (name,) = writer.tidy([each for each in log.names() if each != first])
    assert events_of(log.read_part(name)) == [events[1], back]
    assert log.read().ratings == [events[1]], "what was taken back lies in another part"
    log.compact()
    (name,) = log.names()
    assert events_of(log.read_part(name)) == [events[1]]


def test_a_log_in_which_all_ratings_of_a_pair_count_keeps_them(tmp_path, monkeypatch):
    log = RatingsLog.of(str(tmp_path / "plays"), "tiny", INTEGERS, "sum")
    for key in "abb":
        LogWriter(log).append([given(key=key)])
    log.compact()
    assert [g.key for g in RatingsLog.open(log.folder.path).read().ratings] == ["a", "b"]
    assert len(log.names()) == 1


def test_a_log_without_its_facts_is_noticed(log):
    writer = LogWriter(log)
    writer.append([given()])
    facts = log.folder.read_bytes("log.json")
    log.folder.delete("log.json")
    for name in ("open", "of"):
        more = () if name == "open" else ("tiny", INTEGERS)
        with pytest.raises(RecrayError, match=r"holds ratings and no log\.json"):
            getattr(RatingsLog, name)(log.folder.path, *more)
    with pytest.raises(StorageError, match=r"has lost its log\.json"):
        writer.append([given(key="b")])
    log.folder.write_bytes("log.json", facts)
    assert [g.key for g in log.read().ratings] == ["k"]


def test_a_kill_between_putting_together_and_removing_counts_nothing_twice(log, monkeypatch):
    monkeypatch.setattr(feedback_log, "TOGETHER", 2)
    monkeypatch.setattr(type(log.folder), "delete", lambda *_: 1 / 0)
    writer = LogWriter(log)
    writer.append([given(key="a")])
    writer.append([given(user=2, key="b")])
    with pytest.raises(ZeroDivisionError):
        writer.tidy(log.names())
    contents = log.read()
    assert len(log.names()) == 3
    assert ([g.key for g in contents.ratings], contents.repeated) == (["a", "b"], 2)


def test_parts_that_go_while_they_are_read_are_looked_for_again(log, monkeypatch):
    writer = LogWriter(log)
    for key in "ab":
        writer.append([given(user=ord(key), key=key)])
    monkeypatch.setattr(feedback_log, "TOGETHER", 2)
    read, tidied = log.read_part, []

    def meanwhile(name):
        if not tidied:
            tidied.append(True)
            writer.tidy(log.names())
        return read(name)

    monkeypatch.setattr(log, "read_part", meanwhile)
    assert [g.key for g in log.read().ratings] == ["a", "b"]


@pytest.mark.parametrize("damage", [lambda b: b[:50], lambda b: b"", lambda b: b[:-20] + b"x" * 20])
def test_a_part_cut_short_is_left_out_alone_and_named(log, damage):
    writer = LogWriter(log)
    names = [writer.append([given(user=ord(key), key=key)]) for key in "abc"]
    whole = log.folder.read_bytes(names[1])
    log.folder.write_bytes(names[1], damage(whole))
    contents = log.read()
    assert [g.key for g in contents.ratings] == ["a", "c"]
    assert contents.damaged == [names[1]]
    follower = FeedbackService(log)
    follower.read_new_files()
    assert follower.status().damaged_parts == [names[1]]
    assert follower.status().ratings == 2


def test_unfinished_files_are_no_parts(log):
    LogWriter(log).append([given()])
    writer = log.names()[0].split("/")[0]
    log.folder.write_bytes(f"{writer}/.unfinished-1-part-0-000000009.parquet", b"x")
    assert log.read().damaged == []


def test_a_log_of_another_data_set_is_refused(log):
    with pytest.raises(RecrayError, match="holds ratings of tiny, not of other"):
        RatingsLog.of(log.folder.path, "other", INTEGERS)
    with pytest.raises(RecrayError, match="holds ratings of tiny"):
        RatingsLog.of(log.folder.path, "tiny", (True, False))
    with pytest.raises(RecrayError, match="no ratings log at"):
        RatingsLog.open(f"{log.folder.path}/nothing")


# --------------------------------------------------------------------------------- the service


def test_a_rating_shows_at_once_here_and_soon_on_the_other_replica(replica, recommender):
    (one, _), (two, other) = replica(), replica()
    user, item = int(raw(0)), 1
    path = f"/v1/users/{user}/recommendations?k=5"
    before = one.get(path).json()
    reply = one.post("/v1/ratings", json=body(user, item))
    assert reply.status_code == 202
    assert reply.json() == {
        **body(user, item),
        "rating": 5.0,
        "status": "kept",
        "repeated": False,
        "model_version": recommender.version,
    }
    after = one.get(path).json()
    assert (before["source"], after["source"]) == ("model", "fold_in")
    assert int(raw(item)) not in {entry["item"] for entry in after["items"]}
    deadline = time.monotonic() + 60
    while not other.ratings_of(user) and time.monotonic() < deadline:
        time.sleep(0.01)  # its own thread reads what the other has kept
    assert two.get(path).json() == after
    assert one.get(f"{path}&since=false").json() == before
    asked = {"askers": [{"user": user}, {"user": int(raw(1))}], "k": 5}
    batch = two.post("/v1/recommendations:batch", json=asked).json()["results"]
    assert batch[0]["items"] == after["items"]
    assert batch[1]["source"] == "model"


def test_no_short_way_goes_past_a_rating_since_training(replica):
    client, _ = replica()
    path = f"/v1/users/{raw(0)}/recommendations?k=5"
    many = {"askers": [{"user": int(raw(0))}], "k": 5}
    for _ in range(2):  # the second time by the short way
        assert client.get(path).json()["source"] == "model"
        batch = client.post("/v1/recommendations:batch", json=many).json()
        assert batch["results"][0]["source"] == "model"
    client.post("/v1/ratings", json=body(raw(0), 1))
    after = client.get(path).json()
    assert after["source"] == "fold_in"
    batch = client.post("/v1/recommendations:batch", json=many).json()
    assert batch["results"][0]["items"] == after["items"]
    assert client.get(f"{path}&since=false").json()["source"] == "model"
    assert client.get(path).json() == after


def test_no_short_way_goes_past_a_users_arm(recommender, make_bundle):
    second = Recommender(make_bundle("other", flip=True))
    client = TestClient(
        build_app(recommender, ab_test=ABTest(second, ServiceMetrics(), traffic_share=1.0))
    )
    for _ in range(2):
        reply = client.get(f"/v1/users/{raw(0)}/recommendations?k=5").json()
        assert reply["model_version"] == second.version


def test_somebody_who_is_in_the_log_alone_gets_a_list(replica):
    client, _ = replica()
    path = f"/v1/users/{NEW}"
    assert client.get(f"{path}/recommendations").status_code == 404
    for item in (1, 3):
        assert client.post("/v1/ratings", json=body(NEW, item)).status_code == 202
    answer = client.get(f"{path}/recommendations?k=3&explain=true").json()
    asked = {"ratings": [{"item": int(raw(n)), "rating": 5} for n in (1, 3)], "k": 3}
    same = client.post("/v1/recommendations", json={**asked, "explain": True}).json()
    assert {**answer, "skipped": 0} == same
    facts = client.get(path).json()
    assert (facts["ratings"], facts["in_training"], facts["source"]) == (2, False, "fold_in")
    only_cold = client.post("/v1/ratings", json=body(NEW + 1, ITEMS))
    assert only_cold.status_code == 202
    assert client.get(f"/v1/users/{NEW + 1}/recommendations").json()["source"] == "popular"


def test_a_rating_that_training_knows_already_changes_nothing(replica, recommender):
    client, _ = replica()
    item, stars = (column[0].item() for column in recommender.scorer.history.of_user(0)[:2])
    path = f"/v1/users/{raw(0)}/recommendations"
    before = client.get(path).json()
    assert client.post("/v1/ratings", json=body(raw(0), item, stars)).status_code == 202
    assert client.get(path).json() == before


def test_the_latest_of_several_ratings_of_a_film_counts(replica):
    client, kept = replica()
    for n, stars in enumerate((1, 5, 2)):
        client.post("/v1/ratings", json=body(NEW, 1, stars, key=str(n)))
    assert [each[:2] for each in kept.ratings_of(NEW)] == [(int(raw(1)), 2.0)]


def test_a_rating_sent_twice_counts_once_and_a_key_is_for_one_rating(replica, log):
    client, _ = replica()
    for repeated in (False, True, True):
        reply = client.post("/v1/ratings", json=body(NEW, 1))
        assert (reply.status_code, reply.json()["repeated"]) == (202, repeated)
    other = client.post("/v1/ratings", json=body(NEW, 1, rating=2))
    assert (other.status_code, other.json()["error"]["code"]) == (409, "key_reused")
    assert client.post("/v1/ratings", json=body(NEW + 1, 1)).status_code == 202
    assert len(log.read().ratings) == 2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"item": 7}, "unknown item 7"),
        ({"item": "x"}, "unknown item 'x'"),
        ({"rating": 9}, "off the scale of 1 to 5"),
        ({"rating": 0}, "off the scale"),
        ({"rating": "NaN"}, "rating"),
        ({"rating": "3"}, "rating: Input should be a valid number"),
        ({"rating": True}, "rating: Input should be a valid number"),
        ({"rating": 3.3}, "rating 3.3 is between the steps of the scale: 1 to 5 by 1"),
        ({"user": "anna"}, "users of tiny are numbers"),
        ({"user": -1}, "user"),
        ({"key": ""}, "key"),
        ({"key": "k" * 201}, "key"),
        ({"stars": 5}, "stars"),
    ],
)
def test_a_rating_that_no_training_could_use_is_422_and_nothing_is_kept(replica, log, change, says):
    client, _ = replica()
    reply = client.post("/v1/ratings", json=body(NEW, 1) | change)
    assert reply.status_code == 422
    assert says in reply.json()["error"]["message"]
    assert log.read().ratings == []


def test_a_rating_that_is_taken_back_is_gone_here_and_on_the_other_replica(replica, log):
    (one, _), (two, other) = replica(), replica()
    path = f"/v1/users/{raw(0)}/recommendations?k=5"
    before = one.get(path).json()
    assert one.post("/v1/ratings", json=body(raw(0), 1)).status_code == 202
    until(lambda: other.ratings_of(int(raw(0))))
    gone = two.delete(f"/v1/ratings/{raw(0)}/{raw(1)}")
    version = before["model_version"]
    facts = {"status": "removed", "user": int(raw(0)), "item": int(raw(1))}
    assert (gone.status_code, gone.json()) == (200, facts | {"model_version": version})
    assert two.get(path).json() == before
    until(lambda: one.get(path).json() == before)
    assert log.read().ratings == []
    assert two.delete(f"/v1/ratings/{raw(0)}/{raw(1)}").status_code == 200, "again is fine"
    assert one.post("/v1/ratings", json=body(raw(0), 1, key="again")).status_code == 202
    assert one.get(path).json()["source"] == "fold_in"


def test_all_of_a_user_are_taken_back_at_once_and_nobody_elses(replica, log):
    client, kept = replica()
    for user in (NEW, NEW + 1):
        for item in (1, 3):
            client.post("/v1/ratings", json=body(user, item))
    gone = client.delete(f"/v1/users/{NEW}/ratings").json()
    assert (gone["status"], gone["user"], gone["item"]) == ("removed", NEW, None)
    assert client.get(f"/v1/users/{NEW}/recommendations").status_code == 404
    assert (kept.status().users, kept.status().ratings) == (1, 2)
    assert {event.user for event in log.read().ratings} == {NEW + 1}
    started = FeedbackService(RatingsLog.open(log.folder.path))
    started.read_new_files()
    assert (started.ratings_of(NEW), len(started.ratings_of(NEW + 1))) == ([], 2)


def test_what_nobody_can_have_rated_is_404(replica):
    client, _ = replica()
    for path, code in (
        ("ratings/anna/110", "unknown_rating"),
        (f"ratings/{NEW}/x", "unknown_rating"),
        ("users/anna/ratings", "unknown_user"),
    ):
        reply = client.delete(f"/v1/{path}")
        assert (reply.status_code, reply.json()["error"]["code"]) == (404, code)


def test_a_user_has_so_many_ratings_and_no_more(replica):
    client, kept = replica()
    kept.most = 2
    for item in (1, 3, 3, 1):
        assert client.post("/v1/ratings", json=body(NEW, item)).status_code == 202
    full = client.post("/v1/ratings", json=body(NEW, 5))
    assert (full.status_code, full.json()["error"]["code"]) == (409, "too_many_ratings")
    assert "may have 2; DELETE /v1/ratings/77777/ITEM" in full.json()["error"]["message"]
    assert client.post("/v1/ratings", json=body(NEW, 3, 2, key="new")).status_code == 202
    client.delete(f"/v1/ratings/{NEW}/{raw(1)}")
    assert client.post("/v1/ratings", json=body(NEW, 5)).status_code == 202


def test_a_key_keeps_the_ratings_of_its_own_user_and_so_many_in_a_day(recommender, log):
    made = [new_key("own", str(NEW)), new_key("any")]
    keys = tuple(parse_key(line, "here") for _, line in made)
    kept = FeedbackService(log)
    kept.start()
    limits = ServiceLimits(keys, ratings_per_day=3)
    client = TestClient(build_app(recommender, limits, feedback=kept))
    own, other = ({"x-api-key": secret} for secret, _ in made)
    for headers, user, status in ((own, NEW, 202), (own, NEW + 1, 403), (other, NEW + 1, 202)):
        reply = client.post("/v1/ratings", json=body(user, 1), headers=headers)
        assert reply.status_code == status
    for path in (f"ratings/{NEW + 1}/{raw(1)}", f"users/{NEW + 1}/ratings"):
        refused = client.delete(f"/v1/{path}", headers=own)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "other_user")
    assert len(kept.ratings_of(NEW + 1)) == 1
    for item in (3, 5):
        client.post("/v1/ratings", json=body(NEW, item), headers=own)
    full = client.post("/v1/ratings", json=body(NEW, 7), headers=own)
    assert (full.status_code, full.json()["error"]["code"]) == (429, "too_many_ratings")
    assert int(full.headers["retry-after"]) == pytest.approx(86_400 / 3, abs=60)
    assert client.post("/v1/ratings", json=body(NEW, 7), headers=other).status_code == 202
    kept.stop()


def test_a_key_is_known_again_after_a_restart_and_when_many_came_since(log, monkeypatch):
    monkeypatch.setattr("recray.serving.feedback_service.RECENT_KEYS", 3)
    LogWriter(log).append([given(item=n, key=str(n), received=n + 1) for n in range(10)])
    kept = FeedbackService(RatingsLog.open(log.folder.path))
    kept.read_new_files()
    assert len(kept._by_key) == 3
    for n in range(10):
        assert kept.store(1, n, 4.0, str(n))[1], "it had come before"
    with pytest.raises(RecrayError, match="came with another rating"):
        kept.store(1, 9, 5.0, "9")


def test_parts_of_all_replicas_that_have_gone_are_put_together(log, monkeypatch):
    monkeypatch.setattr(feedback_log, "TOGETHER", 4)
    for n in range(6):
        LogWriter(log).append([given(user=n, key=str(n), received=n + 1)])
    kept = FeedbackService(RatingsLog.open(log.folder.path))
    kept.start()
    kept.store(NEW, 1, 4.0, "k")[0].result(10)
    until(lambda: len(log.names()) == 1)
    kept.stop()
    assert {event.user for event in log.read().ratings} == {*range(6), NEW}


def test_readiness_says_when_ratings_cannot_be_kept(replica, log):
    client, _ = replica()
    assert client.get("/readyz").json()["ratings"] == "kept"
    facts = log.folder.read_bytes("log.json")
    log.folder.delete("log.json")
    until(lambda: client.get("/readyz").json()["ratings"] == "not_kept")
    reply = client.post("/v1/ratings", json=body(NEW, 1))
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "not_kept")
    log.folder.write_bytes("log.json", facts)
    assert client.post("/v1/ratings", json=body(NEW, 1)).status_code == 202
    until(lambda: client.get("/readyz").json()["ratings"] == "kept")


def test_a_service_without_a_log_says_so(recommender):
    client = TestClient(build_app(recommender))
    assert client.get("/readyz").json()["ratings"] is None
    for reply in (
        client.post("/v1/ratings", json=body(NEW, 1)),
        client.get("/v1/ratings"),
        client.delete(f"/v1/ratings/{NEW}/{raw(1)}"),
    ):
        assert (reply.status_code, reply.json()["error"]["code"]) == (409, "no_log")
    assert client.get("/v1/model").json()["keeps_ratings"] is False


def test_a_full_disk_is_503_and_the_same_key_may_come_again(replica, monkeypatch, log):
    client, kept = replica()
    write = kept.log.write_part

    def full(*_):
        raise StorageError("no space left")

    monkeypatch.setattr(kept.log, "write_part", full)
    reply = client.post("/v1/ratings", json=body(NEW, 1))
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "not_kept")
    assert client.get(f"/v1/users/{NEW}/recommendations").status_code == 404
    monkeypatch.setattr(kept.log, "write_part", write)
    again = client.post("/v1/ratings", json=body(NEW, 1))
    assert (again.status_code, again.json()["repeated"]) == (202, False)
    assert len(log.read().ratings) == 1


def test_ratings_that_come_while_the_disk_is_busy_share_a_part(log):
    kept, busy = FeedbackService(log), threading.Event()
    append = kept.writer.append
    kept.writer.append = lambda ratings: (busy.wait(10), append(ratings))[1]
    kept.start()
    waiting = [kept.store(NEW, n, 5.0, str(n))[0] for n in range(50)]
    busy.set()
    for future in waiting:
        future.result(10)
    kept.stop()
    assert len(log.read().ratings) == 50
    assert len(log.names()) <= 2


def test_the_log_is_told_of(replica):
    client, _ = replica()
    client.post("/v1/ratings", json=body(NEW, 1))
    told = client.get("/v1/ratings").json()
    assert told == {"dataset": "tiny", "users": 1, "ratings": 1, "damaged_parts": []}
    assert client.get("/v1/model").json()["keeps_ratings"] is True


# --------------------------------------------------------------------------------- two models


def test_a_users_arm_follows_from_the_id_alone(recommender, make_bundle):
    second = Recommender(make_bundle("other", flip=True))
    small, large = (ABTest(second, ServiceMetrics(), share) for share in (0.1, 0.4))
    users = range(10_000)
    assert hash_fraction(1) == hash_fraction("1") == pytest.approx(0.401389175)
    assert {u for u in users if small.assigned(u)} < {u for u in users if large.assigned(u)}
    assert sum(map(large.assigned, users)) / len(users) == pytest.approx(0.4, abs=0.02)
    none, everybody = (ABTest(second, ServiceMetrics(), share) for share in (0.0, 1.0))
    assert not any(map(none.assigned, users))
    assert all(map(everybody.assigned, users))


def test_each_user_is_answered_by_their_arm_and_counted(recommender, make_bundle):
    second, metrics = Recommender(make_bundle("other", flip=True)), ServiceMetrics()
    ab_test = ABTest(second, metrics, traffic_share=0.5)
    client = TestClient(build_app(recommender, metrics=metrics, ab_test=ab_test))
    versions = {}
    for user in map(int, raw(range(USERS))):
        reply = client.get(f"/v1/users/{user}/recommendations?k=2").json()
        expected = second if ab_test.assigned(user) else recommender
        assert reply["model_version"] == expected.version
        versions[reply["model_version"]] = versions.get(reply["model_version"], 0) + 1
    assert len(versions) == 2
    counted = [version for version, _ in metrics.flush().list_seconds]
    assert {v: counted.count(v) for v in versions} == versions


def test_a_copy_of_the_traffic_is_compared_and_never_shown(recommender, make_bundle):
    metrics = ServiceMetrics()
    second = Recommender(make_bundle("other", flip=True))
    ab_test = ABTest(second, metrics, shadow=True)
    client = TestClient(build_app(recommender, metrics=metrics, ab_test=ab_test))
    reply = client.get(f"/v1/users/{raw(0)}/recommendations?k=4").json()
    assert reply["model_version"] == recommender.version
    ab_test.close()
    counts = metrics.flush()
    other = second.recommend(int(raw(0)), 4)
    assert counts.comparisons == [compare_lists(recommender.recommend(int(raw(0)), 4), other)]
    assert {version for version, _ in counts.list_seconds} == {recommender.version, second.version}


def test_overlap_and_drift_are_of_the_two_lists(recommender):
    shown = recommender.recommend(int(raw(0)), 4)
    assert compare_lists(shown, shown).overlap == 1
    assert compare_lists(shown, shown).score_diff == 0
    other = recommender.recommend(int(raw(0)), 2)
    other.score[0] += 0.5
    result = compare_lists(shown, other)
    assert (result.overlap, result.score_diff) == (0.5, pytest.approx(0.25))


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_outside_0_to_1_is_refused(share):
    with pytest.raises(RecrayError, match="out of range: 0 to 1"):
        ServiceOptions(challenger="x", traffic_share=share)
    with pytest.raises(RecrayError, match="go with --second"):
        ServiceOptions(traffic_share=0.5)


def test_a_registry_has_a_log_of_its_own_and_a_bundle_has_none(make_bundle, tmp_path):
    from recray.serving.registry import Registry

    bundle = make_bundle()
    registry = Registry(str(tmp_path / "registry"))
    registry.promote(registry.add(bundle.folder.path))
    assert ServiceOptions().log_folder(registry.folder.path) == f"{registry.folder.path}/ratings"
    assert ServiceOptions().log_folder(bundle.folder.path) is None
    assert ServiceOptions(ratings_log="x").log_folder(bundle.folder.path) == str(
        Path("x").absolute()
    )
    kept = ServiceOptions().open_feedback(registry.folder.path, Recommender(bundle))
    assert kept is not None
    assert [row.version for row in registry.versions()] == [bundle.version]


# ------------------------------------------------------------------------------------ kills

REPLICA = """
import sys, torch, uvicorn
torch.set_num_threads(1)
from recray.data.feedback_log import RatingsLog
from recray.inference.recommender import Recommender
from recray.serving.app import build_app
from recray.serving.feedback_service import FeedbackService
kept = FeedbackService(RatingsLog.open(sys.argv[2]))
kept.start()
app = build_app(Recommender.open(sys.argv[1]), feedback=kept)
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[3]), log_level="error")
"""


class Replicas:
    """Processes that share a log; killed at random, and started again."""

    def __init__(self, bundle, log, count):
        self.bundle, self.log = bundle, log
        self.ports = [self._free() for _ in range(count)]
        self.processes = [self._start(port) for port in self.ports]
        self.kills = 0

    def _free(self):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return probe.getsockname()[1]

    def _start(self, port):
        return subprocess.Popen([sys.executable, "-c", REPLICA, self.bundle, self.log, str(port)])

    def kill_and_start(self, place):
        self.processes[place].send_signal(signal.SIGKILL)
        self.processes[place].wait()
        self.kills += 1
        self.processes[place] = self._start(self.ports[place])

    def stop(self):
        for process in self.processes:
            process.kill()
            process.wait()


def post(port, rating):
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/ratings",
        json.dumps(rating).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=20) as reply:
        return reply.status


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_rating_that_was_answered_is_in_the_log_once_whatever_is_killed(make_bundle, log):
    wanted = [body(1000 + n, n % ITEMS, 1 + n % 5, key=f"key-{n}") for n in range(1000)]
    replicas, answered, errors = Replicas(make_bundle().folder.path, log.folder.path, 2), [], []
    todo, lock = list(enumerate(wanted)), threading.Lock()

    def work(seed):
        rng = random.Random(seed)
        while True:
            with lock:
                if not todo:
                    return
                number, rating = todo.pop(0)
            deadline = time.monotonic() + 240
            while time.monotonic() < deadline:
                try:  # the same key again, on whichever replica lives
                    status = post(rng.choice(replicas.ports), rating)
                    answered.append((number, status))
                    break
                except (OSError, urllib.error.URLError):
                    time.sleep(0.05)
            else:
                errors.append(number)

    try:
        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for place, after in ((0, 100), (1, 350), (0, 600), (1, 800)):
            while len(answered) < after and any(thread.is_alive() for thread in threads):
                time.sleep(0.005)
            replicas.kill_and_start(place)
        for thread in threads:
            thread.join()
    finally:
        replicas.stop()
    assert not errors
    assert replicas.kills == 4
    assert sorted(answered) == [(n, 202) for n in range(1000)]
    contents = log.read()
    assert contents.damaged == []
    kept = sorted(rating.key for rating in contents.ratings)
    assert kept == sorted(rating["key"] for rating in wanted)


def test_a_store_that_fails_in_passing_makes_no_part_damaged(log, monkeypatch):
    writer = LogWriter(log)
    for key in "ab":
        writer.append([given(user=ord(key), key=key)])
    follower, read = FeedbackService(log), log.folder.find

    def away(_folder, _name, _largest=None):
        raise RecrayError("the store is away")

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "find", away)
        for look in (log.read, follower.read_new_files):
            with pytest.raises(RecrayError, match="the store is away"):
                look()
    assert follower.status().damaged_parts == []
    follower.read_new_files()
    assert follower.status().ratings == 2
    assert read(log.names()[0])


def test_a_log_to_which_ratings_come_all_the_time_is_read_to_an_end(log, monkeypatch):
    writer, read = LogWriter(log), log.read_part
    writer.append([given(key="0")])

    def meanwhile(name):
        writer.append([given(user=2, key=f"after {name}")])
        return read(name)

    monkeypatch.setattr(log, "read_part", meanwhile)
    assert [g.key for g in log.read().ratings] == ["0"]
