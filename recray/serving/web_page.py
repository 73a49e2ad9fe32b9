"""The page at /: static files of the package, with a policy that lets nothing else in."""

from importlib import resources

from fastapi import FastAPI
from fastapi.responses import Response

from recray.serving.guard import PAGE_PATHS
from recray.serving.service import Service

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
FILES = {"index.html": "text/html", "page.css": "text/css", "page.js": "text/javascript"}


def add(app: FastAPI, _service: Service) -> None:
    """Add the page and its two files, read once."""
    folder = resources.files("recray") / "serving" / "page"
    for path, (name, kind) in zip(PAGE_PATHS, FILES.items(), strict=True):
        _add(app, path, (folder / name).read_bytes(), kind)


def _add(app: FastAPI, path: str, content: bytes, kind: str) -> None:
    headers = {"content-security-policy": POLICY, "referrer-policy": "no-referrer"}

    @app.get(path, include_in_schema=False)
    async def file() -> Response:
        return Response(content, media_type=f"{kind}; charset=utf-8", headers=headers)
