"""RAY DATA: raw ratings to the prepared data set, in a few maps of tasks and one shuffle.

1. scan: each file range is parsed; accepted rows go to spill files, sorted by the user's hash slot.
2. gather: each partition of users reads its slots of every spill file (the one shuffle) and drops
   duplicates and what the filters drop; `core` repeats a count and a drop until nothing goes.
3. split: each partition decides the split of its rows (`temporal` counts times first, and
   `per-item-random` exchanges hashes by item) and counts its ids.
4. encode: with the numbers of users in each partition and the ids of all items known, each
   partition writes its part files, the list of its users, and in known/ what the filters dropped.

The scan reads a Datasource, and the last stage writes into a Datasink; see ray_data.py. Between the
stages only counts and the ids of items meet on the driver. Memory is bounded by one range of a
file, scan.RUN_ROWS rows or one partition of users, never by the data, and no row passes through
the object store. What is written is not read again to be hashed.
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recray import schema
from recray.config import Settings
from recray.data import split, tasks
from recray.data.accounting import account, check_times_known
from recray.data.dataset import KIND, Prepared
from recray.data.encode import DatasetIds, EncodedCounts, encode
from recray.data.filtered import item_rules
from recray.data.formats.layout import FileRange
from recray.data.ids import CountedItems, TextIds, UserNumbers
from recray.data.manifest import count_facts, fingerprint_facts, list_facts, source_facts
from recray.data.scan import Scanned, join_scans, scan_ranges
from recray.data.source import Source
from recray.data.spill import SpillFile, SpillFolder
from recray.data.tasks import PartitionCounts, SplitCounts
from recray.errors import RecrayError
from recray.runtime.nodes import require_shared
from recray.runtime.session import LOCAL, session
from recray.runtime.tasks import TaskRunner, Work
from recray.storage import UNFINISHED, Folder, ManifestEntry, check_store, in_parallel, publish

SPILL = f"{UNFINISHED}spill"
"""Folder of the spill files inside the data set that is being written; deleted at the end."""


def prepare(
    source: Source,
    out: str,
    settings: Settings,
    address: str = LOCAL,
    replace: bool = False,
    runner: TaskRunner | None = None,
) -> Prepared:
    """Write the prepared data set of a source.

    Args:
        source: The ratings, and the lists beside them.
        out: Folder to write; it appears whole or not at all.
        settings: Its `data` and `split` groups are used.
        address: Ray cluster; `local` starts one.
        replace: Whether a finished folder under that name may be replaced.
        runner: Runs the tasks, tells of them, and keeps what Ray Data has counted.

    Raises:
        RecrayError: Too many rows cannot be read, or nothing is left after the filters.
        StorageError: The folder cannot be written.
    """
    _check_split(settings)
    check_store(out, to_write=True)
    with session(address):
        require_shared(Folder(out))
        with publish(Folder(out), replace) as folder:
            _write(_Job(source, settings, folder, runner or TaskRunner()))
    return Prepared.open(out)


@dataclass(frozen=True)
class _Job:
    """What all stages need.

    Args:
        source, settings: As prepare takes them.
        folder: The folder of the data set, which appears at the end.
        runner: Runs the tasks.
        version: How often partitions have been changed, as SpillFolder has it.
    """

    source: Source
    settings: Settings
    folder: Folder
    runner: TaskRunner
    version: int = 0

    @property
    def spill(self) -> SpillFolder:
        """Where tasks leave files for each other."""
        return SpillFolder(self.folder.child(SPILL), self.version)

    def later(self, versions: int) -> "_Job":
        """The same job after partitions have been changed so often."""
        return dataclasses.replace(self, version=self.version + versions)


def _write(job: _Job) -> None:
    source, settings, folder, spill = job.source, job.settings, job.folder, job.spill
    scans = scan_ranges(source.ranges, partial(_scan, job))
    scanned = join_scans(source, scans, settings.data)
    _check_times(source, scanned.timed, settings)
    partitions = split.partitions_for(scanned.rows)
    gathered, core_rounds = _gather(job, scanned, partitions)
    job = job.later(core_rounds)
    counted = _split(job, scanned, gathered)
    job = job.later(int(scanned.has_log))
    users = UserNumbers.of(np.stack([part.groups for part in counted]))
    if not users.num_train:
        raise RecrayError(
            f"{source.name}: no rating is left to train on after the filters "
            f"{settings.data.model_dump(exclude_defaults=True)}"
        )
    tables = (spill.read(SpillFile.ITEMS, partition) for partition in range(partitions))
    items = CountedItems.join(tables, _item_texts(spill, source))
    texts = [(number, scan.texts) for number, scan in enumerate(scans) if scan.texts is not None]
    text = "raw_user" in source.text
    ids = DatasetIds(items.dense, users, source.listed_users, texts if text else None)
    encoded = _encode(job, scanned, ids, [part.rows for part in counted])
    entries = [entry for part in encoded for entry in part.entries]
    entries.append(_write_items(folder, source, items))
    entries.append(folder.write_table("rejected.parquet", scanned.rejected))
    spill.folder.delete()
    dropped = sum((part.dropped for part in gathered), Counter[str]())
    facts = {
        **source_facts(source, settings, scanned),
        "buckets": partitions,
        "core_rounds": core_rounds,
        **count_facts(encoded, counted, items, dropped["duplicates"], settings.split),
        "rows": account(scanned, dropped, sum(p.rows.total() for p in encoded)).model_dump(),
        "lists": list_facts(source, items, encoded, counted),
        "fingerprints": fingerprint_facts(encoded, items.ids, entries),
    }
    folder.write_manifest(KIND, facts, entries)


def _check_split(settings: Settings) -> None:
    """Refuse settings that another kind of split would ignore."""
    named = settings.split.train_file or settings.split.test_file
    if named and settings.split.kind != "given":
        raise RecrayError(
            f"split.train_file and test_file go with split.kind=given, not {settings.split.kind}"
        )
    if settings.split.kind == "held-out-users" and settings.split.test == 0:
        raise RecrayError("split.kind=held-out-users with split.test=0 holds nobody out")
    if settings.split.cut is not None and settings.split.kind != "next":
        raise RecrayError(f"split.cut goes with split.kind=next, not {settings.split.kind}")


def _check_times(source: Source, timed: bool, settings: Settings) -> None:
    """Refuse what needs times where the source has none."""
    by_name = "name the column of times by --columns timestamp=NAME"
    if settings.data.half_life is not None and not timed:
        raise RecrayError(
            f"data.half_life={settings.data.half_life:g} needs the times of ratings, and "
            f"{source.name} has none: {by_name}, or leave data.half_life out"
        )
    if timed or settings.split.kind != "next":
        return
    if settings.data.order != "file":
        raise RecrayError(
            f"split.kind=next needs the order of each user's ratings, and {source.name} has no "
            f"times: {by_name}, or take the order of the rows in the file by --set data.order=file"
        )
    if settings.split.cut is not None:
        raise RecrayError(
            f"split.cut={settings.split.cut:g} is a cut in time, and {source.name} has no times: "
            f"{by_name}, or leave split.cut out"
        )


def _item_texts(spill: SpillFolder, source: Source) -> TextIds | None:
    """The texts of the ids of items; None where they are integers."""
    if "raw_item" not in source.text:
        return None
    numbers = [n for n, one in enumerate(source.ranges) if "raw_item" in one.file.layout.text]
    return TextIds.join([spill.read(SpillFile.ITEM_TEXTS, n) for n in numbers])


def _scan(job: _Job, numbers: Sequence[int], ranges: Sequence[FileRange]) -> list[Scanned]:
    """Scan the ranges of these numbers."""
    from recray.data.ray_data import RatingsSource

    source = RatingsSource(numbers, ranges, job.spill)
    again = "" if len(numbers) == len(ranges) else " again"
    return job.runner.read(f"scan{again}", source, len(numbers), _scanned)


def _scanned(scanned: Scanned) -> Work:
    return Work(scanned.read, sum(file.offsets[-1] for file in scanned.files))


def _gather(job: _Job, scanned: Scanned, partitions: int) -> tuple[list[PartitionCounts], int]:
    """Fill the partitions; return the counts of each, and how many rounds `core` took."""
    spill, settings, run = job.spill, job.settings, partial(job.runner.map, work_of=_rows_of)
    gather = partial(tasks.gather, spill=spill, partitions=partitions)
    rules = item_rules(job.source, settings.data)
    gather = partial(gather, rules=rules, settings=settings, timed=scanned.timed)
    counts = run("gather", gather, partitions, scanned=scanned.files)
    overlap = sum(part.overlap for part in counts)
    if overlap:
        raise RecrayError(
            f"{overlap:,} pairs of user and item are both in {settings.split.train_file} and in "
            f"{settings.split.test_file}: the test split would be no test"
        )
    rounds, core = 0, settings.data.core
    while core is not None:
        now = spill.later(rounds)
        job.runner.map("count items", partial(tasks.count_items, spill=now), partitions)
        table = pa.concat_tables(
            [spill.read(SpillFile.ITEM_COUNTS, partition) for partition in range(partitions)]
        )
        raw, place = np.unique(table["raw"].to_numpy(), return_inverse=True)
        count = np.bincount(place, table["count"].to_numpy(), len(raw))
        drop = partial(tasks.drop_rare, spill=now, items=raw[count >= core], core=core)
        left = run("drop rare", drop, partitions)
        list(in_parallel(partial(tasks.delete_partition, now), range(partitions)))
        counts = [
            dataclasses.replace(after, dropped=before.dropped + after.dropped)
            for before, after in zip(counts, left, strict=True)
        ]
        rounds += 1
        if not any(part.dropped["core"] for part in left):
            break
    return counts, rounds


def _rows_of(counts: PartitionCounts) -> Work:
    return Work(counts.rows)


def _split(job: _Job, scanned: Scanned, gathered: list[PartitionCounts]) -> list[SplitCounts]:
    """Decide the split of every row, and count the users of each partition."""
    spill, chosen, run, partitions = job.spill, job.settings.split, job.runner.map, len(gathered)
    cuts = item_offsets = None
    if chosen.kind == "temporal" and scanned.timed:
        cuts = _cuts(job, gathered, (chosen.valid + chosen.test, chosen.test))
    if chosen.cut is not None:
        after_cut = round(1 - chosen.cut, 9)  # 0.1 from 0.9, not a little less
        cuts = _cuts(job, gathered, (after_cut, after_cut))
    if chosen.kind == "per-item-random":
        write = partial(tasks.write_item_keys, spill=spill, groups=partitions, seed=chosen.seed)
        offsets = run("sort by item", write, partitions)
        by_item = partial(tasks.split_items, spill=spill, settings=chosen)
        item_offsets = run("split items", by_item, partitions, offsets=offsets)
    timed, has_log = scanned.timed, scanned.has_log
    decide = partial(tasks.split_partition, spill=spill, settings=job.settings, cuts=cuts)
    decide = partial(decide, timed=timed, has_log=has_log)
    return run("split", decide, partitions, _split_rows, item_offsets=item_offsets)


def _split_rows(counts: SplitCounts) -> Work:
    return Work(counts.rows)


def _encode(job: _Job, scanned: Scanned, ids: DatasetIds, rows: list[int]) -> list[EncodedCounts]:
    """Write the files of all partitions, which have so many rows each."""
    from recray.data.ray_data import PartitionsSink

    data, chosen = job.settings.data, job.settings.split
    codes = [split.TRAIN, split.VALID, split.TEST]
    if chosen.kind == "held-out-users" or chosen.cut is not None:
        codes.append(split.FOLD_IN)
    timed = scanned.timed or scanned.has_log
    filters = any(limit is not None for limit in (data.min_year, data.min_rating, data.core))
    write = partial(encode, spill=job.spill, folder=job.folder, splits=codes)
    sink = PartitionsSink(partial(write, timed=timed, filters=filters))
    return job.runner.write("encode", sink, rows, _written, ids=ids)


def _written(counts: EncodedCounts) -> Work:
    return Work(counts.rows.total(), sum(entry.bytes for entry in counts.entries))


def _cuts(
    job: _Job, gathered: list[PartitionCounts], after: tuple[float, float]
) -> tuple[int, int]:
    """The earliest times, in seconds, from which on there are at most these shares of the rows.

    Rows without a known time do not count, and train.

    Raises:
        RecrayError: They are too many.
    """
    rows, timed = (sum(getattr(p, name) for p in gathered) for name in ("rows", "timed"))
    check_times_known(job.settings.split.kind, rows, timed)
    first = [part.first for part in gathered if part.first is not None]
    last = [part.last for part in gathered if part.last is not None]
    if not first:
        return 0, 0  # data without a row are refused where users are counted

    def count(begin: int, end: int, width: int) -> NDArray[np.int64]:
        task = partial(tasks.count_times, spill=job.spill, begin=begin, end=end, width=width)
        return np.asarray(np.sum(job.runner.map("count times", task, len(gathered)), axis=0))

    valid, test = (split.cut_at(count, min(first), max(last), share * timed) for share in after)
    return valid, test


def _write_items(folder: Folder, source: Source, counted: CountedItems) -> ManifestEntry:
    items, movies = counted.ids, source.movies
    rows = pc.index_in(items.column(), movies["raw_item"].combine_chunks())
    known = {name: movies[name].take(rows) for name in movies.column_names[1:]}
    columns = known | {
        "item": np.arange(len(items), dtype=np.int32),
        "raw_item": items.column(),
        "title": pc.coalesce(known["title"], items.column().cast(pa.string())),
        "year": pc.fill_null(known["year"], 0),
        "genres": pc.coalesce(known["genres"], pa.scalar([], pa.list_(pa.string()))),
        "ratings": counted.counts[split.TRAIN],
    }
    return folder.write_table("items.parquet", schema.id_table(schema.ITEMS, columns))
