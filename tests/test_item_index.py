import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from recray.benchmarks.synthetic import make_bundle
from recray.errors import DamagedFile, RecrayError
from recray.inference import index_build, item_index
from recray.inference.bundle_checks import checked
from recray.inference.index_file import write_index_file
from recray.inference.item_index import FILE, IndexFacts, ItemIndex, index_vectors
from recray.models.factorization import Dot, DotBias
from recray.serving.hot_swap import load_and_warm_up

ITEMS = 2000


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Dot(users=5, items=ITEMS, dim=20, score_type="logit")


@pytest.fixture(scope="module")
def made(model):
    return index_build.cluster(model)


@pytest.fixture
def path(model, made, tmp_path):
    path = tmp_path / FILE
    write_index_file(path, made, index_build._blocks(model, made.facts))
    return path


def changed(path, **tensors):
    path.write_bytes(safetensors.torch.save({**safetensors.torch.load_file(path), **tensors}))


def test_all_lists_hold_each_item_once_and_find_the_best(model, made, path):
    index, state = ItemIndex(made.facts, path, model), torch.randn(20)
    best = (model.item_vectors.weight @ state).topk(20)[1].sort()[0]
    found = index.find(state, 40, index.lists)
    assert len(found) == 40
    assert (np.diff(found) > 0).all()
    assert set(best.tolist()) <= set(found.tolist())
    assert len(index.find(state, ITEMS, index.lists)) == ITEMS


def test_a_selector_lets_allowed_items_alone_pass(model, made, path):
    index, allowed = ItemIndex(made.facts, path, model), np.arange(ITEMS) % 7 == 0
    found = index.find(torch.randn(20), 50, index.lists, index.selector(allowed))
    assert len(found) == 50
    assert allowed[found].all()


def test_an_offset_is_one_more_number_and_what_all_items_share_is_none(tmp_path):
    model = DotBias(users=5, items=ITEMS, dim=20)
    torch.nn.init.normal_(model.item_bias.weight, std=3.0)
    made = index_build.cluster(model)
    assert made.facts.columns == [*range(20), 21]  # column 20 is the 1 of the user's bias
    assert index_vectors(model, torch.arange(3), made.facts).shape == (3, 32)
    path = tmp_path / FILE
    write_index_file(path, made, index_build._blocks(model, made.facts))
    index, state = ItemIndex(made.facts, path, model), torch.randn(21)
    best = model.logits_block(state[None], 0, ITEMS)[0].topk(10)[1]
    assert set(best.tolist()) <= set(index.find(state, 30, index.lists).tolist())


@pytest.mark.parametrize(
    ("what", "says"),
    [
        (lambda t: {"centroid": t["centroid"][:, :16].contiguous()}, "centroid is"),
        (lambda t: {"reach": t["reach"] * torch.nan}, "reach has values that are not finite"),
        (lambda t: {"end": t["end"].flip(0)}, "do not end where the items do"),
        (lambda t: {"lists": t["lists"][:-8]}, "lists is"),
        (lambda t: {"lists": torch.full_like(t["lists"], 255)}, "outside 0..1999"),
        (lambda t: {"lists": torch.zeros_like(t["lists"])}, "an item is in no list"),
        (lambda t: {"lists": t["lists"].float()}, "lists is torch.float32"),
    ],
)
def test_a_file_that_is_not_an_index_of_these_items_is_refused(model, made, path, what, says):
    changed(path, **what(safetensors.torch.load_file(path)))
    with pytest.raises(DamagedFile, match=says):
        ItemIndex(made.facts, path, model)


def test_a_few_bytes_that_claim_to_be_many_are_refused(model, made, path):
    claim = {"dtype": "U8", "shape": [1 << 40], "data_offsets": [0, 1 << 40]}
    header = json.dumps({"lists": claim}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(DamagedFile, match="is damaged"):
        ItemIndex(made.facts, path, model)


def test_codes_that_say_something_else_than_the_rows_are_refused(made, path):
    other = Dot(users=5, items=ITEMS, dim=20, score_type="logit")
    facts = made.facts.model_copy(update={"faiss": "0.9"})
    with pytest.raises(
        RecrayError, match=r"made with faiss 0.9 are not .* export the bundle again"
    ):
        ItemIndex(facts, path, other)


@pytest.mark.parametrize(
    ("change", "says"),
    [({"probes": 0}, "probes"), ({"columns": []}, "columns"), ({"more": 1}, "more")],
)
def test_facts_of_another_kind_are_refused(made, change, says):
    with pytest.raises(DamagedFile, match=f"index.json is damaged: {says}"):
        checked(IndexFacts, made.facts.model_dump() | change, "index.json")


def test_columns_that_no_row_has_are_refused(model, made, path):
    facts = made.facts.model_copy(update={"columns": [*range(19), 99]})
    with pytest.raises(DamagedFile, match="column 99 of rows of 20 numbers"):
        ItemIndex(facts, path, model)


@pytest.fixture
def many(monkeypatch, tmp_path):
    """A bundle of 3,000 items, which count as many."""
    for module in (index_build, item_index):
        monkeypatch.setattr(module, "INDEXED_ITEMS", 500)
    return make_bundle(tmp_path, 40, 3000, 20, dim=16)


def test_without_faiss_lists_are_exact_and_the_log_says_so(many, monkeypatch, capfd):
    by_index = load_and_warm_up(many.folder.path)
    assert by_index.scorer.index is not None
    assert "index_not_used" not in capfd.readouterr().err
    monkeypatch.setattr(item_index, "is_usable", lambda: False)
    exact = load_and_warm_up(many.folder.path)
    assert exact.scorer.index is None
    (line,) = capfd.readouterr().err.splitlines()
    assert json.loads(line)["event"] == "index_not_used"


def test_the_rows_of_a_bundle_with_an_index_are_mapped(many):
    opened = load_and_warm_up(many.folder.path)
    maps = Path("/proc/self/maps").read_text().splitlines()
    place = opened.bundle.model.item_vectors.weight.data_ptr()
    (own,) = [
        line
        for line in maps
        if int(line.split("-")[0], 16) <= place < int(line.split()[0].split("-")[1], 16)
    ]
    assert own.endswith("weights.safetensors")
