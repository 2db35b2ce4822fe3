"""How does the loopback W&B server speak HTTP, keep what it was sent, and fail when a test asks it to?"""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol

_OPERATION = re.compile(r"\b(?:query|mutation)\s+(\w+)")
# Longer than any client waits; a test's end cuts it short.
_HANG_SECONDS = 600.0


@dataclass
class Request:
    """One request: `body` is decoded from gzip; the Authorization header is kept apart from the others."""

    time: float
    method: str
    path: str
    headers: dict[str, str]
    authorization: str | None
    body: bytes
    operation: str | None = None
    query: str | None = None
    variables: dict[str, Any] | None = None
    status: int | str | None = None


@dataclass
class Failure:
    """An order to fail requests: `kind` is an HTTP status, "drop" or "hang"."""

    kind: int | str
    left: int | None
    operation: str | None
    path: str | None
    retry_after: float
    healed: threading.Event = field(default_factory=threading.Event)

    def concerns(self, request: Request) -> bool:
        if self.left == 0 or self.healed.is_set():
            return False
        if self.operation is not None and self.operation != request.operation:
            return False
        return self.path is None or re.search(self.path, request.path) is not None


class Application(Protocol):
    """What answers the requests."""

    requests: list[Request]

    def take_failure(self, request: Request) -> Failure | None:
        """Return the failure that a request meets, counted down."""

    def answer(self, request: Request) -> tuple[int, bytes]:
        """Answer a request: the status and the body."""


class HttpServer(ThreadingHTTPServer):
    daemon_threads = True
    # A request that hangs must not hold up the end of the test.
    block_on_close = False

    def __init__(self, application: Application) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.application = application
        self._connections: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def close_connections(self) -> None:
        """End the connections that clients keep open, so that their threads end too."""
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Pass over connections that a client gave up."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HttpServer
    # Otherwise each answer waits for the acknowledgement of its own headers.
    disable_nagle_algorithm = True
    wbufsize = -1

    def _serve(self) -> None:
        request = self._read()
        application = self.server.application
        application.requests.append(request)
        failure = application.take_failure(request)
        if failure is None:
            try:
                status, body = application.answer(request)
            except Exception as error:
                # A bug of this stand-in must reach the test, and at once: the client tries again after a 500.
                status, body = 400, json.dumps({"errors": [{"message": repr(error)}]}).encode()
            request.status = status
            self._reply(status, body)
            return
        request.status = failure.kind
        if isinstance(failure.kind, int):
            headers = {"Retry-After": f"{failure.retry_after:g}"} if failure.kind == 429 else {}
            self._reply(failure.kind, b'{"errors": [{"message": "a failure that the test asked for"}]}', headers)
            return
        if failure.kind == "hang":
            failure.healed.wait(_HANG_SECONDS)
        self._drop()

    do_GET = do_POST = do_PUT = do_HEAD = _serve

    def _read(self) -> Request:
        headers = {key: value for key, value in self.headers.items() if key.lower() != "authorization"}
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        request = Request(time.time(), self.command, self.path, headers, self.headers.get("Authorization"), body)
        if self.path.startswith("/graphql"):
            content = json.loads(body)
            request.query, request.variables = content["query"], content.get("variables")
            named = _OPERATION.search(content["query"])
            request.operation = content.get("operationName") or (named.group(1) if named else None)
        return request

    def _reply(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()

    def _drop(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            # Reset, not closed in order: a client must not take it for an empty answer.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def log_message(self, format: str, *args: Any) -> None:
        """Stay silent: the requests are on record."""
