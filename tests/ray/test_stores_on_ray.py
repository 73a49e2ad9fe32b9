"""Sources and outputs in an S3 store: moto's server on loopback."""

import http.client
import io
import json
import random
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recray.config import load_settings
from recray.data import ingest, sample, scan, source
from recray.data.dataset import Prepared
from tests.s3_store import s3_store


@pytest.fixture
def s3(monkeypatch):
    """A client of an empty bucket `data`; stores of recray find it by the environment."""
    with s3_store(monkeypatch) as client:
        yield client


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


class _Unreliable(BaseHTTPRequestHandler):
    """Hands requests on to the store, but for every fifth that writes, by lot."""

    protocol_version = "HTTP/1.1"
    store: tuple[str, int]
    lot, lock = random.Random(0), threading.Lock()
    failed = 0

    def handle_any(self):
        body = self._body()
        if self.command != "GET" and self.command != "HEAD" and self._unlucky():
            self._reply(500, {}, b"<Error><Code>InternalError</Code></Error>")
            return
        connection = http.client.HTTPConnection(*self.store, timeout=60)
        headers = {k: v for k, v in self.headers.items() if k.lower() != "transfer-encoding"}
        connection.request(self.command, self.path, body, headers)
        reply = connection.getresponse()
        kept = {k: v for k, v in reply.getheaders() if k.lower() not in ("connection", "server")}
        self._reply(reply.status, kept, reply.read())
        connection.close()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any

    def _unlucky(self) -> bool:
        with self.lock:
            unlucky = self.lot.random() < 0.2
            type(self).failed += unlucky
            return unlucky

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding"):
                self.send_header(name, value)
        length = headers.get("Content-Length") if self.command == "HEAD" else None
        self.send_header("Content-Length", length or str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_arguments):
        pass


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_job_ends_well_where_every_fifth_write_fails(s3, monkeypatch):
    host, _, port = s3.meta.endpoint_url.removeprefix("http://").partition(":")
    _Unreliable.store = host, int(port)
    between = ThreadingHTTPServer(("127.0.0.1", 0), _Unreliable)
    threading.Thread(target=between.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{between.server_port}")
    words = ["pipeline", "sample", "--out", "s3://data/release", "--workers", "2", "--json"]
    words += ["--set", "train.epochs=3"]
    done = subprocess.run(
        [sys.executable, "-m", "recray", *words], capture_output=True, text=True, timeout=560
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["promoted"]
    assert _Unreliable.failed > 20
    made = Prepared.open("s3://data/release/prepared", verify=True)
    assert made.users == 600
    between.shutdown()
    between.server_close()
