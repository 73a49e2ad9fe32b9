"""The files that a source has, by name: those of a folder, of an archive, or around a lone file."""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Literal

from recray.data.formats import json_lines, reading, tables
from recray.data.formats.content import Content, detect_content
from recray.data.formats.streams import as_utf8, open_bytes
from recray.data.lists.rows import decode, header_of
from recray.errors import RecrayError
from recray.storage import Folder

Part = Literal["", "train", "test"]
"""The split that all rows of a file belong to, where the settings name files for splits."""
LIST_BYTES = 256 << 20
"""Lists are read whole, so a larger one is not read."""


@dataclass(frozen=True)
class FoundFile:
    """A file before its columns are known.

    Args:
        name: Its name inside the source.
        path: Local path or URI of the file, or of the archive that holds it.
        content: What was recognised of it.
        member: Its name inside an archive.
        part: The split that all of its rows belong to, if the settings say so.
    """

    name: str
    path: str
    content: Content
    member: str = ""
    part: Part = ""

    def columns(self) -> list[str]:
        """The names of its columns; the fields of its first line where it has no header."""
        if self.content.kind in reading.TABLES:
            return list(tables.head(self.name, self.path, self.content.kind).column_names)
        if self.content.kind in ("json", "json-document"):
            return json_lines.field_names(self.content)
        return header_of(decode(self.content.head))[0]


@dataclass(frozen=True)
class Container:
    """The files of a folder or an archive.

    Args:
        path: Local path or URI of the folder or archive.
        word: What it is.
        names: Its files, by their paths inside it.
        generated: The bytes of files that exist in memory only.
    """

    path: str
    word: Literal["archive", "folder"]
    names: tuple[str, ...]
    generated: Mapping[str, bytes] | None = None

    @classmethod
    def around(cls, path: str) -> "Container":
        """The files in the folder of a lone file; none where the folder may not be listed."""
        folder = path.rsplit("/", 1)[0]
        try:
            return cls(folder, "folder", tuple(Folder(folder).files(recursive=False)))
        except RecrayError:
            return cls(folder, "folder", ())

    def find(self, name: str, part: Part = "") -> FoundFile:
        """Recognise a file.

        Raises:
            RecrayError: It is empty, damaged, or of a kind that is not read.
        """
        if self.generated is not None:
            return FoundFile(name, self.path, Content("sample", "", "utf-8", self.generated[name]))
        inside = self.word == "archive"
        path, member = (self.path, name) if inside else (f"{self.path.rstrip('/')}/{name}", "")
        return FoundFile(name, path, detect_content(name, path, member), member, part)

    def read(self, name: str) -> bytes:
        """A whole list, unpacked, in UTF-8.

        Raises:
            RecrayError: It is damaged or too large, or of a kind that is not read.
        """
        if self.generated is not None:
            return self.generated[name]
        found = self.find(name)
        content = found.content
        with closing(
            open_bytes(found.path, found.member, content.packing, content.encoding)
        ) as stream:
            whole = bytes(stream.read(LIST_BYTES + 1))
        if len(whole) > LIST_BYTES:
            raise RecrayError(f"it has more than {LIST_BYTES >> 20} MiB; lists are read whole")
        return as_utf8(whole, content.encoding)
