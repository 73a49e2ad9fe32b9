"""A folder of which some files are in memory, or mapped, already."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa

from recray.storage import Folder


@dataclass(frozen=True)
class HeldFolder(Folder):
    """A folder whose files have been read already.

    Args:
        path, generation: As those of a Folder.
        contents: Of every file by its name; None where it is not held, and is read again.
    """

    contents: Mapping[str, pa.Buffer | None] = field(default_factory=dict)

    def find(self, name: str, largest: int | None = None) -> pa.Buffer | None:
        """The file's content; see Folder."""
        held = self.contents.get(name)
        return super().find(name, largest) if held is None and name in self.contents else held

    def exists(self, name: str = "") -> bool:
        """Whether there is a file of that name."""
        return name in self.contents
