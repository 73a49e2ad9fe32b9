"""SideLists beside ratings: whatever is wrong in one costs a row, never the run."""

import gzip
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recray import schema
from recray.data.lists import items as item_lists
from recray.data.lists import rows, users
from recray.data.lists.beside import Candidates, read_lists
from recray.data.lists.items import add_links, parse_items, parse_year, year_of
from recray.data.lists.rows import IdRule, matches
from recray.errors import RecrayError

INTEGERS = IdRule(("item", "item_id", "movieid"))
TEXTS = IdRule(("item", "item_id"), text=True)
USERS = IdRule(("user", "user_id"))


def listed(content, rule=INTEGERS):
    """(id, title, year, genres) of each item, and the report."""
    content = content if isinstance(content, bytes) else content.encode()
    table, report = parse_items("items.csv", content, rule)
    assert table.schema == schema.movies(rule.text)
    return [tuple(row.values())[:4] for row in table.to_pylist()], report


def flags(*on: int) -> str:
    return "|".join("1" if genre in on else "0" for genre in range(19))


# --------------------------------------------------------------------------------- MovieLens


def test_items_of_100k_are_latin_1_with_genre_flags():
    lines = [
        f"3|Misérables, Les (1995)|01-Jan-1996||http://x|{flags(8, 18)}",
        "",
        f"2|Untold|22-Dec-1997|||{flags(0)}",
        f"1|unknown||||{flags(0)}",
    ]
    found, report = listed("\n".join(lines).encode("latin-1"))
    assert found == [
        (1, "unknown", 0, []),
        (2, "Untold", 1997, []),
        (3, "Misérables, Les (1995)", 1995, ["Drama", "Western"]),
    ]
    assert (report.rows, report.used, report.rejected) == (3, 3, {})


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
def test_items_of_1m_and_10m_differ_in_encoding_only(encoding):
    content = "7::Café (2000)::Drama|War\r\n2::Heat (1995)::(no genres listed)\r\n".encode(encoding)
    assert listed(content)[0] == [
        (2, "Heat (1995)", 1995, []),
        (7, "Café (2000)", 2000, ["Drama", "War"]),
    ]


def test_items_of_movietweetings_keep_the_zeros_of_their_ids():
    found, _ = listed("0000008::Kinetoscopic Record (1894)::Documentary|Short\n", TEXTS)
    assert found == [("0000008", "Kinetoscopic Record (1894)", 1894, ["Documentary", "Short"])]


def test_a_csv_has_quoted_titles():
    content = (
        "\ufeffmovieId,title,genres\r\n"
        '11,"American President, The (1995)",Comedy|Drama\r\n'
        '2,"A ""B"" C, née (2001) ",(no genres listed)\r\n'
    )
    assert listed(content)[0] == [
        (2, 'A "B" C, née (2001)', 2001, []),
        (11, "American President, The (1995)", 1995, ["Comedy", "Drama"]),
    ]


def test_a_line_separator_inside_a_title_is_no_line_end():
    assert listed("1::A\u2028B (1995)::War\n")[0][0][2] == 1995


@pytest.mark.parametrize(
    ("title", "year"),
    [
        ("Heat (1995)", 1995),
        ("Heat (1995) ", 1995),
        ("2001: A Space Odyssey (1968)", 1968),
        ("Shall We Dance? (1937) (2004)", 2004),
        ("Nikita (La Femme)", 0),
        ("Heat 1995", 0),
        ("Babylon 5 (95)", 0),
        ("Heat (1995) Uncut", 0),
        ("", 0),
    ],
)
def test_the_year_stands_in_the_last_brackets(title, year):
    assert year_of(title) == year


# ------------------------------------------------------------------------------ one's own list


@pytest.mark.parametrize(
    ("written", "year"),
    {
        **{"1995": 1995, "1995.0": 1995, " 1995 ": 1995, "1995-05-01": 1995, "5/1/1995": 1995},
        **{"01-Jan-1995": 1995, "": 0, "NaN": 0, "0": 0, "old": None, "-44": None, "19951": None},
    }.items(),
)
def test_years_come_as_numbers_and_in_dates(written, year):
    assert parse_year(written) == year


