"""Send a request that was seen to the local service again, and read the answer for a person."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Any

from tunneld.agent.heads import Heads
from tunneld.agent.inspection import Seen, masked, unpacked
from tunneld.agent.origin import Connection, Origin, why
from tunneld.errors import VisitorError
from tunneld.protocol.headers import BadHeader
from tunneld.protocol.messages import Headers, Open
from tunneld.wire.http_client import AnswerReader, BadAnswer

__all__ = ["resend"]

_MOST = 64 * 1024
"""Bytes of the answer's body that are shown; the service is left then."""
_HEAD_LIMIT = 128 * 1024


class _Reader:
    """Uses one connection for one request (a `User`)."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.status = 0
        self.headers: Headers = []
        self.body = bytearray()
        self.over: asyncio.Future[str] = loop.create_future()

    def _end(self, fault: str = "") -> None:
        if not self.over.done():
            self.over.set_result(fault)

    def answer_head(self, status: int, headers: Headers, length: int) -> None:
        if status >= 200 or status == 101:
            self.status, self.headers = status, headers
        if status == 101:
            self._end()

    def answer_data(self, data: bytes) -> None:
        self.body += data
        if len(self.body) >= _MOST:
            self._end()

    def answer_end(self, trailers: Headers) -> None:
        self._end()

    def connected(self, connection: Connection) -> None:
        """Not asked for."""

    def unreachable(self, detail: str) -> None:
        """Not asked for."""

    def bad_answer(self, fault: BadAnswer) -> None:
        self._end(f"its answer cannot be used: {fault.detail}")

    def service_gone(self) -> None:
        self._end("" if self.status else "it closed its connection before it answered")

    def upload_flows(self) -> None:
        """The body is small, and waits in the transport."""

    def upload_blocked(self) -> None:
        """The same."""


def _again(seen: Seen, request_id: str) -> tuple[Open, bytes]:
    """The request and its body, to be sent once more; raises VisitorError ``not_replayable``."""
    request = seen.request
    if not seen.whole:
        raise VisitorError(
            "not_replayable", f"Its body was longer than what is kept (inspection.body: {seen.most} bytes)."
        )
    if any(name.lower() == "upgrade" for name, _ in request.headers):
        raise VisitorError("not_replayable", "A WebSocket cannot be sent again.")
    body = bytes(seen.body)
    passed = [
        pair for pair in request.headers if pair[0].lower() not in ("content-length", "transfer-encoding", "expect")
    ]
    if body:
        passed.append(("Content-Length", str(len(body))))
    return Open(request_id, request.method, request.path, passed, request.client), body


async def resend(
    seen: Seen, request_id: str, origin: Origin, headers: dict[str, str], *, timeout: float
) -> dict[str, Any]:
    """The answer, as far as it came within `timeout` seconds: an event stream has no end.

    Args:
        seen: what was seen.
        request_id: of this one.
        origin: where the service is.
        headers: as for the tunnel's requests.
        timeout: seconds.

    Raises:
        VisitorError: ``not_replayable``, ``service_unreachable``, ``bad_request``.
    """
    again, body = _again(seen, request_id)
    loop = asyncio.get_running_loop()
    began = monotonic()
    reader = _Reader(loop)
    ended = False
    try:
        head, _ = Heads(origin.service, headers).request(again, ended=not body)
        async with asyncio.timeout(timeout):
            connection = await origin.connect(loop)
            try:
                reader_of = AnswerReader(reader, to_head=again.method == "HEAD", limit=_HEAD_LIMIT)
                connection.begin(reader, reader_of, head + body)
                fault = await reader.over
                ended = True
            finally:
                connection.kill()
    except TimeoutError:
        fault = "" if reader.status else f"no answer within {timeout:g} s"
    except BadHeader as error:
        raise VisitorError("bad_request", f"It cannot be sent: {error}.") from None
    except (OSError, UnicodeError) as error:
        raise VisitorError("service_unreachable", f"The service cannot be reached: {why(error)}.") from None
    if fault:
        raise VisitorError("service_unreachable", f"The service failed: {fault}.")
    shown, whole = unpacked(bytes(reader.body[:_MOST]), reader.headers, most=_MOST)
    return {
        "request_id": request_id,
        "of": seen.request.request_id,
        "status": reader.status,
        "headers": masked(reader.headers),
        "body": shown.decode(errors="replace"),
        "whole": ended and whole and len(reader.body) < _MOST,
        "seconds": round(monotonic() - began, 4),
    }
