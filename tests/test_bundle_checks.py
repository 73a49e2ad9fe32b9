"""Bundles that somebody else made: each attack is refused in one line, before it takes memory."""

import json
import os
import resource
import struct
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings, strategies

from recray import schema
from recray.cli import cli
from recray.config import load_settings, preset_names
from recray.errors import DamagedFile, RecrayError
from recray.inference.bundle import KIND, Bundle, version_of
from recray.inference.bundle_writer import TrainedModel, write_bundle
from recray.inference.history import History
from recray.inference.recommender import Recommender
from recray.inference.user_parts import part_file
from recray.models import build_model
from recray.serving.hot_swap import RegistryWatcher, load_and_warm_up, open_holder
from recray.serving.registry import Registry
from recray.storage import Folder

from .conftest import ITEMS, USERS, raw
from .of_before import write_before

MEMORY = 1 << 30


@contextmanager
def little_memory():
    """No more than so many bytes beside those that the process has; claims of terabytes fail."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def forge(bundle, **files):
    """Replace files of a bundle, whose manifest then fits them: `config` stands for config.json."""
    folder = Folder(bundle.folder.path)
    for name, content in files.items():
        ending = {"weights": "safetensors"}.get(name, "json")
        if isinstance(content, pa.Table):
            folder.write_table(f"{name}.parquet", content)
        else:
            Path(folder.path, f"{name}.{ending}").write_bytes(content)
    seal(folder)
    return folder.path


def seal(folder):
    """Write the manifest that fits what lies in the folder."""
    facts = json.loads(Path(folder.path, "manifest.json").read_text())
    facts = {k: v for k, v in facts.items() if k not in ("files", "kind", "version")}
    folder.write_manifest(KIND, facts | {"version": version_of(folder, {})})


def configured(bundle, **changes):
    """config.json with other values."""
    config = json.loads(Path(bundle.folder.path, "config.json").read_text())
    return json.dumps(config | changes).encode()


def weighed(bundle, change):
    """weights.safetensors with other weights, and the bundle's own are not touched."""
    weights = {k: v.clone() for k, v in bundle.model.state_dict().items() if "user_" not in k}
    change(weights)
    return safetensors.torch.save(weights)


def said(path):
    """The one line with which a bundle is refused, on opening and on the command line."""
    with little_memory(), pytest.raises(RecrayError) as refused:
        Bundle.open(path)
    assert "\n" not in str(refused.value)
    asked = CliRunner().invoke(cli, ["recommend", path, "--user", str(raw(0))])
    assert asked.exit_code == 2, asked.output
    assert asked.stderr.count("\n") == 1
    return str(refused.value)


# -------------------------------------------------------------------------------- config.json


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"users": 2_000_000_000}, "says 2,000,000,000 users, 14 have an id"),
        ({"users": -5}, "users: Input should be greater than or equal to 1"),
        ({"users": "943"}, "users: Input should be a valid integer"),
        ({"items": True}, "items: Input should be a valid integer"),
        ({"rating_range": [5, 1]}, "rating_range: 5 is above 1"),
        ({"rating_range": [1, float("nan")]}, "rating_range.1: Input should be a finite number"),
        ({"rating_range": "15"}, "rating_range: Input should be a valid list"),
        ({"fold_in": {"noise": 1.0, "more": 1}}, "fold_in.more: Extra inputs"),
        ({"fold_in": []}, "fold_in: "),
        ({"settings": []}, "settings: "),
        ({"splits": [1]}, "splits: "),
        ({"dataset": 7}, "dataset: "),
    ],
)
def test_a_config_of_wrong_types_or_sizes_is_refused(make_bundle, changes, reason):
    bundle = make_bundle()
    assert reason in said(forge(bundle, config=configured(bundle, **changes)))


def test_a_config_that_lacks_a_key_names_it(make_bundle):
    bundle = make_bundle()
    config = json.loads(configured(bundle))
    del config["users"]
    content = json.dumps(config).encode()
    assert said(forge(bundle, config=content)).endswith("config.json lacks users")


@pytest.mark.parametrize("name", ["config", "metrics", "training"])
def test_json_that_is_nested_too_deeply_is_refused(make_bundle, name):
    deep = b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    assert "nested too deeply" in said(forge(make_bundle(), **{name: deep}))


