"""The form of all errors: a status, and a body {"error": {"code", "message"}}."""

import json


class HTTPError(Exception):
    """The reason why a request is not let through.

    Args:
        status: HTTP status.
        code: Short name, for programs.
        message: What is wrong and what to do, for people.
        headers: Headers beside the usual ones.
    """

    def __init__(
        self, status: int, code: str, message: str, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.headers = headers or {}


def error_body(code: str, message: str) -> bytes:
    """The JSON body of every error."""
    valid = message.encode("utf-8", "replace").decode()  # a path may hold lone surrogates
    return json.dumps({"error": {"code": code, "message": valid}}, ensure_ascii=False).encode()
