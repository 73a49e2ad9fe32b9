"""RAY DATA: raw ratings to the prepared data set, in three maps and one shuffle.

1. scan: each piece of the files is parsed; accepted rows go, sorted by user slot, to spill files.
2. gather: each bucket of users reads its slots of every spill file (the one shuffle), drops
   duplicates, applies the filters and splits its users' rows.
3. encode: with the ids of the training split known, each bucket writes its part files.

Between the maps only counts and distinct ids meet on the driver. Memory is bounded by one chunk of
a file or one bucket of users, never by the data, and no row passes through the object store.
"""

import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recray import cluster, schema, storage
from recray.config import DataSettings, Settings
from recray.data import parse, source, split
from recray.data.ids import IdMap
from recray.data.prepared import KIND, Prepared, part_name
from recray.data.source import Piece, Source
from recray.errors import RecrayError
from recray.storage import Folder

SPILL = ".spill"


def prepare(
    given: Source, out: str, settings: Settings, address: str = cluster.LOCAL, replace: bool = False
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
    with cluster.session(address), storage.publish(Folder(out), replace) as folder:
        spill = folder.child(SPILL)
        scan = _scan(given, spill, settings.data)
        buckets = split.buckets_for(scan.rows)
        gather = _Gather(spill, scan.spilled, buckets, _item_rules(given, settings.data), settings)
        gathered = cluster.map_tasks(gather, buckets, scan.timed)
        users, items = (_ids(spill, name, buckets) for name in ("users", "items"))
        if not users.known:
            raise RecrayError(
                f"{given.name}: no rating is left to train on after the filters "
                f"{settings.data.model_dump(exclude_defaults=True)}"
            )
        encoded = cluster.map_tasks(_Encode(spill, folder, users, items, scan.timed), buckets)
        _write_items(folder, given, spill, items, buckets)
        _write_users(folder, spill, users, buckets)
        folder.write_table("rejected.parquet", scan.rejected)
        spill.delete()
        facts = _facts(given, settings, scan)
        facts |= {"buckets": buckets} | _counts(encoded, gathered, users, items)
        folder.write_manifest(KIND, facts | _fingerprints(folder))
    return Prepared.open(out)


# -------------------------------------------------------------------------------- 1. scan


@dataclass(frozen=True)
class _Spilled:
    """A spill file: rows sorted by user slot, and where each of the 256 slots begins."""

    name: str
    begins: list[int]


@dataclass(frozen=True)
class _Scanned:
    rows: int
    spilled: list[_Spilled]
    rejected: pa.Table
    reasons: dict[str, int]
    timed: bool


@dataclass(frozen=True)
class _Scan:
    pieces: tuple[Piece, ...]
    layout: parse.RatingsFormat
    spill: Folder

    def __call__(self, number: int) -> dict[str, Any]:
        """Parse one piece, chunk by chunk; spill the rows and return counts."""
        spilled, reasons = [], Counter[str]()
        rejected: list[dict[str, Any]] = []
        lines = rows = 0
        timed = False
        for chunk, (begin, content) in enumerate(source.chunks(self.pieces[number], self.layout)):
            parsed = parse.parse_ratings(content, self.layout)
            reasons.update(parsed.rejected["reason"].to_pylist())
            for row in parsed.rejected.slice(0, schema.REJECTED_KEPT - len(rejected)).to_pylist():
                row |= {"line": row["line"] + lines, "byte": row["byte"] + begin}
                rejected.append(row)
            lines += parsed.lines
            rows += len(parsed.table)
            timed = timed or bool(pc.any(pc.greater(parsed.table["timestamp"], 0)).as_py())
            name = f"rows-{number:05d}-{chunk:05d}.arrow"
            spilled.append({"name": name, "begins": self._write(name, parsed.table)})
        return {
            "rows": rows,
            "lines": lines,
            "timed": timed,
            "spilled": spilled,
            "reasons": reasons,
            "rejected": rejected,
        }

    def _write(self, name: str, table: pa.Table) -> list[int]:
        slot = split.user_slot(table["raw_user"].to_numpy())
        # Stable, so that rows of a user stay in file order.
        table = table.take(pa.array(np.argsort(slot, kind="stable")))
        write_arrow(self.spill, name, table)
        counts = np.bincount(slot, minlength=split.SLOTS)
        return [0, *np.cumsum(counts).tolist()]


def _scan(given: Source, spill: Folder, settings: DataSettings) -> _Scanned:
    results = cluster.map_tasks(_Scan(given.pieces, given.layout, spill), len(given.pieces))
    reasons: Counter[str] = sum((Counter(r["reasons"]) for r in results), Counter())
    rejected, first_line = [], 1 + given.layout.header
    for piece, result in zip(given.pieces, results, strict=True):
        for row in result["rejected"]:
            rejected.append({"file": piece.file, **row, "line": row["line"] + first_line})
        first_line += result["lines"]
    rows, bad = sum(r["rows"] for r in results), sum(reasons.values())
    if bad > settings.max_rejected * (rows + bad):
        first = "; ".join(f"line {r['line']} {r['reason']}: {r['text']!r}" for r in rejected[:3])
        raise RecrayError(
            f"{given.name}: {bad:,} of {rows + bad:,} rows cannot be read, more than "
            f"data.max_rejected={settings.max_rejected:g} allows; {first}"
        )
    if not rows:
        raise RecrayError(f"{given.name} is empty: it has no ratings")
    return _Scanned(
        rows=rows,
        spilled=[_Spilled(s["name"], s["begins"]) for r in results for s in r["spilled"]],
        rejected=pa.Table.from_pylist(rejected[: schema.REJECTED_KEPT], schema.REJECTED),
        reasons=dict(sorted(reasons.items())),
        timed=any(r["timed"] for r in results),
    )


# ------------------------------------------------------------------------------ 2. gather


@dataclass(frozen=True)
class _ItemRules:
    """Which items stay, and what they become; None where nothing changes."""

    kept: NDArray[np.int64] | None
    merged: tuple[NDArray[np.int64], NDArray[np.int64]] | None


def _item_rules(given: Source, settings: DataSettings) -> _ItemRules:
    movies = given.movies
    if (settings.min_year or settings.merge_titles) and not len(movies):
        raise RecrayError(
            f"{given.name} has no films' titles, so min_year and merge_titles cannot work"
        )
    kept = merged = None
    raw = movies["raw_item"].to_numpy()
    if settings.min_year is not None:
        kept = raw[movies["year"].to_numpy() >= settings.min_year]
    if settings.merge_titles:
        code = pc.dictionary_encode(movies["title"].combine_chunks()).indices.to_numpy()
        lowest = np.full(code.max() + 1, np.iinfo(np.int64).max)
        np.minimum.at(lowest, code, raw)
        merged = (raw, lowest[code])
    return _ItemRules(kept, merged)


@dataclass(frozen=True)
class _Gather:
    spill: Folder
    spilled: list[_Spilled]
    buckets: int
    rules: _ItemRules
    settings: Settings

    def __call__(self, bucket: int, timed: bool) -> dict[str, Any]:
        """Collect the rows of one bucket of users, clean and split them, count their ids."""
        width = split.SLOTS // self.buckets
        parts = [
            read_arrow(self.spill, s.name, s.begins[bucket * width], s.begins[(bucket + 1) * width])
            for s in self.spilled
        ]
        data = self.settings.data
        gathered = self._apply_item_rules(Rows.of(pa.concat_tables(parts)))
        rows = drop_duplicates(*gathered, mean=data.duplicates == "mean" or data.merge_titles)
        duplicates = len(gathered.user) - len(rows.user)
        if data.min_rating is not None:
            rows = rows.at(rows.rating >= data.min_rating)
        times = rows.timestamp if timed else None
        which = split.assign(rows.user, rows.item, times, self.settings.split)
        write_arrow(self.spill, f"bucket-{bucket}.arrow", rows.table(which))
        for name, ids in (("users", rows.user), ("items", rows.item)):
            write_arrow(self.spill, f"{name}-{bucket}.arrow", _counts_by_split(ids, which))
        return {"duplicates": duplicates}

    def _apply_item_rules(self, rows: "Rows") -> "Rows":
        if self.rules.kept is not None:
            rows = rows.at(np.isin(rows.item, self.rules.kept))
        if self.rules.merged is not None:
            raw, target = self.rules.merged  # sorted by raw id, as schema.MOVIES tables are
            place = np.minimum(np.searchsorted(raw, rows.item), len(raw) - 1)
            item = np.where(raw[place] == rows.item, target[place], rows.item)
            rows = rows._replace(item=item)
        return rows


class Rows(NamedTuple):
    """Ratings as columns, in raw ids: (R,) each; timestamp is 0 where unknown."""

    user: NDArray[np.int64]
    item: NDArray[np.int64]
    rating: NDArray[np.float32]
    timestamp: NDArray[np.int64]

    @classmethod
    def of(cls, table: pa.Table) -> "Rows":
        """Take the columns of a table of schema.RAW_RATINGS."""
        user, item, rating = (table[n].to_numpy() for n in ("raw_user", "raw_item", "rating"))
        return cls(user, item, rating, table["timestamp"].combine_chunks().fill_null(0).to_numpy())

    def at(self, index: NDArray[Any]) -> "Rows":
        """The rows that a mask or places choose."""
        user, item, rating, timestamp = self
        return Rows(user[index], item[index], rating[index], timestamp[index])

    def table(self, which: NDArray[np.int8]) -> pa.Table:
        """The rows with the split of each."""
        columns = dict(zip(schema.RAW_RATINGS.names, self, strict=True))
        return pa.table({**columns, "split": which})


def drop_duplicates(
    user: NDArray[np.int64],
    item: NDArray[np.int64],
    rating: NDArray[np.float32],
    timestamp: NDArray[np.int64],
    mean: bool,
) -> Rows:
    """One row for each (user, item), sorted by both.

    Args:
        user: (R,) raw ids, rows in file order.
        item: (R,) raw ids.
        rating: (R,) stars.
        timestamp: (R,) seconds.
        mean: Average the ratings and keep the latest time; otherwise the latest row stays, and
            of several at that time the last in the file.
    """
    rows = Rows(user, item, rating, timestamp).at(np.lexsort((timestamp, item, user)))
    if not len(rows.user):
        return rows
    changes = (rows.user[1:] != rows.user[:-1]) | (rows.item[1:] != rows.item[:-1])
    begins = np.concatenate([[0], np.flatnonzero(changes) + 1])
    last = np.concatenate([begins[1:], [len(rows.user)]]) - 1
    if not mean:
        return rows.at(last)
    sums = np.add.reduceat(rows.rating.astype(np.float64), begins)
    means = (sums / (last - begins + 1)).astype(np.float32)
    return rows.at(last)._replace(rating=means)


def _counts_by_split(ids: NDArray[np.int64], which: NDArray[np.int8]) -> pa.Table:
    raw, place = np.unique(ids, return_inverse=True)
    counts = np.zeros((len(schema.SPLITS), len(raw)), np.int64)
    np.add.at(counts, (which, place), 1)
    return pa.table({"raw": raw} | dict(zip(schema.SPLITS, counts, strict=True)))


def _union(spill: Folder, name: str, buckets: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Distinct raw ids (N,) and their counts (3, N) over all buckets."""
    table = pa.concat_tables([read_arrow(spill, f"{name}-{b}.arrow") for b in range(buckets)])
    raw, place = np.unique(table["raw"].to_numpy(), return_inverse=True)
    counts = np.zeros((len(schema.SPLITS), len(raw)), np.int64)
    for row, part in enumerate(schema.SPLITS):
        np.add.at(counts[row], place, table[part].to_numpy())
    return raw, counts


def _ids(spill: Folder, name: str, buckets: int) -> IdMap:
    raw, counts = _union(spill, name, buckets)
    return IdMap.build(raw, counts[split.TRAIN] > 0)


# ------------------------------------------------------------------------------ 3. encode


@dataclass(frozen=True)
class _Encode:
    spill: Folder
    folder: Folder
    users: IdMap
    items: IdMap
    timed: bool

    def __call__(self, bucket: int) -> dict[str, Any]:
        """Write the part files of one bucket; return their counts."""
        table = read_arrow(self.spill, f"bucket-{bucket}.arrow")
        user = self.users.encode(table["raw_user"].to_numpy())
        item = self.items.encode(table["raw_item"].to_numpy())
        rating, timestamp = table["rating"].to_numpy(), table["timestamp"].to_numpy()
        which = table["split"].to_numpy()
        order = np.lexsort((item, timestamp, user))
        result: dict[str, Any] = {}
        for code, name in enumerate(schema.SPLITS):
            rows = order[which[order] == code]
            times = pa.array(timestamp[rows]) if self.timed else pa.nulls(len(rows), pa.int64())
            columns = [user[rows], item[rows], rating[rows], times]
            part = pa.table(columns, schema=schema.RATINGS)
            self.folder.write_table(part_name(name, bucket), part)
            cold = (user[rows] >= self.users.known) | (item[rows] >= self.items.known)
            result[name] = {"rows": len(rows), "unseen": int(cold.sum())}
            if code == split.TRAIN:
                values, counts = np.unique(rating[rows], return_counts=True)
                result["levels"] = {float(v): int(c) for v, c in zip(values, counts, strict=True)}
        return result


def _write_items(folder: Folder, given: Source, spill: Folder, items: IdMap, buckets: int) -> None:
    raw, counts = _union(spill, "items", buckets)
    trained = np.zeros(len(items), np.int64)
    trained[items.encode(raw)] = counts[split.TRAIN]
    movies = given.movies
    known = movies["raw_item"].to_numpy()
    place = np.searchsorted(known, items.raw)
    found = np.isin(items.raw, known)
    rows = pa.array(place, mask=~found)
    title = pc.coalesce(movies["title"].take(rows), pa.array(items.raw).cast(pa.string()))
    genres = pc.coalesce(movies["genres"].take(rows), pa.scalar([], pa.list_(pa.string())))
    columns = {
        "item": np.arange(len(items), dtype=np.int32),
        "raw_item": items.raw,
        "title": title,
        "year": pc.fill_null(movies["year"].take(rows), 0),
        "genres": genres,
        "ratings": trained,
    }
    folder.write_table("items.parquet", pa.table(columns, schema=schema.ITEMS))


def _write_users(folder: Folder, spill: Folder, users: IdMap, buckets: int) -> None:
    raw, counts = _union(spill, "users", buckets)
    place = users.encode(raw)
    columns: dict[str, Any] = {
        "user": np.arange(len(users), dtype=np.int32),
        "raw_user": users.raw,
    }
    for row, name in enumerate(schema.SPLITS):
        columns[name] = np.zeros(len(users), np.int64)
        columns[name][place] = counts[row]
    folder.write_table("users.parquet", pa.table(columns, schema=schema.USERS))


# ------------------------------------------------------------------------------- manifest


def _facts(given: Source, settings: Settings, scan: _Scanned) -> dict[str, Any]:
    return {
        "dataset": given.name,
        "source": given.identity,
        "settings": {g: getattr(settings, g).model_dump(mode="json") for g in ("data", "split")},
        "timestamps": scan.timed,
        "implicit": given.layout.implicit,
        "rejected": {"rows": sum(scan.reasons.values()), "reasons": scan.reasons},
        "rows_read": scan.rows,
    }


def _counts(encoded: list[Any], gathered: list[Any], users: IdMap, items: IdMap) -> dict[str, Any]:
    splits = {}
    for name in schema.SPLITS:
        rows = sum(e[name]["rows"] for e in encoded)
        unseen = sum(e[name]["unseen"] for e in encoded)
        share = round(100 * unseen / rows, 3) if rows else 0.0
        splits[name] = {"rows": rows, "unseen": unseen, "unseen_percent": share}
    levels: Counter[float] = Counter()
    for result in encoded:
        levels.update({float(k): v for k, v in result["levels"].items()})
    return {
        "counts": {
            "users": users.known,
            "items": items.known,
            "unseen_users": len(users) - users.known,
            "unseen_items": len(items) - items.known,
            "duplicates": sum(g["duplicates"] for g in gathered),
            "ratings": sum(s["rows"] for s in splits.values()),
        },
        "splits": splits,
        "ratings": {
            "range": [min(levels), max(levels)],
            "levels": [[v, levels[v]] for v in sorted(levels)] if len(levels) <= 100 else [],
        },
    }


def _fingerprints(folder: Folder) -> dict[str, Any]:
    """Hashes per split, so that what training saw can be proven not to depend on test."""
    prints = {}
    for name in schema.SPLITS:
        digest = hashlib.sha256()
        for file in folder.files():
            if file.startswith(f"{name}/"):
                digest.update(file.encode() + hashlib.sha256(folder.read_bytes(file)).digest())
        prints[name] = digest.hexdigest()
    return {"fingerprints": prints}


# ------------------------------------------------------------------------------ spill files


def write_arrow(folder: Folder, name: str, table: pa.Table) -> None:
    """Write an uncompressed Arrow file, which a reader on this machine can map."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    folder.write_bytes(name, sink.getvalue())


def read_arrow(folder: Folder, name: str, begin: int = 0, end: int | None = None) -> pa.Table:
    """Rows begin..end-1 of an Arrow file; on a local disk only their pages are read."""
    if storage.is_uri(folder.path):
        stream: Any = pa.BufferReader(folder.read_bytes(name))
    else:
        stream = pa.memory_map(f"{folder.path}/{name}")
    table = pa.ipc.open_file(stream).read_all()
    return table.slice(begin, None if end is None else end - begin)


def same_settings(prepared: Prepared, given: Source, settings: Settings) -> bool:
    """Whether the data set on disk is what preparing this source would give again."""
    wanted = {g: getattr(settings, g).model_dump(mode="json") for g in ("data", "split")}
    facts = prepared.manifest
    return facts["source"] == given.identity and facts["settings"] == wanted
