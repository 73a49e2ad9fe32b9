"""Which files of a folder or archive are its ratings, and which may be lists beside them.

A usual name of MovieLens decides; where there is none, what stands in the files does: ratings have
a column of users and one of items, a list has the ids of one of them and says something about them.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from recray.config import SplitSettings
from recray.data.container import Container, FoundFile, Part
from recray.data.formats.content import EmptyFileError
from recray.data.formats.layout import RatingsFormat, folder_values
from recray.data.lists.items import is_item_list
from recray.data.lists.rows import IdRule, column_of
from recray.data.lists.users import is_user_list
from recray.errors import RecrayError

USUAL = ("u.data", "ratings.dat", "ratings.csv")
_ROWS = (".csv", ".tsv", ".tab", ".psv", ".inter", ".json", ".jsonl", ".ndjson")
_PACKED = ("", ".gz", ".bz2", ".xz", ".zst", ".lz4")
ENDINGS = tuple(kind + packed for kind in _ROWS for packed in _PACKED)
ENDINGS += (".parquet", ".pq", ".arrow", ".feather", ".orc")
"""How the names of files of rows end; what they are is told by what is in them."""
_SPARK_PART = re.compile(r"part-[^.]*(\.gz|\.bz2|\.zst|\.lz4)?")
"""Files of Spark whose names do not say what they are."""
OTHER_ENDINGS = (".txt", ".dat", ".data", ".item", ".user")
"""Files that may be ratings where no other file is, and lists."""
LOOKED_AT = 20
"""Files that are opened to say what they are, where none may be ratings."""
NOT_RATINGS = ("links.csv", "tags.csv", "genome-tags.csv", "genome-scores.csv")
"""Files of MovieLens that are neither ratings nor lists; links.csv is read beside movies.csv."""
LISTS = ("items", "movies", "users")
"""How lists are called, before a dot; one that cannot be opened is left out."""
_SPLIT_WORDS = {
    "train": {"train", "training", "trn", "base"},
    "test": {"test", "testing", "tst"},
    "valid": {"valid", "validation", "val", "dev"},
}

FirstIds = dict[str, list[str]]
"""raw_user and raw_item to the first ids of a file, as they stand there."""
FormatOf = Callable[[FoundFile], tuple[RatingsFormat, FirstIds]]
"""Recognises the columns of ratings; raises RecrayError where there are none."""


@dataclass(frozen=True)
class RatingsFound:
    """A file of ratings whose columns are known."""

    file: FoundFile
    layout: RatingsFormat
    ids: FirstIds


@dataclass
class Choice:
    """The files of a source by what they are.

    Args:
        ratings: Files of ratings.
        items: Names of files that may list items.
        users: Names of files that may list users.
        unused: Names of other files, and why they are not used.
    """

    ratings: list[RatingsFound] = field(default_factory=list)
    items: list[str] = field(default_factory=list)
    users: list[str] = field(default_factory=list)
    unused: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Chooser:
    """Finds the ratings among the files of an archive or folder.

    Args:
        container: The files.
        settings: Which files are which split, if they say so.
        format_of: Recognises the columns of ratings.
        items: How the ids of a list of items are found.
        users: How those of a list of users are found.
    """

    container: Container
    settings: SplitSettings
    format_of: FormatOf
    items: IdRule
    users: IdRule

    def choose(self) -> Choice:
        """Sort the files by what they are.

        Raises:
            RecrayError: There are no ratings, or splits of one data set lie side by side.
        """
        names, path, word = self.container.names, self.container.path, self.container.word
        if self.settings.kind == "given":
            return self._opened(_named_files(names, path, self.settings))
        depth = 2 if word == "archive" else 1  # the files of an archive often lie in one folder
        usual = [n for n in names if base_of(n) in USUAL and n.count("/") <= depth]
        if usual:
            # Of several files the one nearest to the top is taken, then the first by name.
            nearest = min(usual, key=lambda n: (n.count("/"), USUAL.index(base_of(n)), n))
            return self._opened([(nearest, "")])
        files = [n for n in names if is_data(n) and base_of(n) not in NOT_RATINGS]
        files = files or [n for n in names if is_listed(n)]
        if any(name.split("/")[0] == "_delta_log" for name in names):
            raise RecrayError(
                f"{path} looks like a Delta table, some of whose files are of the past; "
                "write it as parquet: spark.read.format('delta').load(...).write.parquet(...)"
            )
        if not files:
            raise RecrayError(self._no_ratings())
        if len(files) == 1:
            return self._opened([(files[0], "")])
        chosen = self._sorted(files)
        _refuse_splits([found.file.name for found in chosen.ratings], path)
        return chosen

    def _no_ratings(self) -> str:
        """Why no file may be ratings, by what is in the first of them."""
        known = []
        for name in self.container.names[:LOOKED_AT]:
            try:
                self.container.find(name)
            except EmptyFileError:
                continue
            except RecrayError as error:
                known.append(str(error))
        return f"{self.container.path} holds no ratings: " + (
            "; ".join(known)[:600]
            or f"expected {', '.join(USUAL)}, or files that end with .csv, .tsv, .jsonl, .parquet "
            f"or the like, in the {self.container.word}"
        )

    def _opened(self, files: Sequence[tuple[str, Part]]) -> Choice:
        found = [self.container.find(name, part) for name, part in files]
        return Choice([RatingsFound(file, *self.format_of(file)) for file in found])

    def kind_of_list(self, file: FoundFile) -> Literal["items", "users", ""]:
        """What a file lists; "" where its columns are no such list's."""
        names = [*file.columns(), *folder_values(file.name)]
        has_user = column_of(names, self.users.names) is not None
        if not has_user and is_item_list(names, self.items):
            return "items"
        has_item = column_of(names, self.items.names) is not None
        return "users" if not has_item and is_user_list(names, self.users) else ""

    def _sorted(self, files: Sequence[str]) -> Choice:
        """Sort files by what is in them.

        Raises:
            RecrayError: None of them holds ratings, or some of them lack the header of the others.
        """
        chosen, others = Choice(), list[FoundFile]()
        for name in files:
            try:
                file = self.container.find(name)
                listed = self.kind_of_list(file)
            except EmptyFileError as error:  # Spark writes such ones beside the others
                chosen.unused[name] = str(error)
                continue
            except RecrayError as error:
                if base_of(name).lower().split(".")[0] not in LISTS:
                    raise  # these may be ratings, which must not be lost
                chosen.unused[name] = str(error)
                continue
            if listed:
                (chosen.items if listed == "items" else chosen.users).append(name)
                continue
            try:
                chosen.ratings.append(RatingsFound(file, *self.format_of(file)))
            except RecrayError as error:
                chosen.unused[name] = str(error)
                others.append(file)
        self._set_lists_apart(chosen)
        if not chosen.ratings:
            found = [f"{name} is a list" for name in (*chosen.items, *chosen.users)]
            found += chosen.unused.values()
            raise RecrayError(f"{self.container.path} holds no ratings: {'; '.join(found)[:600]}")
        for file in others:
            _refuse_headless(file, chosen.ratings)
        return chosen

    def _set_lists_apart(self, chosen: Choice) -> None:
        """A file with titles and without ratings is a list, where another one has the ratings."""
        if all(found.layout.implicit for found in chosen.ratings):
            return
        for found in list(chosen.ratings):
            if found.layout.implicit and is_item_list(found.file.columns(), self.items):
                chosen.ratings.remove(found)
                chosen.items.append(found.file.name)


