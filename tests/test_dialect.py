"""Dialects: how lines look is told from their head, whatever program wrote them."""

import pytest

from recray.config import load_settings
from recray.data import describe
from recray.data.formats import reading, text
from recray.data.formats.delimited import parse_ratings
from recray.data.formats.layout import RatingsFormat
from recray.data.source import detect_source
from recray.errors import RecrayError

TRIPLES = [("u1", "i7", 4.0), ("u1", "i8", 2.5), ("u2", "i7", 1.0), ("u3", "i9", 5.0)]


def read(tmp_path, content, *settings, name="plays.txt"):
    """Rows (user, item, rating) of a file, and its rejected rows by line and reason."""
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    found = detect_source(str(path), load_settings("ranking", None, settings))
    rows, bad, line = [], [], 1 + found.ranges[0].file.layout.header
    for _, parsed in reading.parsed_in_order(found.ranges):
        columns = [parsed.table[n].to_pylist() for n in ("raw_user", "raw_item", "rating")]
        rows += list(zip(*columns, strict=True))
        bad += [(line + r["line"], r["reason"]) for r in parsed.rejected.to_pylist()]
        line += parsed.lines
    return rows, bad


def lines(*rows):
    return "".join(f"{row}\n" for row in rows)


def table(row, *above):
    return lines(*above, *(row.format(*values) for values in TRIPLES))


COMMA = [f"{u}|{i}|{r}".replace(".", ",") for u, i, r in TRIPLES]
PLACES = "data.columns={user: '1', item: '2', rating: '3'}"


@pytest.mark.parametrize(
    ("content", "settings"),
    [
        (table("{} {} {}"), [PLACES]),
        (table("  {}   {}\t{}  ", "user item rating"), []),
        (table('"{}" "{}" {}', '"user" "item" "rating"'), []),
        (table("{}|{}|{}", "user|item|rating"), []),
        (table("{}|{}|{}|", "user|item|rating|"), []),
        (table("{};{};{};", "user;item;rating"), []),
        (table("{},{},{}", "user,item,rating,"), []),
        (lines("user|item|rating", *COMMA), []),
        (lines("user;item;rating", *COMMA).replace("|", ";"), []),
        (lines("user\titem\trating", *COMMA).replace("|", "\t"), []),
        (table('{},{},"{}"', "user,item,rating").replace(".", ","), []),
        (table("{}, {}, {}", "User ID, Item ID, Rating"), []),
        (table("{};{};{}", "User-ID;item_id;RATING"), []),
        (table("{}\t{}\t{}", "user_id:token\titem_id:token\trating:float"), []),
        (table("{}\t{}\t{}", "uid:token\tiid:token\tmine:float"), ["data.columns={rating: mine}"]),
        (table('"7",{},{},{}', '"user","item","rating"').replace('"7"', '"{}"'), None),
        (table("{} {} {}", "% bip weighted", "% 3 3 4"), [PLACES]),
        (table("{}\t{}\t{}", "# user\titem\trating"), []),
        (table("{},{},{}", "# made by", "#", "user,item,rating"), []),
        (table("{};{};{}", "sep=;", "user;item;rating"), []),
        (table("{},{},{}", "", "user,item,rating"), []),
        (table("{},{},{}", "reviewer,product,stars"), [PLACES]),
        (table("{},{},{}", "who,what,how"), [PLACES]),
        (table("{},{},{}", "nutzer,artikel,note"), [PLACES]),
        (b"\xef\xbb\xbf" + table('"{}";"{}";"{}"', '"user";"item";"rating"').encode(), []),
        (table("{},{},{}", "user,item,rating").replace("\n", "\r\n"), []),
    ],
)
def test_a_dialect_is_told_from_the_head(tmp_path, content, settings):
    if settings is None:  # row names, a different one in each row
        content = "".join(
            line.replace("{}", str(n)) for n, line in enumerate(content.splitlines(True))
        )
    assert read(tmp_path, content, *(settings or [])) == (TRIPLES, [])


def test_row_names_that_are_no_names_are_columns_too_many(tmp_path):
    content = lines("user,item", "u1,i1,x", "u1,i2,y", "u2,i1,x")
    rows, bad = read(tmp_path, content)
    assert rows == []
    assert [reason for _, reason in bad] == ["too many columns"] * 3


def test_a_header_without_digits_above_ids_with_digits_is_one(tmp_path):
    pairs = "data.columns={user: '1', item: '2'}"
    rows, _ = read(tmp_path, lines("reader,book", "A1,B1", "A2,B2"), pairs)
    assert [row[:2] for row in rows] == [("A1", "B1"), ("A2", "B2")]
    rows, _ = read(tmp_path, lines("ann,heat", "bob,alien", "ann,alien"), pairs)
    assert len(rows) == 3, "names of people and films are no header"
    rows, _ = read(tmp_path, lines("item,user", "7,1", "8,2"), pairs)
    assert [row[:2] for row in rows] == [(7, 1), (8, 2)]


