"""What each stage asks of an object store: requests and bytes, as a proxy before one counts them.

The store is moto's, on this machine: what is counted does not depend on it, times do. What prepare
asks of it is told apart by what it grows with, which gives the reading for a billion ratings.
"""

import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from recray.benchmarks.counted_store import BUCKET, counted_store
from recray.benchmarks.counting_proxy import Proxy, Traffic
from recray.benchmarks.experiments import archive
from recray.benchmarks.faulty_store import faulty_store
from recray.benchmarks.harness import Figures, Measurement, Row
from recray.benchmarks.ingest import generate
from recray.benchmarks.store_alone import Lab, Sizes, driver_memory, gather_memory, serve_open
from recray.benchmarks.store_formula import Scale, of_a_billion
from recray.config import Settings, load_settings
from recray.data import ingest
from recray.data.dataset import Prepared
from recray.data.source import Source, detect_source
from recray.errors import unknown_name
from recray.inference.bundle import Bundle
from recray.pipelines.stages import Stages
from recray.progress import Log
from recray.runtime.session import session
from recray.storage import MANIFEST, Folder

T = TypeVar("T")
SMALL = "ml-100k"
SMALL_RATINGS, SMALL_EACH = 100_000, 106
"""Ratings of ml-100k, and of each of its users."""
EPOCHS = 3
WORKERS = 2


FULL = Sizes(
    SMALL_RATINGS, (5_000_000, 25_000_000), True, (1_400_000, 100_000, 10, 160),
    (5_000_000, 25_000_000), (8_000_000, 154, 2),
)  # fmt: skip
QUICK = Sizes(
    SMALL_RATINGS, (5_000_000,), False, (140_000, 10_000, 10, 160), (1_000_000,),
    (1_000_000, 154, 2),
)  # fmt: skip


class StageTraffic(Row):
    """What one stage asked of the store."""

    data: str
    stage: str
    requests: int
    get: int
    head: int
    put: int
    list: int
    delete: int
    multipart: int
    down_mb: float
    up_mb: float
    seconds: float


Measure = Callable[[Lab], tuple[Figures, Sequence[Row]]]


def run(sizes: Sizes, log: Log, data: str | None = None, only: str | None = None) -> Measurement:
    """Measure all figures, or those that are measured together with one.

    Args:
        sizes: How much is measured.
        log: Receives what happens, one line at a time.
        data: Folder with ml-100k.zip; None generates a set of that size.
        only: One figure; None for all.

    Raises:
        RecrayError: There is no such figure.
    """
    if only is not None and only not in (known := [name for names in MEASURES for name in names]):
        raise unknown_name("figure", only, known)
    figures: Figures = {}
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="recray-benchmark-") as folder:
        lab = Lab(sizes, data, Path(folder), log)
        for names, measure in MEASURES.items():
            if only is None or only in names:
                found, lines = measure(lab)
                figures |= found
                rows += lines
    return Measurement(figures, rows)


# ------------------------------------------------------------------------------------ stages


@dataclass
class _Stages:
    """Runs stages on one set, each watched.

    Args:
        data: Its name.
        proxy: What stands before the store.
        log: Receives what happens.
    """

    data: str
    proxy: Proxy
    log: Log
    rows: list[StageTraffic] = field(default_factory=list)

    @property
    def out(self) -> Folder:
        """Where the stages write."""
        return Folder(f"s3://{BUCKET}/{self.data}")

    def watched(self, stage: str, work: Callable[[], T]) -> tuple[T, Traffic]:
        """Run a stage, and note its row."""
        begin = time.perf_counter()
        with self.proxy.watch() as traffic:
            result = work()
        seconds = time.perf_counter() - begin
        self.rows.append(_row(self.data, stage, traffic, seconds))
        self.log(f"{self.data} {stage}: {len(traffic.requests):,} requests, {seconds:.1f} s")
        return result, traffic

    def prepare(self, path: Path) -> tuple[Source, Prepared, Traffic]:
        """Send a file to the store, which is not counted, and prepare it there."""
        raw = Folder(f"s3://{BUCKET}/raw")
        raw.write_bytes(path.name, path.read_bytes())
        settings = Settings()

        def work() -> tuple[Source, Prepared]:
            source = detect_source(f"{raw}/{path.name}", settings)
            return source, ingest.prepare(source, f"{self.out}/prepared", settings)

        (source, made), traffic = self.watched("prepare", work)
        return source, made, traffic

    def release(self, prepared: Prepared) -> tuple[Bundle, Traffic]:
        """Train, export, and open what was exported."""
        settings = load_settings("ranking", None, [f"train.epochs={EPOCHS}"])
        stages = Stages(self.out, settings, WORKERS, "local", lambda _line: None)
        run, _ = self.watched("train", lambda: stages.train(prepared))
        made, _ = self.watched("export", lambda: stages.export(run, prepared))
        return self.watched("open", lambda: Bundle.open(made.folder.path))


