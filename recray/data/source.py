"""Recognise what the user gave as SOURCE: its ratings, in file ranges, and the lists beside them.

A source is `sample`, the name of a MovieLens release, or a file, an archive or a folder. Files are
recognised by what is in them.
"""

import csv
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import pyarrow as pa
import pyarrow.fs as pafs

from recray import schema
from recray.config import Settings
from recray.data import movielens, sample, side_files
from recray.data.formats import archives, layout, reading, times
from recray.data.formats.content import (
    Content,
    EmptyFileError,
    recognise,
    refuse_foreign_archive,
)
from recray.data.formats.layout import FileRange, RatingsFile
from recray.errors import RecrayError, unknown_name
from recray.storage import Folder, file_type, is_uri, modified_ns, open_input

SAMPLE = "sample"
MOVIELENS = ("u.data", "ratings.dat", "ratings.csv")
ENDINGS = (".csv", ".tsv", ".parquet", ".csv.gz", ".tsv.gz")
NOT_RATINGS = ("movies.csv", "items.csv", "links.csv", "tags.csv", "users.csv")
"""Files of a folder that are not ratings."""
Part = Literal["", "train", "test"]
"""The split that all rows of a file belong to, where the settings name files for splits."""
Read = Callable[[str], bytes | None]
"""Reads a file by its name inside the source; None if there is no such file."""


@dataclass(frozen=True)
class Source:
    """A recognised source.

    Args:
        name: Short name for tables and folders.
        ranges: All of its ratings, in order.
        movies: Its films as schema.MOVIES; empty if it has none.
        people: What it says of its users, as schema.PEOPLE; empty if nothing.
        identity: Changes when the files change (names, sizes, times); free to compute.
    """

    name: str
    ranges: tuple[FileRange, ...]
    movies: pa.Table
    people: pa.Table
    identity: str

    @property
    def text(self) -> frozenset[str]:
        """Which of raw_user and raw_item are text."""
        return self.ranges[0].file.layout.text

    @property
    def implicit(self) -> bool:
        """Whether there are no ratings, only pairs."""
        return self.ranges[0].file.layout.implicit


def detect_source(
    given: str, settings: Settings | None = None, mirror: str | None = None
) -> Source:
    """Turn `sample`, a release's name, or a path or URI into a source.

    Args:
        given: What the user gave.
        settings: data.columns, data.ids and split's given files are used.
        mirror: Where a release lies instead of its official address.

    Raises:
        RecrayError: There is no such file or name, or nothing in it looks like ratings.
    """
    settings = settings or Settings()
    if given == SAMPLE:
        generated = sample.files()
        content = Content("sample", "", "utf-8", generated["ratings.csv"])
        return _files([_Found("ratings.csv", SAMPLE, content)], SAMPLE, settings, generated.get)
    if given in movielens.RELEASES:
        return _archive(str(movielens.fetch(given, mirror)), given, settings)
    name = given.rstrip("/").rsplit("/", 1)[-1].split(".")[0]
    if given.startswith(("https://", "http://")):
        given = str(movielens.download(given))
    elif not is_uri(given):
        given = os.path.abspath(os.path.expanduser(given)) if _exists(given) else given
    if file_type(given) == pafs.FileType.Directory:
        return _folder(given, name or Folder(given).name, settings)
    with closing(open_input(given)) as stream:
        head = stream.read(4)
    if head.startswith(b"PK") and head[2:3] < b" ":
        return _archive(given, name, settings)
    files = [_found(given.rsplit("/", 1)[-1], given)]
    return _files(files, name, settings, _reader(given))


def _exists(given: str) -> bool:
    if os.path.exists(os.path.expanduser(given)):
        return True
    if os.sep in given or "." in given:
        raise RecrayError(f"no such file or folder: {given}")
    raise unknown_name("source", given, [SAMPLE, *movielens.RELEASES])


@dataclass(frozen=True)
class _Found:
    """A file of ratings before its columns are known; the name is the one inside its source."""

    name: str
    path: str
    content: Content
    member: str = ""
    part: Part = ""