@pytest.mark.parametrize(
    ("words", "values"),
    [
        (["True", "False", "TRUE"], [1, 0, 1]),
        (["like", "dislike", "Like"], [1, 0, 1]),
        (["thumbs up", "thumbs down", "thumbs up"], [1, 0, 1]),
        (["yes", "no", "1"], [1, 0, 1]),
    ],
)
def test_words_of_liking_are_ratings(tmp_path, words, values):
    content = lines("user,item,rating", *(f"1,{n},{word}" for n, word in enumerate(words)))
    rows, bad = read(tmp_path, content)
    assert ([rating for *_, rating in rows], bad) == (values, [])


def test_a_word_among_stars_is_no_rating(tmp_path):
    rows, bad = read(tmp_path, lines("user,item,rating", "1,1,5", "1,2,True", "1,3,4"))
    assert len(rows) == 2
    assert bad == [(3, "rating is not a number")]


def test_thousands_are_not_taken_for_a_decimal_comma(tmp_path):
    content = lines("user,item,rating", '1,1,"1,000"', '1,2,"12,345"')
    assert read(tmp_path, content)[1] == [
        (2, "rating is not a number"),
        (3, "rating is not a number"),
    ]


# ------------------------------------------------------------------------------------- ids


def ids(tmp_path, content, *settings):
    rows, bad = read(tmp_path, lines("user,item,rating", *content), *settings)
    return [row[1] for row in rows], [reason for _, reason in bad]


@pytest.mark.parametrize(
    "item", ["007", "-7", "+7", "080442957X", "1234567890123456789", "7.5", "1e5", "x", "0x1F"]
)
def test_one_odd_id_makes_all_text_and_none_is_changed(tmp_path, item):
    assert ids(tmp_path, ["1,7,3", f"1,{item},3"]) == (["7", item], [])


def test_what_programs_do_to_integers_is_undone(tmp_path):
    content = ["1,99999,3", "1,1e+05,3", "1,7.0,3", "1,1.2e+07,3", '1,"8",3']
    assert ids(tmp_path, content) == ([99999, 100000, 7, 12000000, 8], [])


def test_a_later_id_that_does_not_fit_is_rejected_and_never_merged(tmp_path, monkeypatch):
    content = ["1,7,3"] * 20_000 + ["1,007,3", "1,-7,3", "1,x,3", "1,1.5e+00,3", "1,1e+30,3"]
    monkeypatch.setattr(text, "samples", lambda file, count: iter(()))
    found, reasons = ids(tmp_path, content)
    assert set(found) == {7}
    assert reasons == [
        "item has leading zeros",
        "item is negative",
        "item is not a number",
        "item is not a number",
        "item is not a number",
    ]


def test_ids_far_from_the_head_are_looked_at(tmp_path):
    content = ["1,7,3"] * 20_000 + ["1,x7,3"] * 1000
    found, reasons = ids(tmp_path, content)
    assert (set(found), reasons) == ({"7", "x7"}, [])
    few = ["1,7,3"] * 20_000 + ["1,x7,3"] * 5
    assert ids(tmp_path, few)[1] == ["item is not a number"] * 5, "damaged rows change no kind"


@pytest.mark.parametrize("layout_time", ["s", "iso"])
@pytest.mark.parametrize("quote", ["", '"'])
def test_leading_zeros_take_no_fast_way(layout_time, quote):
    layout = RatingsFormat(",", ("raw_user", "raw_item", "timestamp"), time=layout_time)
    for row in ("007,1,5", "1,007,5", "1,-0,5", "1,00,5"):
        user, item, time = row.split(",")
        line = f"{quote}{user}{quote},{quote}{item}{quote},{time}\n"
        parsed = parse_ratings(f"1,2,3\n{line}4,0,6\n".encode(), layout)
        assert len(parsed.table) == 2, row
        assert len(parsed.rejected) == 1


# ------------------------------------------------------------------------------------- scale


@pytest.mark.parametrize("name", ["ratings.dat", "u.data", "x.txt"])
def test_no_name_limits_ratings(tmp_path, name):
    content = lines("1::0110038::10::1400005000", "1::0110011::0::1400005060")
    rows, bad = read(tmp_path, content, name=name)
    assert rows == [(1, "0110038", 10.0), (1, "0110011", 0.0)]
    assert bad == []


def test_a_scale_that_is_set_is_held_and_named_as_the_remedy(tmp_path):
    content = lines("userId,movieId,rating", "1,2,10", "1,3,11")
    rows, bad = read(tmp_path, content, "data.scale=1,10")
    assert (len(rows), bad) == (1, [(3, "rating outside the scale")])
    settings = load_settings("ranking", None, ["data.scale=1,10"])
    facts = describe.describe_source(detect_source(str(tmp_path / "plays.txt"), settings))
    assert facts["rejected"]["advice"] == [
        "tell the lowest and highest rating: --set data.scale=LOW,HIGH"
    ]


@pytest.mark.parametrize(
    ("content", "settings", "message"),
    [
        (lines("1,2,3,4"), [], "has no user column"),
        (lines("who|what", "1|2"), [], "its columns are who, what"),
        (lines("1 2 3"), ["data.columns={user: '1', item: '4'}"], "has 3 columns, from 1"),
        (lines("User-ID,b"), ["data.columns={item: c}"], "its columns are User-ID, b"),
    ],
)
def test_what_is_missing_is_named(tmp_path, content, settings, message):
    with pytest.raises(RecrayError, match=message):
        read(tmp_path, content, *settings)
