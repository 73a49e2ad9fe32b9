"""What the user gave as SOURCE, recognised by its content, in pieces that workers read alone."""

import csv
import hashlib
import io
import itertools
import lzma
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from recray import schema
from recray.data import catalog, films, parse, sample
from recray.data.parse import RatingsFormat
from recray.errors import RecrayError, unknown_name
from recray.storage import is_uri, modified, open_input

PIECE_BYTES = 64 << 20
CHUNK_BYTES = 16 << 20
SAMPLE = "sample"
MAX_UNPACKED = 4 << 30
MAX_RATIO = 100


@dataclass(frozen=True)
class Piece:
    """A part of a ratings file: the lines that begin at bytes start..stop-1.

    Args:
        file: The file's name as shown to people.
        path: Local path or URI; "sample" for the generated data set.
        member: The file's name inside a zip archive, "" for a plain file.
        start: First byte that belongs to the piece.
        stop: End of the piece; None means the file's end.
    """

    file: str
    path: str
    member: str
    start: int
    stop: int | None


@dataclass(frozen=True)
class Source:
    """A recognised source.

    Args:
        name: Short name for tables and folders.
        layout: How its ratings lines look.
        pieces: All of its ratings, in order.
        movies: Its films as schema.MOVIES; empty if it has none.
        identity: Changes when the files change (names, sizes, times); free to compute.
    """

    name: str
    layout: RatingsFormat
    pieces: tuple[Piece, ...]
    movies: pa.Table
    identity: str


def recognise(given: str, mirror: str | None = None) -> Source:
    """Turn `sample`, a release's name, or a path or URI into a source.

    Raises:
        RecrayError: There is no such file or name, or nothing in it looks like ratings.
    """
    if given == SAMPLE:
        return _sample()
    if given in catalog.RELEASES:
        return _archive(str(catalog.fetch(given, mirror)), given)
    if not is_uri(given):
        given = os.path.expanduser(given)
        if not os.path.exists(given):
            if os.sep in given or "." in given:
                raise RecrayError(f"no such file or folder: {given}")
            raise unknown_name("source", given, [SAMPLE, *catalog.RELEASES])
        if os.path.isdir(given):
            return _folder(given)
    with closing(open_input(given)) as stream:
        head = stream.read(4)
    if not head:
        raise RecrayError(f"{given} is empty")
    name = given.rstrip("/").rsplit("/", 1)[-1].split(".")[0]
    return _archive(given, name) if head[:2] == b"PK" else _plain(given, name)


_MOVIES: dict[str, tuple[str, Callable[[bytes], pa.Table]]] = {
    "u.data": ("u.item", films.parse_movies_100k),
    "ratings.dat": ("movies.dat", films.parse_movies_1m),
    "ratings.csv": ("movies.csv", films.parse_movies_csv),
}


def _layout(file: str, first_line: Callable[[], bytes]) -> RatingsFormat:
    known = {"u.data": parse.ML_100K, "ratings.dat": parse.ML_1M}
    base = file.rsplit("/", 1)[-1]
    if base in known:
        return known[base]
    line = first_line()
    if line.startswith((b"PAR1", b"\x1f\x8b")):
        kind = "parquet" if line.startswith(b"PAR1") else "gzip"
        raise RecrayError(f"{file} is a {kind} file; give it as csv, or in a zip archive")
    for layout in known.values():
        if re.match(rb"\d+" + (layout.delimiter.encode() + rb"[\d.]+") * 3 + rb"\s*$", line):
            return layout
    return parse.format_of_header(line, file)


def _movies_of(file: str, read: Callable[[str], bytes | None]) -> pa.Table:
    """The films beside a ratings file; the file may be missing, but not damaged."""
    base = file.rsplit("/", 1)[-1]
    if base in _MOVIES:
        name, parser = _MOVIES[base]
        content = read(file.removesuffix(base) + name)
        if content is not None:
            try:
                return parser(content)
            except (ValueError, IndexError, TypeError, OverflowError, csv.Error) as error:
                raise RecrayError(f"{name} beside {file} cannot be read: {error}") from error
    return schema.MOVIES.empty_table()


def _sample() -> Source:
    made = sample.files()
    layout = _layout("ratings.csv", lambda: made["ratings.csv"].split(b"\n", 1)[0])
    pieces = (Piece("ratings.csv", SAMPLE, "ratings.csv", 0, None),)
    identity = hashlib.sha256(made["ratings.csv"] + made["movies.csv"]).hexdigest()
    return Source(SAMPLE, layout, pieces, films.parse_movies_csv(made["movies.csv"]), identity)


