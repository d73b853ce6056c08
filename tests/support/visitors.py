"""Visitors of the tests: curl as a process, and raw sockets that leave in every way there is."""

from __future__ import annotations

import re
import socket
import struct
from typing import Any

from tests.support.processes import Process
from tests.support.sockets import LOOPBACK

__all__ = ["Curl", "RawVisitor", "request_id"]


def request_id(head: str) -> str:
    """The id that the server gave the request, out of an answer's head."""
    found = re.search(r"(?im)^x-tunnel-request-id: *(\S+)", head)
    assert found is not None, f"no X-Tunnel-Request-Id in\n{head}"
    return found[1]


class Curl(Process):
    """`curl -sS -N -i URL`: head and events come as lines."""

    def __init__(self, url: str, *options: str) -> None:
        super().__init__(["curl", "-sS", "-N", "-i", *options, url], name="curl")

    def head(self) -> str:
        """The answer's head, once it has come whole."""
        self.wait_line(lambda text: text.strip() == "")
        texts = [line.text.strip() for line in self.lines]
        return "\n".join(texts[: texts.index("")])


class RawVisitor:
    """A visitor on a plain socket: sends what it is told, reads little, and leaves by FIN or by RST."""

    def __init__(self, port: int, *, receive_buffer: int | None = None) -> None:
        self.socket = socket.socket()
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(10)
        self.socket.connect((LOOPBACK, port))

    def send(self, data: bytes) -> None:
        """Send it all."""
        self.socket.sendall(data)

    def get(self, path: str, *headers: str) -> None:
        """Send a GET."""
        lines = [f"GET {path} HTTP/1.1", f"Host: {LOOPBACK}", *headers, "", ""]
        self.send("\r\n".join(lines).encode())

    def read_until(self, mark: bytes) -> bytes:
        """All bytes up to and with `mark`, and what came with them."""
        got = b""
        while mark not in got:
            piece = self.socket.recv(65536)
            assert piece, f"closed before {mark!r}: {got[-500:]!r}"
            got += piece
        return got

    def read_all(self) -> bytes:
        """All bytes up to the end; a reset raises ConnectionResetError."""
        got = b""
        while piece := self.socket.recv(65536):
            got += piece
        return got

    def leave(self) -> None:
        """Close: FIN, or RST where unread bytes wait."""
        self.socket.close()

    def reset(self) -> None:
        """Close with RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def __enter__(self) -> RawVisitor:
        return self

    def __exit__(self, *_: Any) -> None:
        self.socket.close()
