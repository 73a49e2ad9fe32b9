"""Sources: recognised by what is in them, and read piece by piece."""

import gzip
import io
import zipfile

import pyarrow.parquet as pq
import pytest
from pyarrow import csv

from recray import storage
from recray.data import movielens, sample, source
from recray.data.formats import archives, columnar, reading, streams, text
from recray.data.formats import content as content_module
from recray.data.formats.text import chunks
from recray.data.source import detect_source
from recray.errors import RecrayError

RATINGS_CSV = b"userId,movieId,rating,timestamp\n1,20,3.0,400\n5,6,4.5,0\n"
MOVIES_CSV = b"movieId,title,genres\n6,Heat (1995),Crime\n"
RATINGS = [(1, 20, 3.0, 400), (5, 6, 4.5, 0)]
FLAGS = "|".join(["0"] * 19)

RELEASES = {
    "csv": {"ratings.csv": RATINGS_CSV, "movies.csv": MOVIES_CSV, "tags.csv": b"x\n"},
    "1m": {
        "ratings.dat": b"1::20::3::400\n5::6::4.5::0\n",
        "movies.dat": b"6::Heat (1995)::Crime\n",
    },
    "100k": {
        "u.data": b"1\t20\t3\t400\n5\t6\t4.5\t0\n",
        "u.item": f"6|Heat (1995)||||{FLAGS}\n".encode(),
    },
}


def zipped(files, method=zipfile.ZIP_DEFLATED):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


def read(found):
    """All accepted rows of a source, and the number of rejected ones."""
    rows, bad = [], 0
    for piece in found.ranges:
        for _, parsed in reading.parsed(piece):
            rows += [tuple(row.values()) for row in parsed.table.to_pylist()]
            bad += len(parsed.rejected)
    return rows, bad


@pytest.mark.parametrize(
    "name", ["ratings.csv", "ratings.csv.gz", "ratings.zip", "ratings.parquet"]
)
def test_every_file_that_is_opened_is_closed(tmp_path, monkeypatch, name):
    opened = []

    def open_input(path):
        opened.append(storage.open_input(path))
        return opened[-1]

    for module in (archives, columnar, content_module, streams, text, source):
        monkeypatch.setattr(module, "open_input", open_input)
    path = tmp_path / name
    if name.endswith("parquet"):
        table = csv.read_csv(io.BytesIO(RATINGS_CSV))
        pq.write_table(table, path)
    else:
        packed = {".gz": gzip.compress(RATINGS_CSV), ".zip": zipped({"ratings.csv": RATINGS_CSV})}
        path.write_bytes(packed.get(path.suffix, RATINGS_CSV))
    found = detect_source(str(path))
    while_found = len(opened)
    read(found)
    assert len(opened) > while_found > 0
    assert all(stream.closed for stream in opened)


def titles(found):
    return found.movies["title"].to_pylist()


@pytest.mark.parametrize("files", RELEASES.values(), ids=RELEASES)
@pytest.mark.parametrize("shape", ["zip", "folder", "folder-inside"])
def test_a_release_is_recognised_packed_or_unpacked(tmp_path, files, shape):
    if shape == "zip":
        given = tmp_path / "mine.anything"
        given.write_bytes(zipped({f"ml/{name}": content for name, content in files.items()}))
    else:
        given = tmp_path / "mine"
        inside = given / "ml" if shape == "folder-inside" else given
        inside.mkdir(parents=True)
        for name, content in files.items():
            (inside / name).write_bytes(content)
    found = detect_source(str(given))
    assert found.name == "mine"
    assert read(found) == (RATINGS, 0)
    assert titles(found) == ["Heat (1995)"]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
def test_the_letters_of_a_list_are_told_whatever_it_is_packed_in(tmp_path, encoding):
    films = f"6|Misérables (1995)||||{FLAGS}\n".encode(encoding)
    files = {"u.data": RELEASES["100k"]["u.data"], "u.item": films}
    (tmp_path / "x.zip").write_bytes(zipped(files))
    assert titles(detect_source(str(tmp_path / "x.zip"))) == ["Misérables (1995)"]


def test_a_lone_csv_is_recognised_by_its_header(tmp_path):
    file = tmp_path / "plays.txt"
    file.write_bytes(b"\xef\xbb\xbfitem;user\n20;1\n6;5\n")
    found = detect_source(str(file))
    assert found.implicit
    assert read(found) == ([(1, 20, 1.0, None), (5, 6, 1.0, None)], 0)
    assert titles(found) == []


def test_the_sample_needs_no_file():
    found = detect_source("sample")
    rows, bad = read(found)
    assert len(rows) == sample.files()["ratings.csv"].count(b"\n") - 1
    assert bad == 0
    assert len(titles(found)) == sample.ITEMS


