"""A source of ratings together with the log of what was rated since."""

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recray.data import dialect
from recray.data.feedback_log import MICRO, Contents, Given, RatingsLog
from recray.data.readers import FileRange, RatingsFile
from recray.data.source import Source
from recray.errors import RecrayError

SNAPSHOTS = "snapshots"
COLUMNS = ("user", "item", "rating", "timestamp")


def with_log(given: Source, log: RatingsLog) -> tuple[Source, dict[str, Any]]:
    """The source with the log's ratings, and what there is to say of them.

    The ratings as they are now are written beside the log, where every worker can read them.

    Returns:
        The source; and {"ratings", "users", "repeated", "damaged_parts", "unknown_items"}.

    Raises:
        RecrayError: The log is of another data set, or none of its items is in the source.
    """
    log.expect(given.name, ("raw_user" in given.text, "raw_item" in given.text))
    contents = log.read()
    latest = list({(g.user, g.item): g for g in contents.ratings}.values())
    known = _known(given, latest)
    if latest and not known:
        raise RecrayError(
            f"{log.folder} holds {len(latest):,} ratings, none of an item of {given.name}: "
            "it is the log of other data"
        )
    facts = _facts(contents, latest, known)
    if not known:
        return given, facts
    made, digest = _snapshot(given, log, known)
    identity = hashlib.sha256(f"{given.identity} {digest}".encode()).hexdigest()
    return replace(given, ranges=(*given.ranges, made), identity=identity), facts


def _facts(contents: Contents, latest: list[Given], known: list[Given]) -> dict[str, Any]:
    return {
        "ratings": len(known),
        "users": len({g.user for g in known}),
        "repeated": contents.repeated,
        "damaged_parts": contents.damaged,
        "unknown_items": len(latest) - len(known),
    }


def _known(given: Source, ratings: list[Given]) -> list[Given]:
    """The ratings of the source's own items; all of them where it lists none."""
    if not len(given.movies):
        return ratings
    own = given.movies["raw_item"].combine_chunks()
    there = pc.is_in(pa.array([g.item for g in ratings], own.type), own).to_pylist()
    return [g for g, known in zip(ratings, there, strict=True) if known]


def _snapshot(given: Source, log: RatingsLog, ratings: list[Given]) -> tuple[FileRange, str]:
    """Write the ratings as one parquet file named by its content."""
    text = given.text
    kinds = [pa.string() if role in text else pa.int64() for role in ("raw_user", "raw_item")]
    columns = [
        pa.array([g.user for g in ratings], kinds[0]),
        pa.array([g.item for g in ratings], kinds[1]),
        pa.array([g.rating for g in ratings], pa.float32()),
        pa.array(np.array([g.received for g in ratings], np.int64) // MICRO),
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns, names=list(COLUMNS)), sink)
    content = sink.getvalue().to_pybytes()
    digest = hashlib.sha256(content).hexdigest()
    name, folder = f"{digest[:16]}.parquet", log.folder.child(SNAPSHOTS)
    folder.replace_bytes(name, content, durable=True)
    format_ = replace(dialect.format_of_names(name, COLUMNS), text=text)
    file = RatingsFile(name, f"{folder.path}/{name}", "parquet", format_, part="logged")
    return FileRange(file), digest
