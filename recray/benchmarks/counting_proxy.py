"""A proxy before an S3 server that counts requests and bytes, and that delays or fails them."""

import contextlib
import http.client
import random
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase
from typing import IO, Literal, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

PIECE = 1 << 16
"""Bytes that are handed on at once."""
IN_MEMORY = 1 << 20
"""Bytes of a body without a length that are kept in memory; the rest lies in a temporary file."""
UPSTREAM_TIMEOUT_S = 120.0
_OF_ONE_HOP = {"connection", "content-length", "date", "expect", "server", "transfer-encoding"}

Kind = Literal["GET", "HEAD", "PUT", "LIST", "DELETE", "MULTIPART"]
Health = Literal["up", "closed", "silent"]
Stream = IO[bytes] | BufferedIOBase
Note = Callable[[int, int], None]
"""Takes the status of an answer and the bytes of its body."""


class Request(NamedTuple):
    """A request that was answered.

    Args:
        kind: GET, HEAD, PUT, LIST, DELETE, or MULTIPART for each request of an upload in parts.
        key: Its object, with the bucket first; of a list, the prefix.
        status: Status code of the answer; 0 where there was none.
        up: Bytes of its body.
        down: Bytes of the answer's body.
    """

    kind: Kind
    key: str
    status: int
    up: int
    down: int


@dataclass(frozen=True)
class Refusal:
    """An error in place of what the store would answer, as S3 words it.

    Args:
        status: Status code.
        code: S3's code, such as AccessDenied.
        message: S3's message.
        headers: What the answer's headers say beside.
        writes_only: Whether requests that only read are handed on.
        after: Number of requests that are handed on first.
    """

    status: int
    code: str
    message: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    writes_only: bool = False
    after: int = 0

    @property
    def body(self) -> bytes:
        """The XML of the answer."""
        inner = f"<Code>{self.code}</Code><Message>{self.message}</Message>"
        return f'<?xml version="1.0" encoding="UTF-8"?>\n<Error>{inner}</Error>'.encode()


BUSY = Refusal(503, "SlowDown", "Please reduce your request rate.")


@dataclass
class Traffic:
    """The requests of a while, in the order of their answers."""

    requests: list[Request] = field(default_factory=list)

    def count(self, *kinds: Kind, below: str = "") -> int:
        """How many there were of these kinds, or of any, whose keys begin so."""
        return len(self._chosen(kinds, below))

    def up(self, below: str = "") -> int:
        """Bytes that were sent to keys that begin so."""
        return sum(request.up for request in self._chosen((), below))

    def down(self, below: str = "") -> int:
        """Bytes that were read from keys that begin so."""
        return sum(request.down for request in self._chosen((), below))

    def failed(self) -> int:
        """How many were answered that the store fails in passing, or not at all."""
        return sum(request.status in (0, 500, 503) for request in self.requests)

    def _chosen(self, kinds: tuple[Kind, ...], below: str) -> list[Request]:
        return [
            request
            for request in self.requests
            if (not kinds or request.kind in kinds) and request.key.startswith(below)
        ]