def test_the_ratings_nearest_to_the_top_of_an_archive_are_taken(tmp_path):
    file = tmp_path / "two.zip"
    file.write_bytes(
        zipped({"a/old/ratings.csv": b"user,item\n9,9\n", "b/ratings.csv": RATINGS_CSV})
    )
    assert read(detect_source(str(file))) == (RATINGS, 0)


def test_identity_follows_the_content_of_an_archive(tmp_path):
    identities = []
    for name, rating in [("a", b"3"), ("b", b"3"), ("c", b"4")]:
        file = tmp_path / f"{name}.zip"
        file.write_bytes(zipped({"ratings.csv": b"user,item,rating\n1,2," + rating + b"\n"}))
        identities.append(detect_source(str(file)).identity)
    assert identities[0] == identities[1] != identities[2]


# -------------------------------------------------------------------------------------- pieces

LINES = [
    b"1,20,3.0,400\n",
    b"\n",
    b"5,6,4.5,0\r\n",
    b"not a row, but a line much longer than the others\n",
    *[f"{n},{n * n},2.5,{n}\n".encode() for n in range(10, 20)],
    b"7,8,1,2",
]


@pytest.mark.parametrize("range_bytes", [1, 2, 13, 14, 40, 1000])
@pytest.mark.parametrize("chunk_bytes", [1, 13, 50, 1000])
@pytest.mark.parametrize("packed", [False, True])
def test_pieces_hold_every_line_once_at_the_byte_it_begins(
    tmp_path, monkeypatch, range_bytes, chunk_bytes, packed
):
    monkeypatch.setattr(text, "RANGE_BYTES", range_bytes)
    monkeypatch.setattr(text, "CHUNK_BYTES", chunk_bytes)
    header, body = b"userId,movieId,rating,timestamp\r\n", b"".join(LINES)
    file = tmp_path / "ratings.csv"
    file.write_bytes(zipped({"ratings.csv": header + body}) if packed else header + body)
    found = detect_source(str(file))
    assert len(found.ranges) == (1 if packed else -(-len(body) // range_bytes))
    position = len(header)
    for piece in found.ranges:
        for span, content in chunks(piece):
            assert span == range(position, position + len(content))
            assert (header + body)[position:].startswith(content)
            assert content.endswith(b"\n") or span.stop in (position, len(header + body))
            assert len(content) < chunk_bytes + max(map(len, LINES))
            position += len(content)
    assert position == len(header + body)
    rows, bad = read(found)
    assert rows[:2] == [(1, 20, 3.0, 400), (5, 6, 4.5, 0)]
    assert rows[2:] == [(n, n * n, 2.5, n) for n in range(10, 20)] + [(7, 8, 1.0, 2)]
    assert bad == 1


def test_a_file_without_a_header_loses_no_first_line_to_its_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "RANGE_BYTES", 5)
    (tmp_path / "u.data").write_bytes(RELEASES["100k"]["u.data"])
    found = detect_source(str(tmp_path / "u.data"))
    assert len(found.ranges) > 1
    assert read(found) == (RATINGS, 0)


# -------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("ml-1n", "unknown source 'ml-1n': did you mean 'ml-1m'"),
        ("sampel", "did you mean 'sample'"),
        ("./ml-1m", "no such file or folder: ./ml-1m"),
        ("ml-1m.zip", "no such file or folder: ml-1m.zip"),
    ],
)
def test_a_wrong_name_tells_the_nearest(tmp_path, monkeypatch, given, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecrayError, match=message):
        detect_source(given)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", b"", "is empty"),
        ("x.csv", b"user,item\n", "is empty: it has no ratings"),
        ("x.csv", b"user,item", "is empty: it has no ratings"),
        ("x.csv", b"who,item\n1,2\n", "has no user column: its columns are who, item"),
        ("x.csv", b"user,rating\n1,2\n", "has no item column"),
        ("x.csv", b"1,2,3,4\n", "has no user column"),
        ("x.zip", zipped({"readme.txt": b"hello"}), "holds no ratings"),
        ("x.zip", zipped({"ratings.csv": b"who,item\n1,2\n"}), "has no user column"),
        ("x.zip", zipped({"ratings.csv": RATINGS_CSV})[:-30], "is a damaged zip archive"),
        ("x.zip", b"PK\x03\x04" + b"junk" * 20, "is a damaged zip archive"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_a_file_without_ratings_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RecrayError, match=message):
        detect_source(str(tmp_path / name))


def test_a_folder_without_ratings_is_refused(tmp_path):
    with pytest.raises(RecrayError, match=r"holds no ratings: expected u.data"):
        detect_source(str(tmp_path))