def _found(name: str, path: str, member: str = "", part: Part = "") -> _Found:
    return _Found(name, path, recognise(name, path, member), member, part)


def _found_filled(files: Iterable[tuple[str, str, str, Part]]) -> list[_Found]:
    """Recognise files, without those that are empty; Spark writes such ones beside the others.

    Raises:
        RecrayError: All are empty, or one is of a kind that is not read.
    """
    found, empty = [], []
    for name, path, member, part in files:
        try:
            found.append(_found(name, path, member, part))
        except EmptyFileError as error:
            if part:
                raise
            empty.append(error)
    if not found:
        raise empty[0]
    return found


# ------------------------------------------------------------------------------ kinds of source


def _archive(path: str, name: str, settings: Settings) -> Source:
    with archives.open_zip(path) as archive:
        members = sorted(m.filename for m in archive.infolist() if not m.is_dir())
        refuse_foreign_archive(path, members)
        chosen = _choose(members, path, settings, "archive")

        def read(member: str) -> bytes | None:
            with archives.reading(path):
                return archive.read(member) if member in members else None

        facts = "\n".join(f"{m.filename} {m.file_size} {m.CRC}" for m in archive.infolist())
        files = _found_filled((member, path, member, part) for member, part in chosen)
        return _files(files, name, settings, read, facts)


def _folder(path: str, name: str, settings: Settings) -> Source:
    folder = Folder(path)
    top = f"{folder.path.rstrip('/')}/"
    chosen = _choose(folder.files(), path, settings, "folder")
    files = _found_filled((member, top + member, "", part) for member, part in chosen)
    return _files(files, name, settings, _reader(top))


def _reader(path: str) -> Read:
    """Reads files by their name relative to the folder of a path."""
    top = path.rsplit("/", 1)[0]

    def read(name: str) -> bytes | None:
        whole = f"{top}/{name}"
        if file_type(whole) != pafs.FileType.File:
            return None
        with closing(open_input(whole)) as stream:
            return bytes(stream.read())

    return read


def _choose(
    names: Sequence[str], path: str, settings: Settings, container: str
) -> list[tuple[str, Part]]:
    """The ratings among the files of an archive or folder, with the split that each one is."""
    if settings.split.kind == "given":
        return _named_files(names, path, settings)
    depth = 2 if container == "archive" else 1  # the files of an archive often lie in one folder
    usual = [n for n in names if _base(n) in MOVIELENS and n.count("/") <= depth]
    if usual:
        # Of several files the one nearest to the top is taken, then the first by name.
        return [(min(usual, key=lambda n: (n.count("/"), MOVIELENS.index(_base(n)), n)), "")]
    ratings = [
        n
        for n in names
        if n.lower().endswith(ENDINGS) and _base(n) not in NOT_RATINGS and _base(n)[0] not in "._"
    ]
    if not ratings:
        raise RecrayError(
            f"{path} holds no ratings: expected {', '.join(MOVIELENS)}, or files that end with "
            f"{', '.join(ENDINGS)}, in the {container}"
        )
    return [(n, "") for n in ratings]


def _base(name: str) -> str:
    return name.rsplit("/", 1)[-1]


def _named_files(names: Sequence[str], path: str, settings: Settings) -> list[tuple[str, Part]]:
    """The two files that the settings name, by their names or their paths inside the source."""
    train, test = settings.split.train_file, settings.split.test_file
    if train is None or test is None:
        raise RecrayError(
            "split.kind=given needs split.train_file and split.test_file, such as u1.base, u1.test"
        )
    chosen: list[tuple[str, Part]] = []
    parts: tuple[tuple[str, Part], ...] = ((train, "train"), (test, "test"))
    for file, part in parts:
        found = [n for n in names if n == file] or [n for n in names if n.endswith(f"/{file}")]
        if not found:
            near = sorted(n for n in names if not n.endswith("/"))
            raise RecrayError(f"{path} has no file {file!r}; it has {', '.join(near)[:300]}")
        if len(found) > 1:
            raise RecrayError(
                f"{path} has several files {file!r}: {', '.join(found)}; give the path"
            )
        chosen.append((found[0], part))
    return chosen


