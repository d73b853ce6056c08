"""A service inside the box, served from this process: events with ids and without, slow answers, uploads."""

from __future__ import annotations

import base64
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

from tests.support.box import Box
from tests.support.ws_raw import CLOSE, FIN, TEXT, accept_of, frame

__all__ = ["Service", "Visitor", "serving"]

_AT_ONCE = 65536
"""Bytes of a request that are sent before a visitor is there: any socket takes them."""


class Service(ThreadingHTTPServer):
    """`/events` counts on from Last-Event-ID, `/plain` has no ids; `/slow` ends once `released`, `/endless` never.

    `/socket` is a WebSocket that ticks.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(("127.0.0.1", 0), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = sock
        self.server_address = sock.getsockname()
        self.port: int = sock.getsockname()[1]
        self.ending = threading.Event()
        #: What asks, in order: (method, path, Last-Event-ID or None).
        self.asked: list[tuple[str, str, str | None]] = []
        #: Requests whose connection broke before their answer was whole.
        self.broken: list[str] = []
        self.released = threading.Event()

    def server_bind(self) -> None:
        """Bound already."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that breaks is noted by the handler."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Service

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.server.asked.append(("GET", self.path, self.headers.get("Last-Event-ID")))
        try:
            answers = {
                "/events": self._events,
                "/plain": self._plain,
                "/slow": self._slow,
                "/endless": self._endless,
                "/socket": self._ticks,
            }
            answers.get(self.path.partition("?")[0], self._hello)()
        except OSError:
            self.server.broken.append(self.path)
            self.close_connection = True

    def do_POST(self) -> None:
        self.server.asked.append(("POST", self.path, None))
        try:
            left = int(self.headers["Content-Length"])
            while left and (data := self.rfile.read1(min(left, 65536))):
                left -= len(data)
            if left:
                raise ConnectionError
            self._whole(b"got it")
        except OSError:
            self.server.broken.append(self.path)
            self.close_connection = True

    def _whole(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _hello(self) -> None:
        self._whole(b"hello")

    def _begin(self, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def _events(self) -> None:
        number = int(self.headers.get("Last-Event-ID") or 0)
        self._begin("text/event-stream")
        while not self.server.ending.wait(0.05):
            number += 1
            self._chunk(b"id: %d\ndata: tick %d\n\n" % (number, number))

    def _plain(self) -> None:
        self._begin("text/event-stream")
        while not self.server.ending.wait(0.05):
            self._chunk(b"data: tick\n\n")

    def _endless(self) -> None:
        self._begin("application/octet-stream")
        while not self.server.ending.wait(0.05):
            self._chunk(b"tick")

    def _ticks(self) -> None:
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", accept_of(self.headers["Sec-WebSocket-Key"]))
        self.end_headers()
        while not self.server.ending.wait(0.05):
            self.wfile.write(frame(FIN | TEXT, b"tick", mask=False))

    def _slow(self) -> None:
        self._begin("application/octet-stream")
        self._chunk(b"first")
        self.server.released.wait(60)
        self._chunk(b"last")
        self._chunk(b"")


@contextmanager
def serving(box: Box) -> Iterator[Service]:
    """The service on a free port of the box."""
    service = Service(box.listen())
    thread = threading.Thread(target=service.serve_forever, kwargs={"poll_interval": 0.05}, name="service")
    thread.start()
    try:
        yield service
    finally:
        service.ending.set()
        service.released.set()
        service.shutdown()
        thread.join()
        service.server_close()


class Visitor:
    """One request, and what comes of it, read by a thread of its own."""

    #: Those that have not left: the fixture `box` sees to it that they do.
    here: ClassVar[list[Visitor]] = []

    def __init__(
        self,
        box: Box,
        port: int,
        path: str,
        *,
        body: bytes | None = None,
        length: int = 0,
        last: int | None = None,
        websocket: bool = False,
    ) -> None:
        self.socket = box.connect(port)
        self.socket.settimeout(90)
        head = f"{'GET' if body is None else 'POST'} {path} HTTP/1.1\r\nHost: localhost\r\n"
        if body is not None:
            head += f"Content-Length: {length}\r\n"
        if last is not None:
            head += f"Last-Event-ID: {last}\r\n"
        if websocket:
            head += "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            head += f"Sec-WebSocket-Key: {base64.b64encode(bytes(16)).decode()}\r\n"
        whole = head.encode() + b"Accept: text/event-stream\r\n\r\n" + (body or b"")
        self.socket.sendall(whole[:_AT_ONCE])
        self.got = bytearray()
        self.fault: str | None = None
        self.over = threading.Event()
        self._news = threading.Condition()
        self._threads = [threading.Thread(target=self._read, name=f"visitor of {path}", daemon=True)]
        if rest := whole[_AT_ONCE:]:  # it may be taken slowly, or not at all
            send = threading.Thread(target=self._send, args=(rest,), name=f"body for {path}", daemon=True)
            self._threads.append(send)
        for thread in self._threads:
            thread.start()
        self.here.append(self)

    def _send(self, rest: bytes) -> None:
        try:
            self.socket.sendall(rest)
        except OSError:
            pass  # an answer came before, or the end: `_read` tells

    def _read(self) -> None:
        try:
            while data := self.socket.recv(65536):
                with self._news:
                    self.got += data
                    self._news.notify_all()
        except OSError as error:
            self.fault = type(error).__name__
        with self._news:
            self.over.set()
            self._news.notify_all()

    def wait(self, want: bytes, timeout: float = 30) -> None:
        """Until these bytes have come."""
        deadline = time.monotonic() + timeout
        with self._news:
            while want not in self.got:
                left = deadline - time.monotonic()
                assert left > 0, f"{want!r} did not come: {bytes(self.got[-500:])!r}"
                assert not self.over.is_set(), f"over before {want!r} came: {bytes(self.got[-500:])!r}"
                self._news.wait(left)

    @property
    def status(self) -> int:
        """Of the answer."""
        return int(self.got.split(b" ", 2)[1])

    @property
    def failed(self) -> bool:
        """The answer is a problem of ours in place of the service's."""
        return b"\r\n\r\n" in self.got and self.status >= 500

    @property
    def numbers(self) -> list[int]:
        """The ids of the whole events so far."""
        lines = bytes(self.got).split(b"\n")
        return [int(line[4:]) for line in lines[:-1] if line.startswith(b"id: ") and line[4:].strip().isdigit()]

    @property
    def ended_clean(self) -> bool:
        """The last chunk came: the visitor takes the answer for whole."""
        return bytes(self.got).endswith(b"0\r\n\r\n")

    @property
    def told(self) -> int | None:
        """The code of the close frame that a WebSocket got; None: none came."""
        frames = bytes(self.got).partition(b"\r\n\r\n")[2]
        while len(frames) >= 2:
            size = frames[1]  # ours are short
            if frames[0] == FIN | CLOSE and len(frames) >= 4:
                return int.from_bytes(frames[2:4], "big")
            frames = frames[2 + size :]
        return None

    def close(self) -> None:
        """Leave."""
        self.here.remove(self)
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        for thread in self._threads:
            thread.join(5)
        self.socket.close()
