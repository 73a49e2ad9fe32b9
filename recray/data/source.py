"""Recognise what the user gave as SOURCE: its ratings, in file ranges, and the lists beside them.

A source is `sample`, the name of a MovieLens release, or a file, an archive or a folder. Files are
recognised by what is in them; choice.py finds the ratings among several, and lists/ reads the rest.
"""

import hashlib
import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.fs as pafs

from recray.config import Settings
from recray.data import movielens, sample
from recray.data.choice import Choice, Chooser, FirstIds, RatingsFound, base_of, is_listed
from recray.data.container import Container, FoundFile
from recray.data.formats import archives, layout, reading
from recray.data.formats.content import detect_content, refuse_foreign_archive
from recray.data.formats.layout import COLUMN_NAMES, FileRange, RatingsFile, RatingsFormat
from recray.data.lists.beside import (
    UNREADABLE,
    USUAL_ITEMS,
    USUAL_USERS,
    Candidates,
    SideLists,
    read_lists,
)
from recray.data.lists.rows import IdRule
from recray.errors import RecrayError, unknown_name
from recray.storage import Folder, check_store, file_type, is_uri, modified_ns, open_input

SAMPLE = "sample"
LOOKED_AT = 50
"""Files beside the ratings whose columns are looked at to find lists of no usual name; of a store,
where each takes several requests, a fifth."""


@dataclass(frozen=True)
class Source:
    """A recognised source.

    Args:
        name: Short name for tables and folders.
        ranges: All of its ratings, in order.
        lists: What it says of items and users, and what was read of each list.
        identity: Changes when the files change (names, sizes, times); free to compute.
        unused: Files that are neither ratings nor lists, and why.
    """

    name: str
    ranges: tuple[FileRange, ...]
    lists: SideLists
    identity: str
    unused: dict[str, str] = field(default_factory=dict)

    @property
    def movies(self) -> pa.Table:
        """Its items as schema.movies; empty if it lists none."""
        return self.lists.movies

    @property
    def listed_users(self) -> pa.Table:
        """What it says of its users, as schema.listed_users; empty if nothing."""
        return self.lists.users

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
        return _chosen(Container(SAMPLE, "folder", tuple(generated), generated), SAMPLE, settings)
    if given in movielens.RELEASES:
        return _archive(str(movielens.fetch(given, mirror)), given, settings)
    name = given.rstrip("/").rsplit("/", 1)[-1].split(".")[0]
    if given.startswith(("https://", "http://")):
        given = str(movielens.download(given))
    elif not is_uri(given):
        given = os.path.abspath(os.path.expanduser(given)) if _exists(given) else given
    check_store(given, to_write=False)
    if file_type(given) == pafs.FileType.Directory:
        folder = Folder(given)
        container = Container(folder.path, "folder", tuple(folder.files()))
        return _chosen(container, name or folder.name, settings)
    with closing(open_input(given)) as stream:
        head = stream.read(4)
    if head.startswith(b"PK") and head[2:3] < b" ":
        return _archive(given, name, settings)
    return _lone_file(given, name, settings)


def _exists(given: str) -> bool:
    if os.path.exists(os.path.expanduser(given)):
        return True
    if os.sep in given or "." in given:
        raise RecrayError(f"no such file or folder: {given}")
    raise unknown_name("source", given, [SAMPLE, *movielens.RELEASES])


# ------------------------------------------------------------------------------ kinds of source


def _archive(path: str, name: str, settings: Settings) -> Source:
    with archives.keep_zip_open(path) as archive:
        members = sorted(m.filename for m in archive.infolist() if not m.is_dir())
        facts = "\n".join(f"{m.filename} {m.file_size} {m.CRC}" for m in archive.infolist())
        refuse_foreign_archive(path, members)
        return _chosen(Container(path, "archive", tuple(members)), name, settings, facts)


def _chosen(container: Container, name: str, settings: Settings, facts: str = "") -> Source:
    """The source in a folder or archive."""
    chooser = _chooser(container, settings)
    return _assembled(chooser, chooser.choose(), name, settings, facts)


def _lone_file(path: str, name: str, settings: Settings) -> Source:
    if settings.split.kind == "given":
        raise RecrayError(f"split.kind=given needs a folder or archive; {path} is a file")
    chooser = _chooser(Container.around(path), settings)
    file = FoundFile(base_of(path), path, detect_content(base_of(path), path))
    choice = Choice([RatingsFound(file, *chooser.format_of(file))])
    return _assembled(chooser, choice, name, settings, guessed=True)


