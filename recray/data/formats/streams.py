"""Open a file of lines, packed and encoded in any way, as a closable stream of bounded length.

Nothing is unpacked to the disk. Whatever a stream is asked for (read, readline, iteration) comes
through one method that counts the bytes, so that a small file which unpacks to an absurd size is
refused before it fills the memory.

In every stream a line ends with the byte of a line feed: UTF-16 and UTF-32 become UTF-8 on the way,
and in the other encodings line ends, delimiters and quotes are the bytes of ASCII. So lines
can be told before `as_utf8` turns them into UTF-8.
"""

import bz2
import codecs
import gzip
import io
import lzma
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from recray.data.formats.archives import open_zip, reading, refuse_bomb
from recray.storage import open_input

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

Packing = Literal["", "gzip", "bz2", "xz", "zstd", "lz4"]
"""How a file is packed; an archive of several files is none of these."""
BLOCK_BYTES = 1 << 20
"""Bytes that each layer of a stream holds."""
XZ_MEMORY_BYTES = 256 << 20
"""A file that needs more memory than this to unpack is refused; `xz -9` needs 65 MiB."""
WIDE = ("utf-16", "utf-16-le", "utf-16-be", "utf-32")
"""Encodings of several bytes for each character, in which a line does not end with a byte."""


def open_bytes(
    path: str, member: str = "", packing: Packing = "", encoding: str = "utf-8"
) -> io.BufferedReader:
    """Open a file, or a file inside a zip archive, for reading from its begin.

    Args:
        path: Local path or URI.
        member: Its name inside the zip archive.
        packing: How it is packed, also inside an archive.
        encoding: UTF-16 and UTF-32 become UTF-8; others are left as they are, see as_utf8.

    Returns:
        The unpacked bytes. Closing it closes all that was opened. It can seek if
        `can_start_anywhere`.

    Raises:
        RecrayError: The file cannot be read, or is damaged, encrypted or absurdly large, as what
            is read later shows, too.
    """
    with ExitStack() as opened:
        stream: Any
        if member:
            archive = opened.enter_context(open_zip(path))
            with reading(path):
                packed = archive.getinfo(member).compress_size
                stream = opened.enter_context(archive.open(member))
        else:
            stream = opened.enter_context(open_input(path))
            packed = stream.size()
        if can_start_anywhere(member, packing, encoding):
            opened.pop_all()
            return io.BufferedReader(stream)
        if packing:
            with reading(path):
                stream = opened.enter_context(_unpacked(stream, packing))
        raw: io.RawIOBase = _Bounded(path, stream, packed, opened.pop_all())
        if encoding in WIDE:
            raw = _Recoded(raw, encoding)
        return io.BufferedReader(raw, BLOCK_BYTES)


def can_start_anywhere(member: str, packing: Packing, encoding: str) -> bool:
    """Whether a stream's bytes are those of the file, so that workers may share it."""
    return not member and not packing and encoding not in WIDE


def _unpacked(stream: Any, packing: Packing) -> Any:
    match packing:
        case "gzip":
            return gzip.GzipFile(fileobj=stream, mode="rb")
        case "bz2":
            return bz2.BZ2File(stream)
        case "xz":
            return _XzFile(stream)
        case _:
            return pa.CompressedInputStream(stream, packing)


class _XzFile(io.RawIOBase):
    """An xz or lzma file; unlike lzma.LZMAFile it keeps to a limit of memory."""

    def __init__(self, stream: Any) -> None:
        super().__init__()
        self._stream = stream
        self._start()

    def _start(self) -> None:
        self._unpacker = lzma.LZMADecompressor(memlimit=XZ_MEMORY_BYTES)

    def read(self, size: int = -1) -> bytes:
        """At most so many bytes; none at the end.

        Raises:
            EOFError: The file is cut off.
            lzma.LZMAError: It is damaged or needs too much memory.
        """
        while True:
            packed = b""
            if self._unpacker.eof:  # several files may be joined, with zeros between them
                packed = self._unpacker.unused_data.lstrip(b"\0")
                while not packed:
                    block = self._stream.read(BLOCK_BYTES)
                    if not block:
                        return b""
                    packed = block.lstrip(b"\0")
                self._start()
            elif self._unpacker.needs_input:
                packed = self._stream.read(BLOCK_BYTES)
                if not packed:
                    raise EOFError("it ends in the middle")
            content = self._unpacker.decompress(packed, size)
            if content:
                return content


class _Bounded(io.RawIOBase):
    """Unpacked bytes, counted as they come, whatever method asks for them.

    Args:
        path: The file's name in refusals.
        stream: Its unpacked bytes.
        packed: Its size in bytes.
        opened: What has to be closed at the end.
    """

    def __init__(self, path: str, stream: Any, packed: int, opened: ExitStack) -> None:
        super().__init__()
        self._path, self._stream, self._packed, self._opened = path, stream, packed, opened
        self._count = 0

    def readable(self) -> bool:
        """It is there to be read."""
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        """Fill the buffer as far as bytes are there; 0 at the end.

        Raises:
            RecrayError: The file is damaged, or more bytes have come than are allowed.
        """
        room = memoryview(buffer).cast("B")
        with reading(self._path):
            content = self._stream.read(min(len(room), BLOCK_BYTES))
        self._count += len(content)
        refuse_bomb(self._path, self._count, self._packed)
        room[: len(content)] = content
        return len(content)

    def close(self) -> None:
        """Close all that was opened for it."""
        if not self.closed:
            super().close()
            self._opened.close()


class _Recoded(io.RawIOBase):
    """UTF-16 or UTF-32 as UTF-8; what is broken stays broken, so that it costs its line only."""

    def __init__(self, stream: io.RawIOBase, encoding: str) -> None:
        super().__init__()
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")
        self._ready = memoryview(b"")
        self._ended = False

    def readable(self) -> bool:
        """It is there to be read."""
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        """Fill the buffer with UTF-8 as far as it is ready; 0 at the end."""
        room = memoryview(buffer).cast("B")
        while not self._ready and not self._ended:
            self._ready = memoryview(self._next())
        size = min(len(room), len(self._ready))
        room[:size], self._ready = self._ready[:size], self._ready[size:]
        return size

    def _next(self) -> bytes:
        content = self._stream.read(BLOCK_BYTES) or b""
        self._ended = not content
        try:
            text = self._decoder.decode(content, self._ended)
        except UnicodeDecodeError:  # half a character at the very end, or no UTF-32 at all
            self._ended = True
            return b"\xff"
        return text.encode("utf-8", "surrogatepass")

    def close(self) -> None:
        """Close what it reads from."""
        if not self.closed:
            super().close()
            self._stream.close()


# Bytes that cp1252 leaves open are control characters, as browsers read them.
_CP1252 = [(bytes([c]).decode("cp1252", "ignore") or chr(c)).encode("utf-8") for c in range(256)]


def as_utf8(content: bytes, encoding: str) -> bytes:
    """Whole lines of a stream in UTF-8; what no character of the encoding is stays broken."""
    if encoding == "utf-8" or encoding in WIDE or content.isascii():
        return content
    if encoding == "cp1252":
        try:
            return content.decode("cp1252").encode()
        except UnicodeDecodeError:
            return b"".join(map(_CP1252.__getitem__, content))
    return content.decode(encoding, "surrogateescape").encode("utf-8", "surrogateescape")