def base_of(name: str) -> str:
    """A file's name without its folder."""
    return name.rsplit("/", 1)[-1]


def is_data(name: str) -> bool:
    """Whether a file may hold rows, as its name ends."""
    ending = name.lower().endswith(ENDINGS) or _SPARK_PART.fullmatch(base_of(name))
    return bool(ending) and not _is_hidden(name)


def _is_hidden(name: str) -> bool:
    """Whether a file or a folder around it is called as what programs keep for themselves."""
    return any(part.startswith((".", "_")) for part in name.split("/"))


def is_listed(name: str) -> bool:
    """Whether a file may be a list, as its name ends."""
    return is_data(name) or (
        name.lower().endswith(OTHER_ENDINGS)
        and not _is_hidden(name)
        and not base_of(name).lower().startswith(("readme", "license"))
    )


def _refuse_headless(file: FoundFile, ratings: Sequence[RatingsFound]) -> None:
    """Refuse a file that looks as ratings do, but for the header, rather than lose its rows."""
    fields = len(file.columns())
    for other in ratings:
        same_kind = file.content.kind == other.file.content.kind == "text"
        if same_kind and other.layout.header and fields == len(other.layout.columns):
            raise RecrayError(
                f"the first line of {file.name} names no user and item, and that of "
                f"{other.file.name} does: give each file a header, or none and tell the columns "
                "by place, such as --columns user=1,item=2"
            )


# ---------------------------------------------------------------------------------- splits


def _split_of(name: str) -> str:
    """train, test or valid where a file's path has such a word, else ""."""
    words = set(re.split(r"[^a-z]+", name.lower()))
    return next((part for part, known in _SPLIT_WORDS.items() if words & known), "")


def _refuse_splits(names: Sequence[str], path: str) -> None:
    """Refuse to mix files that are called train and test, which would train on the test rows."""
    by_part: Mapping[str, list[str]] = {
        part: [name for name in names if _split_of(name) == part] for part in _SPLIT_WORDS
    }
    shown = [_common(files) for files in by_part.values() if files]
    if len(shown) < 2:
        return
    raise RecrayError(
        f"{path} holds {' and '.join(shown)}, which would be mixed and split anew: keep them apart "
        f"by --set split.kind=given --set split.train_file={shown[0]} "
        f"--set split.test_file={shown[1]}, or give one of them alone as SOURCE"
    )


def _common(files: Sequence[str]) -> str:
    """A file's name, or the folder that several files lie in."""
    folders = {name.rpartition("/")[0] for name in files}
    folder = folders.pop()
    return folder if len(files) > 1 and folder and not folders else files[0]


def _named_files(
    names: Sequence[str], path: str, settings: SplitSettings
) -> list[tuple[str, Part]]:
    """The files that the settings name, by their names, or paths or folders inside the source."""
    train, test = settings.train_file, settings.test_file
    if train is None or test is None:
        raise RecrayError(
            "split.kind=given needs split.train_file and split.test_file, such as u1.base, u1.test"
        )
    chosen: list[tuple[str, Part]] = []
    parts: tuple[tuple[str, Part], ...] = ((train, "train"), (test, "test"))
    for file, part in parts:
        found = [n for n in names if n == file] or [n for n in names if n.endswith(f"/{file}")]
        inside = [n for n in names if n.startswith(f"{file.rstrip('/')}/") and is_data(n)]
        if not found and not inside:
            near = sorted(n for n in names if not n.endswith("/"))
            raise RecrayError(f"{path} has no file {file!r}; it has {', '.join(near)[:300]}")
        if len(found) > 1:
            raise RecrayError(
                f"{path} has several files {file!r}: {', '.join(found)}; give the path"
            )
        chosen += [(name, part) for name in found or inside]
    return chosen