def _chooser(container: Container, settings: Settings) -> Chooser:
    def format_of(file: FoundFile) -> tuple[RatingsFormat, FirstIds]:
        return reading.format_of(file.name, file.path, file.content, settings.data.rating_columns)

    items, users = (_id_rule(role, settings) for role in layout.IDS[::-1])
    return Chooser(container, settings.split, format_of, items, users)


def _id_rule(role: str, settings: Settings, ratings: RatingsFormat | None = None) -> IdRule:
    """How the ids of a list are called and read: as told, as in the ratings, or as is usual."""
    told = {layout.role_of(word): name for word, name in (settings.data.columns or {}).items()}
    own = dict(zip(ratings.columns, ratings.names, strict=False)) if ratings else {}
    names = [told.get(role, ""), own.get(role, ""), *COLUMN_NAMES[role]]
    known = tuple(name for name in names if name and not name.isdigit())
    return IdRule(known, bool(ratings and role in ratings.text), told.get("title"))


# ------------------------------------------------------------------------------------ its files


def _assembled(
    chooser: Chooser,
    choice: Choice,
    name: str,
    settings: Settings,
    facts: str = "",
    guessed: bool = False,
) -> Source:
    """Cut files of ratings into file ranges, and read the lists beside them."""
    found = choice.ratings
    if len({one.layout.implicit for one in found}) > 1:
        bare = next(one.file.name for one in found if one.layout.implicit)
        raise RecrayError(
            f"{bare} has no rating column, and other files of {name} have one; "
            "give the file of ratings alone as SOURCE"
        )
    first = {role: [v for one in found for v in one.ids[role]] for role in layout.IDS}
    files = [_ratings_file(one.file, one.layout) for one in found]
    files = reading.with_one_reading(files, [one.ids for one in found], settings.data)
    ranges = tuple(part for file in files for part in reading.file_ranges(file))
    if not ranges:
        raise RecrayError(f"{found[0].file.path} is empty: it has no ratings")
    lists = _lists_beside(chooser, choice, files[0], first, settings, guessed)
    identity = _identity(files, facts, lists.movies, lists.users)
    return Source(name, ranges, lists, identity, choice.unused)


def _ratings_file(file: FoundFile, format_: RatingsFormat) -> RatingsFile:
    return RatingsFile(
        name=file.name,
        path=file.path,
        kind=file.content.kind,
        layout=format_,
        member=file.member,
        part=file.part,
        packing=file.content.packing,
        encoding=file.content.encoding,
    )


def _lists_beside(
    chooser: Chooser,
    choice: Choice,
    ratings: RatingsFile,
    first: FirstIds,
    settings: Settings,
    guessed: bool,
) -> SideLists:
    """Read the lists that the choice found, or that lie in the folder of the ratings."""
    folder = ratings.name[: ratings.name.rfind("/") + 1]
    taken = {one.file.name for one in choice.ratings}
    beside = [
        name
        for name in chooser.container.names
        if name.startswith(folder) and "/" not in name[len(folder) :] and name not in taken
    ]
    items = [folder + name for name in USUAL_ITEMS if folder + name in beside] + choice.items
    users = [folder + name for name in USUAL_USERS if folder + name in beside] + choice.users
    others = [name for name in beside if is_listed(name) and name not in {*items, *users}]
    looked_at = LOOKED_AT // 5 if is_uri(chooser.container.path) else LOOKED_AT
    found = _lists_among(chooser, others[:looked_at]) if not items or not users else {}
    items = items or [name for name, kind in found.items() if kind == "items"]
    users = users or [name for name, kind in found.items() if kind == "users"]
    links = f"{folder}links.csv"
    rules = [_id_rule(role, settings, ratings.layout) for role in layout.IDS]
    return read_lists(
        Candidates(items, rules[1], first["raw_item"], guessed),
        Candidates(users, rules[0], first["raw_user"], guessed),
        links if links in beside else None,
        chooser.container.read,
    )


def _lists_among(chooser: Chooser, names: Sequence[str]) -> dict[str, str]:
    """What files list, by what is in them; those that cannot be opened are none."""
    found: dict[str, str] = {}
    for name in names:
        try:
            found[name] = chooser.kind_of_list(chooser.container.find(name))
        except UNREADABLE:  # a list is decoration, and this may be anything
            continue
    return found


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
