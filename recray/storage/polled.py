"""Small files that their writer replaces, and that are looked at again and again."""

import os
from collections.abc import Callable
from typing import Generic, TypeVar

from recray.storage.files import is_uri, read_errors, retry, untorn
from recray.storage.folder import Folder

T = TypeVar("T")


class PolledFile(Generic[T]):
    """A file that is read anew only where it has changed.

    In a store a look is one HEAD, which gives the file's ETag, and one GET more after a change. A
    store that has no ETags is asked for the content each time.

    Args:
        folder: Where it lies.
        name: Its name.
        parse: Makes something of its content; raises a ValueError where that is damaged.
    """

    def __init__(self, folder: Folder, name: str, parse: Callable[[bytes], T]) -> None:
        self.path = f"{folder}/{name}"
        self._filesystem, self._inner = folder.locate(name)
        self._parse = parse
        self._seen: object = None
        self._value: T | None = None

    def read(self) -> T | None:
        """What `parse` makes of the content as it is now; None where there is no file.

        Raises:
            DamagedFile: It is damaged, and was so in each of a few attempts.
            StorageError: The store does not answer.
            RecrayError: It cannot be read.
        """
        with read_errors(self.path):
            try:
                return untorn(self.path, lambda: retry(self.path, self._look))
            except FileNotFoundError:
                self._seen = self._value = None
                return None

    def _look(self) -> T | None:
        if self._filesystem.type_name == "local":
            found = os.stat(self._inner)
            seen: object = (found.st_ino, found.st_mtime_ns, found.st_size)
            if seen != self._seen:
                with open(self._inner, "rb") as stream:
                    self._take(stream.read(), seen)
            return self._value
        with self._filesystem.open_input_file(self._inner) as file:
            tags = {name.lower(): value for name, value in file.metadata().items()}
            seen = tags.get("etag")
            if seen is None or seen != self._seen:
                self._take(file.read_buffer().to_pybytes(), seen)
        return self._value

    def _take(self, content: bytes, seen: object) -> None:
        self._value = self._parse(content)
        self._seen = seen


class Pause:
    """How long to wait before the next look at a file: the longer it has not changed, the longer.

    Args:
        path: Where the file lies. On a disk, where a look costs next to nothing, no pause grows.
        first: Seconds after a change.
        longest: Seconds up to which a pause grows in a store, by a quarter each time.
    """

    def __init__(self, path: str, first: float, longest: float) -> None:
        self.first, self.longest = first, longest if is_uri(path) else first
        self.seconds = first

    def after(self, changed: bool) -> float:
        """Seconds until the next look, by whether this one found a change."""
        self.seconds = self.first if changed else min(1.25 * self.seconds, self.longest)
        return self.seconds
