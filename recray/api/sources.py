"""What `recray.prepare` is given: a path, a name or a table; and what is there already."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from recray.api import arguments
from recray.config import Settings
from recray.data.dataset import Prepared
from recray.data.source import Source, detect_source
from recray.data.table_source import Table, table_source
from recray.errors import RecrayError

Path = str | os.PathLike[str]
"""A local path, or a URI such as s3://bucket/x."""


@contextmanager
def opened(
    given: Path | Table,
    items: Table | None,
    out: str,
    settings: Settings,
    mirror: Path | None,
) -> Iterator[Source]:
    """The source of a path, or of a table, which lies beside `out` while the block runs.

    Raises:
        RecrayError: It is neither, or nothing in it looks like ratings.
    """
    if arguments.is_table(given):
        with table_source(given, items, out, settings) as source:
            yield source
        return
    if items is not None:
        raise RecrayError("items goes with a table of ratings; a file has its list beside it")
    path = arguments.path_of("source", given)
    yield detect_source(path, settings, arguments.optional_path("mirror", mirror))


def matching(out: str, ratings: Source, settings: Settings) -> Prepared:
    """The data set that lies in a folder, if it is of these ratings and settings."""
    from recray.data.manifest import same_settings

    prepared = Prepared.open(out)
    if not same_settings(prepared, ratings, settings):
        raise RecrayError(f"{out} holds other data or settings; give another folder")
    return prepared
