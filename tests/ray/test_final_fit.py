"""A run that is fitted again: what its twin and its final fit depend on."""

import shutil

import numpy as np
import pyarrow as pa
import pytest
import torch

from recray import schema
from recray.config import load_settings
from recray.data import ingest
from recray.data.dataset import KIND, Prepared, part_name, time_column
from recray.data.source import detect_source
from recray.inference.bundle import Bundle
from recray.pipelines.repetition import reproduce
from recray.storage import Folder
from recray.training import trainer
from recray.training.checkpoint import RunFolder
from recray.training.export import export

pytestmark = pytest.mark.usefixtures("ray_session")

SETTINGS = ["model.dim=8", "train.epochs=3"]


def train_and_export(prepared: Prepared, folder) -> Bundle:
    settings = load_settings("ranking", None, SETTINGS)
    trainer.run(settings, prepared.folder.path, str(folder / "run"))
    return export(str(folder / "run"), str(folder / "bundle"))


def with_other_test_ratings(prepared: Prepared, out) -> Prepared:
    """A copy whose test rows have the opposite stars."""
    shutil.copytree(prepared.folder.path, out)
    folder = Folder(str(out))
    for part in range(prepared.buckets):
        rows = prepared.load("test", [part])
        times = time_column(rows.timestamp)
        columns = [rows.user, rows.item, np.float32(6.0) - rows.rating, times]
        folder.write_table(part_name("test", part), pa.table(columns, schema=schema.RATINGS))
    facts = {k: v for k, v in prepared.manifest.items() if k not in ("kind", "files")}
    facts["fingerprints"] = facts["fingerprints"] | {"test": "0" * 64}
    folder.write_manifest(KIND, facts)
    return Prepared.open(str(out))


@pytest.fixture(scope="module")
def made(tmp_path_factory, ray_session):
    """The prepared sample, the folder of its run, and its bundle."""
    folder = tmp_path_factory.mktemp("made")
    settings = load_settings("ranking", None, SETTINGS)
    prepared = ingest.prepare(detect_source("sample"), str(folder / "prepared"), settings)
    return prepared, folder, train_and_export(prepared, folder)


def test_the_twin_has_the_validated_epochs_on_all_but_test_and_the_final_fit_on_everything(made):
    prepared, folder, bundle = made
    runs = {n: RunFolder(str(folder / "run" / n)) for n in ("", "measured", "final")}
    best = runs[""].train_state().best_epoch
    for name, fit_on in (("measured", "train+valid"), ("final", "all")):
        train = runs[name].metadata().settings.train
        assert (train.fit_on, train.epochs, train.patience) == (fit_on, best, None)
    assert bundle.metrics["fit_on"] == "train+valid"
    assert bundle.metrics["final_fit"]
    ratings = sum(split["rows"] for split in prepared.manifest["splits"].values())
    assert len(prepared.load_fit("all")) == ratings
    recipe = runs[""].metadata().settings
    assert bundle.run_settings == bundle.measured.run_settings == recipe  # what a refresh repeats
    # A warm start must not know the rows that it will be validated on: it begins with the run.
    for fit, name in ((bundle, "final"), (bundle.measured, "measured"), (bundle.chosen, "")):
        weights = runs[name].best().weights["user_vectors.weight"]
        assert torch.equal(fit.model.user_vectors.weight, weights)


def test_other_test_ratings_change_the_final_fit_and_nothing_of_its_twin(made, tmp_path):
    prepared, _, bundle = made
    again = train_and_export(with_other_test_ratings(prepared, tmp_path / "prepared"), tmp_path)
    one, two = bundle.measured, again.measured
    assert torch.equal(one.model.user_vectors.weight, two.model.user_vectors.weight)
    assert torch.equal(one.model.item_vectors.weight, two.model.item_vectors.weight)
    assert one.config["fold_in"] == two.config["fold_in"]
    assert bundle.metrics["metrics"] == again.metrics["metrics"]
    assert not torch.equal(bundle.model.user_vectors.weight, again.model.user_vectors.weight)
    assert bundle.version != again.version


def test_reproduce_covers_both_fits(made, tmp_path):
    _, folder, _ = made
    run = str(folder / "run")
    assert reproduce(run).agrees
    epochs = folder / "run" / "final" / "epochs.json"
    before = epochs.read_text()
    epochs.write_text(before.replace('"epoch": 1', '"epoch": 9'))
    found = reproduce(run)
    epochs.write_text(before)
    assert not found.agrees
    assert all(words.startswith("final: ") for words in found.differences)


def test_without_a_final_fit_the_run_itself_is_measured_and_served(made, tmp_path):
    _, folder, _ = made
    bundle = export(str(folder / "run"), str(tmp_path / "bundle"), fits="none")
    assert bundle.measured is bundle
    assert bundle.metrics["fit_on"] == "train"
    weights = RunFolder(str(folder / "run")).best().weights["user_vectors.weight"]
    assert torch.equal(bundle.model.user_vectors.weight, weights)
