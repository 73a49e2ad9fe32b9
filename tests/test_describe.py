"""What came in, counted."""

import json

import pytest
from click.testing import CliRunner

from recray.cli import cli
from recray.data.describe import describe_prepared, describe_source
from recray.data.source import detect_source

CSV = """userId,movieId,rating,timestamp
1,10,4.0,0
1,20,5.0,978307200
2,10,4.0,1009843200
2,x,4.0,5
"""


@pytest.fixture
def path(tmp_path):
    (tmp_path / "ratings.csv").write_text(CSV)
    return str(tmp_path / "ratings.csv")


def test_a_source_is_counted_in_one_pass(path):
    assert describe_source(detect_source(path)) == {
        "dataset": "ratings",
        "ratings": 3,
        "users": 2,
        "items": 2,
        "films": 0,
        "rejected": {"rows": 1, "reasons": {"item is not a number": 1}},
        "times": {"format": "s", "unknown": 0},
        "levels": [[4.0, 2], [5.0, 1]],
        "years": [[1970, 1], [2001, 1], [2002, 1]],
        "per_user": [1.0, 1.25, 1.5, 1.75, 2.0],
        "per_item": [1.0, 1.25, 1.5, 1.75, 2.0],
    }


def test_small_chunks_count_the_same(path, monkeypatch):
    whole = describe_source(detect_source(path))
    monkeypatch.setattr("recray.data.formats.text.CHUNK_BYTES", 8)
    assert describe_source(detect_source(path)) == whole


def test_a_prepared_data_set_shows_its_splits(prepared):
    prepared.manifest.update(rejected={"rows": 0, "reasons": {}})
    prepared.manifest["counts"]["ratings"] = 64
    facts = describe_prepared(prepared)
    assert (facts["ratings"], facts["users"], facts["items"]) == (64, 14, 11)
    assert set(facts["splits"]) == {"train", "valid", "test"}


def test_people_see_bars_and_programs_json(path):
    shown = CliRunner().invoke(cli, ["data", "describe", path])
    assert "4             2  ##########" in shown.stdout
    assert "rejected rows: 1 (1 item is not a number)" in shown.stdout
    told = CliRunner().invoke(cli, ["data", "describe", path, "--json"])
    assert json.loads(told.stdout)["ratings"] == 3


def test_the_releases_are_listed_with_their_licence():
    shown = CliRunner().invoke(cli, ["data", "list"]).stdout
    assert "ml-32m" in shown
    assert "research use" in shown
