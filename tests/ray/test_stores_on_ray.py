"""Sources and outputs in an S3 store: moto's server on loopback."""

import io
import json
import re
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recray.benchmarks.faulty_store import faulty_store
from recray.benchmarks.harness import start_recray
from recray.benchmarks.store import FULL
from recray.benchmarks.store_alone import Lab
from recray.config import load_settings
from recray.data import ingest, sample, source
from recray.data.dataset import Prepared
from recray.errors import StorageError
from recray.storage import files
from tests.in_process import InProcess
from tests.ray.several_nodes import wait_for


@pytest.fixture
def in_process(monkeypatch):
    """Runs the maps of ingest here: the session's workers have another environment."""
    monkeypatch.setattr(ingest, "TaskRunner", InProcess)


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


# --------------------------------------------------------------------- stores that fail on the way


def ended(running: subprocess.Popen) -> tuple[int, str]:
    """Its exit code, and what it said."""
    _, errors = running.communicate(timeout=560)
    return running.returncode, errors


def well(*words: object) -> str:
    """Run a command that ends well; what it said."""
    code, errors = ended(start_recray(*words))
    assert code == 0, errors
    return errors


def prepared_here(path: str) -> Prepared:
    """The sample, prepared in this process."""
    return ingest.prepare(source.detect_source("sample"), path, load_settings())


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("ray_session", "in_process")
def test_a_store_that_dies_in_mid_prepare_is_one_line_and_the_next_run_ends_well(proxy, tmp_path):
    out = "s3://data/dies"
    with proxy.watch() as traffic:
        running = start_recray("prepare", "sample", "--out", out)
        wait_for(lambda: traffic.count("PUT", below="data/dies/generation-"), pause=0.05)
        proxy.health = "closed"
    code, errors = ended(running)
    proxy.health = "up"
    assert code == 3, errors
    assert re.match(
        rf"Error: cannot (read|write) {out}\S*: the store does not answer", said(errors)
    )
    assert "Traceback" not in errors
    well("prepare", "sample", "--out", out)
    made = Prepared.open(out, verify=True)
    assert made.manifest["files"] == prepared_here(str(tmp_path / "p")).manifest["files"]
    names = {entry["name"] for entry in made.manifest["files"]}
    assert set(made.folder.files()) == {*names, "manifest.json"}


def said(errors: str) -> str:
    return errors.splitlines()[-1]


@pytest.mark.usefixtures("ray_session")
def test_a_store_that_dies_leaves_the_version_of_before(proxy, monkeypatch):
    monkeypatch.setattr(files, "STORE_ATTEMPTS", 1)
    stages, deadly = [], []

    class Dying(InProcess):
        """Before some stages the store dies."""

        def begin(self):
            stages.append(len(stages) + 1)
            if stages[-1] in deadly:
                proxy.health = "closed"

        def map(self, *given, **shared):
            self.begin()
            return super().map(*given, **shared)

        def read(self, *given):
            self.begin()
            return super().read(*given)

        def write(self, *given, **shared):
            self.begin()
            return super().write(*given, **shared)

    monkeypatch.setattr(ingest, "TaskRunner", Dying)

    def prepare(seed: int) -> dict:
        settings = load_settings(None, None, [f"split.seed={seed}"])
        given = source.detect_source("sample")
        stages.clear()
        return ingest.prepare(given, "s3://data/kept", settings, replace=True).manifest

    before = prepare(seed=1)
    for number in (2, len(stages)):
        deadly[:] = [number]
        with pytest.raises(StorageError, match="the store does not answer"):
            prepare(seed=2)
        proxy.health = "up"
        assert Prepared.open("s3://data/kept", verify=True).manifest == before
    deadly.clear()
    after = prepare(seed=2)
    assert after["fingerprints"]["train"] != before["fingerprints"]["train"]
    folder = Prepared.open("s3://data/kept", verify=True).folder
    assert set(folder.files()) == {*(e["name"] for e in after["files"]), "manifest.json"}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_nothing_is_lost_in_a_store_that_is_slow_and_fails_now_and_then(tmp_path):
    figures, (row,) = faulty_store(Lab(FULL, None, tmp_path, print))
    assert figures == {"faulty_store_ok": 1.0}
    assert row.failed > 10