def test_json_of_a_size_that_none_needs_is_refused_unread(make_bundle):
    assert "metrics.json has 17,825,794 bytes" in said(
        forge(make_bundle(), metrics=b"[" + b" " * (17 << 20) + b"]")
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [("metrics", b"[]"), ("metrics", b'{"metrics": 3}'), ("training", b"{}"), ("training", b"[1]")],
)
def test_results_of_other_types_are_refused(make_bundle, name, content):
    assert f"{name}.json is damaged" in said(forge(make_bundle(), **{name: content}))


# ------------------------------------------------------------------------------------ weights


def test_weights_that_are_no_numbers_are_refused_on_opening(make_bundle):
    bundle = make_bundle()
    content = weighed(bundle, lambda w: w["item_vectors.weight"].view(-1)[3:4].fill_(torch.nan))
    assert "item_vectors.weight has values that are not finite numbers" in said(
        forge(bundle, weights=content)
    )


def test_weights_of_another_type_are_refused(make_bundle):
    bundle = make_bundle()
    name = "item_vectors.weight"
    content = weighed(bundle, lambda w: w.update({name: w[name].half()}))
    assert f"{name} is torch.float16, the model needs torch.float32" in said(
        forge(bundle, weights=content)
    )


def test_a_table_of_users_beside_the_users_is_refused(make_bundle):
    bundle = make_bundle()
    content = safetensors.torch.save(dict(bundle.model.state_dict()))
    reason = "user_vectors.weight lies with the users and in the weights"
    assert reason in said(forge(bundle, weights=content))


@pytest.mark.parametrize("length", [2**62, 10**18, 300])
def test_a_header_that_is_longer_than_the_file_is_refused(make_bundle, length):
    content = struct.pack("<Q", length) + b'{"user_vectors.weight":{}}'
    assert "does not fit its own config.json" in said(forge(make_bundle(), weights=content))


def test_weights_of_claimed_size_are_refused(make_bundle):
    header = json.dumps(
        {"user_vectors.weight": {"dtype": "F32", "shape": [10**9, 10**9], "data_offsets": [0, 8]}}
    ).encode()
    content = struct.pack("<Q", len(header)) + header + bytes(8)
    assert "does not fit its own config.json" in said(forge(make_bundle(), weights=content))


@pytest.fixture
def markov(prepared, tmp_path):
    """A bundle of the chain of the prepared histories."""
    settings = load_settings("markov")
    model = build_model(settings, *prepared.fit("train")[:2])
    rows = prepared.load("train")
    model.fit(History.of(rows, model.users, model.items, type(model)).as_csr())
    trained = TrainedModel(model.state_dict(), 1, [{"epoch": 1, "loss": 1.0, "seconds": 0.1}])
    created = "2026-01-01T00:00:00+00:00"
    out = str(tmp_path / "chain")
    return write_bundle(out, prepared, trained, settings, created, lambda _bundle: {})


@pytest.mark.parametrize("begin", [[0] + [10**11] * 10, [0, 5, 3] + [8] * 8, [0, 1]])
def test_a_table_whose_rows_end_where_it_has_none_is_refused(markov, begin):
    bundle = markov
    content = weighed(bundle, lambda w: w.update(begin=torch.tensor(begin)))
    assert "begin does not divide the" in said(forge(bundle, weights=content))


def test_successors_that_are_no_items_are_refused(markov):
    bundle = markov
    content = weighed(bundle, lambda w: w["successor"][-1:].fill_(10**6))
    assert "successor has values outside 0 to 9" in said(forge(bundle, weights=content))


NEEDS = {
    "hybrid": ("model.item_features=[Drama]",),
    "softmax-dnn": ("model.levels=[1,2,3,4,5]",),
    "softmax-dnn-ranking": ("model.levels=[1,2,3,4,5]",),
}


@pytest.mark.parametrize("preset", [name for name in preset_names() if name != "next"])
def test_a_model_without_memory_gets_all_of_it_from_its_weights(preset):
    settings = load_settings(preset, None, NEEDS.get(preset, ())).sized(USERS, ITEMS)
    weights = build_model(settings, USERS, ITEMS).state_dict()
    with torch.device("meta"):
        model = build_model(settings, USERS, ITEMS)
    assert all(tensor.is_meta for tensor in model.state_dict().values())
    model.load_state_dict(weights, assign=True)
    found = [value for module in model.modules() for value in vars(module).values()]
    found += [*model.parameters(), *model.buffers()]
    assert not any(value.is_meta for value in found if isinstance(value, torch.Tensor))


