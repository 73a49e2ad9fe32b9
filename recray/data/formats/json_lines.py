"""JSON: one object in each line, or an array of objects, to ratings and rejected rows.

A chunk of lines in which everything is in order takes the fast way, by pyarrow's reader. Any other
chunk is read line by line, which finds the exact lines and gives each its reason. Fields inside an
object are named `reviewer.id`. Numbers are never changed on the way: 7.10 as a text id is 7.10.
"""

import ast
import codecs
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pajson
from numpy.typing import NDArray

from recray.data.formats.columnar import column_of
from recray.data.formats.content import Content
from recray.data.formats.layout import IDS, Columns, RatingsFile, RatingsFormat, format_of_names
from recray.data.formats.quotes import LONG_ROW, ROW_BYTES
from recray.data.formats.streams import WIDE, open_bytes
from recray.data.formats.tables import parse_table
from recray.data.formats.values import PADDING, ParsedRatings, check_fields, rejected_rows
from recray.errors import RecrayError

Record = dict[str, Any]
CHUNK_RECORDS = 50_000
"""Objects of a document that are held at once."""
BLOCK_BYTES = 1 << 20
RECORD_CHARACTERS = 16 << 20
"""A longer object is refused."""
_MISSING = object()
_CONVERT = (
    "write one object in each line: "
    "pandas.read_json(...).to_json('ratings.jsonl', orient='records', lines=True)"
)
_NO_NUMBERS = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=str)
"""Numbers stay the texts that they are written as."""


# --------------------------------------------------------------------------------- columns


def field_names(content: Content) -> list[str]:
    """The names of the fields in a file's first objects; none where no object is whole."""
    return _all_names(list(_first_records(content)))


def _all_names(records: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(name for record in records for name in _names_of(record)))


def format_of_records(file: str, content: Content, columns: Columns | None) -> RatingsFormat:
    """Recognise the fields of a file's first objects.

    Raises:
        RecrayError: No user or no item field, or it is no list of objects.
    """
    records = list(_first_records(content))
    if not records:
        raise RecrayError(f"{file} looks like JSON, but begins with no whole object; {_CONVERT}")
    if len(records) == 1 and all(isinstance(v, dict | list) for v in records[0].values()):
        raise RecrayError(f"{file} looks like one JSON object for all ratings; {_CONVERT}")
    names = _all_names(records)
    return replace(format_of_names(file, names, columns), header=0, quoting="none")


def first_ids(layout: RatingsFormat, content: Content) -> dict[str, list[str]]:
    """The ids in a file's first objects, as they stand there, and the times."""
    names = dict(zip(layout.columns, layout.names, strict=True))
    constants = dict(layout.constants)
    first = {role: [constants[role]] for role in (*IDS, "timestamp") if role in constants}
    first |= {role: [] for role in (*IDS, "timestamp") if role in names}
    for record in _first_records(content):
        for role in first:
            value = _value_of(record, names[role]) if role in names else None
            first[role] += [value] if isinstance(value, str) else []
    return first


def first_ratings(layout: RatingsFormat, content: Content) -> list[str]:
    """The ratings of a file's first objects, as they stand there."""
    if "rating" not in layout.columns:
        return [text for role, text in layout.constants if role == "rating"]
    name = layout.names[layout.columns.index("rating")]
    values = (_value_of(record, name) for record in _first_records(content))
    return [value for value in values if isinstance(value, str)]


def _first_records(content: Content) -> Iterator[Record]:
    if content.kind == "json-document":
        values = _decoded(iter([content.head.decode("utf-8", "replace")]), "", at_end=False)
    else:
        values = (_record_of(line) for line in content.head.split(b"\n"))
    yield from (value for value in values if isinstance(value, dict))


def _names_of(record: Record, before: str = "") -> Iterator[str]:
    for name, value in record.items():
        if isinstance(value, dict):
            yield from _names_of(value, f"{before}{name}.")
        else:
            yield f"{before}{name}"


def _value_of(record: Record, name: str) -> Any:
    """A field by its name, or by the path to it; a list of one value counts as the value."""
    value = record.get(name, _MISSING)
    while value is _MISSING and "." in name:
        top, name = name.split(".", 1)
        inner = record.get(top)
        if not isinstance(inner, dict):
            return None
        record, value = inner, inner.get(name, _MISSING)
    if isinstance(value, list) and len(value) == 1:
        return value[0]
    return None if value is _MISSING else value


