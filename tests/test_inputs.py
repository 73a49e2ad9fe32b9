"""Sources in a store that fails: read again what fails in passing, else told with the reason."""

import gzip
import io
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recray.benchmarks.counting_proxy import Refusal
from recray.data.source import detect_source
from recray.errors import StorageError
from recray.storage import files, open_input
from tests.conftest import rows_of

BUSY = Refusal(503, "SlowDown", "Please reduce your request rate.")
ROWS = [(n % 40, n % 30, 1.0 + n % 5, 1_400_000_000 + n) for n in range(400)]
CSV = ("user,item,rating,time\n" + "".join(f"{u},{i},{r},{t}\n" for u, i, r, t in ROWS)).encode()


def zipped() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("own/ratings.csv", CSV)
    return out.getvalue()


def parquet() -> bytes:
    out = io.BytesIO()
    columns = map(list, zip(*ROWS, strict=True))
    names = ("user", "item", "rating", "time")
    pq.write_table(pa.table(dict(zip(names, columns, strict=True))), out)
    return out.getvalue()


SOURCES = {"a.csv": CSV, "a.csv.gz": gzip.compress(CSV), "a.zip": zipped(), "a.parquet": parquet()}


@pytest.fixture
def refused(proxy, monkeypatch):
    """The reads that the store refuses, as numbers from 0 on; None refuses none."""
    monkeypatch.setattr(files, "STORE_RETRY_SECONDS", 0.001)
    numbers, begun = [None], []

    def verdict(kind):
        if kind == "GET" and numbers[0] is not None:
            begun.append(kind)
            return BUSY if len(begun) - 1 in numbers[0] else None
        return None

    monkeypatch.setattr(proxy, "verdict", verdict)
    return numbers


@pytest.mark.parametrize("name", SOURCES)
def test_what_fails_in_passing_is_read_again(refused, s3, name):
    s3.put_object(Bucket="data", Key=name, Body=SOURCES[name])
    refused[0] = range(0, 10_000, 2)
    assert len(rows_of(detect_source(f"s3://data/{name}"))) == len(ROWS)


@pytest.mark.parametrize("name", SOURCES)
def test_a_store_that_goes_on_to_fail_is_one_line_with_its_reason(refused, s3, monkeypatch, name):
    s3.put_object(Bucket="data", Key=name, Body=SOURCES[name])
    monkeypatch.setattr(files, "STORE_ATTEMPTS", 1)
    given = detect_source(f"s3://data/{name}")
    refused[0] = range(10_000)
    for read in (lambda: rows_of(given), lambda: detect_source(f"s3://data/{name}")):
        with pytest.raises(StorageError, match=rf"^cannot read s3://data/{name}: [A-Z_]+: "):
            read()


def test_any_part_of_a_file_is_read(refused, s3):
    s3.put_object(Bucket="data", Key="x", Body=bytes(range(100)))
    with open_input("s3://data/x") as file:
        assert file.size() == 100
        assert file.read_at(5, 97) == bytes([97, 98, 99])
        file.seek(10)
        assert file.read(2) == bytes([10, 11])
        assert file.tell() == 12
        assert file.read() == bytes(range(12, 100))
        assert file.read(5) == b""