ROWS = [["1", "Heat", "1995", "Crime|Drama"], ["2", "Alien", "1979", "Horror"]]
FOUND = [(1, "Heat", 1995, ["Crime", "Drama"]), (2, "Alien", 1979, ["Horror"])]
NAMES = ["item", "title", "year", "genres"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|", "::"])
def test_any_delimiter_is_told(delimiter):
    lines = [delimiter.join(row) for row in (NAMES, *ROWS)]
    if delimiter == "|":
        lines = [line.replace("Crime|Drama", '"Crime|Drama"') for line in lines]
    assert listed("\n".join(lines))[0] == FOUND


def test_json_lines_an_array_and_parquet_list_the_same():
    objects = [dict(zip(NAMES, row, strict=True)) for row in ROWS]
    for found in objects:
        found["genres"] = found["genres"].split("|")
        found["item"], found["year"] = int(found["item"]), float(found["year"])
    lines = "\n".join(json.dumps(found) for found in objects)
    assert listed(lines)[0] == FOUND
    assert listed(json.dumps(objects))[0] == FOUND
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(objects), sink)
    assert listed(sink.getvalue())[0] == FOUND


@pytest.mark.parametrize(
    "header",
    ["Item ID,Name", "item_id:token,movie_title:token_seq", '"ITEM-ID","Title"', "id,item_name"],
)
def test_usual_names_are_known_however_they_are_spelt(header):
    assert [row[:2] for row in listed(f"{header}\n1,Heat\n")[0]] == [(1, "Heat")]


def test_names_that_were_told_go_before_usual_ones():
    rule = IdRule(("sku", "item"), title="label")
    found, _ = listed("item,sku,title,label\n9,1,Wrong,Heat\n", rule)
    assert found == [(1, "Heat", 0, [])]


def test_latin_1_titles_and_a_few_broken_bytes_cost_nothing():
    assert listed("item,title\n1,Misérables\n".encode("latin-1"))[0][0][1] == "Misérables"
    broken = "item,title\n1,Misérables\n2,Amélie\n".encode() + b"3,br\xffken\n"
    assert [row[1] for row in listed(broken)[0]] == ["Misérables", "Amélie", "br\ufffdken"]


BAD_ROWS = """item,title,year
1,Heat,1995.0
x,Unread,1999
2,Alien,old
3
3,,1980
1,Twice,2000
4,Too,1990,many
,No id,1990
5.0,Brazil,1985,
"""


def test_each_bad_row_is_counted_and_the_rest_is_used():
    found, report = listed(BAD_ROWS)
    assert found == [
        (1, "Heat", 1995, []),
        (2, "Alien", 0, []),
        (3, None, 1980, []),
        (5, "Brazil", 1985, []),
    ]
    assert (report.rows, report.used) == (9, 4)
    assert report.rejected == {
        "item is not a number": 1,
        "missing column": 1,
        "item is listed before": 1,
        "too many columns": 1,
        "item is empty": 1,
    }
    assert report.rows == report.used + sum(report.rejected.values())
    assert report.incomplete == {"title is empty": 1, "year cannot be read": 1}
    assert [row.line for row in report.first] == [5, 8, 3]


def test_a_quote_that_is_never_closed_costs_one_row(monkeypatch):
    monkeypatch.setattr(rows, "QUOTED_LINES", 4)
    lines = ['1,"Heat', *[f"{n},Film {n}" for n in range(2, 10)], '10,"Ali\nen"', '11,"Brazil']
    found, report = listed("\n".join(["item,title", *lines]))
    assert [row[0] for row in found] == list(range(2, 12))
    assert [row[1] for row in found[-2:]] == ["Ali\nen", "Brazil"]
    assert report.rejected == {"a quote is never closed": 1}
    assert [row.line for row in report.first] == [2]


def test_text_ids_keep_their_case_and_integers_are_read_as_in_ratings():
    assert [row[0] for row in listed("item,title\nB-2,Heat\nb-2,Alien\n", TEXTS)[0]] == [
        "B-2",
        "b-2",
    ]
    assert [row[0] for row in listed('item,title\n" 7 ",Heat\n8.0,Alien\n')[0]] == [7, 8]


def test_row_names_of_r_and_an_index_of_pandas_are_no_columns():
    assert listed('"item","title"\n"1",5,"Heat"\n"2",6,"Alien"\n')[0][0][:2] == (5, "Heat")
    assert listed(",item,title\n0,5,Heat\n1,6,Alien\n")[0][0][:2] == (5, "Heat")


@pytest.mark.parametrize("text", ["Crime, Drama", "Crime;Drama", "['Crime', 'Drama']"])
def test_genres_may_stand_between_commas(text):
    assert listed(f'item,title,genre\n1,Heat,"{text}"\n')[0][0][3] == ["Crime", "Drama"]


