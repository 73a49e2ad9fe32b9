"""The users whom a registry has forgotten, by keyed hashes: they must not come back into it."""

import hashlib
import hmac
import secrets
from collections.abc import Callable, Iterable

from recray.data.ids import RawId
from recray.errors import RecrayError
from recray.storage import Folder

FORGOTTEN = "forgotten.json"
"""File of a registry: keyed hashes of the users who must not come back, and the key."""


class Forgotten:
    """The users who must not come back into a registry.

    Args:
        registry: Its folder.
    """

    def __init__(self, registry: Folder) -> None:
        self.folder = registry
        held = registry.find_json(FORGOTTEN) or {}
        self.key = bytes.fromhex(held.get("key", "")) or secrets.token_bytes(32)
        self.users: set[str] = set(held.get("users", []))

    def add(self, user: RawId) -> None:
        """Keep a user out from now on; only a keyed hash of the id is written."""
        self.users.add(self._digest(user))
        self.folder.write_json(FORGOTTEN, {"key": self.key.hex(), "users": sorted(self.users)})

    def among(self, users: Iterable[RawId]) -> int:
        """Count those of the users who are forgotten."""
        return sum(self._digest(user) in self.users for user in users) if self.users else 0

    def _digest(self, user: RawId) -> str:
        return hmac.new(self.key, repr(user).encode(), hashlib.sha256).hexdigest()


def refuse_forgotten(registry: Folder, users: Callable[[], list[RawId]], what: str) -> None:
    """Refuse data or a bundle in which somebody is who was forgotten.

    Raises:
        RecrayError: Somebody is.
    """
    if not registry.exists(FORGOTTEN):
        return
    found = Forgotten(registry).among(users())
    if found:
        raise RecrayError(
            f"{what} holds {found} of the users whom {registry} has forgotten: remove them from "
            "the source, or, where they have rated since, from the log by `recray forget`; then "
            "train again"
        )
