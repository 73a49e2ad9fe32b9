"""A bundle whose users are looked up answers as one whose users are all in memory, to the digit."""

from pathlib import Path

import pytest
import torch
from fastapi.testclient import TestClient

from recray.config import load_settings
from recray.errors import DamagedFile
from recray.inference.bundle import Bundle
from recray.inference.bundle_writer import TrainedModel, write_bundle
from recray.inference.catalog import Filters
from recray.inference.costs import Costs
from recray.inference.history import History
from recray.inference.raw_ratings import RawRating
from recray.inference.recommender import Recommender
from recray.inference.user_parts import part_file
from recray.models import build_model
from recray.models.history import ClosedForm, HistoryModel
from recray.serving.app import build_app

from .conftest import ITEMS, USERS, raw

DIM = ["model.dim=2"]
FAMILIES = {
    "ranking": DIM,
    "rating": DIM,
    "dot-mse": DIM,
    "gmf": DIM,
    "neumf": DIM,
    "neumf-ranking": DIM,
    "softmax-dnn": [*DIM, "model.levels=[3,4,5]"],
    "sequence": DIM,
    "markov": [],
    "next-ridge": [],
    "item-knn": [],
    "ease": [],
    "recent-popular": [],
}


@pytest.fixture
def bundle_of(prepared, tmp_path):
    """Writes a bundle of a preset, whose tables have some values."""

    def make(preset):
        settings = load_settings(preset, None, FAMILIES[preset]).sized(1000, 1500)
        torch.manual_seed(1)
        model = build_model(settings, USERS, ITEMS)
        for table in model.embeddings().values():
            torch.nn.init.normal_(table.weight)
        if isinstance(model, ClosedForm):
            model.fit(History.of(prepared.load("train"), USERS, ITEMS, type(model)).as_csr())
        history = [{"epoch": 1, "loss": 1.0, "rmse": 0.9, "seconds": 0.1}]
        trained = TrainedModel(model.state_dict(), 1, history)
        created = "2026-01-01T00:00:00+00:00"
        return write_bundle(
            str(tmp_path / "bundle"), prepared, trained, settings, created, lambda _bundle: {}
        )

    return make


def both(bundle):
    path = bundle.folder.path
    return Recommender(Bundle.open(path)), Recommender(Bundle.open_to_answer(path))


def answers(recommender):
    users = [int(raw(user)) for user in range(USERS + 2)]
    new = [RawRating(int(raw(1)), 5.0, 5000), RawRating(int(raw(2)), 2.0, 6000)]
    for user in users:
        yield recommender.recommend(user, 4).plain()
        yield recommender.recommend(user, 4, filters=explained(recommender)).plain()
        yield recommender.recommend(user, 4, since=new).plain()
        yield recommender.user(user)
    yield [found.plain() for found in recommender.recommend_many([*users[::-1], new, []], 3)]
    pairs = [(user, int(raw(item))) for user in [*users, 10**9] for item in range(ITEMS)]
    yield recommender.score_pairs(pairs)
    yield recommender.rating_scale
    yield recommender.rating_step
    yield recommender.example_users


def explained(recommender):
    vectors = recommender.bundle.model.item_vectors_for_similarity() is not None
    reads = isinstance(recommender.bundle.model, HistoryModel)
    return Filters(explain=vectors or reads)


def compare(bundle):
    whole, stored = both(bundle)
    assert stored.bundle.stored is not None
    for its, mine in zip(answers(whole), answers(stored), strict=True):
        assert mine == its


@pytest.mark.parametrize("preset", FAMILIES)
def test_every_answer_is_the_same(bundle_of, preset):
    compare(bundle_of(preset))


def test_every_answer_of_a_final_fit_is_the_same(make_bundle):
    compare(make_bundle(final=True))


def test_only_the_partitions_that_are_asked_for_are_read(make_bundle):
    bundle = make_bundle()
    stored = Recommender(Bundle.open_to_answer(bundle.folder.path))
    assert len(stored.bundle.interactions.rows) == 0
    assert "user_vectors.weight" not in stored.bundle.model.state_dict()
    assert stored.users.first(2) == [int(raw(0)), int(raw(1))]


@pytest.fixture
def damaged(make_bundle):
    """Path of a bundle whose partition of all users has another byte."""
    bundle = make_bundle()
    path = Path(bundle.folder.path, part_file(0))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    return bundle.folder.path


def test_a_damaged_partition_is_refused_when_it_is_used(damaged):
    stored = Recommender(Bundle.open_to_answer(damaged))
    assert stored.damaged_users == []
    with pytest.raises(DamagedFile, match="part-00000"):
        stored.recommend(int(raw(0)), 3)
    assert stored.damaged_users == ["users/part-00000.safetensors"]


def test_over_http_a_damaged_partition_is_a_503_and_the_others_are_answered(damaged):
    recommender = Recommender(Bundle.open_to_answer(damaged))
    recommender.costs = Costs(ITEMS, known=0.001, new=0.001, without=0.0)  # not by its first users
    client = TestClient(build_app(recommender))
    user, new = int(raw(0)), {"ratings": [{"item": int(raw(0)), "rating": 5}]}
    assert client.get("/readyz").json()["damaged_users"] == []
    for reply in (
        client.get(f"/v1/users/{user}/recommendations"),
        client.get(f"/v1/users/{user}/recommendations"),
        client.get(f"/v1/users/{user}"),
        client.post("/v1/scores", json={"pairs": [{"user": user, "item": int(raw(0))}]}),
    ):
        assert reply.status_code == 503
        assert reply.json()["error"]["code"] == "unreadable"
        assert damaged not in reply.text
        assert reply.headers["retry-after"] == "5"
    assert client.post("/v1/recommendations", json=new).status_code == 200
    batch = client.post("/v1/recommendations:batch", json={"askers": [{"user": user}, new]})
    first, second = batch.json()["results"]
    assert first["error"]["code"] == "unreadable"
    assert second["items"]
    assert client.get("/readyz").json()["damaged_users"] == ["users/part-00000.safetensors"]


def test_what_was_opened_to_answer_is_not_measured(make_bundle):
    stored = Recommender(Bundle.open_to_answer(make_bundle().folder.path))
    with pytest.raises(ValueError, match="cannot be measured"):
        print(stored.measuring_scorer)


def test_a_bundle_in_a_store_fetches_what_it_needs(store_of, make_bundle):
    made = make_bundle()
    stored = Recommender(Bundle.open_to_answer(store_of(made)))
    assert (
        stored.recommend(int(raw(0)), 3).plain()
        == Recommender(made).recommend(int(raw(0)), 3).plain()
    )


@pytest.fixture
def store_of(s3):
    def put(bundle):
        for name in bundle.folder.files():
            s3.put_object(Bucket="data", Key=f"b/{name}", Body=bundle.folder.read_bytes(name))
        return "s3://data/b"

    return put
