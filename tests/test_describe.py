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
2,30,good,5
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
        "times": {"format": "s", "unknown": 0},
        "rejected": {
            "rows": 1,
            "reasons": {"rating is not a number": 1},
            "first": [
                {
                    "file": "ratings.csv",
                    "line": 5,
                    "text": "2,30,good,5",
                    "reason": "rating is not a number",
                }
            ],
            "advice": [
                "is this the column of ratings? tell it: --columns rating=NAME; "
                "words must be numbers"
            ],
        },
        "levels": [[4.0, 2], [5.0, 1]],
        "years": [[1970, 1], [2001, 1], [2002, 1]],
        "per_user": [1.0, 1.25, 1.5, 1.75, 2.0],
        "per_item": [1.0, 1.25, 1.5, 1.75, 2.0],
        "lists": [],
        "unused": {},
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
    assert "rejected rows: 1 (1 rating is not a number)" in shown.stdout
    told = CliRunner().invoke(cli, ["data", "describe", path, "--json"])
    assert json.loads(told.stdout)["ratings"] == 3


@pytest.mark.parametrize("rating", ["good", "7,8", ""])
def test_a_file_of_which_nothing_can_be_read_shows_reasons_lines_and_advice(tmp_path, rating):
    (tmp_path / "bad.csv").write_text("user,item,rating\n" + f"1,2,{rating}\n" * 5)
    shown = CliRunner().invoke(cli, ["data", "describe", str(tmp_path / "bad.csv")])
    assert shown.exit_code == 0, shown.stderr
    assert "bad: 0 ratings, 0 users, 0 items" in shown.stdout
    assert "rejected rows: 5" in shown.stdout
    assert "bad.csv line 2: " in shown.stdout
    assert "bad.csv line 4: " in shown.stdout
    assert "bad.csv line 5: " not in shown.stdout, "three of each reason"
    assert "what would help: " in shown.stdout
    told = json.loads(
        CliRunner().invoke(cli, ["data", "describe", str(tmp_path / "bad.csv"), "--json"]).stdout
    )
    assert (told["ratings"], told["levels"], told["per_user"]) == (0, [], [])
    assert [row["line"] for row in told["rejected"]["first"]] == [2, 3, 4]
    assert told["rejected"]["advice"]


def test_lines_count_through_chunks_and_files(tmp_path, monkeypatch):
    monkeypatch.setattr("recray.data.formats.text.CHUNK_BYTES", 8)
    for name in ("a", "b"):
        (tmp_path / f"{name}.csv").write_text("user,item,rating\n1,2,3\n\n1,4,bad\n1,5,3\n1,6,no\n")
    facts = describe_source(detect_source(str(tmp_path)))
    first = [(row["file"], row["line"]) for row in facts["rejected"]["first"]]
    assert first == [("a.csv", 4), ("a.csv", 6), ("b.csv", 4)]


def test_describe_takes_settings_as_prepare_does(path):
    with open(path, "a") as file:
        file.write("2,x,4.0,5\n")
    for setting, ratings in (
        ("data.ids=auto", 4),
        ("data.ids=integer", 3),
        ("data.scale=4,4.5", 3),
    ):
        shown = CliRunner().invoke(cli, ["data", "describe", path, "--set", setting, "--json"])
        assert json.loads(shown.stdout)["ratings"] == ratings
    refused = CliRunner().invoke(cli, ["data", "describe", path, "--set", "model.dim=8"])
    assert refused.exit_code == 2
    assert "recray train" in refused.stderr


LIST = "item,title,year\n10,Heat,1995.0\n10,Twice,1\n30,Alien,\n40,,old\n"


def test_what_was_read_of_a_list_is_said(path, tmp_path):
    (tmp_path / "items.csv").write_text(LIST)
    shown = CliRunner().invoke(cli, ["data", "describe", path]).stdout
    assert (
        "items.csv: 3 items; left out: 1 item is listed before, first in line 3; "
        "incomplete: 1 year cannot be read, 1 title is empty" in shown
    )
    (tmp_path / "ratings.csv").write_text(CSV + "1,50,3.0,0\n")
    shown = CliRunner().invoke(cli, ["data", "describe", path]).stdout
    assert "it lists only 1 of the 3 that are rated" in shown
    (tmp_path / "items.csv").write_text("what\n1\n")
    shown = CliRunner().invoke(cli, ["data", "describe", path]).stdout
    assert "items.csv is not used: its first line names no columns" in shown


def test_the_releases_are_listed_with_their_licence():
    shown = CliRunner().invoke(cli, ["data", "list"]).stdout
    assert "ml-32m" in shown
    assert "research use" in shown
