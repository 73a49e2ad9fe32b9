"""The log of a service: each replica writes lines of JSON to its stderr, and Ray keeps them.

Ray sends the stderr of a process to worker-*.err in the log folder of its node. Where a command
serves, ShownLogs repeats on its stderr what the replicas of this machine write.
"""

import contextlib
import json
import os
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

LOG_FILES = "worker-*.err*"
"""Ray may put a number behind a file that has grown, and begin another."""
SHOW_SECONDS = 0.3
"""Pause between two looks at the files of replicas."""
_BEGIN = b'{"time": "'
"""How each line of `log` begins, and none of Ray's."""


def log(**facts: Any) -> None:
    """Write one line of JSON to the stderr of this process, with the time first.

    sys.stderr would not do: on a replica Serve puts a logger there, and in some profiles that
    drops whatever is no warning.
    """
    line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **facts}
    stderr = sys.__stderr__ or sys.stderr  # a process may have been started without one
    stderr.write(json.dumps(line) + "\n")
    stderr.flush()


def replicas_shown() -> "ShownLogs":
    """Show what the replicas of this machine log; Ray runs already."""
    return ShownLogs(ray_log_folder())


def ray_log_folder() -> Path:
    """The log folder of this machine's node of the Ray that this process is connected to."""
    import ray

    context = ray.get_runtime_context()
    return Path(context.get_temp_dir(), context.get_session_name(), "logs")


class ShownLogs:
    """Prints on this process's stderr what the replicas of this machine log inside the block.

    Args:
        folder: Their log folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read: dict[int, int] = {}  # bytes that were read of each file, by its inode
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="recray-logs", daemon=True)

    def __enter__(self) -> "ShownLogs":
        self._new_lines()  # those of an earlier service
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        self.show()

    def _run(self) -> None:
        while not self._end.wait(SHOW_SECONDS):
            self.show()

    def show(self) -> None:
        """Print the lines that are whole and were not printed yet."""
        for line in self._new_lines():
            print(line.decode(errors="replace"), file=sys.stderr, flush=True)

    def _new_lines(self) -> list[bytes]:
        lines, read = [], {}
        for path in self.folder.glob(LOG_FILES):
            with contextlib.suppress(FileNotFoundError), path.open("rb") as file:  # put away
                inode = os.fstat(file.fileno()).st_ino
                whole, read[inode] = _read_lines(file, self._read.get(inode, 0))
                lines += [line for line in whole if line.startswith(_BEGIN)]
        self._read = read
        return sorted(lines, key=lambda line: line.split(b'"', 4)[3])  # by their times


def _read_lines(file: BinaryIO, begin: int) -> tuple[list[bytes], int]:
    """The whole lines of a file from a byte on, and the byte after them."""
    if file.seek(0, os.SEEK_END) < begin:
        begin = 0  # it was begun anew
    file.seek(begin)
    content = file.read()
    whole = content[: content.rfind(b"\n") + 1]
    return whole.splitlines(), begin + len(whole)