# ------------------------------------------------------------------------------------- columns


def _files(
    found: list[_Found],
    name: str,
    settings: Settings,
    read: Read,
    facts: str = "",
) -> Source:
    """Recognise the columns of files and cut them into file ranges."""
    if settings.split.kind == "given" and not found[0].part:
        raise RecrayError(f"split.kind=given needs a folder or archive; {found[0].path} is a file")
    told = [reading.format_of(f.name, f.path, f.content, settings.data.columns) for f in found]
    layouts = [one for one, _ in told]
    if len({one.implicit for one in layouts}) > 1:
        bare = next(f.name for f, one in zip(found, layouts, strict=True) if one.implicit)
        raise RecrayError(f"{bare} has no rating column, and other files of {name} have one")
    first = {role: [value for _, ids in told for value in ids[role]] for role in layout.IDS}
    text_ids = layout.text_roles(settings.data.ids, first)
    time = times.format_of([value for _, ids in told for value in ids.get("timestamp", ())])
    layouts = [replace(one, text=text_ids, time=time) for one in layouts]
    files = [
        RatingsFile(
            name=f.name,
            path=f.path,
            kind=f.content.kind,
            layout=one,
            member=f.member,
            part=f.part,
            packing=f.content.packing,
            encoding=f.content.encoding,
        )
        for f, one in zip(found, layouts, strict=True)
    ]
    ranges = tuple(part for file in files for part in reading.file_ranges(file))
    if not ranges:
        raise RecrayError(f"{found[0].path} is empty: it has no ratings")
    movies = _items_beside(files[0], read, "raw_item" in text_ids)
    people = _users_beside(files[0], read)
    return Source(name, ranges, movies, people, _identity(files, facts, movies, people))


def _items_beside(file: RatingsFile, read: Read, text: bool) -> pa.Table:
    """Read the list of items beside a ratings file, as schema.movies.

    Raises:
        RecrayError: A list of items cannot be read.
    """
    folder = file.name[: file.name.rfind("/") + 1]
    for name, parser in side_files.ITEM_PARSERS.items():
        content = read(folder + name)
        if content is None:
            continue
        with _reading_list(name, file):
            movies = parser(content, text)
        links = read(f"{folder}links.csv") if name == "movies.csv" and not text else None
        if links is not None:
            with _reading_list("links.csv", file):
                movies = side_files.add_links(movies, links)
        return movies
    return schema.movies(text).empty_table()


def _users_beside(file: RatingsFile, read: Read) -> pa.Table:
    """Read the list of users beside a ratings file, with age, gender and occupation.

    Raises:
        RecrayError: The list of users cannot be read.
    """
    folder = file.name[: file.name.rfind("/") + 1]
    for name, parser in side_files.USER_PARSERS.items():
        if (content := read(folder + name)) is not None:
            with _reading_list(name, file):
                return parser(content)
    return schema.PEOPLE.empty_table()


@contextmanager
def _reading_list(name: str, file: RatingsFile) -> Iterator[None]:
    try:
        yield
    except (RecrayError, ValueError, IndexError, TypeError, OverflowError, csv.Error) as error:
        raise RecrayError(f"{name} beside {file.path} cannot be read: {error}") from error


def _identity(files: list[RatingsFile], facts: str, *tables: pa.Table) -> str:
    """A hash of names, sizes and times, and of what is said of films and users."""
    digest = hashlib.sha256(facts.encode())
    for file in files:
        if file.kind == "sample":
            digest.update(sample.files()[file.name])
        elif not file.member:
            with closing(open_input(file.path)) as stream:
                # Not its path: a folder that was renamed holds the same ratings.
                digest.update(f"{stream.size()} {modified_ns(file.path)}".encode())
        digest.update(repr((file.name, file.layout, file.part)).encode())
    for table in tables:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        digest.update(sink.getvalue().to_pybytes())
    return digest.hexdigest()
