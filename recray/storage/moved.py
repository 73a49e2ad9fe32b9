"""Names of folders that lie in other folders, and that hold when a project is renamed or copied."""

import os
import posixpath
from collections.abc import Mapping

from pydantic import JsonValue

from recray.storage.files import is_uri
from recray.storage.folder import Folder

BEFORE = "_at"
"""What the name of a field ends with that says where a folder lay when it was named."""


def named(folder: str, field: str, path: str) -> dict[str, JsonValue]:
    """What a file in `folder` says of another folder: how to get there, and where it is now.

    Args:
        folder: Where the file is.
        field: The field's name, such as `prepared`.
        path: The other folder.
    """
    return {field: relative_to(folder, path), f"{field}{BEFORE}": path}


def found(folder: str, field: str, content: Mapping[str, JsonValue]) -> str:
    """Where a named folder lies: beside this one as it did then, or else where it was.

    Args:
        folder: Where the file is now.
        field: The field's name.
        content: What the file says; earlier versions wrote a whole path alone.
    """
    near = from_folder(folder, str(content[field]))
    before = content.get(f"{field}{BEFORE}")
    if before is None or before == near or Folder(near).exists():
        return near
    return str(before) if Folder(str(before)).exists() else near


def relative_to(folder: str, path: str) -> str:
    """How to get from one folder to another: `../prepared`.

    Args:
        folder: Where the name is kept.
        path: What is named; it stays as it is where the two do not lie in one store.
    """
    if not is_uri(folder) and not is_uri(path):
        return os.path.relpath(os.path.abspath(path), os.path.abspath(folder))
    store = folder.split("/", 3)[:3]
    if not is_uri(folder) or path.split("/", 3)[:3] != store:
        return path
    inner, below = ("/" + "/".join(uri.split("/")[3:]) for uri in (path, folder))
    return posixpath.relpath(inner, below)


def from_folder(folder: str, name: str) -> str:
    """The path that `relative_to` named in a folder, wherever that lies now."""
    if is_uri(name) or os.path.isabs(name):
        return name
    if not is_uri(folder):
        return os.path.normpath(os.path.join(os.path.abspath(folder), name))
    scheme, _, rest = folder.partition("://")
    return f"{scheme}://{posixpath.normpath(posixpath.join(rest, name))}"
