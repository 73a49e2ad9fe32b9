"""RAY SERVE: the app of api.py as one deployment, the model inside the ingress."""

import contextlib
import logging
import socket
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from recray import cluster
from recray.bundle import Bundle
from recray.errors import RecrayError
from recray.serving.protection import Protection, load_keys, refuse_open_door

if TYPE_CHECKING:
    from fastapi import FastAPI

NAME = "recray"


def _builder(bundle: str, protection: Protection) -> "Callable[[], FastAPI]":
    """What builds the app on the replica, so that only the path and the settings travel there.

    Serve takes a plain function for a builder, and any other callable for an app.
    """

    def build() -> "FastAPI":
        import torch

        from recray.recommender import Recommender
        from recray.serving.api import build_app

        torch.set_num_threads(1)
        return build_app(Recommender.open(bundle), protection)

    return build


def refuse_taken_port(host: str, port: int) -> None:
    """Refuse a port that something listens on; Serve alone would go on and never answer.

    Raises:
        RecrayError: The port is taken, or the host is not one of this machine's.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise RecrayError(
                f"cannot listen on {host}:{port}: {error.strerror}; give another --port"
            ) from error


@contextlib.contextmanager
def serving(
    bundle: str,
    host: str = "127.0.0.1",
    port: int = 8000,
    replicas: int = 1,
    address: str = cluster.LOCAL,
    protection: Protection | None = None,
) -> Iterator[str]:
    """Serve a bundle while the block runs.

    Args:
        bundle: A bundle's folder that the replicas can read.
        host: Interface to bind.
        port: HTTP port.
        replicas: Processes that answer.
        address: Ray cluster.
        protection: Keys and limits; by default the keys of the environment.

    Yields:
        The service's address; it answers.

    Raises:
        RecrayError: The port is taken, the bundle is missing or damaged, or the host lets other
            machines in and there are no keys.
    """
    protection = protection or Protection(keys=load_keys(None))
    refuse_open_door(host, protection)
    Bundle.open(bundle)  # here, where the user sees it, and not in a replica that retries
    if address == cluster.LOCAL:
        refuse_taken_port(host, port)
    with cluster.session(address):
        from ray import serve
        from ray.serve.config import HTTPOptions, ProxyLocation
        from ray.serve.schema import LoggingConfig

        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        quiet = LoggingConfig(enable_access_log=False, log_level="WARNING")
        serve.start(
            proxy_location=ProxyLocation.HeadOnly,
            http_options=HTTPOptions(host=host, port=port),
            logging_config=quiet,
        )
        app = serve.deployment(
            name=NAME,
            num_replicas=replicas,
            # Above the app's own limit, so that its answer is the one that people see.
            max_ongoing_requests=2 * protection.queue,
            ray_actor_options={"num_cpus": 0.25},
            logging_config=quiet,
        )(serve.ingress(_builder(bundle, protection))()).bind()
        try:
            try:
                serve.run(app, name=NAME, route_prefix="/")
            except RuntimeError as error:
                raise RecrayError(f"the service did not start: {error}") from error
            yield f"http://{host}:{port}"
        finally:
            serve.delete(NAME)
