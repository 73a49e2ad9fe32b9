"""The only place that starts or joins Ray: its address, token and environment."""

import contextlib
import io
import logging
import os
import secrets
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from recray.errors import RecrayError
from recray.runtime.ray_private import (
    JOB_VARIABLE,
    JOIN_SWITCHES,
    QUIET_LOGGERS,
    RAY_SWITCHES,
    TOKEN_MODE,
    forget_serve,
    leave_no_serve,
    reread_token_mode,
)

LOCAL = "local"
TERMINATED = 143
"""Exit status after SIGTERM."""
SERVE = "ray.serve"
OBJECT_STORE_BYTES = 500 << 20
PACKAGE_FOLDER = Path(__file__).parents[1]
"""The source of recray, which a cluster that is joined gets along."""


def in_job() -> bool:
    """Whether this process is the driver of a Ray job."""
    return JOB_VARIABLE in os.environ


def own_address() -> str:
    """The cluster where none is named: a job's own, elsewhere one of this machine."""
    return "auto" if in_job() else LOCAL


def local_cpus() -> int:
    """Logical CPUs of a local start: at least 4, so that small machines can place every stage."""
    return max(4, os.cpu_count() or 1)


def require_local(workers: int) -> None:
    """Refuse, before anything starts, what a local cluster can never place.

    Raises:
        RecrayError: More workers than logical CPUs.
    """
    if workers > local_cpus():
        raise RecrayError(
            f"--workers {workers}: this machine can place at most {local_cpus()} workers "
            f"({os.cpu_count()} CPUs); give fewer, or --address of a larger cluster"
        )


def ray_runs() -> bool:
    """Whether this process is connected to a Ray already; asking does not import Ray."""
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())


@contextmanager
def switched(switches: Mapping[str, str], overrule: bool = False) -> Iterator[None]:
    """Set environment variables inside the block; what the user has set already is kept.

    Args:
        switches: Names and values.
        overrule: Whether the user's own values give way.
    """
    before = {name: os.environ.get(name) for name in switches}
    os.environ.update({k: v for k, v in switches.items() if overrule or before[k] is None})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def quieten() -> None:
    """Raise the level of QUIET_LOGGERS; Ray sets some of them when its modules are imported."""
    for name, level in QUIET_LOGGERS.items():
        logging.getLogger(name).setLevel(level)


def set_token_mode() -> None:
    """Make Ray ask for tokens, unless the user has chosen a mode.

    Ray reads the mode once, when it is imported. Where it was imported before, it
    has to read it again. The mode stays in the environment for good.

    Raises:
        RecrayError: This Ray cannot read the mode again.
    """
    chosen = os.environ.get("RAY_AUTH_MODE")
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if "ray" in sys.modules and not reread_token_mode() and chosen is None:
        del os.environ["RAY_AUTH_MODE"]
        raise RecrayError(
            "ray was imported before recray, without RAY_AUTH_MODE=token in the environment, and "
            f"this version has no {TOKEN_MODE.replace(':', '.')}: set the variable before Python "
            "starts, or import ray after the first call of recray"
        )


@contextmanager
def session(address: str | None = None, cpus: int | None = None) -> Iterator[None]:
    """Have Ray running inside the block; a Ray that was running before is used and left alone.

    Args:
        address: `local` starts one on this machine and stops it afterwards; anything else that
            ray.init takes (`auto`, host:port, ray://...) joins that cluster; None: own_address().
        cpus: Logical CPUs of a local start; None takes local_cpus().

    Raises:
        RecrayError: The cluster cannot be reached or refuses the token.
    """
    if ray_runs():
        yield
        return
    with switched(RAY_SWITCHES), _signal_handlers() as end_on_sigterm:
        set_token_mode()
        import ray

        _forget_serve()
        address = address or own_address()
        try:
            _start(address, cpus or local_cpus())
            end_on_sigterm()
            yield
        finally:
            if address == LOCAL and ray.is_initialized() and SERVE in sys.modules:
                leave_no_serve()
            ray.shutdown()
            _forget_serve()


def _forget_serve() -> None:
    if SERVE in sys.modules:
        forget_serve()


@contextmanager
def _signal_handlers() -> Iterator[Callable[[], object]]:
    """Restore the handlers of this process at the end of the block.

    It yields a function that makes SIGTERM end the process in order.

    Python lets the main thread alone set handlers: in any other one nothing happens.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _refuse_unreachable(address: str) -> None:
    """Ray would try for minutes what a connection shows at once.

    Raises:
        RecrayError: Nothing listens there.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return  # `auto`, or a form that only Ray can read
    try:
        socket.create_connection((host, int(port)), timeout=3).close()
    except OSError as error:
        raise RecrayError(
            f"no Ray cluster answers at {address}: {error}; "
            "give --address local, auto, or HOST:PORT of a running head"
        ) from error


def _start(address: str, cpus: int) -> None:
    import ray

    options: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": "warning",
        "configure_logging": True,
    }
    if address == LOCAL:
        if os.environ["RAY_AUTH_MODE"] == "token":
            private_token()
        options |= {
            "address": "local",
            "num_cpus": cpus,
            "object_store_memory": OBJECT_STORE_BYTES,
            "include_dashboard": False,
        }
    else:
        _refuse_unreachable(address)
        options |= {"address": address}
        if not in_job():  # a job brings its own working folder
            options["runtime_env"] = {"py_modules": [str(PACKAGE_FOLDER)]}
    with contextlib.nullcontext(io.BytesIO()) if address == LOCAL else _joining() as output:
        try:
            ray.init(**options)
        except Exception as error:  # Ray raises a bare one where a slow machine times out
            output.seek(0)
            if b"InvalidAuthToken" in output.read():
                reason = "it refuses the token: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or "
                reason += "~/.ray/auth_token, the first that is set, is not the cluster's"
            else:
                reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise RecrayError(
                f"cannot use the Ray cluster at {address}: {reason}; "
                "give --address local, auto, or HOST:PORT of a running head"
            ) from error


@contextmanager
def _joining() -> Iterator[IO[bytes]]:
    """Make Ray give up joining sooner, and yield a file with what it prints on stderr meanwhile.

    Its C++ part warns there every second while it tries, before any level of logging applies.
    """
    with switched(JOIN_SWITCHES), tempfile.TemporaryFile() as output:
        sys.stderr.flush()
        stderr = os.dup(2)
        os.dup2(output.fileno(), 2)
        try:
            yield output
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)


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
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        stream.write(secrets.token_hex(32))
