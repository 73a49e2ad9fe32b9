"""What stands beside the ratings of a source: films, links, users. Each may be missing."""

import csv
from collections.abc import Callable

import pyarrow as pa

from recray.data import item_files, user_files
from recray.data.readers import RatingsFile
from recray.errors import RecrayError

Read = Callable[[str], bytes | None]
"""Gives the content of a file by its name inside the source, None if there is none."""


def movies_of(file: RatingsFile, read: Read, text: bool) -> pa.Table:
    """The films beside a ratings file as schema.MOVIES.

    Args:
        file: The ratings.
        read: Reads the files of the source.
        text: Whether item ids are text.

    Raises:
        RecrayError: A list of films cannot be read.
    """
    stem = _stem(file)
    for name, parser in item_files.PARSERS.items():
        content = read(stem + name)
        if content is None:
            continue
        movies = _parse(name, file, lambda: parser(content, text))  # noqa: B023 - called here
        links = read(f"{stem}links.csv") if name == "movies.csv" and not text else None
        if links is None:
            return movies
        return _parse("links.csv", file, lambda: item_files.add_links(movies, links))  # noqa: B023
    return item_files.no_movies(text)


def people_of(file: RatingsFile, read: Read) -> pa.Table:
    """What the release says of its users, as schema.PEOPLE.

    Raises:
        RecrayError: The list of users cannot be read.
    """
    for name, parser in user_files.PARSERS.items():
        if (content := read(_stem(file) + name)) is not None:
            return _parse(name, file, lambda: parser(content))  # noqa: B023 - called here
    return user_files.nobody()


def _stem(file: RatingsFile) -> str:
    return file.name[: file.name.rfind("/") + 1]


def _parse(name: str, file: RatingsFile, parse: Callable[[], pa.Table]) -> pa.Table:
    try:
        return parse()
    except (RecrayError, ValueError, IndexError, TypeError, OverflowError, csv.Error) as error:
        raise RecrayError(f"{name} beside {file.path} cannot be read: {error}") from error
