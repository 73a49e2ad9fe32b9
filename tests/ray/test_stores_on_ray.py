"""Sources and outputs in an S3 store: moto's server on loopback."""

import io
import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recray.config import load_settings
from recray.data import ingest, sample, scan, source
from recray.data.dataset import Prepared


@pytest.fixture
def in_process(monkeypatch):
    """Runs the maps of ingest here: the session's workers have another environment."""
    for module in (ingest, scan):
        monkeypatch.setattr(
            module,
            "map_tasks",
            lambda task, count, **shared: [task(n, **shared) for n in range(count)],
        )


@pytest.mark.usefixtures("ray_session", "in_process")
def test_a_folder_in_a_bucket_becomes_a_data_set_in_a_bucket(s3):
    for name, content in sample.files().items():
        s3.put_object(Bucket="data", Key=f"raw/own/{name}", Body=content)
    given = source.detect_source("s3://data/raw/own")
    assert given.name == "own"
    settings = load_settings()
    ingest.prepare(given, "s3://data/out/p", settings)
    made = Prepared.open("s3://data/out/p", verify=True)
    rows = sample.files()["ratings.csv"].count(b"\n") - 1
    assert made.manifest["counts"]["ratings"] == rows
    assert len(made.item_table) == made.items + made.manifest["counts"]["unseen_items"]
    assert not [n for n in made.folder.files() if n.startswith(ingest.SPILL)]


@pytest.mark.usefixtures("ray_session", "in_process")
def test_a_parquet_file_in_a_bucket_is_a_source(s3, tmp_path):
    out = io.BytesIO()
    columns = {"user": [f"u{n % 9}" for n in range(200)], "item": list(range(200))}
    pq.write_table(pa.table(columns), out, row_group_size=50)
    s3.put_object(Bucket="data", Key="own.parquet", Body=out.getvalue())
    given = source.detect_source("s3://data/own.parquet")
    assert (len(given.ranges), given.implicit, given.text) == (4, True, {"raw_user"})
    made = ingest.prepare(given, str(tmp_path / "p"), load_settings())
    assert made.manifest["counts"]["ratings"] == 200


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_job_ends_well_where_every_tenth_request_fails(proxy):
    words = ["pipeline", "sample", "--out", "s3://data/release", "--workers", "2", "--json"]
    words += ["--set", "train.epochs=3"]
    proxy.fail_share = 0.1
    with proxy.watch() as traffic:
        done = subprocess.run(
            [sys.executable, "-m", "recray", *words], capture_output=True, text=True, timeout=560
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["promoted"]
        assert traffic.failed() > 20
        made = Prepared.open("s3://data/release/prepared", verify=True)
        assert made.users == 600
