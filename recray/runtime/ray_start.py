"""Start a Ray on this machine, or join one: what can go wrong then, in one line each."""

import contextlib
import io
import logging
import os
import secrets
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from recray.errors import RecrayError
from recray.runtime.environment import switched
from recray.runtime.ray_private import START_LOGGER
from recray.runtime.ray_switches import JOB_VARIABLE, JOIN_SWITCHES, temp_folder

LOCAL = "local"
OBJECT_STORE_BYTES = 500 << 20
PACKAGE_FOLDER = Path(__file__).parents[1]
"""The source of recray, which a cluster that is joined gets along."""
STARTS = 2
"""How often a Ray of this machine is tried: on a busy one its processes may miss each other."""
_REASON = 300
"""Characters of what Ray says that a message repeats."""
logger = logging.getLogger("recray")


def in_job() -> bool:
    """Whether this process is the driver of a Ray job."""
    return JOB_VARIABLE in os.environ


def start(address: str, cpus: int) -> None:
    """Start Ray on this machine (`local`), or join the one at an address.

    Raises:
        RecrayError: It does not start, cannot be reached, or refuses the token.
    """
    options: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": "warning",
        "configure_logging": True,
    }
    said = logging.getLogger(START_LOGGER)
    level = said.level
    if threading.current_thread() is not threading.main_thread():
        said.setLevel(logging.ERROR)  # it warns that it leaves the signal handlers alone
    try:
        if address == LOCAL:
            _start_here(options, cpus)
        else:
            _join(options, address)
    finally:
        said.setLevel(level)


def _start_here(options: dict[str, Any], cpus: int) -> None:
    import ray

    if os.environ["RAY_AUTH_MODE"] == "token":
        private_token()
    options |= {
        "address": LOCAL,
        "num_cpus": cpus,
        "object_store_memory": OBJECT_STORE_BYTES,
        "include_dashboard": False,
        "_temp_dir": temp_folder(),
    }
    for attempt in range(1, STARTS + 1):
        try:
            ray.init(**options)
            return
        except Exception as error:  # Ray raises a bare one where a slow machine times out
            ray.shutdown()
            reason = _one_line(error)
            if attempt == STARTS:
                raise RecrayError(
                    f"Ray does not start on this machine, tried {STARTS} times: {reason}; on a "
                    "busy machine try again, or give --address of a running cluster"
                ) from error
            logger.warning("Ray did not start and is tried once more: %s", reason)


def _join(options: dict[str, Any], address: str) -> None:
    import ray

    named = _address_of_auto() if address == "auto" else address
    _refuse_unreachable(named, "RAY_ADDRESS" if named != address else "")
    options |= {"address": address}
    if not in_job():  # a job brings its own working folder
        options["runtime_env"] = {"py_modules": [str(PACKAGE_FOLDER)]}
    with _joining() as output:
        try:
            ray.init(**options)
        except Exception as error:
            output.seek(0)
            if b"InvalidAuthToken" in output.read():
                reason = "it refuses the token: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or "
                reason += "~/.ray/auth_token, the first that is set, is not the cluster's"
            else:
                reason = _one_line(error)
            raise RecrayError(
                f"cannot use the Ray cluster at {address}: {reason}; "
                "give --address local, auto, or HOST:PORT of a running head"
            ) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:_REASON] or type(error).__name__


def _address_of_auto() -> str:
    """What Ray takes for `auto`: RAY_ADDRESS, if it is set."""
    return os.environ.get("RAY_ADDRESS") or "auto"


def _refuse_unreachable(address: str, variable: str = "") -> None:
    """Ray would try for minutes what a connection shows at once.

    Args:
        address: Where it should be.
        variable: The environment variable that says so, if one does.

    Raises:
        RecrayError: Nothing listens there.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return  # `auto`, or a form that only Ray can read
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=3).close()
    except OSError as error:
        told = f" ({variable}; unset it if that cluster is gone)" if variable else ""
        raise RecrayError(
            f"no Ray cluster answers at {address}{told}: {error}; "
            "give --address local, auto, or HOST:PORT of a running head"
        ) from error


@contextmanager
def _joining() -> Iterator[IO[bytes]]:
    """Make Ray give up joining sooner, and yield a file with what it prints on stderr meanwhile.

    Its C++ part warns there every second while it tries, before any level of logging applies.
    """
    with switched(JOIN_SWITCHES), tempfile.TemporaryFile() as output:
        sys.stderr.flush()
        try:
            stderr = os.dup(2)
        except OSError:  # the process has none
            yield io.BytesIO()
            return
        os.dup2(output.fileno(), 2)
        try:
            yield output
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)


# -------------------------------------------------------------------------------------- token


def token_path() -> Path:
    """The file that holds the cluster's token, if there is one."""
    chosen = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return Path(chosen) if chosen else Path.home() / ".ray" / "auth_token"


def auth_token() -> str | None:
    """The cluster's token, from where Ray looks for it; None where there is none.

    Raises:
        RecrayError: The file that RAY_AUTH_TOKEN_PATH names is missing or empty.
    """
    if os.environ.get("RAY_AUTH_MODE") != "token":
        return None
    token = os.environ.get("RAY_AUTH_TOKEN", "").strip()
    if token:
        return token
    with contextlib.suppress(OSError):
        token = token_path().read_text().strip()
    if not token and os.environ.get("RAY_AUTH_TOKEN_PATH"):
        raise RecrayError(f"RAY_AUTH_TOKEN_PATH: {token_path()} cannot be opened or is empty")
    return token or None


def private_token() -> None:
    """Make Ray's token file readable by its owner only; Ray itself would write it 0644."""
    if "RAY_AUTH_TOKEN" in os.environ:
        return
    path = token_path()
    if path.is_file():
        if path.stat().st_uid == os.getuid():
            path.chmod(0o600)
        return
    token = secrets.token_hex(32)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            stream.write(token)
    except OSError:  # a home folder that cannot be written, as in some containers
        if not path.is_file():  # otherwise another process has just written it
            os.environ["RAY_AUTH_TOKEN"] = token
