"""Runs and sweeps in a project that was renamed, copied, or taken apart."""

import json
import shutil

import pytest

from recray.config import load_settings
from recray.errors import RecrayError
from recray.storage.moved import found, from_folder, named, relative_to
from recray.training.checkpoint import RunFolder
from recray.training.export import prepared_of
from recray.training.run_metadata import RunMetadata


@pytest.mark.parametrize(
    ("folder", "path", "name"),
    [
        ("/a/run", "/a/prepared", "../prepared"),
        ("/a/runs/x", "/data/p", "../../../data/p"),
        ("s3://b/p/run", "s3://b/p/prepared", "../prepared"),
        ("s3://b/run", "s3://c/prepared", "s3://c/prepared"),
        ("s3://b/run", "/a/prepared", "/a/prepared"),
        ("/a/run", "s3://b/prepared", "s3://b/prepared"),
    ],
)
def test_a_name_leads_back(folder, path, name):
    assert relative_to(folder, path) == name
    assert from_folder(folder, name) == path


def test_beside_goes_before_where_it_was(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    for folder in (old, new):
        (folder / "prepared").mkdir(parents=True)
    content = named(f"{old}/run", "prepared", f"{old}/prepared")
    assert found(f"{new}/run", "prepared", content) == f"{new}/prepared"
    shutil.rmtree(new / "prepared")
    assert found(f"{new}/run", "prepared", content) == f"{old}/prepared"
    shutil.rmtree(old / "prepared")
    assert found(f"{new}/run", "prepared", content) == f"{new}/prepared"
    assert found(f"{new}/run", "prepared", {"prepared": "/whole/path"}) == "/whole/path"


def run_of(prepared, folder):
    """A run of a data set that has not begun."""
    settings = load_settings("ranking").sized(10, 10)
    metadata = RunMetadata(
        dataset="tiny",
        prepared=prepared.folder.path,
        fingerprint=prepared.fingerprint_of(settings.train.fit_on),
        settings=settings,
        workers=1,
    )
    RunFolder(str(folder)).reserve(metadata)


def test_the_data_of_a_run_are_found_after_a_rename(prepared, tmp_path):
    project = tmp_path / "project"
    project.mkdir()
    shutil.move(prepared.folder.path, project / "prepared")
    moved = type(prepared).open(str(project / "prepared"))
    run_of(moved, project / "runs" / "a")
    stored = json.loads((project / "runs" / "a" / "run.json").read_text())
    assert stored["prepared"] == "../../prepared"
    project.rename(tmp_path / "renamed")
    opened = prepared_of(str(tmp_path / "renamed" / "runs" / "a"))
    assert opened.folder.path == str(tmp_path / "renamed" / "prepared")


def test_a_run_of_an_earlier_version_names_the_whole_path(prepared, tmp_path):
    run_of(prepared, tmp_path / "run")
    file = tmp_path / "run" / "run.json"
    stored = json.loads(file.read_text())
    del stored["prepared_at"]
    file.write_text(json.dumps(stored | {"prepared": prepared.folder.path}))
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    assert prepared_of(str(tmp_path / "elsewhere")).folder.path == prepared.folder.path


def test_a_data_set_that_is_gone_is_named_with_what_helps(prepared, tmp_path):
    run_of(prepared, tmp_path / "run")
    shutil.move(prepared.folder.path, tmp_path / "elsewhere")
    with pytest.raises(RecrayError, match=r"is not at .*/prepared: move it there, or prepare the"):
        prepared_of(str(tmp_path / "run"))
