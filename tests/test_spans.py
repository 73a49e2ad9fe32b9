"""Files of a store that are read a few bytes at a time: what is fetched, and what comes."""

import io
import zipfile

import numpy as np
import pytest

from recray.data.formats import archives
from recray.data.source import detect_source
from recray.storage import SpanReader, spans
from tests.counted_store import counted_store

CONTENT = np.random.default_rng(0).bytes(10_000)


class Counted(io.BytesIO):
    """A file that notes what it is asked for."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.asked: list[tuple[int, int]] = []

    def size(self) -> int:
        return len(self.getvalue())

    def read_at(self, count: int, begin: int) -> bytes:
        self.asked.append((begin, count))
        return self.getvalue()[begin : begin + count]


@pytest.fixture
def file(monkeypatch):
    monkeypatch.setattr(spans, "TAIL_BYTES", 500)
    monkeypatch.setattr(spans, "FIRST_SPAN_BYTES", 1000)
    monkeypatch.setattr(spans, "SPAN_BYTES", 4000)
    return Counted(CONTENT)


def test_the_end_comes_at_once_and_spans_grow_as_reading_goes_on(file):
    reader = SpanReader(file)
    assert reader.seek(-22, io.SEEK_END) == 9978
    assert reader.read(100) == CONTENT[-22:]
    assert reader.read(1) == b""
    reader.seek(-400, io.SEEK_END)
    assert reader.read(10) == CONTENT[-400:-390]
    assert file.asked == [(9500, 500)]
    reader.seek(0)
    while reader.tell() < 9000:
        at = reader.tell()
        assert reader.read(300) == CONTENT[at : at + 300]
    assert file.asked[1:] == [(0, 1000), (1000, 2000), (3000, 4000), (7000, 2500)]
    reader.seek(1500)
    assert reader.read() == CONTENT[1500:]
    assert len(file.asked) == 5, "what has been fetched is given again"


def test_no_span_goes_beyond_a_part_and_early_ones_are_dropped(file, monkeypatch):
    monkeypatch.setattr(spans, "KEPT_BYTES", 1200)
    reader = SpanReader(file)
    reader.divide([700, 0, 4000])
    for begin in (0, 700, 3900, 0):
        reader.seek(begin)
        assert reader.read(50) == CONTENT[begin : begin + 50]
    assert file.asked == [(0, 700), (700, 1000), (3900, 100), (0, 700)]


def test_a_file_that_has_become_shorter_is_an_error(file):
    reader = SpanReader(file)
    file.truncate(9700)
    reader.seek(9600)
    with pytest.raises(OSError, match="shorter"):
        reader.read(10)
    with pytest.raises(OSError, match="before the begin"):
        reader.seek(-1)


def test_each_file_of_an_archive_in_a_store_is_fetched_once_however_often_it_is_looked_at(
    monkeypatch,
):
    packed = io.BytesIO()
    rows = "".join(f"{n % 50 + 1},{n % 70 + 1},{n % 5 + 1},{n}\n" for n in range(3000))
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("own/ratings.csv", f"userId,movieId,rating,timestamp\n{rows}")
        archive.writestr("own/movies.csv", "movieId,title,genres\n1,Heat (1995),Crime\n")
        archive.writestr("own/other.bin", CONTENT * 30)  # nobody asks for it
    content = packed.getvalue()
    with counted_store(monkeypatch) as store:
        store.put("own.zip", content)
        found = detect_source("s3://data/own.zip")
        assert found.movies["title"].to_pylist() == ["Heat (1995)"]
        # Its first bytes, its end, and two files; the end has the second one.
        assert 3 <= store.taken().count("GET") - 1 <= 4
        with archives.keep_zip_open("s3://data/own.zip") as kept:
            with archives.open_zip("s3://data/own.zip") as again:
                assert again is kept
            assert kept.read("own/movies.csv").startswith(b"movieId")
        with pytest.raises(ValueError, match="closed"):
            kept.read("own/movies.csv")