# ------------------------------------------------------------------------------------- tables


def interactions(bundle):
    return bundle.folder.read_table("interactions.parquet")


@pytest.fixture
def before(make_bundle, tmp_path):
    """A bundle that an earlier version wrote."""
    return write_before(make_bundle(), tmp_path / "before")


def test_rows_that_a_few_bytes_claim_are_refused(before):
    bundle = before
    path = Path(bundle.folder.path, "interactions.parquet")
    block = {
        "user": pa.array(np.zeros(10**6, np.int32)),
        "item": pa.array(np.zeros(10**6, np.int32)),
        "rating": pa.array(np.ones(10**6, np.float32)),
        "timestamp": pa.nulls(10**6, pa.int64()),
        "part": pa.DictionaryArray.from_arrays(
            np.zeros(10**6, np.int8), pa.array(schema.INTERACTION_PARTS)
        ),
    }
    table = pa.table(block, schema=schema.INTERACTIONS)
    with pq.ParquetWriter(path, table.schema, compression="zstd") as writer:
        for _ in range(40):
            writer.write_table(table)
    assert path.stat().st_size < 1_000_000
    assert "bytes claim to be 40,000,000 rows" in said(forge(bundle))


def test_a_text_that_stands_in_every_row_is_refused(make_bundle):
    bundle = make_bundle()
    items = bundle.folder.read_table("items.parquet")
    many = pa.concat_tables([items] * 20)
    place = many.schema.get_field_index("title")
    long = many.set_column(place, "title", pa.array(["x" * 1_000_000] * len(many)))
    assert "bytes repeat texts to more than" in said(forge(bundle, items=long))


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("user", 10**6, "column user has values outside 0 to 13"),
        ("item", -7, "column item has values outside 0 to 10"),
        ("rating", float("nan"), "column rating has values that are not finite"),
        ("user", None, "column user lacks values"),
    ],
)
def test_interactions_of_nobody_are_refused(before, column, value, reason):
    bundle = before
    table = interactions(bundle)
    values = table[column].to_pylist()
    values[-1] = value
    place = table.schema.get_field_index(column)
    other = table.set_column(place, column, pa.array(values, table.schema.field(column).type))
    assert reason in said(forge(bundle, interactions=other))


def test_columns_of_other_types_or_none_are_refused(before):
    bundle = before
    table = interactions(bundle)
    as_text = table.set_column(0, "user", table["user"].cast(pa.string()))
    assert "column user is string, not int32" in said(forge(bundle, interactions=as_text))
    without = table.drop_columns(["rating"])
    assert "it has no column rating" in said(forge(bundle, interactions=without))


def test_more_users_than_ids_are_refused_where_no_table_has_a_row_for_each(markov):
    bundle = markov
    content = configured(bundle, users=2_000_000_000)
    assert "says 2,000,000,000 users, 14 have an id" in said(forge(bundle, config=content))


def test_items_without_ids_are_refused(before):
    items = before.folder.read_table("items.parquet")
    assert "items.parquet has 22 rows, ids.parquet 11 items" in said(
        forge(before, items=pa.concat_tables([items, items]))
    )


def test_items_without_raw_ids_are_refused(make_bundle):
    bundle = make_bundle()
    items = bundle.folder.read_table("items.parquet")
    place = items.schema.get_field_index("raw_item")
    some = items.set_column(place, "raw_item", pa.array([None, *range(10)], pa.int64()))
    assert "column raw_item lacks values" in said(forge(bundle, items=some))


# ------------------------------------------------------------------------------------- users


def repartitioned(bundle, change):
    """The bundle with other tensors of users."""
    path = Path(bundle.folder.path, part_file(0))
    tensors = safetensors.torch.load(path.read_bytes())
    change(tensors)
    path.write_bytes(safetensors.torch.save(tensors))
    seal(bundle.folder)
    return bundle.folder.path


