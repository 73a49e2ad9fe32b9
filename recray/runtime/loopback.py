"""HTTP to services; what listens on this machine is asked directly, whatever proxy is set."""

import ipaddress
import os
import urllib.parse
import urllib.request
from contextlib import AbstractContextManager, nullcontext
from http.client import HTTPResponse
from typing import cast

from recray.runtime.environment import switched

LOOPBACK = "localhost,127.0.0.1,::1"
"""Names of this machine as NO_PROXY lists them."""


def is_loopback(url: str) -> bool:
    """Whether a URL names this machine: localhost, 127.0.0.0/8 or ::1."""
    host = urllib.parse.urlsplit(url).hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def open_url(request: urllib.request.Request | str, timeout_s: float) -> HTTPResponse:
    """Open a URL as urllib does, but this machine's own without the proxies of the environment.

    Raises:
        urllib.error.HTTPError: The server refuses.
        OSError: Nothing answers.
    """
    url = request if isinstance(request, str) else request.full_url
    proxies = urllib.request.ProxyHandler({} if is_loopback(url) else None)
    opener = urllib.request.build_opener(proxies)
    return cast("HTTPResponse", opener.open(request, timeout=timeout_s))


def not_proxied(url: str) -> AbstractContextManager[None]:
    """Keep `requests`, by which Ray's own clients ask, from a proxy while the block runs."""
    if not is_loopback(url):
        return nullcontext()
    others = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    names = ",".join(filter(None, (others, LOOPBACK, urllib.parse.urlsplit(url).hostname)))
    return switched({"no_proxy": names, "NO_PROXY": names}, overrule=True)
