"""The working folder of a job: which files are sent to the cluster, and which are not."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from recray.errors import RecrayError

UPLOAD_BYTES = 100 << 20
"""The most that Ray's dashboard takes."""
_LEFT_OUT_ENDINGS = (
    *(".arrow", ".csv", ".dat", ".gz", ".h5", ".npy", ".npz", ".parquet", ".pt", ".safetensors"),
    *(".tar", ".tsv", ".whl", ".zip", ".key", ".pem"),
)
_LEFT_OUT_FOLDERS = ("__pycache__", "node_modules", "recray-out", "secrets")
_MARKS_OF_OUTPUTS = ("manifest.json", "run.json", "pyvenv.cfg", "promotions/000001.json")
"""A folder that holds one of these files is an output of recray or a virtual environment."""


def working_files(folder: Path) -> list[Path]:
    """List the files that a job gets, relative to the folder, sorted.

    A job does not get hidden files, data, archives and keys (by their endings), links, and folders
    that are an output of recray or a virtual environment, whatever their names.
    """
    found = []
    for parent, folders, files in os.walk(folder):
        paths = [Path(parent) / name for name in files]
        folders[:] = [name for name in sorted(folders) if _is_sent(Path(parent) / name)]
        found += [
            path.relative_to(folder)
            for path in paths
            if not path.name.startswith(".")
            and not path.name.endswith(_LEFT_OUT_ENDINGS)
            and not path.is_symlink()
        ]
    return sorted(found)


def _is_sent(folder: Path) -> bool:
    if folder.name.startswith(".") or folder.name in _LEFT_OUT_FOLDERS:
        return False
    if folder.is_symlink() or folder.name.endswith(".egg-info"):
        return False
    return not any((folder / name).is_file() for name in _MARKS_OF_OUTPUTS)


@contextlib.contextmanager
def packed(folder: Path, limit: int = UPLOAD_BYTES) -> Iterator[Path]:
    """Copy the working files of a folder; the copy is there while the block runs.

    Raises:
        RecrayError: They have more bytes than can be sent.
    """
    files = working_files(folder)
    sizes = {name: (folder / name).stat().st_size for name in files}
    total = sum(sizes.values())
    if total > limit:
        largest = max(sizes, key=lambda name: sizes[name])
        raise RecrayError(
            f"the working folder {folder} has {total / 2**20:,.0f} MiB, at most "
            f"{limit / 2**20:,.0f} can be sent: move data out of it; the largest file is {largest} "
            f"({sizes[largest] / 2**20:,.0f} MiB)"
        )
    with tempfile.TemporaryDirectory(prefix="recray-job-") as temporary:
        for name in files:
            target = Path(temporary) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, target)
        yield Path(temporary)