USERS_FORGED = {
    "no items": (lambda t: t.pop("item"), "it lacks item"),
    "another type": (lambda t: t.update(item=t["item"].long()), "it lacks item of torch.int32"),
    "fewer ratings": (lambda t: t.update(rating=t["rating"][1:]), "rating has the shape"),
    "fewer ids": (lambda t: t.update(raw=t["raw"][1:]), "raw has the shape"),
    "ends": (lambda t: t["end"][-1:].fill_(10**9), "end does not ascend"),
    "ends that go back": (lambda t: t["end"][1:2].fill_(-5), "end does not ascend"),
    "narrow table": (
        lambda t: t.update({"table.user_vectors": t["table.user_vectors"][:, :1].contiguous()}),
        "user_vectors has the shape",
    ),
    "item": (lambda t: t["item"][-1:].fill_(-7), "item has values outside"),
    "part": (lambda t: t["part"][:1].fill_(9), "part has values outside"),
    "nan": (lambda t: t["rating"][:1].fill_(float("nan")), "not finite"),
    "nan in table": (lambda t: t["table.user_vectors"][0].fill_(float("nan")), "not finite"),
}


def lists_of_all(answering):
    for answer in answering.recommend_many([int(raw(user)) for user in range(USERS + 2)], 3):
        if isinstance(answer, DamagedFile):
            raise answer


@pytest.mark.parametrize("name", USERS_FORGED)
def test_users_that_cannot_be_are_refused_when_read_and_when_asked_for(make_bundle, name):
    change, reason = USERS_FORGED[name]
    path = repartitioned(make_bundle(), change)
    assert reason in said(path)
    answering = Recommender(Bundle.open_to_answer(path))
    with pytest.raises(DamagedFile, match="damaged"):
        lists_of_all(answering)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"counts": []}, "0 partitions"),
        ({"counts": [[1, 1, 1]] * 3}, "3 partitions"),
        ({"counts": [[-1, 1, 1]]}, "counts.0.0"),
        ({"counts": [[2**40, 1, 1]]}, "counts.0.0"),
        ({"counts": [[12, 1, 2]]}, "has the shape"),
        ({"text": "no"}, "text: Input should be a valid boolean"),
        ({"tables": {}}, "user_vectors"),
        ({"tables": {"user_vectors": 2**40}}, "user_vectors has the shape"),
        ({"more": 1}, "more: Extra inputs"),
    ],
)
def test_what_is_said_of_users_must_fit_them(make_bundle, change, reason):
    bundle = make_bundle()
    said_before = json.loads(bundle.folder.read_bytes("users.json"))
    assert reason in said(forge(bundle, users=json.dumps(said_before | change).encode()))


# -------------------------------------------------------------------------- files of the folder


def test_links_are_refused_and_nothing_is_copied_into_a_registry(make_bundle, tmp_path):
    bundle = make_bundle()
    secret = tmp_path / "secret"
    secret.write_text("[]")
    path = Path(bundle.folder.path, "training.json")
    path.unlink()
    path.symlink_to(secret)
    seal(bundle.folder)
    assert said(bundle.folder.path).endswith("is a link: a bundle holds plain files alone")
    with pytest.raises(RecrayError, match="is a link"):
        Registry(str(tmp_path / "registry")).add(bundle.folder.path)


def test_a_link_to_a_folder_is_not_walked_through(make_bundle):
    bundle = make_bundle()
    Path(bundle.folder.path, "more").symlink_to("/usr")
    assert "more is a link" in said(bundle.folder.path)


def test_a_pipe_keeps_nobody_waiting(make_bundle):
    bundle = make_bundle()
    path = Path(bundle.folder.path, "metrics.json")
    path.unlink()
    os.mkfifo(path)
    assert "metrics.json is no plain file" in said(bundle.folder.path)


