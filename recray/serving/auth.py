"""API keys: making them, reading them, and recognising the one that a request sends.

A key is 32 random bytes, shown once; only its sha256 is kept. Nobody can guess such a key from
its hash, so the hash needs no salt.
"""

import hashlib
import hmac
import ipaddress
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from recray.errors import RecrayError

KEYS_VARIABLE = "RECRAY_API_KEYS"
DIGEST_PREFIX, USER_PREFIX = "sha256:", "user="


@dataclass(frozen=True)
class ApiKey:
    """A key that opens the service.

    Args:
        name: The name of its owner, which appears in the log.
        digest: sha256 of the key, 64 hex digits.
        user: The only user, as in an address, whose ratings the key may keep and take back; None:
            those of all.
    """

    name: str
    digest: str
    user: str | None = None


def new_key(name: str, user: str | None = None) -> tuple[str, str]:
    """Make a key; return it, and the line that stands for it in a file of keys."""
    _check_name(name)
    secret = secrets.token_urlsafe(32)
    bound = "" if user is None else f" {USER_PREFIX}{user}"
    return secret, f"{name} {DIGEST_PREFIX}{_digest(secret.encode())}{bound}"


def add_line(file: str, line: str) -> None:
    """Append a line to a file of keys; a new file is readable by its owner alone.

    Raises:
        RecrayError: The file cannot be written.
    """
    try:
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a") as stream:
            stream.write(line + "\n")
    except OSError as error:
        raise RecrayError(f"--add-to {file}: {error.strerror}") from error


def load_keys(file: str | None) -> tuple[ApiKey, ...]:
    """Read the keys of a file, or those of the environment if no file is named.

    Args:
        file: Has lines NAME sha256:HEX, and perhaps user=ID, as `recray key` writes them; # begins
            a comment. In the environment commas may stand in place of line ends.

    Raises:
        RecrayError: The file cannot be read or has no key, or a line has another form.
    """
    if file is None:
        source, text = KEYS_VARIABLE, os.environ.get(KEYS_VARIABLE, "").replace(",", "\n")
    else:
        source = file
        try:
            text = Path(file).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise RecrayError(f"--api-keys {file}: cannot be read: {error}") from error
    lines = map(str.strip, text.splitlines())
    keys = [parse_key(line, source) for line in lines if line and not line.startswith("#")]
    if len({(key.name, key.user) for key in keys}) > len({key.name for key in keys}):
        raise RecrayError(f"{source}: keys of one name are bound to different users")
    if file is not None and not keys:
        raise RecrayError(f"--api-keys {file}: no key in it; `recray key NAME` makes one")
    return tuple(keys)


def parse_key(line: str, source: str) -> ApiKey:
    """Parse a line NAME sha256:HEX.

    Args:
        line: The line, without white space at its ends.
        source: The file or variable that the line comes from, for the error.

    Raises:
        RecrayError: The line has another form.
    """
    name, _, hashed = line.partition(" ")
    hashed, _, bound = hashed.strip().partition(" ")
    digest = hashed.removeprefix(DIGEST_PREFIX).lower()
    complete = len(digest) == 64 and set(digest) <= set("0123456789abcdef")
    user = bound.strip().removeprefix(USER_PREFIX) if bound.strip() else None
    whole = user is None or (bool(user) and bound.strip().startswith(USER_PREFIX))
    if not hashed.startswith(DIGEST_PREFIX) or not complete or not whole:
        # The line may be a key itself, so the error does not repeat it.
        raise RecrayError(
            f"{source}: a line is not NAME {DIGEST_PREFIX}HEX; `recray key NAME` makes one"
        )
    _check_name(name)
    return ApiKey(name, digest, user)


def find_key(keys: Sequence[ApiKey], secret: bytes) -> str | None:
    """Return the name of the key that has this secret, or None."""
    digest, name = _digest(secret), None
    for key in keys:  # Every key is compared, so that the time tells nothing about them.
        if hmac.compare_digest(key.digest, digest):
            name = key.name
    return name


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the interface."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def require_keys(host: str, keys: Sequence[ApiKey]) -> None:
    """Refuse to let other machines in without keys.

    Raises:
        RecrayError: Other machines reach the host, and there are no keys.
    """
    if not is_loopback(host) and not keys:
        raise RecrayError(
            f"--host {host} lets other machines in: give --api-keys FILE or set {KEYS_VARIABLE}; "
            "`recray key NAME` makes a key"
        )


def _check_name(name: str) -> None:
    if not (name.replace("-", "").replace("_", "").isalnum() and len(name) <= 64):
        raise RecrayError(f"key name {name!r}: use up to 64 letters, digits, - and _")


def _digest(secret: bytes) -> str:
    return hashlib.sha256(secret).hexdigest()
