import numpy as np
import pytest
import torch

from recray.benchmarks.synthetic import make_bundle
from recray.inference import index_build, indexed_lists
from recray.inference.bundle import Bundle
from recray.inference.bundle_without import write_without
from recray.inference.index_build import cluster, lists_for, wants_index
from recray.inference.index_file import _rank_among_equals
from recray.inference.item_index import FACTS, FILE
from recray.inference.recommender import Recommender
from recray.models.factorization import Dot
from recray.models.neural import NeuMf
from recray.storage import Folder


@pytest.fixture
def few(monkeypatch):
    for module in (index_build, indexed_lists):
        monkeypatch.setattr(module, "INDEXED_ITEMS", 500)


def test_the_number_of_lists_is_a_power_of_two_near_four_roots():
    assert [lists_for(n) for n in (1, 250_000, 1_000_000, 10_000_000)] == [4, 2048, 4096, 8192 * 2]


def test_many_items_scored_by_a_product_have_an_index(few):
    assert wants_index(Dot(2, 501, 4))
    assert not wants_index(Dot(2, 500, 4))
    assert not wants_index(NeuMf(2, 501, dim=4, mlp_dim=4, layers=(4,)))


def test_items_of_three_directions_are_in_lists_of_one_direction_each():
    model = Dot(2, 3000, 3)
    kind = torch.arange(3000) % 3
    with torch.no_grad():
        model.item_vectors.weight.copy_(torch.eye(3)[kind] + 0.01 * torch.randn(3000, 3))
    made = cluster(model)
    for number in range(len(made.centroid)):
        assert len(set(kind[made.nearest == number].tolist())) == 1
    own = model.item_vectors.weight.detach().numpy()[made.nearest == 0]
    np.testing.assert_allclose(made.centroid[0, :3], own.mean(axis=0), atol=1e-5)
    deviation = np.sqrt(own.var(axis=0).mean())
    assert made.reach[0] == pytest.approx(deviation * np.sqrt(2 * np.log(len(own))), rel=0.01)


def test_ranks_among_equals():
    assert _rank_among_equals(np.array([3, 1, 3, 3, 0, 1])).tolist() == [0, 0, 1, 2, 0, 1]


def test_an_export_of_many_items_has_an_index_with_its_recall(few, tmp_path):
    bundle = make_bundle(tmp_path, 40, 3000, 20, dim=16)
    quality = bundle.metrics["index"]
    assert quality["recall"] > 0.9
    assert quality["threads"] >= 1
    assert {FACTS, FILE} <= {entry.name for entry in bundle.manifest.files}
    index = bundle.index
    assert (index.lists, index.facts.probes) == (quality["lists"], quality["probes"])
    assert index.facts.wanted == 30  # ten, and the twenty that each has rated


def test_an_export_of_few_items_has_none(tmp_path):
    bundle = make_bundle(tmp_path, 40, 300, 20, dim=16)
    assert bundle.index is None
    assert not bundle.has_index
    assert "index" not in bundle.metrics


def test_without_faiss_there_is_none(few, tmp_path, monkeypatch):
    monkeypatch.setattr(index_build, "is_usable", lambda: False)
    assert not make_bundle(tmp_path, 40, 3000, 20, dim=16).has_index


def test_a_bundle_without_a_user_keeps_its_index(few, tmp_path):
    bundle = make_bundle(tmp_path, 40, 3000, 20, dim=16)
    version = write_without(bundle.folder.path, 3, lambda v: Folder(str(tmp_path / v)))
    kept = Recommender(Bundle.open_to_answer(str(tmp_path / version)))
    assert kept.scorer.index.lists == bundle.index.lists
    assert len(kept.recommend(4, 10).items) == 10