def _archive(path: str, name: str) -> Source:
    with open_zip(path) as archive:
        members = {m.filename: m for m in archive.infolist()}
        ratings = sorted((m for m in members if _is_ratings(m)), key=lambda m: (m.count("/"), m))
        if not ratings:
            raise RecrayError(
                f"{path} holds no ratings: expected {', '.join(_MOVIES)} somewhere in the archive"
            )
        member = ratings[0]
        with _reading(path):
            layout = _layout(member, lambda: archive.open(member).readline())
            movies = _movies_of(member, lambda m: archive.read(m) if m in members else None)
        identity = "\n".join(f"{m.filename} {m.file_size} {m.CRC}" for m in archive.infolist())
    piece = Piece(member, path, member, 0, None)
    digest = hashlib.sha256(identity.encode()).hexdigest()
    return Source(name, layout, (piece,), movies, digest)


def _is_ratings(member: str) -> bool:
    return member.rsplit("/", 1)[-1] in _MOVIES


def _folder(path: str) -> Source:
    top = Path(path)
    ratings = [f for name in _MOVIES for f in (*top.glob(name), *top.glob(f"*/{name}"))]
    if not ratings:
        raise RecrayError(f"{path} holds no ratings: expected {', '.join(_MOVIES)} in the folder")
    return _plain(str(ratings[0]), top.resolve().name)


def _plain(path: str, name: str) -> Source:
    with closing(open_input(path)) as stream:
        size = stream.size()
        first = stream.read(min(size, 1 << 16)).split(b"\n", 1)[0]
    layout = _layout(path, lambda: first)
    begin = len(first) + 1 if layout.header else 0
    if begin >= size:
        raise RecrayError(f"{path} is empty: it has no ratings")
    edges = [*range(begin, size, PIECE_BYTES), size]
    pieces = tuple(Piece(path, path, "", a, b) for a, b in itertools.pairwise(edges))

    def read(other: str) -> bytes | None:
        if not is_uri(other) and not os.path.exists(other):
            return None
        with closing(open_input(other)) as stream:
            return bytes(stream.read())

    listed = _movies_of(path, read)
    told = pa.BufferOutputStream()
    with pa.ipc.new_stream(told, listed.schema) as writer:
        writer.write_table(listed)
    facts = f"{path} {size} {modified(path)}".encode() + told.getvalue().to_pybytes()
    return Source(name, layout, pieces, listed, hashlib.sha256(facts).hexdigest())


# ------------------------------------------------------------------------------------ reading


_DAMAGED = (zipfile.BadZipFile, EOFError, NotImplementedError, OSError, zlib.error, lzma.LZMAError)


class _reading:
    """Turn what zipfile raises for damaged or encrypted members into one line."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, _DAMAGED):
            raise RecrayError(f"{self.path} is a damaged zip archive: {error}") from error
        if isinstance(error, RuntimeError) and "encrypted" in str(error):
            raise RecrayError(f"{self.path} is encrypted; give an open archive") from error


def open_zip(path: str) -> zipfile.ZipFile:
    """Open an archive for reading from inside it; nothing is ever unpacked to the disk.

    Raises:
        RecrayError: It is truncated, no zip at all, or would unpack to an absurd size.
    """
    stream: Any = open_input(path)
    try:
        archive = zipfile.ZipFile(stream)
    except (zipfile.BadZipFile, NotImplementedError, pa.ArrowInvalid) as error:
        raise RecrayError(f"{path} is a damaged zip archive: {error}") from error
    unpacked = sum(m.file_size for m in archive.infolist())
    packed = sum(m.compress_size for m in archive.infolist())
    if unpacked > MAX_UNPACKED or unpacked > MAX_RATIO * max(packed, 1 << 20):
        raise RecrayError(
            f"{path} would unpack to {unpacked:,} bytes; at most {MAX_UNPACKED:,} "
            f"and {MAX_RATIO} times its size are read"
        )
    return archive


def chunks(piece: Piece, layout: RatingsFormat) -> Iterator[tuple[int, bytes]]:
    """Yield whole lines of the piece in bounded chunks, with the byte each begins at.

    A header line is left out. A line belongs to the piece in which it begins.

    Raises:
        RecrayError: The file is damaged.
    """
    if piece.path == SAMPLE:
        content = sample.files()[piece.member]
        begin = content.index(b"\n") + 1
        yield begin, content[begin:]
    elif piece.member:
        with (
            open_zip(piece.path) as archive,
            _reading(piece.path),
            archive.open(piece.member) as stream,
        ):
            begin = len(stream.readline()) if layout.header else 0
            yield from _whole_lines(stream, begin, None)
    else:
        with io.BufferedReader(open_input(piece.path)) as stream:
            begin = piece.start
            if begin > 0:  # the byte before tells whether a line begins right here
                stream.seek(begin - 1)
                begin = begin - 1 + len(stream.readline())
            yield from _whole_lines(stream, begin, piece.stop)


def _whole_lines(stream: IO[bytes], position: int, stop: int | None) -> Iterator[tuple[int, bytes]]:
    while stop is None or position < stop:
        wanted = CHUNK_BYTES if stop is None else min(CHUNK_BYTES, stop - position)
        content = stream.read(wanted)
        if not content:
            return
        if not content.endswith(b"\n"):
            content += stream.readline()
        yield position, content
        position += len(content)
