"""Which files of a folder are the ratings, and which are lists: told by what is in them."""

import zipfile

import pytest

from recray.config import load_settings
from recray.data.source import detect_source
from recray.errors import RecrayError

PLAYS = "user,item,rating\n1,10,3\n2,20,4\n"
ITEMS = "item,title\n10,Heat\n20,Alien\n"


def write(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return str(folder)


def settings(**columns):
    chosen = [f'{role}: "{name}"' for role, name in columns.items()]
    return load_settings(overrides=[f"data.columns={{{', '.join(chosen)}}}"] if chosen else [])


def names(found):
    return [file_range.file.name for file_range in found.ranges]


def titles(found):
    return found.movies["title"].to_pylist()


@pytest.mark.parametrize("name", ["items.csv", "books.csv", "anime.csv", "aaa.tsv", "list.txt"])
@pytest.mark.parametrize("given", ["", "plays.csv", "zip"])
def test_a_list_of_any_name_is_told_from_the_ratings(tmp_path, name, given):
    items = ITEMS.replace(",", "\t") if name.endswith("tsv") else ITEMS
    folder = write(tmp_path / "mine", {"plays.csv": PLAYS, name: items})
    if given == "zip":
        folder = str(tmp_path / "mine.zip")
        with zipfile.ZipFile(folder, "w") as archive:
            archive.write(tmp_path / "mine" / "plays.csv", "top/plays.csv")
            archive.write(tmp_path / "mine" / name, f"top/{name}")
        given = ""
    found = detect_source(f"{folder}/{given}".rstrip("/"))
    assert [n.rsplit("/", 1)[-1] for n in names(found)] == ["plays.csv"]
    assert titles(found) == ["Heat", "Alien"]


@pytest.mark.parametrize("name", ["items.csv", "users.csv", "movies.csv.gz"])
def test_a_list_that_cannot_be_opened_stops_no_run(tmp_path, name):
    write(tmp_path, {"plays.csv": PLAYS})
    (tmp_path / name).write_bytes(b"\x1f\x8bcut off" if name.endswith("gz") else b"\0\1\2" * 99)
    found = detect_source(str(tmp_path))
    assert (names(found), list(found.unused)) == (["plays.csv"], [name])


def test_a_damaged_file_of_another_name_may_be_ratings_and_is_refused(tmp_path):
    write(tmp_path, {"plays.csv": PLAYS})
    (tmp_path / "more.csv").write_bytes(b"\0\1\2" * 99)
    with pytest.raises(RecrayError, match=r"more\.csv looks like a binary file"):
        detect_source(str(tmp_path))


def test_the_columns_that_were_told_hold_for_the_list_too(tmp_path):
    files = {"p.csv": PLAYS.replace("item", "sku"), "l.csv": "sku,label,title\n10,Heat,x\n"}
    found = detect_source(write(tmp_path, files), settings(item="sku", title="label"))
    assert (names(found), titles(found)) == (["p.csv"], ["Heat"])


def test_a_list_is_found_where_the_ratings_have_no_header(tmp_path):
    files = {"p.csv": PLAYS.split("\n", 1)[1], "l.csv": "item,title,year\n10,Heat,1995\n"}
    found = detect_source(write(tmp_path, files), settings(user="1", item="2", rating="3"))
    assert (names(found), titles(found)) == (["p.csv"], ["Heat"])


def test_the_list_has_the_ratings_own_name_for_items(tmp_path):
    books = "id,book_id,title\n1,10,Emma\n2,20,Persuasion\n"
    plays = PLAYS.replace("item", "book_id")
    found = detect_source(
        write(tmp_path, {"books.csv": books, "p.csv": plays}), settings(item="book_id")
    )
    assert found.movies["raw_item"].to_pylist() == [10, 20]


def test_pairs_with_titles_are_a_list_where_another_file_has_the_ratings(tmp_path):
    made = "item,title,user\n10,Heat,1\n20,Alien,2\n"
    found = detect_source(write(tmp_path, {"made.csv": made, "p.csv": PLAYS}))
    assert (names(found), titles(found)) == (["p.csv"], ["Heat", "Alien"])


def test_users_lie_beside_ratings_too(tmp_path):
    people = "user,age,gender\n1,30,F\n2,old,M\n"
    for given in ("", "p.csv"):
        found = detect_source(write(tmp_path, {"p.csv": PLAYS, "who.csv": people}) + f"/{given}")
        assert names(found) == ["p.csv"]
        assert found.listed_users["age"].to_pylist() == [30, None]
        assert found.lists.reports[0].incomplete == {"age cannot be read": 1}


def test_other_files_are_left_alone_and_named(tmp_path):
    folder = write(tmp_path, {"p.csv": PLAYS, "notes.csv": "a,b\n1,2\n", "empty.csv": ""})
    found = detect_source(folder)
    assert names(found) == ["p.csv"]
    assert "has no user column" in found.unused["notes.csv"]
    assert "is empty" in found.unused["empty.csv"]


def test_a_part_without_a_header_is_not_lost_beside_parts_with_one(tmp_path):
    folder = write(tmp_path, {"part-0.csv": PLAYS, "part-1.csv": "3,30,5\n4,40,5\n"})
    with pytest.raises(RecrayError, match=r"part-1.csv names no user and item, and that of part-0"):
        detect_source(folder)


def test_a_folder_without_ratings_says_what_is_in_it(tmp_path):
    folder = write(tmp_path, {"items.csv": ITEMS, "notes.csv": "a,b\n1,2\n"})
    with pytest.raises(RecrayError, match=r"items.csv is a list; notes.csv has no user column"):
        detect_source(folder)


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train.csv", "test.csv"),
        ("ratings_train.csv", "ratings-test.csv"),
        ("train.csv", "val.csv"),
        ("train/part-0.csv", "test/part-0.csv"),
    ],
)
def test_train_and_test_beside_each_other_are_not_mixed(tmp_path, train, test):
    folder = write(tmp_path, {train: PLAYS, test: PLAYS.replace("1,10", "1,20"), "i.csv": ITEMS})
    with pytest.raises(RecrayError, match=r"split\.kind=given") as refused:
        detect_source(folder)
    told = [word for word in str(refused.value).rstrip(",").split() if word.startswith("split.")]
    chosen = load_settings(overrides=[word.rstrip(",") for word in told])
    found = detect_source(folder, chosen)
    assert [(r.file.name, r.file.part) for r in found.ranges] == [(train, "train"), (test, "test")]


