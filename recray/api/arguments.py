"""What Python callers hand over, as recray knows it: paths, whole numbers, settings, filters, ids.

pandas, numpy and pyarrow have scalars and tables of their own, which are taken for what they hold.
What could mean two things is refused in one line, never guessed at.
"""

import math
import numbers
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from typing import Any, NamedTuple, cast

import pandas as pd
import pyarrow as pa
from pydantic import JsonValue

from recray.data.formats.layout import COLUMN_NAMES
from recray.data.ids import ID_LIMIT, IdMap, RawId, UserIds
from recray.errors import RecrayError, unknown_name
from recray.inference.catalog import Filters

_ONE_SLASH = re.compile(r"^([a-z][a-z0-9+.-]+):/(?!/)")
"""The beginning of a URI that pathlib has taken for a path: it makes one slash of two."""
_SHOWN = 60
"""Characters of a refused value that a message shows."""


def path_of(name: str, given: object) -> str:
    """A path or URI as text, with the home folder for `~`.

    Args:
        name: Name of the argument, for the message.
        given: str or anything with `__fspath__`, such as pathlib.Path.

    Raises:
        RecrayError: It is neither.
    """
    path = os.fspath(given) if isinstance(given, os.PathLike) else given
    if not isinstance(path, str) or not path:
        raise RecrayError(f"{name}={shown(given)}: give a path or URI, as str or pathlib.Path")
    if path is not given:
        path = _ONE_SLASH.sub(r"\1://", path)
    return os.path.expanduser(path)


def optional_path(name: str, given: object) -> str | None:
    """As path_of; None stays None."""
    return None if given is None else path_of(name, given)


