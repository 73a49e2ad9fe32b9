"""RAY DATA: raw ratings to the prepared data set, in a few maps of tasks and one shuffle.

1. scan: each file range is parsed; accepted rows go to spill files, sorted by the user's hash slot.
2. gather: each partition of users reads its slots of every spill file (the one shuffle) and drops
   duplicates and what the filters drop; `core` repeats a count and a drop until nothing goes.
3. split: each partition decides the split of its rows (`temporal` counts times first, and
   `per-item-random` exchanges hashes by item) and counts its ids.
4. encode: with the ids of the training split known, each partition writes its part files.

Between the maps only counts and distinct ids meet on the driver. Memory is bounded by one chunk of
a file or one partition of users, never by the data, and no row passes through the object store.
"""

import hashlib
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recray import schema
from recray.config import Settings
from recray.data import encode_tasks, scan, shuffle_tasks, split
from recray.data.dataset import KIND, Prepared
from recray.data.encode_tasks import CountedIds
from recray.data.ids import IdMap, TextIds
from recray.data.scan import Scanned
from recray.data.shuffle_tasks import Counts
from recray.data.source import Source
from recray.data.spill import SpillFile, SpillFolder
from recray.errors import RecrayError
from recray.runtime.nodes import map_tasks, require_shared
from recray.runtime.session import LOCAL, session
from recray.storage import Folder, publish

SPILL = ".spill"
"""Folder of the spill files inside the data set that is being written; deleted at the end."""


def prepare(
    source: Source, out: str, settings: Settings, address: str = LOCAL, replace: bool = False
) -> Prepared:
    """Write the prepared data set of a source.

    Args:
        source: The ratings, and the lists beside them.
        out: Folder to write; it appears whole or not at all.
        settings: Its `data` and `split` groups are used.
        address: Ray cluster; `local` starts one.
        replace: Whether a finished folder under that name may be replaced.

    Raises:
        RecrayError: Too many rows cannot be read, or nothing is left after the filters.
        StorageError: The folder cannot be written.
    """
    _check_split(settings)
    with session(address):
        require_shared(Folder(out))
        with publish(Folder(out), replace) as folder:
            _write(source, folder, settings)
    return Prepared.open(out)


def _write(source: Source, folder: Folder, settings: Settings) -> None:
    spill = SpillFolder(folder.child(SPILL))
    ranges = source.ranges
    results = map_tasks(partial(scan.scan, ranges=ranges, spill=spill), len(ranges))
    scanned = scan.join(source, results, settings.data)
    partitions = split.partitions_for(scanned.rows)
    gathered, rounds = _gather(source, spill, scanned, partitions, settings)
    _split(spill, partitions, scanned.timed, gathered, settings)
    users, items = (
        CountedIds.join(
            [spill.read(kind, n) for n in range(partitions)], _text_ids(spill, source, role)
        )
        for kind, role in ((SpillFile.USERS, "raw_user"), (SpillFile.ITEMS, "raw_item"))
    )
    if not users.ids.known:
        raise RecrayError(
            f"{source.name}: no rating is left to train on after the filters "
            f"{settings.data.model_dump(exclude_defaults=True)}"
        )
    encode = partial(
        encode_tasks.encode,
        spill=spill,
        folder=folder,
        users=users.dense,
        items=items.dense,
        timed=scanned.timed,
        splits=_splits(settings),
    )
    encoded = map_tasks(encode, partitions)
    _write_items(folder, source, items)
    _write_users(folder, source, users)
    folder.write_table("rejected.parquet", scanned.rejected)
    spill.folder.delete()
    facts = _facts(source, settings, scanned) | {"buckets": partitions, "core_rounds": rounds}
    facts |= _counts(encoded, gathered, users, items, _splits(settings))
    folder.write_manifest(KIND, facts | _fingerprints(folder, users.ids, items.ids))


def _check_split(settings: Settings) -> None:
    """Refuse settings that another kind of split would ignore."""
    named = settings.split.train_file or settings.split.test_file
    if named and settings.split.kind != "given":
        raise RecrayError(
            f"split.train_file and test_file go with split.kind=given, not {settings.split.kind}"
        )
    if settings.split.kind == "held-out-users" and settings.split.test == 0:
        raise RecrayError("split.kind=held-out-users with split.test=0 holds nobody out")