def test_a_folder_of_parts_may_be_named_as_a_split(tmp_path):
    files = {"train/a.csv": PLAYS, "train/b.csv": PLAYS, "test/a.csv": PLAYS}
    folder = write(tmp_path, files)
    with pytest.raises(RecrayError, match=r"train_file=train --set split.test_file=test/a.csv"):
        detect_source(folder)
    told = ["split.kind=given", "split.train_file=train", "split.test_file=test"]
    assert len(detect_source(folder, load_settings(overrides=told)).ranges) == 3


def test_words_that_only_hold_train_are_no_split(tmp_path):
    found = detect_source(write(tmp_path, {"trains.csv": PLAYS, "contest.csv": PLAYS}))
    assert len(found.ranges) == 2


def test_json_lines_have_ratings_and_a_list(tmp_path):
    plays = '{"user": 1, "item": 10, "rating": 3}\n{"user": 2, "item": 20, "rating": 4}\n'
    items = '{"item": 10, "title": "Heat"}\n{"item": 20, "title": "Alien"}\n'
    for given in ("", "/plays.jsonl"):
        found = detect_source(write(tmp_path, {"meta.jsonl": items, "plays.jsonl": plays}) + given)
        assert (names(found), titles(found)) == (["plays.jsonl"], ["Heat", "Alien"])


def test_files_of_other_endings_are_read_where_there_are_no_usual_ones(tmp_path):
    files = {
        "user_artists.dat": "userID\tartistID\tweight\n1\t10\t3\n",
        "artists.dat": "id\tname\n10\tThe Band\n",
        "readme.txt": "user item title\n",
    }
    told = settings(user="userID", item="artistID", rating="weight")
    found = detect_source(write(tmp_path, files), told)
    assert (names(found), titles(found)) == (["user_artists.dat"], ["The Band"])
