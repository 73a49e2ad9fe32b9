"""Quoted fields: delimiters, quotes and newlines inside them, wherever a file is cut."""

import csv
import io
import itertools
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recray.data import scan
from recray.data.formats import quotes, reading, text
from recray.data.formats.delimited import parse_ratings
from recray.data.formats.dialect import format_of_text
from recray.data.formats.layout import RatingsFile, RatingsFormat
from recray.data.formats.quotes import find_rows
from recray.data.source import detect_source

REVIEWS = RatingsFormat(
    ",", ("raw_user", "raw_item", "rating", ""), header=1, text=frozenset({"raw_item"})
)
HEADER = b"user,item,rating,review\n"
NASTY = (
    b'1,"Heat, The",5,"plain"\n'
    b'2,x,4,"two\nlines"\r\n'
    b'3,"The ""1"" Show",3,"3,a,1,no row\n4,b,1,nor this\n"\n'
    b'4,12" vinyl,2,a "word" in the middle\n'
    b'5,"12""",1,""\n'
    b'6,"""",5,"""\n7,c,1,""\n8,d,1,""\n"""\n'
    b'9,"a\nb",4,"ends with CR LF\r\n10,e,5,in quotes\r\n"\r\n'
    b'\n11,"weird al" yankovic,3,"x"\n'
    b'12, "blanks around" ,2,\n'
    b'13,"",1,x\n'
    b'14,last,5,"no end"'
)
ROWS = [
    (1, "Heat, The", 5),
    (2, "x", 4),
    (3, 'The "1" Show', 3),
    (4, '12" vinyl', 2),
    (5, '12"', 1),
    (6, '"', 5),
    (9, "a\nb", 4),
    (11, '"weird al" yankovic', 3),
    (12, "blanks around", 2),
    (14, "last", 5),
]
"""Known by reading the file with one's eyes; row 13 has no item."""


def rows_of(parsed):
    columns = [parsed.table[name].to_pylist() for name in ("raw_user", "raw_item", "rating")]
    return list(zip(*columns, strict=True))


def test_quoted_fields_are_read_as_rfc_4180_has_them():
    parsed = parse_ratings(NASTY, REVIEWS)
    assert rows_of(parsed) == ROWS
    (bad,) = parsed.rejected.to_pylist()
    assert bad == {
        "line": NASTY[: NASTY.index(b"13,")].count(b"\n"),
        "byte": NASTY.index(b"13,"),
        "text": '13,"",1,x',
        "reason": "item is empty",
    }
    assert parsed.lines == NASTY.count(b"\n") + 1
    assert parsed.rows == 11


@pytest.fixture
def scanned(tmp_path):
    """Scans ranges as ingest does, here and now; gives rows, rejected lines, and how many scans."""
    path = tmp_path / "x.csv"
    path.write_bytes(HEADER + NASTY)
    file = RatingsFile("x.csv", str(path), "text", REVIEWS)
    counted = []

    def scan_here(number, file_range):
        counted.append(number)
        rows, bad, lines, span = [], [], 0, None
        for bytes_, parsed in reading.parsed(file_range):
            span = range(span.start if span else bytes_.start, bytes_.stop)
            rows += rows_of(parsed)
            bad += [
                (r["line"] + lines, r["byte"] + bytes_.start) for r in parsed.rejected.to_pylist()
            ]
            lines += parsed.lines
        return scan.Scanned(
            len(rows), 0, lines, rows, bad, Counter(), False, unknown_times=0, span=span
        )

    def run(*cuts):
        edges = [len(HEADER), *cuts, len(HEADER + NASTY)]
        ranges = [
            text.FileRange(file, a, b, a if a == len(HEADER) else None)
            for a, b in itertools.pairwise(edges)
        ]
        counted.clear()
        scans = scan.scan_ranges(ranges, lambda ns, every: [scan_here(n, every[n]) for n in ns])
        rows = [row for one in scans for row in one.files]
        first, bad = 2, []
        for one in scans:
            bad += [(line + first, byte) for line, byte in one.rejected]
            first += one.lines
        return rows, bad, len(counted)

    return run


PLACE = (HEADER + NASTY).index(b"13,")
BAD = [((HEADER + NASTY).count(b"\n", 0, PLACE) + 1, PLACE)]


