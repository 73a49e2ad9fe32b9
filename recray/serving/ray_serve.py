"""Ray Serve itself: its port, its start on a busy machine, and its end."""

import contextlib
import logging
import socket
import time
from collections.abc import Iterator
from functools import partial

from recray.errors import RecrayError
from recray.runtime.environment import quiet_stdout
from recray.runtime.ray_private import serve_address
from recray.serving.options import DEPLOYMENT

PROXY_SECONDS = 120.0
"""How long a proxy that Serve has replaced may take to come up."""
END_SECONDS = 10.0
"""How long the process of a killed proxy may take to end; on a busy machine that is a second."""
logger = logging.getLogger("recray")


def refuse_taken_port(host: str, port: int) -> None:
    """Refuse a port that is taken, on which Serve would start without an error and never answer.

    Raises:
        RecrayError: The port is taken, or the host is not one of this machine's.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise RecrayError(
                f"cannot listen on {host}:{port}: {reason}; give another --port"
            ) from error


def _wait_for_proxy_to_end(host: str, port: int) -> None:
    """Wait until the port of a proxy that was killed can be taken again, or a limit is over."""
    end = time.monotonic() + END_SECONDS
    while time.monotonic() < end:
        try:
            refuse_taken_port(host, port)
            return
        except RecrayError:
            time.sleep(0.1)


def _refuse_other_service(host: str, port: int) -> None:
    """Refuse a running Serve that this service cannot use.

    Raises:
        RecrayError: It listens elsewhere, or has an app of our name.
    """
    from ray import serve

    if DEPLOYMENT in serve.status().applications:
        raise RecrayError(
            f"the cluster serves an app called {DEPLOYMENT} already; end it first "
            "(`serve shutdown`), promote to its registry, or `serve deploy` a file with a new "
            "args.revision"
        )
    running = serve_address()
    if running is not None and running != (host, port):
        raise RecrayError(
            f"the cluster's Serve listens on {running[0]}:{running[1]} already; give "
            f"--host {running[0]} --port {running[1]}, or end it first (`serve shutdown`)"
        )


def _start_serve(host: str, port: int) -> None:
    """Start Ray Serve, or use the one that runs, and wait for its proxy.

    On a busy machine Serve may replace a proxy that is slow to come up, and then raises that the
    first one died: the one that took its place is waited for.

    Raises:
        RecrayError: It does not come up.
    """
    from ray import serve
    from ray.serve.config import HTTPOptions, ProxyLocation
    from ray.serve.schema import LoggingConfig

    start = partial(
        serve.start,
        proxy_location=ProxyLocation.HeadOnly,
        http_options=HTTPOptions(host=host, port=port),
        logging_config=LoggingConfig(enable_access_log=False, log_level="WARNING"),
    )
    try:
        start()
        return
    except Exception as error:  # a dead actor, a timeout, or a bare one
        reason = " ".join(str(error).split())[:200]
        logger.warning("Ray Serve did not start and is tried once more: %s", reason)
    with _start_errors(host, port):
        start()
        end = time.monotonic() + PROXY_SECONDS
        while not any(p == "HEALTHY" for p in serve.status().proxies.values()):
            if time.monotonic() > end:
                raise TimeoutError(f"its proxy is not ready after {PROXY_SECONDS:g} s")
            time.sleep(0.5)


@contextlib.contextmanager
def _start_errors(host: str, port: int) -> Iterator[None]:
    """Turn what Serve raises at its start into one line."""
    try:
        yield
    except RecrayError:
        raise
    except Exception as error:  # a dead actor, a timeout, or a bare one
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise RecrayError(
            f"Ray Serve does not start at {host}:{port}: {reason}; on a busy machine try again"
        ) from error


@contextlib.contextmanager
def ray_serve(host: str, port: int, ray_goes_on: bool) -> Iterator[None]:
    """Start Ray Serve unless it runs, and delete our app at the end.

    Args:
        host: Interface to bind.
        port: HTTP port.
        ray_goes_on: Whether Ray outlives the service, so that Serve must be shut down.

    Raises:
        RecrayError: Serve runs and listens elsewhere, or has an app of our name.
    """
    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    with _start_errors(host, port):
        _refuse_other_service(host, port)
        running = bool(serve.status().proxies)
    _start_serve(host, port)
    try:
        yield
    finally:
        serve.delete(DEPLOYMENT)
        # A Serve that nobody uses would keep the port as long as Ray runs.
        if ray_goes_on and not running and not serve.status().applications:
            # Ray prints a line when the controller ends; stdout is for the command's result.
            with quiet_stdout:
                serve.shutdown()
            _wait_for_proxy_to_end(host, port)
