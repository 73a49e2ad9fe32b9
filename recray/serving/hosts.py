"""By which names a service is called: the Host of a request, which a web page cannot choose.

A page on the internet may let its own name point to 127.0.0.1 once it is loaded (DNS rebinding).
The browser of somebody who runs a service without keys would then send it that page's requests, and
give the page the replies. Their Host is the name of the page.
"""

import ipaddress
import re
from collections.abc import Iterable
from urllib.parse import urlsplit

from recray.errors import RecrayError

ANY_HOST = "*"
_NAME = re.compile(r"[a-z0-9_]([a-z0-9._-]{0,251}[a-z0-9_])?")
MAX_REMEMBERED = 100
"""Values of Host that are remembered; each replica sees a few."""


class AllowedHosts:
    """The names that a service answers to.

    An address in numbers is one always: nobody else can have it lead here.

    Args:
        names: Names beside localhost; ANY_HOST stands for all.

    Raises:
        RecrayError: One is no name of a host.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self.names = frozenset(name.lower().rstrip(".") for name in names)
        for name in self.names - {ANY_HOST}:
            if not _NAME.fullmatch(name):
                raise RecrayError(
                    f"--allow-host {name!r}: write a name without a port, such as shop.example, "
                    f"or {ANY_HOST} for all"
                )
        self._allowed: set[bytes] = set()

    def allow(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Whether a request with these headers came by one of the names.

        One without a Host comes from no browser, and is let in.
        """
        hosts = [value for name, value in headers if name == b"host"]
        return all(host in self._allowed or self._check(host) for host in hosts)

    def _check(self, host: bytes) -> bool:
        allowed = ANY_HOST in self.names or self._is_ours(host.decode("latin-1"))
        if allowed and len(self._allowed) < MAX_REMEMBERED:
            self._allowed.add(host)
        return allowed

    def _is_ours(self, host: str) -> bool:
        try:
            name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
        except ValueError:
            return False
        if name == "localhost" or name.endswith(".localhost") or name in self.names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True