# ----------------------------------------------------------------------------------- lines


def parse_lines(content: bytes, layout: RatingsFormat) -> ParsedRatings:
    """Parse whole lines, an object in each.

    Args:
        content: Lines ended by LF or CR LF in UTF-8; the last end may be missing.
        layout: Which fields mean what, and the limits of their values.
    """
    lines = content.removesuffix(b"\n").split(b"\n") if content else []
    filled = [line for line in lines if line.strip()]
    if not (result := _parse_clean(content, filled, layout)):
        starts = np.cumsum([0, *(len(line) + 1 for line in lines[:-1])])
        records = [_record_of(line) for line in lines]
        return _parse_records(records, lines.__getitem__, starts, layout)
    return replace(result, lines=len(lines), rows=len(filled))


def _parse_clean(
    content: bytes, filled: Sequence[bytes], layout: RatingsFormat
) -> ParsedRatings | None:
    """The ratings if every single line is in order, else None."""
    names = dict(zip(layout.columns, layout.names, strict=True))
    names.pop("", None)
    try:
        first = json.loads(filled[0]) if filled else None
        fields = _schema_of(first, names, layout.text)
        if fields is None or max(map(len, filled)) >= ROW_BYTES:
            return None
        table = pajson.read_json(
            pa.BufferReader(content),
            pajson.ReadOptions(use_threads=False, block_size=4 << 20),
            pajson.ParseOptions(explicit_schema=fields, unexpected_field_behavior="ignore"),
        )
    except (ValueError, RecursionError):  # pa.ArrowInvalid is a ValueError
        return None
    if len(table) != len(filled):
        return None
    columns = {role: column_of(table, name) for role, name in names.items()}
    result = parse_table(columns | layout.constant_fields(len(table)), layout)
    return None if len(result.rejected) else result


def _schema_of(record: Any, names: Mapping[str, str], text: frozenset[str]) -> pa.Schema | None:
    """The types of some fields of an object, by which pyarrow reads the others; None if unclear.

    Text ids that are written as 7.10 are unclear: as a float that is 7.1.
    """
    tree: dict[str, Any] = {}
    for role, name in names.items():
        kind = _KINDS.get(type(_value_of(record, name))) if isinstance(record, dict) else None
        if kind is None or (role in text and kind == pa.float64()):
            return None
        path = [name] if name in record else name.split(".")
        inner = tree
        for part in path[:-1]:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                return None
        inner[path[-1]] = kind
    return pa.schema(_fields_of(tree))


_KINDS = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


def _fields_of(tree: dict[str, Any]) -> list[pa.Field]:
    return [
        pa.field(name, pa.struct(_fields_of(kind)) if isinstance(kind, dict) else kind)
        for name, kind in tree.items()
    ]


def _record_of(line: bytes) -> Any:
    """What a line holds: an object, None for a blank line, else the reason why it is no object."""
    if not line.strip():
        return None
    if len(line) >= ROW_BYTES:
        return LONG_ROW
    try:
        text = line.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        return "not UTF-8"
    try:
        value = _NO_NUMBERS.decode(text)
    except (ValueError, RecursionError):
        value = _python_dict(text)
    return value if isinstance(value, dict) else "not a JSON object"


def _python_dict(text: str) -> Any:
    """Python's way to print a dict, which some well-known data sets have in place of JSON."""
    if not text.startswith(("{'", "{u'")):
        return None
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None


