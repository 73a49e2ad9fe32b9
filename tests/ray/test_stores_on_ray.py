"""Sources and outputs in an S3 store: moto's server on loopback."""

import io

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer

from recray import cluster
from recray.config import load_settings
from recray.data import ingest, sample, source
from recray.data.prepared import Prepared


@pytest.fixture
def s3(monkeypatch):
    """A client of an empty bucket `data`; stores of recray find it by the environment."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="data")
    yield client
    server.stop()


@pytest.fixture
def in_process(monkeypatch):
    """Runs the maps of ingest here: the session's workers have another environment."""
    monkeypatch.setattr(cluster, "map_tasks", lambda task, count: [task(n) for n in range(count)])


@pytest.mark.usefixtures("ray_session", "in_process")
def test_a_folder_in_a_bucket_becomes_a_data_set_in_a_bucket(s3):
    for name, content in sample.files().items():
        s3.put_object(Bucket="data", Key=f"raw/own/{name}", Body=content)
    given = source.recognise("s3://data/raw/own")
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
    given = source.recognise("s3://data/own.parquet")
    assert (len(given.pieces), given.implicit, given.text) == (4, True, {"raw_user"})
    made = ingest.prepare(given, str(tmp_path / "p"), load_settings())
    assert made.manifest["counts"]["ratings"] == 200