def test_the_item_files_of_recbole_have_types_behind_their_names():
    content = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
    assert listed(content + "1\tToy Story\t1995\tAnimation Comedy\n")[0] == [
        (1, "Toy Story", 1995, ["Animation", "Comedy"])
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"item,rating\n1,2\n", "no title among its columns item, rating; tell it by --columns t"),
        (b"what,title\n1,A\n", "no item column among its columns what, title"),
        (b"", "its first line names no columns"),
        (b"PAR1" + b"junk" * 9, "a damaged parquet file"),
        (b"[{]", "damaged JSON"),
    ],
)
def test_a_list_that_cannot_be_read_at_all_says_why(content, message):
    with pytest.raises(RecrayError, match=message):
        parse_items("items.csv", content, INTEGERS)


# ------------------------------------------------------------------------------ links and users


def test_links_are_kept_by_item():
    table, _ = parse_items("movies.csv", b"movieId,title,genres\n1,A,x\n2,B,x\n3,C,x\n", INTEGERS)
    content = b"movieId,imdbId,tmdbId\r\n1,0114709,862\r\n3,15398776,\r\nx,1,2\r\n2,,5.0\r\n"
    linked, report = add_links(table, "links.csv", content)
    assert linked.schema == schema.MOVIES
    assert linked["imdb"].to_pylist() == ["tt0114709", None, "tt15398776"]
    assert linked["tmdb"].to_pylist() == [862, 5, None]
    assert (report.used, report.rejected) == (3, {"an id is not a number": 1})


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            b"2|53|F|other|94043\n1|24|M|technician|85711\n3|x|M\n",
            [(1, 24, "M", "technician"), (2, 53, "F", "other")],
        ),
        (
            b"1::F::1::10::48067\n2::M::56::16::70072\n3::M\n",
            [(1, 1, "F", "K-12 student"), (2, 56, "M", "self-employed")],
        ),
        (
            b"user_id;sex;age;job\n2;F;53.0;other\n1;M;old;\n3;M\n",
            [(1, None, "M", None), (2, 53, "F", "other")],
        ),
    ],
    ids=["100k", "1m", "own"],
)
def test_lists_of_users_are_told_alike_and_lose_only_their_bad_rows(content, expected):
    table, report = users.parse_users("users", content, USERS)
    assert table.schema == schema.PEOPLE
    assert [tuple(row.values()) for row in table.to_pylist()] == expected
    assert (report.rows, report.used, report.rejected) == (3, 2, {"missing column": 1})


def test_users_may_have_text_ids():
    table, _ = users.parse_users("u.csv", b"user,age\nann,30\n", IdRule(("user",), text=True))
    assert table["raw_user"].to_pylist() == ["ann"]


# -------------------------------------------------------------------------- which list it is


def best(files, guessed=False, rated=("1", "2")):
    items = Candidates(list(files), INTEGERS, rated, guessed)
    nobody = Candidates([], USERS, [])
    return read_lists(items, nobody, None, lambda name: files[name])


GOOD, OTHER = b"item,title\n1,Heat\n2,Alien\n", b"item,title\n7,X\n8,Y\n"


def test_the_list_that_has_the_rated_ids_is_taken():
    assert best({"a.csv": OTHER, "b.csv": GOOD}).reports[0].file == "b.csv"
    assert best({"b.csv": GOOD, "a.csv": OTHER}).reports[0].file == "b.csv"


def test_a_list_of_a_usual_name_goes_before_others():
    assert best({"items.csv": OTHER, "b.csv": GOOD}).reports[0].file == "items.csv"


def test_beside_a_lone_file_a_list_of_other_ids_is_left_alone():
    found = best({"a.csv": OTHER}, guessed=True)
    assert (len(found.movies), found.reports) == (0, ())
    assert best({"a.csv": GOOD}, guessed=True).reports[0].used == 2


def test_a_list_that_cannot_be_read_is_reported_and_the_next_one_is_used():
    found = best({"items.csv": b"PAR1junk", "b.csv": GOOD})
    assert len(found.movies) == 2
    alone = best({"items.csv": gzip.compress(GOOD)[:-9] + b"\x00"})
    assert len(alone.movies) == 0
    assert alone.reports[0].problem


def test_matched_ids_are_counted():
    items = pa.array([1, 5, 6])
    lists = best({"a.csv": GOOD})
    (report,) = lists.facts(matches(items, lists.movies["raw_item"]), (0, 0))
    assert (report["rated"], report["matched"]) == (3, 1)


def test_the_flags_of_100k_have_their_names():
    assert len(item_lists.ML_100K_GENRES) == 19