@pytest.mark.parametrize("chunk_bytes", [7, 1 << 20])
def test_a_range_may_begin_at_any_byte(scanned, monkeypatch, chunk_bytes):
    monkeypatch.setattr(text, "CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr(text, "STEP_BYTES", 3)
    again = 0
    for cut in range(len(HEADER) + 1, len(HEADER + NASTY)):
        rows, bad, scans = scanned(cut)
        assert (rows, bad) == (ROWS, BAD), cut
        again += scans - 2
    assert again > 20, "some of the cuts lie in quoted newlines, and their ranges are read again"


@pytest.mark.parametrize("size", [1, 2, 3, 5, 11, 40])
def test_ranges_may_be_shorter_than_rows(scanned, size):
    cuts = range(len(HEADER) + size, len(HEADER + NASTY), size)
    assert scanned(*cuts)[:2] == (ROWS, BAD)


def test_a_file_without_quotes_is_read_once(scanned, tmp_path):
    (tmp_path / "x.csv").write_bytes(HEADER + b"1,a,3,b\n" * (len(NASTY) // 8) + b"\n" * 9)
    for cut in range(len(HEADER) + 1, len(HEADER + NASTY) - 8):
        assert scanned(cut)[2] == 2


def test_an_open_quote_costs_its_line_only(monkeypatch):
    good = b"2,b,4,x\n" * 3
    parsed = parse_ratings(b'1,a,5,"open\n' + good, REVIEWS)
    assert rows_of(parsed) == [(2, "b", 4)] * 3
    assert [(r["line"], r["reason"]) for r in parsed.rejected.to_pylist()] == [
        (0, "quote is not closed")
    ]
    monkeypatch.setattr(quotes, "ROW_BYTES", 30)  # the quote far below does not close it
    parsed = parse_ratings(b'1,a,5,"open\n' + good * 4 + b'3,c,1,"closed"\n', REVIEWS)
    assert len(parsed.table) == 13
    assert [r["reason"] for r in parsed.rejected.to_pylist()] == ["quote is not closed"]
    parsed = parse_ratings(b'1,a,5,"open\n' + good * 4 + b'"\n', REVIEWS)  # nor one by itself
    assert rows_of(parsed) == [(2, "b", 4)] * 12
    assert [r["line"] for r in parsed.rejected.to_pylist()] == [0, 13]


def test_what_stands_behind_a_closing_quote_never_swallows_rows():
    parsed = parse_ratings(b'1,"Heroes,5,x\n2,"Low,4,x\n3,c,3,x\n', REVIEWS)
    assert rows_of(parsed) == [(3, "c", 3)]
    assert len(parsed.rejected) == 2


@pytest.mark.parametrize("chunk_bytes", [1000, 1 << 24])
def test_a_long_row_costs_itself_and_no_memory(tmp_path, monkeypatch, chunk_bytes):
    monkeypatch.setattr(text, "CHUNK_BYTES", chunk_bytes)
    long = b"2,b,4," + b"y" * (3 << 20) + b"\n"
    path = tmp_path / "x.csv"
    path.write_bytes(HEADER + b"1,a,5,x\n" + long + b"3,c,3,x\n")
    found = detect_source(str(path))
    largest = max(len(content) for piece in found.ranges for _, content in text.chunks(piece))
    assert largest < (2 << 20) or chunk_bytes > 1000
    parsed = [one for _, one in reading.parsed_in_order(found.ranges)]
    assert sum(len(one.table) for one in parsed) == 2
    (bad,) = [r for one in parsed for r in one.rejected.to_pylist()]
    assert bad["reason"] == "row is longer than 1,048,576 bytes"
    assert len(bad["text"]) == 200
    assert sum(one.lines for one in parsed) == 3


LETTERS = st.text(st.sampled_from('ab",;\n\r\t x'), max_size=8)


@given(st.lists(st.tuples(LETTERS, LETTERS), min_size=1, max_size=8), st.sampled_from(",;|\t"))
def test_what_a_csv_writer_writes_is_read_back(pairs, delimiter):
    pairs = [(f"u{a}.", f"i{b}.") for a, b in pairs]
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter)
    writer.writerows((a, b, 3) for a, b in pairs)
    layout = RatingsFormat(
        delimiter,
        ("raw_user", "raw_item", "rating"),
        text=frozenset({"raw_user", "raw_item"}),
    )
    content = out.getvalue().encode()
    parsed = parse_ratings(content, layout)
    assert [row[:2] for row in rows_of(parsed)] == pairs
    assert len(parsed.rejected) == 0


@given(st.text(st.sampled_from('ab",\n\r '), max_size=30), st.integers(0, 30))
def test_both_ways_to_find_rows_agree(letters, cut):
    content = letters.encode()
    rows = find_rows(content, ",", "rows")
    walk = quotes._Walk(content, ",", "rows", ended=True)
    masked = bytearray(content)
    table = bytes.maketrans(b",\n", b"\2\1")
    for begin, end in walk.spans:
        masked[begin:end] = content[begin:end].translate(table)
    assert bytes(masked) == rows.masked
    assert set(walk.unclosed) == rows.unclosed
    begun = find_rows(content[:cut], ",", "rows", ended=False)
    assert begun.masked[: begun.whole] == rows.masked[: begun.whole], "more bytes change nothing"


@pytest.mark.parametrize(
    ("head", "quoting"),
    [
        (b'user\titem\nu1\t"weird al" yankovic\nu2\t"odd 3" singer\n', "none"),
        (b"user\titem\nu1\tweird al\n", "line"),
        (b'user\titem\nu1\t"A\tB"\n', "rows"),
        (b'user,item\nu1,12" vinyl\n', "rows"),
        (b"user,item\nu1,a\n", "rows"),
        (b"1::2::3::4\n", "none"),
    ],
)
def test_the_head_tells_what_quotes_mean(head, quoting):
    assert format_of_text("x", head).quoting == quoting


def test_letters_of_a_file_that_quotes_nothing_stay(tmp_path):
    layout = replace(REVIEWS, quoting="none")
    parsed = parse_ratings(b'1,"a",3,x\n2,"b,4,x\n', layout)
    assert rows_of(parsed) == [(1, '"a"', 3), (2, '"b', 4)]
