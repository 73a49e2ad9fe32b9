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


class NodeTaken(WorkerLost):
    """The node of a worker was taken away after notice, before the group had left it."""


class NotPlaced(WorkerLost):
    """The workers of a group found no free CPUs in time."""


class LostRows(RecrayError):
    """The rows that were kept and those that were counted out do not make those that were read."""

    exit_code = 1


class CheckFailed(RecrayError):
    """A check that the user asked for found a difference (`verify`)."""

    exit_code = 1


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.3, quote: str = "") -> str:
    """Return `did you mean X? ` for the most similar known name; nothing where none is similar."""
    near = get_close_matches(name, known, n=1, cutoff=cutoff)
    return f"did you mean {quote}{near[0]}{quote}? " if near else ""


def unknown_name(what: str, name: str, known: Iterable[str]) -> RecrayError:
    """Return the error for a name that is not in a closed list, with the nearest known one."""
    names = sorted(known)
    hint = did_you_mean(name, names, cutoff=0.5, quote="'")
    return RecrayError(f"unknown {what} {name!r}: {hint}known are {', '.join(names)}")
