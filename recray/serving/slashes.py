"""Ids with slashes in addresses: a slash that was sent as %2F belongs to the id.

Servers decode a path before it meets the routes, so /v1/users/a%2Frecommendations would be the list
of the user "a". A NUL, which no id holds, stands for such a slash until the route is found.
"""

import re
from urllib.parse import unquote

from starlette.types import ASGIApp, Receive, Scope, Send

SLASH = "\0"
_SENT = re.compile("%2f", re.IGNORECASE)


def decode_slashes(value: str) -> str:
    """The id that a part of a path stands for."""
    return value.replace(SLASH, "/")


class SlashMiddleware:
    """ASGI middleware that tells slashes of ids from those of paths.

    Args:
        app: Its routes read ids with decode_slashes.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        sent = scope.get("raw_path") or b""
        if b"%2" in sent:
            marked = _SENT.sub("%00", sent.decode("ascii", errors="replace"))
            scope = {**scope, "path": unquote(marked)}
        await self.app(scope, receive, send)
