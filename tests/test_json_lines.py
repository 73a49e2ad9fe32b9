"""JSON: objects in lines or in an array give their rows, and each bad line its reason."""

import gzip
import json

import pytest

from recray.config import Settings
from recray.data.formats import json_lines, text
from recray.data.source import detect_source
from recray.errors import RecrayError

from .conftest import parts_of, rows_of

RECORDS = [
    {"user": n % 7, "item": f"film {n:03} „é“", "rating": 1 + n % 5, "timestamp": 1000 + n}
    for n in range(100)
]
ROWS = [tuple(record.values()) for record in RECORDS]


def lines_of(records):
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def source_of(tmp_path, content, name="given", **columns):
    path = tmp_path / name
    path.write_bytes(content)
    settings = Settings.model_validate({"data": {"columns": columns or None}})
    return detect_source(str(path), settings)


def rejected_of(found):
    return [
        (row["line"], row["reason"])
        for part in parts_of(found)
        for row in part.rejected.to_pylist()
    ]


SHAPES = {
    "lines": lines_of(RECORDS),
    "gzip": gzip.compress(lines_of(RECORDS)),
    "utf-16": lines_of(RECORDS).decode().encode("utf-16"),
    "crlf-and-blanks": lines_of(RECORDS).replace(b"\n", b"\r\n\r\n"),
    "letters": "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in RECORDS).encode(),
    "array": json.dumps(RECORDS).encode(),
    "pretty-array": json.dumps(RECORDS, indent=2).encode(),
    "pretty-objects": "\n".join(json.dumps(r, indent=2) for r in RECORDS).encode(),
    "python": "".join(f"{r!r}\n" for r in RECORDS).encode(),
    "no-last-end": lines_of(RECORDS).removesuffix(b"\n"),
}


@pytest.mark.parametrize("content", SHAPES.values(), ids=SHAPES)
def test_every_shape_of_json_gives_its_rows(tmp_path, content):
    found = source_of(tmp_path, content)
    assert rows_of(found) == ROWS
    assert rejected_of(found) == []


@pytest.mark.parametrize("bytes_of_range", [50, 1000, 1 << 20])
def test_ranges_and_chunks_do_not_change_the_rows(tmp_path, monkeypatch, bytes_of_range):
    monkeypatch.setattr(text, "RANGE_BYTES", bytes_of_range)
    monkeypatch.setattr(text, "CHUNK_BYTES", 37)
    assert rows_of(source_of(tmp_path, lines_of(RECORDS))) == ROWS


@pytest.mark.parametrize("block", [7, 1 << 20])
def test_the_blocks_of_a_document_do_not_change_the_rows(tmp_path, monkeypatch, block):
    monkeypatch.setattr(json_lines, "BLOCK_BYTES", block)
    monkeypatch.setattr(json_lines, "CHUNK_RECORDS", 9)
    found = source_of(tmp_path, SHAPES["pretty-array"])
    assert rows_of(found) == ROWS
    assert sum(part.lines for part in parts_of(found)) == 100


def test_fields_inside_fields_are_named_by_a_path(tmp_path):
    records = [
        {"reviewer": {"id": n, "country": "IT"}, "asin": f"B{n}", "overall": 4.5} for n in range(9)
    ]
    columns = {"user": "reviewer.id", "item": "asin", "rating": "overall"}
    for content in (lines_of(records), json.dumps(records).encode()):
        found = source_of(tmp_path, content, **columns)
        assert rows_of(found) == [(n, f"B{n}", 4.5, None) for n in range(9)]


def test_a_bad_line_costs_itself_and_gives_its_reason(tmp_path):
    bad = [
        (b'{"user": 7, "item": "x", "rating": 3', "not a JSON object"),
        (b"[1, 2]", "not a JSON object"),
        (b'{"item": "x", "rating": 3}', "user is empty"),
        (b'{"user": 7, "item": null, "rating": 3}', "item is empty"),
        (b'{"user": 7, "item": "x", "rating": "good"}', "rating is not a number"),
        (b'{"user": {"id": 7}, "item": "x", "rating": 3}', "user is a list or an object"),
        (b'{"user": 7, "item": ["x", "y"], "rating": 3}', "item is a list or an object"),
        (b'{"user": 7, "item": "\xff", "rating": 3, "timestamp": 5}', "not UTF-8"),
    ]
    good = SHAPES["letters"].splitlines()
    found = source_of(tmp_path, b"\n".join([*good, *(line for line, _ in bad), *good]))
    assert rejected_of(found) == [(100 + n, reason) for n, (_, reason) in enumerate(bad)]
    assert rows_of(found) == ROWS * 2
    (part,) = parts_of(found)
    assert part.rejected["text"].to_pylist()[1] == "[1, 2]"
    assert part.rejected["byte"].to_pylist()[0] == len(SHAPES["letters"])


def test_numbers_that_are_ids_are_never_changed(tmp_path):
    records = b"".join(
        b'{"user": %b, "item": "x"}\n' % number
        for number in (b"7.10", b"1e5", b"123456789012345678901234567890", b'"0.70"', b'"a b "')
    )
    settings = Settings.model_validate({"data": {"ids": "text"}})
    (tmp_path / "given").write_bytes(records)
    users = [row[0] for row in rows_of(detect_source(str(tmp_path / "given"), settings))]
    assert users == ["7.10", "1e5", "123456789012345678901234567890", "0.70", "a b "]


@pytest.mark.parametrize("behind", [b"", b"no object\n"], ids=["clean", "damaged"])
def test_text_ids_written_as_numbers_are_the_same_beside_any_line(tmp_path, behind):
    records = b'{"user": 1, "item": 7.10}\n{"user": 1, "item": 7.1}\n' + behind
    found = source_of(tmp_path, records)
    assert [row[1] for row in rows_of(found)] == ["7.10", "7.1"]


def test_text_ids_with_half_a_letter_stay_apart(tmp_path):
    lines = "".join(f'{{"user": 1, "item": "\\ud83{end}"}}\n' for end in "de")
    found = rows_of(source_of(tmp_path, lines.encode()))
    assert [row[1] for row in found] == ["\\ud83d", "\\ud83e"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps({"user": {"0": 1}, "item": {"0": 2}}).encode(), "one JSON object for all"),
        (b"[[1, 2], [3, 4]]", "looks like JSON, but begins with no whole"),
        (lines_of([{"who": 1, "what": 2}]), "no user column: its columns are who, what"),
    ],
)
def test_other_json_is_named(tmp_path, content, message):
    with pytest.raises(RecrayError, match=message):
        source_of(tmp_path, content)


def test_a_document_that_is_cut_off_is_damaged(tmp_path):
    found = source_of(tmp_path, SHAPES["array"][:-30])
    with pytest.raises(RecrayError, match="given is damaged JSON after object 99"):
        rows_of(found)