def shown(value: object) -> str:
    """A value as a message shows it: on one line, and not longer than needed."""
    text = " ".join(repr(value).split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


# ------------------------------------------------------------------------------------ numbers


def scalar(value: Any) -> Any:
    """A scalar of numpy or pyarrow, or an array without axes, as Python's own; others as is."""
    if isinstance(value, pa.Scalar):
        return value.as_py()
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def whole(name: str, given: object) -> int:
    """A whole number of any type: 5, 5.0, "5", numpy.int64(5).

    Raises:
        RecrayError: It is none.
    """
    value = scalar(given)
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?[0-9]+(\.0*)?\s*", value):
        value = int(value.strip().partition(".")[0])
    if not _is_whole(value):
        raise RecrayError(f"{name}={shown(given)}: give a whole number")
    return int(value)


def _is_whole(value: object) -> bool:
    """Whether it is a number without a fraction; True and False are none."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return False
    return math.isfinite(value) and value == math.floor(value)


def optional_whole(name: str, given: object) -> int | None:
    """As whole; None stays None."""
    return None if given is None else whole(name, given)


def number(name: str, given: object) -> float:
    """A number of any type, text of one included; True and False are 1 and 0.

    Raises:
        RecrayError: It is none.
    """
    try:
        return float(scalar(given))
    except (TypeError, ValueError):
        raise RecrayError(f"{name}={shown(given)}: give a number") from None


def plain(name: str, given: object) -> JsonValue:
    """A setting's value as JSON has it: numpy's and pandas' scalars and arrays, paths, tuples.

    Raises:
        RecrayError: JSON has nothing of its kind.
    """
    value = scalar(given)
    if isinstance(value, str):
        return str(value)
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, numbers.Real):
        return float(value)
    if isinstance(value, os.PathLike):
        return path_of(name, value)
    if isinstance(value, Mapping):
        return {str(key): plain(name, part) for key, part in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, bytes):
        return [plain(name, part) for part in value]
    raise RecrayError(f"{name}={shown(given)}: a {type(given).__name__} is no value of a setting")


# ---------------------------------------------------------------------------------------- ids


def raw_id(what: str, given: object, ids: UserIds) -> RawId:
    """An id of a user or an item, as recray knows ids.

    Args:
        what: `user` or `item`, for the message.
        given: Text, a whole number of any type, or 4.0, which pandas makes of 4 beside a gap.
        ids: The ids of the data set: the text "4" is 4 where ids are integers.

    Raises:
        RecrayError: It is no id, such as 4.7, True, None or a list; or a number where ids are text.
    """
    value = scalar(given)
    if isinstance(value, str):
        try:
            return ids.parse(value)
        except KeyError:
            return str(value)  # no id; perhaps a title
    if not _is_whole(value):
        raise RecrayError(
            f"{what} {shown(given)}: an id is text or a whole number; give one {what}"
        )
    if ids.text:
        raise RecrayError(f"{what} {shown(given)}: ids are text here; give {str(int(value))!r}")
    return int(value)


# ------------------------------------------------------------------------------------ filters

_LISTS = ("genres", "not_genres")
_ID_LISTS = ("exclude", "candidates")
_WHOLE = ("year_from", "year_to", "min_popularity")


def filters_of(given: Mapping[str, Any], items: IdMap) -> Filters:
    """The filters of a call: one genre or id may stand for a list of it.

    Raises:
        RecrayError: There is no such filter, or its value is of a kind that it cannot be.
    """
    values: dict[str, Any] = {}
    for name, value in given.items():
        known = [field.name for field in fields(Filters)]
        if name not in known:
            raise unknown_name("filter", name, known)
        if name in _LISTS:
            values[name] = tuple(_texts(name, value))
        elif name in _ID_LISTS:
            values[name] = None if value is None else _ids(value, items)
        elif name in _WHOLE:
            values[name] = optional_whole(name, value)
        else:
            values[name] = bool(value) if name == "explain" else number(name, value)
    defaults: dict[str, Any] = {"exclude": (), "min_popularity": 0}
    for name in defaults.keys() & {name for name, value in values.items() if value is None}:
        values[name] = defaults[name]
    return Filters(**values)


def _texts(name: str, given: object) -> Iterator[str]:
    if given is None:
        return
    for text in _many(given):
        if not isinstance(text, str):
            raise RecrayError(f"{name}={shown(given)}: give names, such as ['Drama']")
        yield str(text)


def _ids(given: object, items: IdMap) -> tuple[RawId, ...]:
    return tuple(raw_id("item", item, items) for item in _many(given))


def _many(given: object) -> list[Any]:
    """The values of a list, array, Series, set or column; a single value is a list of itself."""
    value = scalar(given)
    if isinstance(value, pa.Array | pa.ChunkedArray):
        return cast("list[Any]", value.to_pylist())
    if isinstance(value, str) or not isinstance(value, Iterable):
        return [value]
    return list(value)


# ------------------------------------------------------------------------------------ ratings


class GivenRating(NamedTuple):
    """What was given for one item, by its id or a part of its title; None where nothing was."""

    item: Any
    rating: Any = None
    time: Any = None


def ratings_of(given: object) -> list[GivenRating]:
    """Ratings of one person: a dict, a Series by item, a table with item, rating and perhaps time,
    or a list of pairs, of triples with a time, and of plain items.

    Raises:
        RecrayError: It is nothing of these.
    """
    if isinstance(given, Mapping):
        return [GivenRating(*pair) for pair in given.items()]
    if isinstance(given, pd.Series):
        if isinstance(given.index, pd.RangeIndex) and given.index.name is None:
            raise RecrayError(
                "ratings: the index of a Series must be the items, such as "
                "frame.set_index('item')['rating']"
            )
        return [GivenRating(*pair) for pair in given.items()]
    if is_table(given):
        return _ratings_of_table(as_pandas(given))
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise RecrayError(
            f"ratings={shown(given)}: give {{item: stars}}, pairs, plain items, or a table"
        )
    return [_given(each) for each in given]


def _given(each: object) -> GivenRating:
    """One entry of a list: a plain item, or an item with its stars and perhaps its time."""
    value = scalar(each)
    if isinstance(value, str) or not isinstance(value, Iterable):
        return GivenRating(value)
    fields = tuple(value)
    if not 2 <= len(fields) <= 3:
        raise RecrayError(
            f"ratings hold {shown(fields)}, which is no item, nor one with its stars and its time"
        )
    return GivenRating(*fields)


def _ratings_of_table(frame: pd.DataFrame) -> list[GivenRating]:
    if any(name is not None for name in frame.index.names):
        frame = frame.reset_index()
    names = {str(name).lower(): name for name in frame.columns}
    roles = ("raw_item", "rating", "timestamp")
    known = {role: COLUMN_NAMES[role] for role in roles}
    known["raw_item"] = [*known["raw_item"], "title"]
    found = {role: next((names[n] for n in known[role] if n in names), None) for role in roles}
    strange = names.keys() - {name for each in known.values() for name in each}
    # A table of plain items has none; among other columns it may have a name that nobody knows.
    wanted = {"item": "raw_item", **({"rating": "rating"} if strange else {})}
    for word, role in wanted.items():
        if found[role] is None:
            have = ", ".join(map(str, frame.columns))[:200]
            raise RecrayError(f"the table of ratings has no {word} column: its columns are {have}")
    empty = [None] * len(frame)
    columns = [empty if found[role] is None else frame[found[role]].tolist() for role in roles]
    return [GivenRating(*fields) for fields in zip(*columns, strict=True)]


def seconds(name: str, given: object) -> int | None:
    """A time as whole seconds since 1970: a number, a datetime or text of one; None stays None.

    Raises:
        RecrayError: It is no time.
    """
    value = scalar(given)
    if value is None or value is pd.NaT or (isinstance(value, float) and math.isnan(value)):
        return None
    try:
        if isinstance(value, numbers.Real) and not isinstance(value, bool):
            found = math.floor(float(value))
        else:
            found = math.floor(pd.Timestamp(value).timestamp())
        if -ID_LIMIT < found < ID_LIMIT:  # as HTTP takes them
            return found
    except (TypeError, ValueError, OverflowError):
        pass
    raise RecrayError(f"{name}={shown(given)}: give seconds since 1970, or a datetime")


def is_table(given: object) -> bool:
    """Whether it is a table of pandas, pyarrow, polars or another library that Arrow can read."""
    if isinstance(given, pd.DataFrame | pa.Table | pa.RecordBatch | pa.RecordBatchReader):
        return True
    return hasattr(given, "__arrow_c_stream__") and not isinstance(given, pd.Series | pa.Array)


def as_pandas(given: Any) -> pd.DataFrame:
    """Any table as a pandas frame."""
    if isinstance(given, pd.DataFrame):
        return given
    frame: pd.DataFrame = pa.table(given).to_pandas()
    return frame


def names_of(name: str, given: object) -> tuple[str, ...] | None:
    """Names in a list, or one name; None stays None."""
    return None if given is None else tuple(_texts(name, given))
