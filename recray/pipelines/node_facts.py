"""What `recray doctor` asks of every node: each looks at itself and tells the facts."""

import contextlib
import os
import platform
import socket
import subprocess
import sys
import urllib.error
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from recray.errors import RecrayError
from recray.runtime.loopback import open_url
from recray.runtime.ray_start import token_path
from recray.storage import PROBE, Folder

GPU_S = 20.0
"""Seconds until a GPU is given up; fewer than a node has to answer."""

_COMPUTE = """
import torch
count = torch.cuda.device_count()
for number in range(count):
    one = torch.ones(8, 8, device=f"cuda:{number}")
    assert float((one @ one)[0, 0]) == 8.0, f"GPU {number} computes wrongly"
print(count)
"""


@dataclass(frozen=True)
class Token:
    """Where the token comes from: a file, the variable, or None where there is none yet.

    Args:
        source: Path of the file, or the name of the variable.
        mode: Who may read the file, as in chmod; None where there is no file.
    """

    source: str | None = None
    mode: int | None = None


@dataclass(frozen=True)
class NodeFacts:
    """What a node tells of itself.

    Args:
        ray: Version of Ray.
        python: Version of Python.
        storage: Why the storage cannot be used there; empty where it can.
        data: Why the data cannot be read there; empty where they can.
        port_free: Whether the port of the service is free.
        token: The token of Ray.
        torch_gpus: How many GPUs torch can compute with, as a number, or why it cannot.
        memory: Bytes that new processes may have.
    """

    ray: str
    python: str
    storage: str
    data: str
    port_free: bool
    token: Token
    torch_gpus: str
    memory: int


@dataclass(frozen=True)
class NodeProbe:
    """Looks at the node that it is called on.

    Args:
        storage: Folder or URI of outputs.
        probe: Name of a file that the caller wrote there; empty where it could not.
        data: Path or URI of the data; None where they are no file, or not asked about.
        port: HTTP port of the service.
    """

    storage: str
    probe: str
    data: str | None
    port: int

    def __call__(self) -> NodeFacts:
        """Look at the node that this runs on."""
        import psutil

        ray, python = find_versions()
        return NodeFacts(
            ray=ray,
            python=python,
            storage=_why_not(self._use_storage),
            data=_why_not(self._find_data),
            port_free=_port_free(self.port),
            token=find_token(),
            torch_gpus=_torch_gpus(),
            memory=int(psutil.virtual_memory().available),
        )

    def _use_storage(self) -> None:
        """See the probe of the caller, and write one of our own."""
        folder = Folder(self.storage)
        if not self.probe:
            return  # the caller knows why
        if not folder.exists(self.probe):
            raise RecrayError("it does not see what was written from here")
        own = f"{self.probe}-{uuid.uuid4().hex[:8]}"
        folder.write_bytes(own, b"")
        folder.delete(own)

    def _find_data(self) -> None:
        if self.data and not Folder(self.data).exists():
            raise RecrayError("it is not there")


def _why_not(attempt: Callable[[], None]) -> str:
    """Empty, or why the attempt failed."""
    try:
        attempt()
    except RecrayError as error:
        return str(error)
    return ""


def _port_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def find_versions() -> tuple[str, str]:
    """Versions of Ray and of Python, here."""
    import ray

    return ray.__version__, platform.python_version()


def find_token() -> Token:
    """Where the token comes from here, and who may read its file."""
    if "RAY_AUTH_TOKEN" in os.environ:
        return Token("RAY_AUTH_TOKEN")
    path = token_path()
    return Token(str(path), path.stat().st_mode & 0o777) if path.is_file() else Token()


def _torch_gpus() -> str:
    """How many GPUs torch can compute with, or why it cannot.

    A process of its own: Ray hides the GPUs from a task that has asked for none.
    """
    environment = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _COMPUTE],
            env=environment,
            capture_output=True,
            text=True,
            timeout=GPU_S,
        )
    except subprocess.TimeoutExpired:
        return f"torch does not answer within {GPU_S:g} s"
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
    return done.stdout.strip()


@contextlib.contextmanager
def probe_file(storage: str, refused: str) -> Iterator[tuple[str, str]]:
    """A file in the storage while the block runs: its name, and why there is none.

    Args:
        storage: The folder.
        refused: Why none can be written, where that is known.
    """
    folder, name = Folder(storage), f"{PROBE}{uuid.uuid4().hex[:8]}"
    try:
        if not refused:
            folder.write_bytes(name, b"")
    except RecrayError as error:
        refused = str(error)
    if refused:
        yield "", refused
        return
    try:
        yield name, ""
    finally:
        folder.delete(name)


def asks_for_token(url: str) -> bool | None:
    """Whether an address refuses who has no token; None where it cannot be reached."""
    try:
        with open_url(url, timeout_s=5):
            return False
    except urllib.error.HTTPError as error:
        return error.code in (401, 403)
    except OSError:
        return None
