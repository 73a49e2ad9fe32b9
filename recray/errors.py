"""What a user can fix. Each error is one line: what was given, and what is allowed."""

from collections.abc import Iterable
from difflib import get_close_matches


class RecrayError(Exception):
    """Something the user gave cannot be used; the message says what is allowed."""

    exit_code = 2


class StorageError(RecrayError):
    """A folder cannot be written: full, read-only or not permitted."""

    exit_code = 3


class DamagedFile(RecrayError):
    """A file is there, and its bytes are not what they should be."""


class WorkerLost(RecrayError):
    """A worker of a group died or stopped answering; the run goes on from its last checkpoint."""


class CheckFailed(RecrayError):
    """A check that the user asked for found a difference (`verify`)."""

    exit_code = 1


def unknown_name(what: str, given: str, known: Iterable[str]) -> RecrayError:
    """Return the error for a name that is not in a closed list, with the nearest known one."""
    names = sorted(known)
    near = get_close_matches(given, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return RecrayError(f"unknown {what} {given!r}: {hint}known are {', '.join(names)}")
