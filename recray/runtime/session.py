"""The only place that starts or joins Ray: its address, token and environment."""

import contextlib
import io
import os
import secrets
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, Any

from recray.errors import RecrayError

LOCAL = "local"
TERMINATED = 143
"""Exit status after SIGTERM."""
OBJECT_STORE_BYTES = 500 << 20
PACKAGE_FOLDER = Path(__file__).parents[1]
"""The source of recray, which a cluster that is joined gets along."""
JOIN_VARIABLE, JOIN_S = "RAY_gcs_server_port_wait_time_s", 8
"""How long Ray tries to join a cluster whose head listens."""

# Set before Ray starts; what the user has set already is kept.
_ENVIRONMENT = {
    # With Ray's 2.0 s every Train report costs 2 s, and fit() another 5 s at its end.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # A dead or silent worker fails the run; Ray alone would wait for ever.
    "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": "300",
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "120",
    "RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S": "300",
    # Spinning threads of several workers on few cores are slower than one thread each.
    "OMP_NUM_THREADS": "1",
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_SCHEDULER_EVENTS": "0",
    "RAY_SERVE_LOG_TO_STDERR": "0",
}


def in_job() -> bool:
    """Whether this process is the driver of a Ray job."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


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
    if not ("ray" in sys.modules and sys.modules["ray"].is_initialized()):
        set_environment()
    import ray

    if ray.is_initialized():
        yield
        return
    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        _start(address or own_address(), cpus or local_cpus())
        signal.signal(signal.SIGTERM, _terminate)
        yield
    finally:
        ray.shutdown()
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


def set_environment() -> None:
    """Tell Ray by its environment variables how we want it; what the user has set is kept."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if "ray" in sys.modules:  # Ray reads the token mode once, when it is imported
        from ray._raylet import Config  # type: ignore[attr-defined]  # compiled

        Config.initialize("")


def _terminate(_number: int, _frame: FrameType | None) -> None:
    sys.exit(TERMINATED)


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
    with contextlib.nullcontext(io.BytesIO()) if address == LOCAL else _joining() as said:
        try:
            ray.init(**options)
        except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
            said.seek(0)
            if b"InvalidAuthToken" in said.read():
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
    """Let Ray try for JOIN_S only; gives what its C++ part says meanwhile, in place of stderr.

    It warns there every second while it tries, before any level of logging applies to it.
    """
    ours = JOIN_VARIABLE not in os.environ
    os.environ.setdefault(JOIN_VARIABLE, str(JOIN_S))
    with tempfile.TemporaryFile() as said:
        sys.stderr.flush()
        kept = os.dup(2)
        os.dup2(said.fileno(), 2)
        try:
            yield said
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            if ours:
                del os.environ[JOIN_VARIABLE]


def private_token() -> None:
    """Make Ray's token file readable by its owner only; Ray itself would write it 0644."""
    if "RAY_AUTH_TOKEN" in os.environ:
        return
    chosen = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(chosen) if chosen else Path.home() / ".ray" / "auth_token"
    if path.is_file():
        if path.stat().st_uid == os.getuid():
            path.chmod(0o600)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        stream.write(secrets.token_hex(32))
