"""Streams: any packing and any encoding give the same lines, and no small file fills the memory."""

import bz2
import gzip
import io
import lzma
import pickle
import sqlite3
import zipfile

import numpy as np
import pyarrow as pa
import pytest

from recray import storage
from recray.data.formats import archives, streams
from recray.data.formats.content import encoding_of
from recray.data.formats.reading import parsed
from recray.data.source import detect_source
from recray.errors import RecrayError

from .conftest import rows_of

NAMES = ["Amélie", "Les Misérables", "À bout de souffle", "Château (½)", "Zoë €5"]
LINES = "user,item,rating\n" + "".join(f"{n % 7},{NAMES[n % 5]},{1 + n % 5}\n" for n in range(100))
ROWS = [(n % 7, NAMES[n % 5], 1.0 + n % 5, None) for n in range(100)]


def packed_by(codec):
    return lambda content: pa.compress(content, codec=codec, asbytes=True)


def in_zip(content, name="ratings.csv"):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return out.getvalue()


def in_lz4(content):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "lz4") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


PACKINGS = {
    "plain": lambda content: content,
    "gzip": gzip.compress,
    "gzip-joined": lambda content: gzip.compress(content[:99]) + gzip.compress(content[99:]),
    "bz2": bz2.compress,
    "bz2-joined": lambda content: bz2.compress(content[:99]) + bz2.compress(content[99:]),
    "xz": lzma.compress,
    "xz-joined": lambda c: lzma.compress(c[:99]) + b"\0" * 8 + lzma.compress(c[99:]) + b"\0" * 4,
    "lzma": lambda content: lzma.compress(content, lzma.FORMAT_ALONE),
    "zstd": packed_by("zstd"),
    "lz4": in_lz4,
    "zip": in_zip,
    "gzip-in-zip": lambda content: in_zip(gzip.compress(content), "ratings.csv.gz"),
}


def source_of(tmp_path, content, name="given"):
    path = tmp_path / name
    path.write_bytes(content)
    return detect_source(str(path))


@pytest.mark.parametrize("pack", PACKINGS.values(), ids=PACKINGS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "cp1252"])
def test_any_packing_and_encoding_gives_the_same_rows(tmp_path, pack, encoding):
    assert rows_of(source_of(tmp_path, pack(LINES.encode(encoding)))) == ROWS


@pytest.mark.parametrize("pack", PACKINGS.values(), ids=PACKINGS)
def test_all_that_is_opened_is_closed(tmp_path, monkeypatch, pack):
    opened = []

    def open_input(path):
        opened.append(storage.open_input(path))
        return opened[-1]

    for module in (archives, streams):
        monkeypatch.setattr(module, "open_input", open_input)
    found = source_of(tmp_path, pack(LINES.encode()))
    while_found = len(opened)
    rows_of(found)
    assert len(opened) > while_found > 0
    assert all(stream.closed for stream in opened)


@pytest.mark.parametrize(
    "read",
    [
        lambda stream: stream.readline(),
        lambda stream: stream.read(),
        lambda stream: stream.readinto(bytearray(8 << 20)),
        lambda stream: list(stream),
        lambda stream: [stream.read1(1 << 16) for _ in range(200)],
    ],
    ids=["readline", "read", "readinto", "lines", "read1"],
)
@pytest.mark.parametrize("packing", ["gzip", "bz2", "xz", "zstd", "lz4"])
def test_a_bomb_is_refused_whatever_asks_for_its_bytes(tmp_path, monkeypatch, packing, read):
    monkeypatch.setattr(archives, "MAX_UNPACKED_BYTES", 2 << 20)
    path = tmp_path / "bomb"
    path.write_bytes(PACKINGS[packing](bytes(8 << 20)))
    with (
        streams.open_bytes(str(path), packing=packing) as stream,
        pytest.raises(RecrayError, match=r"bomb would unpack to [23],\d+,\d+ bytes; at most"),
    ):
        read(stream)


def test_letters_beyond_ascii_far_from_the_head_are_seen(tmp_path):
    lines = b"user,item\n" + b"1,x\n" * 100_000 + "2,Zoë\n".encode("cp1252") * 9_000
    assert rows_of(source_of(tmp_path, lines))[-1][1] == "Zoë"


def test_a_broken_letter_of_utf8_costs_its_line_only(tmp_path):
    lines = LINES.encode() + b"7,\xff,3\n"
    (piece,) = source_of(tmp_path, lines).ranges
    ((_, part),) = parsed(piece)
    assert len(part.table) == 100
    assert part.rejected["reason"].to_pylist() == ["not UTF-8"]


def test_half_a_character_of_utf16_costs_its_line_only(tmp_path):
    lines = LINES.encode("utf-16") + "7,x,3\n8,".encode("utf-16-le") + b"\x40"
    (piece,) = source_of(tmp_path, lines).ranges
    ((_, part),) = parsed(piece)
    assert len(part.table) == 101
    assert len(part.rejected) == 1