def _splits(settings: Settings) -> tuple[int, ...]:
    codes = (split.TRAIN, split.VALID, split.TEST)
    return (*codes, split.FOLD_IN) if settings.split.kind == "held-out-users" else codes


def _text_ids(spill: SpillFolder, source: Source, role: str) -> TextIds | None:
    """The texts of one kind of id; None where ids are integers."""
    if role not in source.text:
        return None
    numbers = [n for n in range(len(source.ranges)) if spill.exists(SpillFile.TEXTS, role, n)]
    return TextIds.join([spill.read(SpillFile.TEXTS, role, n) for n in numbers])


def _gather(
    source: Source, spill: SpillFolder, scanned: Scanned, partitions: int, settings: Settings
) -> tuple[list[Counts], int]:
    """Fill the partitions; return the counts of each, and how many rounds `core` took."""
    gather = partial(
        shuffle_tasks.gather,
        spill=spill,
        scanned=scanned.files,
        partitions=partitions,
        rules=shuffle_tasks.item_rules(source, settings.data),
        settings=settings.data,
    )
    counts = map_tasks(gather, partitions)
    overlap = sum(result["overlap"] for result in counts)
    if overlap:
        raise RecrayError(
            f"{overlap:,} pairs of user and item are both in {settings.split.train_file} and in "
            f"{settings.split.test_file}: the test split would be no test"
        )
    rounds, core = 0, settings.data.core
    while core is not None:
        map_tasks(partial(shuffle_tasks.count_items, spill=spill), partitions)
        tables = [spill.read(SpillFile.ITEM_COUNTS, n) for n in range(partitions)]
        table = pa.concat_tables(tables)
        raw, place = np.unique(table["raw"].to_numpy(), return_inverse=True)
        count = np.bincount(place, table["count"].to_numpy(), len(raw))
        frequent = raw[count >= core]
        drop = partial(shuffle_tasks.drop_rare, spill=spill, items=frequent, core=core)
        dropped = map_tasks(drop, partitions)
        counts = [before | after for before, after in zip(counts, dropped, strict=True)]
        rounds += 1
        if not sum(result["dropped"] for result in dropped):
            break
    return counts, rounds


def _split(
    spill: SpillFolder, partitions: int, timed: bool, gathered: list[Counts], settings: Settings
) -> None:
    """Decide the split of every row."""
    wanted = settings.split
    cuts = item_offsets = None
    if wanted.kind == "temporal" and timed:
        cuts = _cuts(spill, partitions, gathered, settings)
    if wanted.kind == "per-item-random":
        write = partial(
            shuffle_tasks.write_item_keys, spill=spill, groups=partitions, seed=wanted.seed
        )
        offsets = [result["offsets"] for result in map_tasks(write, partitions)]
        by_item = partial(shuffle_tasks.split_items, spill=spill, offsets=offsets, settings=wanted)
        item_offsets = [result["offsets"] for result in map_tasks(by_item, partitions)]
    decide = partial(
        shuffle_tasks.split_partition,
        spill=spill,
        settings=wanted,
        timed=timed,
        cuts=cuts,
        item_offsets=item_offsets,
    )
    map_tasks(decide, partitions)


def _cuts(
    spill: SpillFolder, partitions: int, gathered: list[Counts], settings: Settings
) -> tuple[int, int]:
    """Where valid and test begin, in seconds: at most their share of the rows is at or after it."""
    filled = [result for result in gathered if result["rows"]]
    if not filled:
        return 0, 0  # data without a row are refused where users are counted
    first, last = min(r["first"] for r in filled), max(r["last"] for r in filled)
    rows = sum(r["rows"] for r in filled)

    def count(begin: int, end: int, width: int) -> NDArray[np.int64]:
        task = partial(shuffle_tasks.count_times, spill=spill, begin=begin, end=end, width=width)
        return np.sum([result["counts"] for result in map_tasks(task, partitions)], axis=0)

    shares = settings.split.test, settings.split.test + settings.split.valid
    test, valid = (split.cut_at(count, first, last, share * rows) for share in shares)
    return valid, test


