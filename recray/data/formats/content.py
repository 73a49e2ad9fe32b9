"""What a file is, told by what is in it: how it is packed, how its letters are written, its kind.

A kind that is not read is refused by its name, with the way to convert it. No message shows bytes
of such a file.
"""

import codecs
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

from recray.data.formats.archives import open_zip
from recray.data.formats.layout import FileKind
from recray.data.formats.streams import Packing, as_utf8, can_start_anywhere, open_bytes
from recray.errors import RecrayError
from recray.storage import is_uri, open_input

HEAD_BYTES = 64 << 10
"""Bytes from which columns are recognised."""
SAMPLES = 15
"""Places of a local file, besides its head, that are looked at for letters beyond ASCII."""

_PACKINGS: dict[str, Packing] = {
    r"\x1f\x8b": "gzip",
    r"BZh[1-9](1AY&SY|\x17rE8P\x90)": "bz2",
    r"\xfd7zXZ\x00|\x5d\x00\x00": "xz",  # or lzma, the older format of the same program
    r"\x28\xb5\x2f\xfd": "zstd",
    r"\x04\x22\x4d\x18": "lz4",
}
_TABLES: dict[str, FileKind] = {
    r"PAR1": "parquet",
    r"ARROW1|\xff\xff\xff\xff.{2}\x00\x00": "arrow",
    r"ORC.{0,400}?[\x00-\x08]": "orc",
}
_UNPACK = "unpack it, and give the file or the folder"
_AS_CSV = "give the table itself, as csv"
_EXCEL = "save it as csv, or use pandas.read_excel(...).to_csv('ratings.csv', index=False)"
_SQLITE = "export the table: sqlite3 -header -csv FILE 'select * from TABLE' > ratings.csv"
_PICKLED = (
    "reading it may run code; if you trust it, use "
    "pandas.read_pickle(...).to_parquet('ratings.parquet')"
)
_FOREIGN = (
    (r"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an Excel file (xls)", _EXCEL),
    (r"SQLite format 3\x00", "an SQLite database", _SQLITE),
    (r"\x89HDF\r\n", "an HDF5 file", "use pandas.read_hdf(...).to_parquet('ratings.parquet')"),
    (r"Obj\x01", "an Avro file", "use Spark or fastavro to write it as parquet"),
    (r"FEA1", "an old Feather file (version 1)", "write it again as parquet"),
    (r"PARE", "an encrypted parquet file", "write it without encryption"),
    (r"X\n\x00\x00\x00", "an R file (rds)", "use write.csv(readRDS(FILE), 'ratings.csv') in R"),
    (r"RD[AX][23]\n", "an R file (RData)", "load it in R and use write.csv(TABLE, 'ratings.csv')"),
    (r"\x93NUMPY", "a NumPy file", "write its columns as csv, with a line of names"),
    (r"MATLAB 5\.0", "a MATLAB file", "use scipy.io.loadmat and write the table as csv"),
    (r"<stata_dta>", "a Stata file", "use pandas.read_stata(...).to_csv('ratings.csv')"),
    (r"\$FL[23]", "an SPSS file", "use pandas.read_spss(...).to_csv('ratings.csv')"),
    (r"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (r"Rar!\x1a\x07", "a rar archive", _UNPACK),
    (r".{257}ustar", "a tar archive", _UNPACK),
    (r"\x1f\x9d", "a file packed by compress (.Z)", _UNPACK),
    (r"LZIP\x01", "a file packed by lzip", _UNPACK),
    (r"%PDF-", "a PDF file", _AS_CSV),
    (r"\x89PNG|\xff\xd8\xff", "a picture", _AS_CSV),
    (r"version https://git-lfs", "a pointer of Git LFS, not the file itself", "run git lfs pull"),
    (r"(?i)\s*<(!doctype html|html|\?xml)", "a web page or XML", "was the download refused?"),
    (r"\x80[\x02-\x05]|[(\]}]?c(pandas|numpy|copy_reg|builtins|__builtin__)", "a pickle", _PICKLED),
)
_JSON = re.compile(rb"\{\s*([\"'}]|u')|\[\s*[\[{\]]")
_CONTROL = bytes(set(range(32)) - set(b"\t\n\v\f\r\x1a\x1b\x1c\x1d\x1e\x1f"))
_MEMBERS = (
    (r"^xl/", "an Excel file", _EXCEL),
    (r"^word/", "a Word file", _AS_CSV),
    (r"^(content|styles)\.xml$", "an OpenDocument file", "save it as csv"),
    (r"\.npy$", "a NumPy file (npz)", "write its arrays as columns of a csv or parquet file"),
    (r"(^|/)data\.pkl$", "a PyTorch file", "write its tensors as columns of a parquet file"),
)


class EmptyFileError(RecrayError):
    """A file has no rows; beside others that have some it may be left out."""


@dataclass(frozen=True)
class Content:
    """What was recognised of a file.

    Args:
        kind: How its rows are read.
        packing: How it is packed.
        encoding: How its letters are written.
        head: Its first whole lines, unpacked and in UTF-8, or the first bytes of a table.
    """

    kind: FileKind
    packing: Packing
    encoding: str
    head: bytes


def detect_content(name: str, path: str, member: str = "") -> Content:
    """Tell what a file holds.

    Args:
        name: Its name as shown to people.
        path: Local path or URI of the file, or of the zip archive around it.
        member: Its name inside the archive.

    Raises:
        RecrayError: It is empty, damaged or encrypted, or of a kind that is not read.
    """
    head = _head(path, member)
    packing = packing_of(head)
    if packing:
        head = _head(path, member, packing)
    if head.startswith(b"PK\x03\x04"):
        _refuse_zip(name, path, bool(packing or member))
    if packing_of(head):
        raise RecrayError(f"{name} is packed twice; unpack {path} first")
    kind = next((kind for begin, kind in _TABLES.items() if _begins(head, begin)), None)
    if kind is not None:
        if packing or member:
            raise RecrayError(f"{name} is a packed {kind} file; unpack {path} first")
        return Content(kind, packing, "utf-8", head)
    refuse_foreign(name, head)
    encoding = encoding_of([head, *_samples(path, member, packing)])
    lines = as_utf8(_whole_lines(_head(path, member, packing, encoding)), encoding)
    if not lines.strip(b" \t\r\n" + codecs.BOM_UTF8):
        raise EmptyFileError(f"{name} is empty: it has no ratings")
    _refuse_unclear(name, lines, encoding)
    return Content(_kind_of_lines(lines), packing, encoding, lines)


def _refuse_unclear(name: str, lines: bytes, encoding: str) -> None:
    """Refuse what is no text, or text whose lines or letters cannot be told."""
    letters = len(lines.decode("utf-8", "replace"))
    beyond = letters - len(lines.translate(None, bytes(range(128, 256))))
    if (
        100 * _controls(lines) > len(lines)
        or _controls(lines.split(b"\n", 1)[0])
        or (encoding == "cp1252" and 10 * beyond > 4 * letters)
    ):
        raise RecrayError(
            f"{name} looks like a binary file of a kind that is not known here, or text in an "
            "encoding that is not; write the table as csv in UTF-8, or as parquet"
        )
    if b"\n" not in lines and lines.rstrip(b"\r").count(b"\r") > 0:
        raise RecrayError(
            f"{name} has lines that end with CR alone, as old Macs wrote them; "
            "convert them: tr '\\r' '\\n' < FILE > ratings.csv"
        )


def _refuse_zip(name: str, path: str, is_inside: bool) -> None:
    """Refuse a zip archive where a file is looked for, by what it is."""
    if not is_inside:
        with open_zip(path) as archive:
            refuse_foreign_archive(name, archive.namelist())
        raise RecrayError(f"{name} is a zip archive; give it alone as SOURCE, or unpack it")
    if name.lower().endswith((".xlsx", ".xlsm", ".ods")):
        raise RecrayError(f"{name} looks like an Excel file; {_EXCEL}")
    raise RecrayError(f"{name} is packed twice; unpack {path} first")


def _kind_of_lines(head: bytes) -> FileKind:
    head = head.removeprefix(codecs.BOM_UTF8).lstrip()
    if not _JSON.match(head):
        return "text"
    lines = [line for line in head.split(b"\n", 10)[:10] if line.strip()]
    # An object in each line ends where its line ends; all else is read as one document.
    whole = head.startswith(b"{") and any(map(_is_object, lines))
    return "json" if whole else "json-document"


def _is_object(line: bytes) -> bool:
    """Whether a line is an object of JSON, or looks like one of Python's dicts."""
    if re.match(rb"\{u?'.*\}\s*$", line):
        return True
    try:
        return bool(isinstance(json.loads(line), dict))
    except (ValueError, RecursionError):
        return False


def packing_of(head: bytes) -> Packing:
    """How the file that begins so is packed."""
    return next((packing for begin, packing in _PACKINGS.items() if _begins(head, begin)), "")


def _begins(head: bytes, pattern: str) -> bool:
    return re.match(pattern.encode("latin-1"), head, re.DOTALL) is not None


def refuse_foreign(name: str, head: bytes) -> None:
    """Refuse a file of a known kind that is not read.

    Raises:
        RecrayError: It names the kind and the way to convert it.
    """
    for begin, what, remedy in _FOREIGN:
        if _begins(head, begin):
            raise RecrayError(f"{name} looks like {what}; {remedy}")


def refuse_foreign_archive(path: str, members: Sequence[str]) -> None:
    """Refuse a zip file that is a document of an office program or the like.

    Raises:
        RecrayError: It names the kind and the way to convert it.
    """
    for pattern, what, remedy in _MEMBERS:
        if any(re.search(pattern, member) for member in members):
            raise RecrayError(f"{path} looks like {what}; {remedy}")


def _head(path: str, member: str, packing: Packing = "", encoding: str = "utf-8") -> bytes:
    with closing(open_bytes(path, member, packing, encoding)) as stream:
        return bytes(stream.read(HEAD_BYTES))


def _whole_lines(head: bytes) -> bytes:
    return head if len(head) < HEAD_BYTES else head[: head.rfind(b"\n") + 1] or head


def _controls(content: bytes) -> int:
    return len(content) - len(content.translate(None, _CONTROL))


# --------------------------------------------------------------------------------- letters


def _samples(path: str, member: str, packing: Packing) -> Iterator[bytes]:
    """More of a file than its head: places all over it, or where it is packed what comes next."""
    if not can_start_anywhere(member, packing, "utf-8"):
        with closing(open_bytes(path, member, packing)) as stream:
            yield stream.read(SAMPLES * HEAD_BYTES)
        return
    with closing(open_input(path)) as stream:
        size = stream.size()
        places = 3 if is_uri(path) else SAMPLES
        for n in range(1, places + 1 if size > HEAD_BYTES else 1):
            stream.seek(max(0, (size - HEAD_BYTES) * n // places))
            yield stream.read(HEAD_BYTES)


def encoding_of(samples: Sequence[bytes]) -> str:
    """The encoding of a text file: UTF-8 where it can be.

    Args:
        samples: Its first bytes, and bytes from other places.

    Returns:
        A name that Python knows. Where the letters are not those of UTF-8, charset-normalizer
        tells other alphabets apart; languages in Latin letters are taken for cp1252 (latin-1).
    """
    head = samples[0]
    for mark, encoding in (
        (codecs.BOM_UTF32_LE, "utf-32"),
        (codecs.BOM_UTF32_BE, "utf-32"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
        (codecs.BOM_UTF8, "utf-8"),
    ):
        if head.startswith(mark):
            return encoding
    zeros = [head[place::2].count(0) for place in (0, 1)]
    if 10 * max(zeros) > 4 * len(head) // 2 and 10 * min(zeros) < max(zeros):
        return "utf-16-be" if zeros[0] > zeros[1] else "utf-16-le"
    lines = [line for sample in samples for line in _inner_lines(sample) if not line.isascii()]
    if len(head) < HEAD_BYTES:  # the whole file
        lines = [line for line in head.split(b"\n") if not line.isascii()]
    broken = [line for line in lines if not _is_utf8(line)]
    if 2 * len(broken) <= len(lines):
        return "utf-8"
    return _other_alphabet(b"\n".join(broken))


def _inner_lines(sample: bytes) -> list[bytes]:
    """Lines that are whole; of a sample without an end of line nothing is known."""
    return [] if sample.isascii() else sample.split(b"\n")[1:-1]


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


_ALPHABETS = "cp1252 cp1251 koi8_r cp1253 cp1255 cp1256 cp932 euc_jp gb18030 big5 cp949".split()
_FEW_LETTERS = 16
"""So few bytes beyond ASCII say nothing of an alphabet."""


def _other_alphabet(lines: bytes) -> str:
    if sum(byte > 127 for byte in lines) < _FEW_LETTERS:
        return "cp1252"
    from charset_normalizer import from_bytes  # only for the files that need it

    best = from_bytes(lines[: 4 * HEAD_BYTES], cp_isolation=_ALPHABETS).best()
    found = best.encoding if best is not None else "cp1252"
    return found if found in _ALPHABETS else "cp1252"