@pytest.mark.parametrize(
    ("encoding", "names"),
    [
        ("utf-8", ["Сталкер", "Зеркало"]),
        ("cp1251", ["Сталкер", "Солярис", "Иваново детство", "Зеркало"]),
        ("cp932", ["七人の侍", "千と千尋の神隠し", "東京物語"]),
        ("gb18030", ["霸王别姬", "卧虎藏龙", "活着"]),
        ("cp1252", ["Die Brücke", "Große Freiheit", "El laberinto del fauno, niños"]),
    ],
)
def test_alphabets_are_told_apart(encoding, names):
    lines = "user;item\n" + "".join(f"{n};{names[n % len(names)]}\n" for n in range(200))
    assert encoding_of([lines.encode(encoding)]) == encoding


# ------------------------------------------------------------------------- kinds that are named


def sqlite(tmp_path):
    with sqlite3.connect(tmp_path / "made") as database:
        database.execute("create table r (user int, item int)")
    database.close()
    return (tmp_path / "made").read_bytes()


def npy():
    out = io.BytesIO()
    np.save(out, np.zeros((3, 3)))
    return out.getvalue()


FOREIGN = {
    "xlsx": (in_zip(b"<xml/>", "xl/workbook.xml"), "an Excel file; save it as csv"),
    "xls": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500), r"an Excel file \(xls\)"),
    "ods": (in_zip(b"<xml/>", "content.xml"), "an OpenDocument file"),
    "pickle": (pickle.dumps({"user": [1], "item": [2]}), "a pickle; reading it may run code"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(500), "an HDF5 file; use pandas.read_hdf"),
    "avro": (b"Obj\x01\x04\x16avro.schema" + bytes(90), "an Avro file"),
    "rds": (gzip.compress(b"X\n\x00\x00\x00\x03" + bytes(90)), r"an R file \(rds\); use write.csv"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + bytes(90), "a 7z archive; unpack it"),
    "rar": (b"Rar!\x1a\x07\x01\x00" + bytes(90), "a rar archive"),
    "tar": (gzip.compress(b"ratings.csv".ljust(257, b"\0") + b"ustar"), "a tar archive"),
    "npy": (npy(), "a NumPy file"),
    "html": (b"<!DOCTYPE html><html>404", "a web page or XML; was the download refused"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\n", "run git lfs pull"),
    "ebcdic": (LINES.encode("cp500", "ignore"), "a binary file of a kind that is not known"),
    "old-mac": (b"user,item\r1,2\r3,4\r", "lines that end with CR alone"),
    "xlsx-in-zip": (in_zip(in_zip(b"<xml/>", "xl/workbook.xml"), "a.xlsx"), "an Excel file"),
    "zip-in-zip": (in_zip(in_zip(LINES), "a.zip"), "a.zip is packed twice"),
    "noise": (np.random.default_rng(0).bytes(5000), "a binary file of a kind that is not known"),
}


@pytest.mark.parametrize(("content", "message"), FOREIGN.values(), ids=FOREIGN)
def test_a_kind_that_is_not_read_is_named(tmp_path, content, message):
    with pytest.raises(RecrayError, match=message) as raised:
        source_of(tmp_path, content)
    assert str(raised.value).isprintable()


def test_sqlite_is_named(tmp_path):
    with pytest.raises(RecrayError, match="looks like an SQLite database; export the table"):
        source_of(tmp_path, sqlite(tmp_path))


# ---------------------------------------------------------------------------------- folders


def test_a_folder_of_kinds_that_are_not_read_names_them(tmp_path):
    (tmp_path / "ratings.xlsx").write_bytes(FOREIGN["xlsx"][0])
    (tmp_path / "old.xls").write_bytes(FOREIGN["xls"][0])
    (tmp_path / "ratings.pkl").write_bytes(FOREIGN["pickle"][0])
    with pytest.raises(
        RecrayError, match=r"old\.xls looks like an Excel .* a pickle.*ratings.xlsx looks"
    ):
        detect_source(str(tmp_path))


def test_a_delta_table_is_named(tmp_path):
    (tmp_path / "_delta_log").mkdir()
    (tmp_path / "_delta_log" / "0.json").write_text("{}")
    (tmp_path / "part-0.csv").write_bytes(LINES.encode())
    with pytest.raises(RecrayError, match="looks like a Delta table"):
        detect_source(str(tmp_path))


def test_what_programs_keep_for_themselves_is_left_out(tmp_path):
    for name in ("__MACOSX/._a.csv", ".cache/b.csv", "_temporary/c.csv", "_SUCCESS"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"\0\5\x16\7junk")
    (tmp_path / "part-00000").write_bytes(LINES.encode())
    (tmp_path / "part-00001.gz").write_bytes(gzip.compress(LINES.encode()))
    assert rows_of(detect_source(str(tmp_path))) == ROWS * 2