def _write_items(folder: Folder, source: Source, counted: CountedIds) -> None:
    items, movies = counted.ids, source.movies
    rows = pc.index_in(items.column(), movies["raw_item"].combine_chunks())
    title = pc.coalesce(movies["title"].take(rows), items.column().cast(pa.string()))
    genres = pc.coalesce(movies["genres"].take(rows), pa.scalar([], pa.list_(pa.string())))
    columns = {
        "item": np.arange(len(items), dtype=np.int32),
        "raw_item": items.column(),
        "title": title,
        "year": pc.fill_null(movies["year"].take(rows), 0),
        "genres": genres,
        "imdb": movies["imdb"].take(rows),
        "tmdb": movies["tmdb"].take(rows),
        "ratings": counted.counts[split.TRAIN],
    }
    fields = _with_ids(schema.ITEMS, "raw_item", items)
    folder.write_table("items.parquet", pa.table(columns, schema=fields))


def _write_users(folder: Folder, source: Source, counted: CountedIds) -> None:
    users = counted.ids
    columns: dict[str, Any] = {"user": np.arange(len(users), dtype=np.int32)}
    columns |= {"raw_user": users.column()}
    columns |= dict(zip(schema.PARTS, counted.counts, strict=True))
    # Lists of users have integer ids, so they say nothing about users whose ids are text.
    known = schema.PEOPLE.empty_table() if users.text else source.people
    raw = pa.nulls(len(users), pa.int64()) if users.text else users.column()
    rows = pc.index_in(raw, known["raw_user"].combine_chunks())
    columns |= {name: known[name].take(rows) for name in known.column_names[1:]}
    fields = _with_ids(schema.USERS, "raw_user", users)
    folder.write_table("users.parquet", pa.table(columns, schema=fields))


def _with_ids(fields: pa.Schema, name: str, ids: IdMap) -> pa.Schema:
    """The schema with the type that the raw ids have."""
    return fields.set(fields.get_field_index(name), pa.field(name, ids.column().type))


# ------------------------------------------------------------------------------- manifest


def _facts(source: Source, settings: Settings, scanned: Scanned) -> dict[str, Any]:
    return {
        "dataset": source.name,
        "source": source.identity,
        "settings": {g: getattr(settings, g).model_dump(mode="json") for g in ("data", "split")},
        "timestamps": scanned.timed,
        "implicit": source.implicit,
        "rejected": {"rows": sum(scanned.reasons.values()), "reasons": scanned.reasons},
        "rows_read": scanned.rows,
    }


def _counts(
    encoded: list[Counts],
    gathered: list[Counts],
    users: CountedIds,
    items: CountedIds,
    written: tuple[int, ...],
) -> dict[str, Any]:
    splits = {}
    for row in written:
        name = schema.PARTS[row]
        rows = sum(e[name]["rows"] for e in encoded)
        unseen = sum(e[name]["unseen"] for e in encoded)
        share = round(100 * unseen / rows, 3) if rows else 0.0
        splits[name] = {
            "rows": rows,
            "users": int((users.counts[row] > 0).sum()),
            "items": int((items.counts[row] > 0).sum()),
            "unseen": unseen,
            "unseen_percent": share,
        }
    levels = encode_tasks.count_levels(encoded)
    return {
        "counts": {
            "users": users.ids.known,
            "items": items.ids.known,
            "unseen_users": len(users.ids) - users.ids.known,
            "unseen_items": len(items.ids) - items.ids.known,
            "duplicates": sum(g["duplicates"] for g in gathered),
            "ratings": sum(s["rows"] for s in splits.values()),
        },
        "splits": splits,
        "ratings": {
            "range": [min(levels), max(levels)],
            "levels": [[v, levels[v]] for v in sorted(levels)] if len(levels) <= 100 else [],
        },
    }


def _fingerprints(folder: Folder, users: IdMap, items: IdMap) -> dict[str, Any]:
    """Hash each split, the ids of the training split, and the list of items.

    They prove later that what training saw does not depend on the test split.
    """
    prints = {
        "ids": hashlib.sha256(users.content() + items.content()).hexdigest(),
        "items": hashlib.sha256(folder.read_bytes("items.parquet")).hexdigest(),
    }
    for name in schema.PARTS:
        digest = hashlib.sha256()
        for file in folder.files():
            if file.startswith(f"{name}/"):
                digest.update(file.encode() + hashlib.sha256(folder.read_bytes(file)).digest())
        prints[name] = digest.hexdigest()
    return {"fingerprints": prints}


def same_settings(prepared: Prepared, source: Source, settings: Settings) -> bool:
    """Whether preparing this source again would give the data set on disk."""
    wanted = {g: getattr(settings, g).model_dump(mode="json") for g in ("data", "split")}
    facts = prepared.manifest
    return facts["source"] == source.identity and facts["settings"] == wanted