def _parse_records(
    records: Sequence[Any],
    shown: Callable[[int], bytes],
    starts: NDArray[np.int64],
    layout: RatingsFormat,
) -> ParsedRatings:
    """Check objects one by one.

    Args:
        records: What each line holds, see _record_of.
        shown: Gives the line of a record.
        starts: (R,) bytes at which the lines begin.
        layout: Which fields mean what, and the limits of their values.
    """
    reason = np.array([r if isinstance(r, str) else "" for r in records], dtype=object)
    blank = np.array([r is None for r in records], dtype=bool)
    names = dict(zip(layout.columns, layout.names, strict=True))
    names.pop("", None)
    texts: dict[str, list[str]] = {role: [] for role in names}
    usable = []
    for place in np.flatnonzero((reason == "") & ~blank).tolist():
        fields = {role: _text_of(role, _value_of(records[place], n)) for role, n in names.items()}
        wrong = next((r for r, text in fields.items() if text is None and r != "timestamp"), None)
        if wrong is not None:
            reason[place] = f"{wrong.removeprefix('raw_')} is a list or an object"
            continue
        usable.append(place)
        for role, text in fields.items():
            texts[role].append(text or "")
    columns = {role: _column(role, values, layout) for role, values in texts.items()}
    columns |= layout.constant_fields(len(usable))
    table, reason[usable] = check_fields(columns, layout)
    bad = np.flatnonzero(reason != "")
    lines = pa.array(
        [shown(n)[:4000].decode("utf-8", "replace").strip() for n in bad.tolist()], pa.string()
    )
    rejected = rejected_rows(bad, starts[bad], lines, reason[bad])
    return ParsedRatings(table, rejected, len(records), int(len(records) - blank.sum()))


def _text_of(role: str, value: Any) -> str | None:
    """A field as text, "" where it is not there; None for what is no single value."""
    if isinstance(value, dict | list | tuple | set):
        return None
    if isinstance(value, bool):
        return str(int(value)) if role == "rating" else str(value).lower()
    text = "" if value is None else str(value)
    # A half of a pair of UTF-16 is no letter; it stays as it is escaped, so that ids stay apart.
    return text.encode("utf-8", "backslashreplace").decode()


def _column(role: str, values: list[str], layout: RatingsFormat) -> pa.Array:
    column = pa.array(values, pa.string())
    return column if role in layout.text else pc.utf8_trim(column, PADDING)


# ------------------------------------------------------------------------------- documents


def parsed_document(file: RatingsFile) -> Iterator[ParsedRatings]:
    """Parse an array of objects, or objects that go over many lines; an object counts as a line.

    Raises:
        RecrayError: It is no JSON from some object on.
    """
    encoding = "utf-8" if file.encoding in WIDE else file.encoding
    with open_bytes(file.path, file.member, file.packing, file.encoding) as stream:
        decoder = codecs.getincrementaldecoder(encoding)("replace")
        blocks = iter(lambda: stream.read(BLOCK_BYTES), b"")
        values = _decoded(map(decoder.decode, blocks), file.name)
        while records := list(itertools.islice(values, CHUNK_RECORDS)):
            objects = [r if isinstance(r, dict) else "not a JSON object" for r in records]
            starts = np.zeros(len(records), np.int64)
            shown = partial(_shown, records)
            yield _parse_records(objects, shown, starts, file.layout)


def _shown(records: Sequence[Any], place: int) -> bytes:
    return json.dumps(records[place], ensure_ascii=False).encode("utf-8", "replace")


def _decoded(texts: Iterator[str], file: str, at_end: bool = True) -> Iterator[Any]:
    """The values of an array, or values one after the other.

    Args:
        texts: Blocks of the document.
        file: Its name.
        at_end: Whether the last block ends the document; else what is cut off there is no fault.

    Raises:
        RecrayError: There is something that is no JSON, or the document is cut off.
    """
    text, place, count, is_array = next(texts, "").removeprefix("\ufeff").lstrip(), 0, 0, False
    if text.startswith("["):
        is_array, place = True, 1
    while True:
        place = _skip(text, place)
        try:
            if is_array and text[place : place + 1] == "]" and not text[place + 1 :].strip():
                return
            value, end = _NO_NUMBERS.raw_decode(text, place)
        except (ValueError, RecursionError):
            more = next(texts, "")
            text, place = text[place:] + more, 0
            if more and len(text) < RECORD_CHARACTERS:
                continue
            if at_end and (text.strip() or is_array):
                raise RecrayError(
                    f"{file} is damaged JSON after object {count:,}, or an object is longer than "
                    f"{RECORD_CHARACTERS >> 20} million characters"
                ) from None
            return
        count, place = count + 1, end
        yield value


def _skip(text: str, place: int) -> int:
    """The next place with something else than blanks and commas."""
    while place < len(text) and text[place] in " \t\r\n,":
        place += 1
    return place
