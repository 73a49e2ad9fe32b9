"""RAY DATA: raw ratings to the prepared data set, in a few maps and one shuffle.

1. scan: each piece of the files is parsed; accepted rows go, sorted by user slot, to spill files.
2. gather: each bucket of users reads its slots of every spill file (the one shuffle) and drops
   duplicates and what the filters drop; `core` repeats a count and a drop until nothing goes.
3. split: each bucket decides the split of its rows (`temporal` counts times first, and
   `per-item-random` exchanges keys by item) and counts its ids.
4. encode: with the ids of the training split known, each bucket writes its part files.

Between the maps only counts and distinct ids meet on the driver. Memory is bounded by one chunk of
a file or one bucket of users, never by the data, and no row passes through the object store.
"""

import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recray import schema, storage
from recray.config import Settings
from recray.data import scan, split
from recray.data import shuffle_tasks as maps
from recray.data.dataset import KIND, Prepared
from recray.data.ids import IdMap, Texts, training_first
from recray.data.source import Source
from recray.data.spill import read_arrow
from recray.errors import RecrayError
from recray.runtime.nodes import require_shared
from recray.runtime.session import LOCAL, session
from recray.runtime.tasks import map_tasks
from recray.storage import Folder

SPILL = ".spill"


def prepare(
    given: Source, out: str, settings: Settings, address: str = LOCAL, replace: bool = False
) -> Prepared:
    """Write the prepared data set of a source.

    Args:
        given: A recognised source.
        out: Folder to write; it appears whole or not at all.
        settings: Its `data` and `split` groups are used.
        address: Ray cluster; `local` starts one.
        replace: Whether a finished folder under that name may be replaced.

    Raises:
        RecrayError: Too many rows cannot be read, or nothing is left after the filters.
        StorageError: The folder cannot be written.
    """
    _refuse_useless(given, settings)
    with session(address):
        require_shared(Folder(out))
        with storage.publish(Folder(out), replace) as folder:
            _write(given, folder, settings)
    return Prepared.open(out)


def _write(given: Source, folder: Folder, settings: Settings) -> None:
    spill = folder.child(SPILL)
    scanned = _scan(given, spill, settings)
    buckets = split.buckets_for(scanned.rows)
    gathered, rounds = _gather(given, spill, scanned, buckets, settings)
    _split(spill, buckets, scanned.timed, gathered, settings)
    users, items = (
        _count(spill, word, buckets, _texts(spill, given, f"raw_{word}"))
        for word in ("user", "item")
    )
    if not users.ids.known:
        raise RecrayError(
            f"{given.name}: no rating is left to train on after the filters "
            f"{settings.data.model_dump(exclude_defaults=True)}"
        )
    numbers = users.numbers, items.numbers
    encode = maps.Encode(spill, folder, *numbers, scanned.timed, _parts(settings))
    encoded = map_tasks(encode, buckets)
    _write_items(folder, given, items)
    _write_users(folder, given, users)
    folder.write_table("rejected.parquet", scanned.rejected)
    spill.delete()
    facts = _facts(given, settings, scanned)
    facts |= {"buckets": buckets, "core_rounds": rounds}
    facts |= _counts(encoded, gathered, users, items, _parts(settings))
    folder.write_manifest(KIND, facts | _fingerprints(folder, users.ids, items.ids))


def _refuse_useless(given: Source, settings: Settings) -> None:
    """Refuse settings that another kind of split would ignore."""
    named = settings.split.train_file or settings.split.test_file
    if named and settings.split.kind != "given":
        raise RecrayError(
            f"split.train_file and test_file go with split.kind=given, not {settings.split.kind}"
        )
    if settings.split.kind == "held-out-users" and settings.split.test == 0:
        raise RecrayError("split.kind=held-out-users with split.test=0 holds nobody out")


def _parts(settings: Settings) -> tuple[int, ...]:
    codes = (split.TRAIN, split.VALID, split.TEST)
    return (*codes, split.FOLD_IN) if settings.split.kind == "held-out-users" else codes


def _texts(spill: Folder, given: Source, role: str) -> Texts | None:
    """The texts of one kind of id, None where ids are integers."""
    if role not in given.text:
        return None
    names = (scan.texts_name(role, number) for number in range(len(given.pieces)))
    return Texts.join([read_arrow(spill, name) for name in names if spill.exists(name)])


def _scan(given: Source, spill: Folder, settings: Settings) -> scan.Scanned:
    task = scan.Scan(given.pieces, spill)
    return scan.join(given, map_tasks(task, len(given.pieces)), settings.data)


def _gather(
    given: Source, spill: Folder, scanned: scan.Scanned, buckets: int, settings: Settings
) -> tuple[list[Any], int]:
    """Fill the buckets; return what each holds, and how many rounds `core` took."""
    rules = maps.item_rules(given, settings.data)
    gather = maps.Gather(spill, scanned.spilled, buckets, rules, settings.data)
    held = map_tasks(gather, buckets)
    overlap = sum(result["overlap"] for result in held)
    if overlap:
        raise RecrayError(
            f"{overlap:,} pairs of user and item are both in {settings.split.train_file} and in "
            f"{settings.split.test_file}: the test split would be no test"
        )
    rounds, core = 0, settings.data.core
    while core is not None:
        map_tasks(maps.CountItems(spill), buckets)
        table = pa.concat_tables([read_arrow(spill, f"core-{b}.arrow") for b in range(buckets)])
        raw, place = np.unique(table["raw"].to_numpy(), return_inverse=True)
        count = np.bincount(place, table["count"].to_numpy(), len(raw))
        dropped = map_tasks(maps.DropRare(spill, raw[count >= core], core), buckets)
        held = [before | after for before, after in zip(held, dropped, strict=True)]
        rounds += 1
        if not sum(result["dropped"] for result in dropped):
            break
    return held, rounds