def test_a_list_that_cannot_be_read_is_reported_and_stops_nothing(tmp_path):
    (tmp_path / "ratings.csv").write_bytes(RATINGS_CSV)
    (tmp_path / "movies.csv").write_bytes(b"movieId,title,genres\nsix,Heat,Crime\n")
    (tmp_path / "links.csv").write_bytes(b"nothing")
    found = detect_source(str(tmp_path))
    assert read(found) == (RATINGS, 0)
    (report,) = found.lists.reports
    assert (report.used, report.rejected) == (0, {"item is not a number": 1})


def test_a_flipped_byte_in_an_archive_is_noticed_when_the_rows_are_read(tmp_path):
    content = bytearray(zipped({"u.data": b"1\t2\t3\t4\n"}, zipfile.ZIP_STORED))
    content[content.index(b"1\t2")] = ord("9")
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(RecrayError, match=r"x.zip is a damaged archive: Bad CRC-32"):
        read(detect_source(str(tmp_path / "x.zip")))


def test_an_encrypted_archive_is_refused(tmp_path):
    content = bytearray(zipped({"ratings.csv": RATINGS_CSV}))
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + flags] |= 1
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(RecrayError, match=r"x.zip is encrypted"):
        detect_source(str(tmp_path / "x.zip"))


def test_an_archive_that_unpacks_to_an_absurd_size_is_refused(tmp_path):
    content = zipped({"ratings.csv": RATINGS_CSV})
    begin = content.index(b"PK\x01\x02") + 24  # the unpacked size in the archive's directory
    for size, refused in ((100 << 20, False), ((100 << 20) + 1, True)):
        claimed = content[:begin] + size.to_bytes(4, "little") + content[begin + 4 :]
        (tmp_path / "x.zip").write_bytes(claimed)
        if refused:
            with pytest.raises(RecrayError, match="would unpack to 104,857,601 bytes"):
                detect_source(str(tmp_path / "x.zip"))
        else:
            detect_source(str(tmp_path / "x.zip"))


def test_a_release_comes_from_the_catalog(tmp_path, monkeypatch):
    (tmp_path / "got.zip").write_bytes(zipped(RELEASES["1m"]))
    asked = []

    def fetch(name, mirror):
        asked.append((name, mirror))
        return tmp_path / "got.zip"

    monkeypatch.setattr(movielens, "fetch", fetch)
    found = detect_source("ml-1m", mirror="/mirror")
    assert asked == [("ml-1m", "/mirror")]
    assert found.name == "ml-1m"
    assert read(found) == (RATINGS, 0)


@pytest.mark.parametrize("size", [2, 10, 21])
def test_a_zip_cut_to_a_few_bytes_is_one_line(tmp_path, size):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("ratings.csv", "user,item\n1,2\n")
    (tmp_path / "x.zip").write_bytes(out.getvalue()[:size])
    with pytest.raises(RecrayError, match="damaged zip archive"):
        detect_source(str(tmp_path / "x.zip"))


def test_a_zip_with_an_unknown_compression_is_one_line(tmp_path):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("ratings.csv", "user,item\n1,2\n")
    content = bytearray(out.getvalue())
    for signature, method in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        content[content.index(signature) + method] = 9  # Deflate64, as Windows writes large files
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(RecrayError):
        detect_source(str(tmp_path / "x.zip"))


def test_a_title_above_the_field_limit_of_csv_costs_its_row(tmp_path):
    (tmp_path / "ratings.csv").write_bytes(b"userId,movieId\n1,2\n")
    title = b'1,"' + b"x" * 140_000  # a quote that is never closed
    (tmp_path / "movies.csv").write_bytes(b"movieId,title,genres\n" + title + b"\n2,Heat,War\n")
    found = detect_source(str(tmp_path))
    assert titles(found) == ["Heat"]
    assert found.lists.reports[0].rejected == {"a quote is never closed": 1}


@pytest.mark.parametrize(
    "content", [b"1\t20\t3\t400\n5\t6\t4.5\t0\n", b"1::20::3::400\n5::6::4.5::0\n"]
)
def test_a_release_layout_is_recognised_under_any_name(tmp_path, content):
    (tmp_path / "mine.txt").write_bytes(content)
    assert read(detect_source(str(tmp_path / "mine.txt")))[0] == RATINGS


def test_the_identity_changes_with_the_films(tmp_path):
    for name, content in RELEASES["csv"].items():
        (tmp_path / name).write_bytes(content)
    before = detect_source(str(tmp_path)).identity
    (tmp_path / "movies.csv").write_bytes(MOVIES_CSV.replace(b"1995", b"1996"))
    assert detect_source(str(tmp_path)).identity != before
