"""The files of a checkpoint: tensors written and read piece by piece, with digests by section.

They are safetensors files. A section is some of the tensors, one after another, so a worker reads
the rows of a part by one range. The digests are taken while the bytes are written, and compared
when they are read.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from recray.errors import DamagedFile
from recray.storage import Folder, ManifestEntry, Sink, range_reader, write_from
from recray.storage.tensors import DTYPES, tensors_in

NAMES = {dtype: name for name, dtype in DTYPES.items()}
PIECE_BYTES = 4 << 20
"""Bytes that are hashed and written, or copied from a device, at once."""
READ_BYTES = 64 << 20
"""Most bytes that one read brings, unless a section is larger."""
Tensors = Mapping[str, Tensor]


class Section(NamedTuple):
    """Some bytes of a file.

    Args:
        begin: The first one.
        end: The one after the last.
        sha256: Their digest.
    """

    begin: int
    end: int
    sha256: str


class Written(NamedTuple):
    """A file that was written.

    Args:
        entry: Its name, bytes and digest.
        sections: Its header, and those that were given, in their order.
    """

    entry: ManifestEntry
    sections: list[Section]


def write_tensors(folder: Folder, name: str, sections: Sequence[Tensors]) -> Written:
    """Write a safetensors file, whose bytes are on the disk when this returns.

    Args:
        folder: Where.
        name: Its name.
        sections: Tensors by name; no name occurs twice.

    Raises:
        StorageError: The disk is full, read-only or not permitted.
    """
    header = _header(sections)

    def write(sink: Sink) -> Written:
        whole, begin = hashlib.sha256(header), len(header)
        written = [Section(0, begin, whole.hexdigest())]
        sink.write(header)
        for section in sections:
            own, end = hashlib.sha256(), begin
            for piece in _pieces(section):
                whole.update(piece)
                own.update(piece)
                sink.write(piece)
                end += len(piece)
            written.append(Section(begin, end, own.hexdigest()))
            begin = end
        return Written(ManifestEntry(name=name, bytes=begin, sha256=whole.hexdigest()), written)

    return write_from(folder, name, write)


def in_file_order(tensors: Tensors) -> list[tuple[str, Tensor]]:
    """The tensors of a section as they lie in a file: wide numbers first, so all are aligned."""
    return sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))


def _header(sections: Sequence[Tensors]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for section in sections:
        for name, tensor in in_file_order(section):
            end = begin + tensor.numel() * tensor.element_size()
            shape = list(tensor.shape)
            entries[name] = {
                "dtype": NAMES[tensor.dtype], "shape": shape, "data_offsets": [begin, end]
            }  # fmt: skip
            begin = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _pieces(section: Tensors) -> Iterator[memoryview]:
    """The bytes of the tensors, a few MB at a time, from whatever device they are on."""
    for _, tensor in in_file_order(section):
        rows = tensor.detach().reshape(1) if tensor.dim() == 0 else tensor.detach()
        width = max(1, rows[:1].numel() * rows.element_size())
        for some in rows.split(max(1, PIECE_BYTES // width)):
            if some.numel():
                yield memoryview(some.cpu().contiguous().view(-1).view(torch.uint8).numpy())


# ------------------------------------------------------------------------------------ reading


def read_tensors(folder: Folder, entry: ManifestEntry) -> dict[str, Tensor]:
    """Read a whole file; its bytes are held once, and the tensors are views of them.

    Raises:
        DamagedFile: The file is missing, or its bytes are not those of the entry.
        RecrayError: It cannot be read.
    """
    held, place = torch.empty(entry.bytes, dtype=torch.uint8), 0
    for piece in _checked(folder, entry):
        copy_bytes(piece, held[place : place + len(piece)])
        place += len(piece)
    return tensors_in(held)


def copy_bytes(content: bytes | memoryview, target: Tensor) -> None:
    """Fill a contiguous tensor with bytes, which need not be aligned."""
    if target.numel():
        target.view(-1).view(torch.uint8).numpy()[:] = np.frombuffer(content, np.uint8)


def verify_file(folder: Folder, entry: ManifestEntry) -> None:
    """Compare a file with its digest, a piece at a time.

    Raises:
        DamagedFile: The file is missing, or its bytes are not those of the entry.
        RecrayError: It cannot be read.
    """
    for _ in _checked(folder, entry):
        pass


def _checked(folder: Folder, entry: ManifestEntry) -> Iterator[bytes]:
    """The bytes of a file, of which the last come when all have proved to be those of the entry."""
    read, digest = range_reader(folder, entry.name), hashlib.sha256()
    for begin in range(0, max(entry.bytes, 1), READ_BYTES):
        piece = read(begin, min(READ_BYTES, entry.bytes - begin))
        digest.update(piece)
        if begin + READ_BYTES >= entry.bytes:
            _compare(folder, entry.name, digest.hexdigest(), entry.sha256)
        yield piece


def _compare(folder: Folder, name: str, found: str, expected: str) -> None:
    if found != expected:
        raise DamagedFile(
            f"{folder}/{name} is damaged: sha256 {found[:12]}..., the manifest says "
            f"{expected[:12]}..."
        )


def read_sections(
    folder: Folder, name: str, sections: Sequence[Section]
) -> Iterator[tuple[int, memoryview]]:
    """Read some sections of a file, neighbours in one read as far as READ_BYTES go.

    Args:
        folder: Where.
        name: The file's name.
        sections: In the order in which they lie in the file.

    Yields:
        The place of a section in `sections`, and its bytes.

    Raises:
        DamagedFile: The file is missing, or the bytes of a section are not those of its digest.
        RecrayError: It cannot be read.
    """
    read, first = range_reader(folder, name), 0
    while first < len(sections):
        last = first + 1
        while (
            last < len(sections)
            and sections[last].begin == sections[last - 1].end
            and sections[last].end - sections[first].begin <= READ_BYTES
        ):
            last += 1
        begin = sections[first].begin
        held = memoryview(read(begin, sections[last - 1].end - begin))
        for place in range(first, last):
            one = sections[place]
            content = held[one.begin - begin : one.end - begin]
            _compare(folder, name, hashlib.sha256(content).hexdigest(), one.sha256)
            yield place, content
        first = last