def _split(
    spill: Folder, buckets: int, timed: bool, gathered: list[Any], settings: Settings
) -> None:
    """Decide the split of every row."""
    wanted = settings.split
    cuts = by_item = None
    if wanted.kind == "temporal" and timed:
        cuts = _cuts(spill, buckets, gathered, settings)
    if wanted.kind == "per-item-random":
        keys = map_tasks(maps.KeysByItem(spill, buckets, wanted.seed), buckets)
        task = maps.SplitItems(spill, [result["begins"] for result in keys], wanted)
        by_item = [result["begins"] for result in map_tasks(task, buckets)]
    map_tasks(maps.Split(spill, wanted, timed, cuts, by_item), buckets)


def _cuts(spill: Folder, buckets: int, gathered: list[Any], settings: Settings) -> tuple[int, int]:
    """Where valid and test begin, in seconds: at most their share of the rows is at or after it."""
    held = [result for result in gathered if result["rows"]]
    if not held:
        return 0, 0  # what has no rows is refused where users are counted
    first, last = min(r["first"] for r in held), max(r["last"] for r in held)
    rows = sum(r["rows"] for r in held)

    def count(begin: int, end: int, width: int) -> NDArray[np.int64]:
        results = map_tasks(maps.CountTimes(spill, begin, end, width), buckets)
        return np.sum([result["counts"] for result in results], axis=0)

    shares = settings.split.test, settings.split.test + settings.split.valid
    test, valid = (split.cut_at(count, first, last, share * rows) for share in shares)
    return valid, test


@dataclass(frozen=True)
class _Counted:
    """All users, or all items.

    Args:
        ids: Their raw and dense ids.
        counts: (4, N) ratings of each dense id in each of schema.PARTS.
        numbers: Their keys and dense ids.
    """

    ids: IdMap
    counts: NDArray[np.int64]
    numbers: maps.Numbering


def _count(spill: Folder, word: str, buckets: int, texts: Texts | None) -> _Counted:
    """Put the ids that the buckets counted together, and number them."""
    table = pa.concat_tables([read_arrow(spill, f"{word}s-{b}.arrow") for b in range(buckets)])
    key, place = np.unique(table["raw"].to_numpy(), return_inverse=True)
    counts = np.zeros((len(schema.PARTS), len(key)), np.int64)
    for row, part in enumerate(schema.PARTS):
        np.add.at(counts[row], place, table[part].to_numpy())
    raw = key if texts is None else texts.of(key)
    in_training = counts[split.TRAIN] > 0
    order = training_first(raw, in_training)
    dense = np.empty(len(key), np.int32)
    dense[order] = np.arange(len(key), dtype=np.int32)
    known = int(in_training.sum())
    return _Counted(IdMap(raw[order], known), counts[:, order], maps.Numbering(key, dense, known))


def _write_items(folder: Folder, given: Source, counted: _Counted) -> None:
    items = counted.ids
    movies = given.movies
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
    wanted = _with_ids(schema.ITEMS, "raw_item", items)
    folder.write_table("items.parquet", pa.table(columns, schema=wanted))


def _write_users(folder: Folder, given: Source, counted: _Counted) -> None:
    users = counted.ids
    columns: dict[str, Any] = {"user": np.arange(len(users), dtype=np.int32)}
    columns |= {"raw_user": users.column()}
    columns |= dict(zip(schema.PARTS, counted.counts, strict=True))
    # A release that tells of its users numbers them.
    told = schema.PEOPLE.empty_table() if users.text else given.people
    raw = pa.nulls(len(users), pa.int64()) if users.text else users.column()
    rows = pc.index_in(raw, told["raw_user"].combine_chunks())
    columns |= {name: told[name].take(rows) for name in told.column_names[1:]}
    wanted = _with_ids(schema.USERS, "raw_user", users)
    folder.write_table("users.parquet", pa.table(columns, schema=wanted))


def _with_ids(wanted: pa.Schema, name: str, ids: IdMap) -> pa.Schema:
    """The schema with the type that the raw ids have."""
    return wanted.set(wanted.get_field_index(name), pa.field(name, ids.column().type))


# ------------------------------------------------------------------------------- manifest


def _facts(given: Source, settings: Settings, scan: scan.Scanned) -> dict[str, Any]:
    return {
        "dataset": given.name,
        "source": given.identity,
        "settings": {g: getattr(settings, g).model_dump(mode="json") for g in ("data", "split")},
        "timestamps": scan.timed,
        "implicit": given.implicit,
        "rejected": {"rows": sum(scan.reasons.values()), "reasons": scan.reasons},
        "rows_read": scan.rows,
    }


def _counts(
    encoded: list[Any],
    gathered: list[Any],
    users: _Counted,
    items: _Counted,
    parts: tuple[int, ...],
) -> dict[str, Any]:
    splits = {}
    for row in parts:
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
    levels: Counter[float] = Counter()
    for result in encoded:
        levels.update({float(k): v for k, v in result["levels"].items()})
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
    """Hashes per split, so that what training saw can be proven not to depend on test; of the ids
    of the training split; and of what is said of the items.
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


def same_settings(prepared: Prepared, given: Source, settings: Settings) -> bool:
    """Whether the data set on disk is what preparing this source would give again."""
    wanted = {g: getattr(settings, g).model_dump(mode="json") for g in ("data", "split")}
    facts = prepared.manifest
    return facts["source"] == given.identity and facts["settings"] == wanted