@dataclass
class Proxy:
    """What is done with requests on their way to a store; it may be changed while it works.

    Args:
        store: Host and port of the store.
        delay_s: Seconds that each request waits.
        fail_share: Share of the requests that get `BUSY`, by lot.
        seed: Seed of the lot.
        refusal: What requests get in place of an answer of the store.
        health: closed: each connection is closed without an answer; silent: it gets none.
    """

    store: tuple[str, int]
    delay_s: float = 0.0
    fail_share: float = 0.0
    seed: int = 0
    refusal: Refusal | None = None
    health: Health = "up"
    url: str = field(default="", init=False)

    def __post_init__(self) -> None:
        self._lot, self._lock = random.Random(self.seed), threading.Lock()
        self._watchers: list[Traffic] = []
        self._begun = 0
        self._stopped = threading.Event()

    @contextmanager
    def watch(self) -> Iterator[Traffic]:
        """Note the requests that are answered while the block runs."""
        traffic = Traffic()
        with self._lock:
            self._watchers.append(traffic)
        try:
            yield traffic
        finally:
            with self._lock:  # by identity: two that saw nothing are equal
                self._watchers = [each for each in self._watchers if each is not traffic]

    @contextmanager
    def running(self, host: str = "127.0.0.1") -> Iterator["Proxy"]:
        """Take requests at `url`, at an address of this machine, while the block runs."""
        server = _Server((host, 0), _Handler, self)
        self.url = f"http://{host}:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._stopped.set()
            server.shutdown()
            thread.join()
            server.server_close()

    def note(self, request: Request) -> None:
        """Count a request."""
        with self._lock:
            for traffic in self._watchers:
                traffic.requests.append(request)

    def verdict(self, kind: Kind) -> Refusal | None:
        """Wait as long as a request is to wait; then the error that it gets, if any."""
        if self.delay_s:
            time.sleep(self.delay_s)
        with self._lock:
            self._begun += 1
            refusal, reads = self.refusal, kind in ("GET", "HEAD", "LIST")
            if refusal and self._begun > refusal.after and not (refusal.writes_only and reads):
                return refusal
            return BUSY if self.fail_share and self._lot.random() < self.fail_share else None

    def keep_silent(self) -> None:
        """Wait until the proxy answers again, or ends."""
        while self.health == "silent" and not self._stopped.wait(0.1):
            pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], handler: "type[_Handler]", proxy: Proxy) -> None:
        super().__init__(address, handler)
        self.proxy = proxy

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of a client that has gone away."""


class _Handler(BaseHTTPRequestHandler):
    """One connection of a client; requests follow one another on it."""

    protocol_version = "HTTP/1.1"
    server: _Server

    def setup(self) -> None:
        """An answer is not held back to fill a packet."""
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def log_message(self, *_arguments: object) -> None:
        """Print nothing."""

    def answer(self) -> None:
        """Read the request, hand it on or refuse it, and count it."""
        proxy = self.server.proxy
        kind, key = kind_and_key(self.command, self.path)

        def note(status: int, down: int) -> None:
            proxy.note(Request(kind, key, status, up, down))

        with tempfile.SpooledTemporaryFile(max_size=IN_MEMORY) as body:
            up = self._read_body(body)
            if proxy.health == "silent":
                proxy.keep_silent()
            if proxy.health != "up":
                note(0, 0)
                self.close_connection = True
                return
            refusal = proxy.verdict(kind)
            if refusal is None:
                body.seek(0)
                self._hand_on(body, up, note)
            else:
                self._refuse(refusal, note)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer

    def _read_body(self, body: IO[bytes]) -> int:
        """Copy the body of the request, without the marks of its chunks; its bytes."""
        if "chunked" not in self.headers.get("Transfer-Encoding", "").lower():
            return _copy(self.rfile, body, int(self.headers.get("Content-Length", 0)))
        total = 0
        while size := int(self.rfile.readline().split(b";")[0], 16):
            total += _copy(self.rfile, body, size)
            self.rfile.readline()
        while self.rfile.readline().strip():  # what follows the last chunk
            pass
        return total

    def _hand_on(self, body: IO[bytes], size: int, note: Note) -> None:
        """Ask the store, and pass on what it answers."""
        store = http.client.HTTPConnection(*self.server.proxy.store, timeout=UPSTREAM_TIMEOUT_S)
        with contextlib.closing(store):
            store.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in _OF_ONE_HOP:
                    store.putheader(name, value)
            if size or self.command in ("PUT", "POST"):
                store.putheader("Content-Length", str(size))
            store.endheaders()
            _copy(body, store.sock.makefile("wb"), size)
            self._pass_on(store.getresponse(), note)

    def _pass_on(self, reply: http.client.HTTPResponse, note: Note) -> None:
        has_body = self.command != "HEAD" and reply.status not in (204, 304)
        length = reply.getheader("Content-Length")
        whole = reply.read() if has_body and length is None else b""
        size = len(whole) or int(length or 0)
        # Before the client has all of it, and goes on to what is counted next.
        note(reply.status, size if has_body else 0)
        self.send_response_only(reply.status)
        for name, value in reply.getheaders():
            if name.lower() not in _OF_ONE_HOP:
                self.send_header(name, value)
        if reply.status not in (204, 304):
            self.send_header("Content-Length", str(size))
        self.end_headers()
        if whole:
            self.wfile.write(whole)
        elif has_body:
            _copy(reply, self.wfile, size)

    def _refuse(self, refusal: Refusal, note: Note) -> None:
        """Answer with an error of S3."""
        body = b"" if self.command == "HEAD" else refusal.body
        note(refusal.status, len(body))
        self.send_response_only(refusal.status)
        for name, value in refusal.headers:
            self.send_header(name, value)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(refusal.body)))
        self.end_headers()
        self.wfile.write(body)


def kind_and_key(method: str, path: str) -> tuple[Kind, str]:
    """What a request of the path style asks for, and the object or the prefix it is about."""
    parts = urlsplit(path)
    query = parse_qs(parts.query, keep_blank_values=True)
    key = unquote(parts.path).lstrip("/")
    if method == "GET" and "/" not in key.rstrip("/"):
        return "LIST", "/".join([key.rstrip("/"), *query.get("prefix", ())])
    if {"uploads", "uploadId", "partNumber"} & query.keys():
        return "MULTIPART", key
    if method == "POST":  # many keys are deleted at once
        return "DELETE", key
    kinds: dict[str, Kind] = {"GET": "GET", "HEAD": "HEAD", "PUT": "PUT", "DELETE": "DELETE"}
    return kinds[method], key


def _copy(source: Stream, target: Stream, size: int) -> int:
    """Copy so many bytes, piece by piece; those that were copied.

    Raises:
        ConnectionError: The source ended before.
    """
    left = size
    while left:
        piece = source.read(min(PIECE, left))
        if not piece:
            raise ConnectionError(f"{left} of {size} bytes did not come")
        target.write(piece)
        left -= len(piece)
    target.flush()
    return size
