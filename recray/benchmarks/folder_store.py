"""A local folder as a bucket of an S3 store that can be read: for large files, which come as fast
as the machine gives them.
"""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

_WRITTEN = "Thu, 01 Jan 2026 00:00:00 GMT"
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    folder: Path


class _Handler(BaseHTTPRequestHandler):
    """Answers HEAD, GET of a file or of a range of it, and lists."""

    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_arguments: object) -> None:
        """Print nothing."""

    def answer(self) -> None:
        """Say how large a file is; send it, a range of it, or a list of names."""
        query, path = parse_qs(urlsplit(self.path).query), self._path()
        if "list-type" in query:
            return self._send(200, self._names(query.get("prefix", [""])[0]))
        if not path.is_file():
            there = path == self.server.folder
            return self._send(200 if there else 404, b"")
        size, asked = path.stat().st_size, _RANGE.match(self.headers.get("Range", ""))
        begin = int(asked[1]) if asked else 0
        end = min(size, int(asked[2]) + 1) if asked and asked[2] else size
        self._begin(206 if asked else 200, end - begin, f"bytes {begin}-{end - 1}/{size}")
        if self.command == "GET":
            self.wfile.flush()
            with open(path, "rb") as stream:
                self.connection.sendfile(stream, begin, end - begin)
        return None

    do_GET = do_HEAD = answer

    def _path(self) -> Path:
        """The file that a key names; the folder itself for a bucket."""
        key = unquote(urlsplit(self.path).path).strip("/").partition("/")[2]
        return self.server.folder / key

    def _names(self, prefix: str) -> bytes:
        """The list of all files whose keys begin so, as S3 words it."""
        entries = ""
        for path in sorted(self.server.folder.rglob("*")):
            key = path.relative_to(self.server.folder).as_posix()
            if path.is_file() and key.startswith(prefix):
                size = path.stat().st_size
                entries += f"<Contents><Key>{escape(key)}</Key><Size>{size}</Size></Contents>"
        return f"<ListBucketResult>{entries}</ListBucketResult>".encode()

    def _send(self, status: int, body: bytes) -> None:
        self._begin(status, len(body))
        self.wfile.write(body)

    def _begin(self, status: int, size: int, content_range: str | None = None) -> None:
        self.send_response_only(status)
        self.send_header("Last-Modified", _WRITTEN)
        self.send_header("Content-Length", str(size))
        if content_range and status == 206:
            self.send_header("Content-Range", content_range)
        self.end_headers()


@contextmanager
def folder_store(folder: Path) -> Iterator[tuple[str, int]]:
    """Yields host and port of a store each of whose buckets holds the files of the folder."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.folder = folder
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield "127.0.0.1", server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
