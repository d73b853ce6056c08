"""Answers in HTTP/1.1, read off a plain socket: what is asked for may be an upgrade, or a proxy's tunnel."""

from __future__ import annotations

import socket

__all__ = ["read_answer", "read_head"]

_MOST = 65536
"""Bytes of a head, and of a refusal's body, that are read."""


def read_answer(sock: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """As `read_head`, with the body of a refusal."""
    status, headers, body = _received(sock)
    length = headers.get("content-length", "0")
    while status != 101 and length.isdecimal() and len(body) < min(int(length), _MOST):
        part = sock.recv(4096)
        if not part:
            break
        body += part
    return status, headers, body


def read_head(sock: socket.socket) -> tuple[int, dict[str, str]]:
    """Status and headers (lower case) of an answer; raises OSError, ValueError."""
    status, headers, _ = _received(sock)
    return status, headers


def _received(sock: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Status, headers, and what came behind them."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = sock.recv(4096)
        if not part:
            raise ValueError("it closed the connection")
        data += part
        if len(data) > _MOST:
            raise ValueError("its head has no end")
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    words = lines[0].split(" ", 2)
    if len(words) < 2 or not words[0].startswith("HTTP/") or not words[1].isdigit():
        raise ValueError(f"it says {lines[0][:60]!r}")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    return int(words[1]), headers, body