def test_a_file_that_is_longer_than_the_manifest_says_is_refused_unread(make_bundle):
    bundle = make_bundle()
    with open(f"{bundle.folder.path}/items.parquet", "r+b") as stream:
        stream.truncate(1 << 40)
    assert "it has 1,099,511,627,776 bytes, and may have" in said(bundle.folder.path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: m["files"][0].update(name="../../../etc/hostname"), "names a file outside"),
        (lambda m: m["files"][0].update(name="/etc/hostname"), "names a file outside"),
        (lambda m: m["files"][0].update(sha256="zz"), "String should match pattern"),
        (lambda m: m["files"][0].update(bytes=-1), "greater than or equal to 0"),
        (lambda m: m.update(version=["x"]), "says version ['x'], its content is"),
        (lambda m: m.update(created=3), "created: Input should be a valid string"),
        (lambda m: m.update(files="x"), "files: Input should be a valid list"),
    ],
)
def test_a_manifest_of_wrong_types_is_refused(make_bundle, change, reason):
    path = Path(make_bundle().folder.path, "manifest.json")
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    assert reason in said(str(path.parent))


def test_a_manifest_that_is_nested_too_deeply_is_refused(make_bundle):
    path = Path(make_bundle().folder.path, "manifest.json")
    path.write_text("[" * 100_000 + "]" * 100_000)
    assert "nested too deeply" in said(str(path.parent))


# ------------------------------------------------------------------------------------ serving


@pytest.fixture
def attacked(make_bundle, tmp_path):
    """A registry whose second version, which is current, was forged after it was added."""

    def make(**files):
        good, bad = make_bundle("good"), make_bundle("bad", flip=True)
        forged = Bundle.open(bad.folder.path)
        registry = Registry(str(tmp_path / "registry"))
        registry.promote(registry.add(good.folder.path))
        holder = open_holder(registry.folder.path)
        target = registry.folder_of(registry.add(forged.folder.path))
        path = Path(target.path)
        for name, content in files.items():
            (path / name).write_bytes(content)
        seal(target)
        version = json.loads((path / "manifest.json").read_text())["version"]
        if version != path.name:
            path.rename(path.with_name(version))
        registry.promote(version, force=True)
        return registry, holder, good.version, version

    return make


@pytest.mark.parametrize("name", ["config.json", "training.json", "weights.safetensors"])
def test_a_replica_refuses_a_version_and_goes_on_and_starts_again(attacked, name):
    deep = b"[" * 100_000 + b"]" * 100_000
    registry, holder, good, bad = attacked(**{name: deep})
    RegistryWatcher(holder).poll()
    assert (holder.model.version, holder.refusals) == (good, 1)
    again = open_holder(registry.folder.path)
    assert (again.model.version, again.refused.version) == (good, bad)


def test_an_error_of_any_kind_is_a_version_that_is_refused(make_bundle, monkeypatch):
    def broken(_path):
        raise KeyError("age")

    monkeypatch.setattr(Bundle, "open_to_answer", broken)
    with pytest.raises(RecrayError, match="cannot answer: KeyError: 'age'"):
        load_and_warm_up("anywhere")


@pytest.fixture
def kept(make_bundle):
    """One bundle for all examples, each of which puts it right again."""
    return make_bundle()


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(strategies.data())
def test_no_change_of_the_json_gives_anything_but_one_line(kept, data):
    """Any value in the place of one in config.json, metrics.json or the manifest."""
    name = data.draw(strategies.sampled_from(["config.json", "training.json", "manifest.json"]))
    path = Path(kept.folder.path, name)
    before = {n: Path(kept.folder.path, n).read_bytes() for n in (name, "manifest.json")}
    value = json.loads(before[name])
    place = data.draw(strategies.sampled_from(_places(value)))
    other = data.draw(
        strategies.sampled_from([None, True, -1, 0, 2**40, 1.5, float("nan"), "x", [], {}, [[]]])
    )
    path.write_text(json.dumps(_with(value, place, other)))
    lines = ["opened"]
    try:
        if name != "manifest.json":
            seal(kept.folder)
        with little_memory():
            Recommender.open(kept.folder.path).recommend(raw(0))
    except RecrayError as error:
        lines = str(error).splitlines()
    finally:
        for file, content in before.items():
            Path(kept.folder.path, file).write_bytes(content)
    assert len(lines) == 1


def _places(value, at=()):
    """The place of every value, as keys from the top."""
    below = value.items() if isinstance(value, dict) else enumerate(value)
    found = [at] if at else []
    for key, inner in below:
        more = isinstance(inner, dict | list)
        found += _places(inner, (*at, key)) if more else [(*at, key)]
    return found


def _with(value, place, other):
    copy = json.loads(json.dumps(value))
    inner = copy
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = other
    return copy