def _row(data: str, stage: str, traffic: Traffic, seconds: float) -> StageTraffic:
    return StageTraffic(
        data=data,
        stage=stage,
        requests=len(traffic.requests),
        get=traffic.count("GET"),
        head=traffic.count("HEAD"),
        put=traffic.count("PUT"),
        list=traffic.count("LIST"),
        delete=traffic.count("DELETE"),
        multipart=traffic.count("MULTIPART"),
        down_mb=round(traffic.down() / 1e6, 3),
        up_mb=round(traffic.up() / 1e6, 3),
        seconds=round(seconds, 1),
    )


def stage_traffic(lab: Lab) -> tuple[Figures, Sequence[Row]]:
    """Prepare, train, export and open the small set and the first large one; prepare the others."""
    figures: Figures = {}
    rows: list[Row] = []
    with counted_store() as proxy, session():
        small = _Stages(SMALL, proxy, lab.log)
        _, prepared, traffic = small.prepare(_small_set(lab))
        figures["prepare_requests_100k"] = len(traffic.requests)
        figures |= _opened(*small.release(prepared))
        rows += small.rows
        for place, ratings in enumerate(lab.sizes.large):
            path = generate(lab.folder, ratings, "csv")
            stages = _Stages(f"csv-{ratings}", proxy, lab.log)
            source, prepared, traffic = stages.prepare(path)
            name = f"prepare_down_over_source{f'_{ratings // 1_000_000}m' if place else ''}"
            figures[name] = round(traffic.down() / path.stat().st_size, 3)
            if lab.sizes.trained and not place:
                stages.release(prepared)
            rows += stages.rows
            scale = Scale(ratings, len(source.ranges), int(str(prepared.manifest["buckets"])))
            rows += of_a_billion(stages.data, traffic, scale)
    return figures, rows


def _opened(bundle: Bundle, traffic: Traffic) -> Figures:
    """What opening a bundle asked for."""
    listed = sum(entry.bytes for entry in bundle.manifest.files)
    size = listed + len(Folder(bundle.folder.path).read_buffer(MANIFEST))
    return {
        "bundle_open_read_over_size": round(traffic.down(f"{BUCKET}/{SMALL}/") / size, 3),
        "bundle_open_gets": traffic.count("GET"),
        "bundle_files": len(bundle.manifest.files),
    }


def _small_set(lab: Lab) -> Path:
    """ml-100k, or an archive of as many generated ratings."""
    if lab.data is not None:
        return Path(archive(SMALL, lab.data))
    ratings = generate(lab.folder, lab.sizes.small, "csv", SMALL_EACH)
    path = lab.folder / f"{SMALL}.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.write(ratings, "generated/ratings.csv")
        films = "".join(f"{n},Film {n} (1999),Drama\n" for n in range(1, 1683))
        packed.writestr("generated/movies.csv", f"movieId,title,genres\n{films}")
    return path


MEASURES: dict[tuple[str, ...], Measure] = {
    (
        "prepare_down_over_source",
        "prepare_requests_100k",
        "bundle_open_read_over_size",
        "bundle_open_gets",
    ): stage_traffic,
    ("serve_open_1gb_s",): serve_open,
    ("gather_task_mb",): gather_memory,
    ("driver_bytes_a_user",): driver_memory,
    ("faulty_store_ok",): faulty_store,
}
"""The figures that are measured together, and how."""
