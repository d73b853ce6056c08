"""One visitor's request in the older dialect: whole on its way to the client, and back as an answer or as chunks.

What it is to an exchange is a `Carried`; its connection (connection.py) hands it what the client says. It has no flow
control to lean on: what a visitor has not taken is counted, and a stream whose visitor does not keep up is ended.
"""

from __future__ import annotations

import asyncio
import codecs
import logging
from typing import TYPE_CHECKING

from tunneld.errors import VisitorError
from tunneld.protocol.headers import Headers
from tunneld.protocol.legacy import Response, answer_headers, encode_cancel, encode_request, is_stream, wire_path
from tunneld.protocol.messages import Open
from tunneld.protocol.sinks import Sink
from tunneld.server.problems import problem

if TYPE_CHECKING:
    from tunneld.server.legacy.connection import LegacyConnection

__all__ = ["HEAD_HOLD", "LegacyStream"]

log = logging.getLogger("tunneld.tunnels")

#: Seconds that a stream's head waits for the client to refuse it instead.
HEAD_HOLD = 1.0
_STREAM_HEAD: Headers = [("Content-Type", "text/event-stream"), ("Cache-Control", "no-cache")]
# Where a request stands: its body comes in; given to the connection; its head is with the visitor; over.
_COLLECTING, _ASKED, _BEGUN, _OVER = range(4)


class LegacyStream:
    """Made by `LegacyConnection.open`.

    Args:
        connection: that carries it.
        request: its head.
        sink: the exchange; it is called in the connection's and the timers' turns only, never inside `send` or
            `LegacyConnection.open`.
    """

    __slots__ = (
        "_body",
        "_connection",
        "_held",
        "_phase",
        "_request",
        "_size",
        "_text",
        "_timer",
        "_untaken",
        "handed_over",
        "method",
        "request_id",
        "sink",
        "streaming",
    )

    def __init__(self, connection: LegacyConnection, request: Open, sink: Sink) -> None:
        self._connection = connection
        self._request: Open | None = request
        self.request_id = request.request_id
        self.method = request.method
        self.sink: Sink | None = sink
        self.streaming = is_stream(request.method, wire_path(request.path))
        #: The request has reached the socket: only then does the client know it.
        self.handed_over = False
        self._phase = _COLLECTING
        self._text: codecs.IncrementalDecoder | None = codecs.getincrementaldecoder("utf-8")()
        self._body: list[str] = []
        self._size = 0  # bytes of the body so far
        self._held = 0  # bytes that the connection's budget counts for it
        self._untaken = 0  # bytes of the answer that the visitor has not taken
        self._timer: asyncio.TimerHandle | None = None

    # -- Carried: what the exchange does -----------------------------------------------------------------

    def send(self, data: bytes) -> bool:
        """Bytes of the request's body: they are kept until it is whole."""
        if self._phase == _COLLECTING and self._text is not None:
            policy = self._connection.policy
            self._size += len(data)
            if self._size > policy.max_message:
                self._refuse(VisitorError("body_too_large", f"This tunnel takes bodies of {policy.max_message} bytes."))
            elif not self._hold(len(data)):
                self._refuse(VisitorError("over_memory", retry_after=1))
            else:
                self._take(data, last=False)
        return True

    def send_end(self, trailers: Headers | None = None) -> bool:
        """The request is whole: ask the client."""
        if self._phase == _COLLECTING and self._text is not None:
            self._take(b"", last=True)
            if self._text is not None:
                self._ask()
        return not trailers

    def took(self, count: int) -> None:
        """The visitor has taken so many bytes of the answer."""
        self._untaken -= count

    def cancel(self, reason: str) -> None:
        """The exchange is over with it."""
        if self._phase != _OVER:
            self._forget()
            self._tell_cancel()
        self.sink = None

    # -- the request -------------------------------------------------------------------------------------

    def _hold(self, size: int) -> bool:
        budget = self._connection.budget
        if not budget.fits(size):
            return False
        budget.add(size)
        self._held += size
        return True

    def _take(self, data: bytes, *, last: bool) -> None:
        assert self._text is not None
        try:
            text = self._text.decode(data, last)
        except UnicodeDecodeError:
            self._refuse(VisitorError("body_not_text"))
            return
        if text:
            self._body.append(text)

    def _ask(self) -> None:
        """Give the whole request to the connection."""
        request, self._request, self._text = self._request, None, None
        assert request is not None
        self._phase = _ASKED
        body, self._body = "".join(self._body), []
        connection = self._connection
        message = encode_request(request, connection.name, body)
        self._timer = connection.loop.call_later(
            HEAD_HOLD if self.streaming else connection.policy.response_timeout, self._no_answer
        )
        connection.send(message, self)

    def sent(self) -> None:
        """The connection has written the request, and holds nothing of it any more."""
        self.handed_over = True
        self._release()

    def _release(self) -> None:
        held, self._held = self._held, 0
        self._connection.budget.sub(held)

    def _refuse(self, error: VisitorError) -> None:
        """Answer a request that cannot be asked of the client, in a turn of its own."""
        request, self._text, self._body = self._request, None, []
        assert request is not None
        self._release()
        self._connection.loop.call_soon(self._answer, error, request)

    # -- the answer --------------------------------------------------------------------------------------

    def _no_answer(self) -> None:
        """The client has said nothing of it for a while."""
        self._timer = None
        if self.streaming and not self._untouched():
            self._begin()
            return
        log.warning("no answer to %s came in time", self.request_id, extra=self._fields("limit"))
        self._end_both("limit")

    def _untouched(self) -> bool:
        """The client takes so little that it does not even know the request; wait for it as for an answer."""
        if self.handed_over:
            return False
        rest = self._connection.policy.response_timeout
        self._timer = self._connection.loop.call_later(rest, self._end_both, "limit")
        return True

    def respond(self, message: Response) -> None:
        """A whole answer came."""
        sink = self.sink
        if self._phase == _BEGUN or sink is None:
            log.warning("a response to %s, which is being streamed", self.request_id, extra=self._fields("service"))
            self._end_both("service")
            return
        body = (message.body or "").encode()
        status = message.status_code
        bodiless = self.method == "HEAD" or status == 304
        try:
            if not 200 <= status <= 599:
                raise ValueError("a status that is no final one")
            headers = answer_headers(message.headers, has_body=not bodiless)
        except ValueError as error:
            self.broken(f"a response with {error}")
            return
        if not bodiless and status != 204:
            headers.append(("Content-Length", str(len(body))))
        self._forget()
        sink.head(status, headers)
        self._finish(b"" if bodiless else body)

    def chunk(self, text: str) -> None:
        """A piece of a stream's body came."""
        if not self.streaming:
            self.broken("a stream_chunk for a request that is no stream")
            return
        if self._phase == _ASKED:
            self._begin()
        sink = self.sink
        if not text or sink is None:
            return
        data = text.encode()
        if self._untaken and self._untaken + len(data) > self._connection.policy.queue:
            extra = {**self._fields("limit"), "held": self._untaken}
            log.info("🛑 Cancelling stream: %s", self.request_id, extra=extra)
            self._end_both("limit")
            return
        self._untaken += len(data)
        sink.data(data)

    def ended(self) -> None:
        """A stream's clean end came."""
        if not self.streaming:
            self.broken("a stream_end for a request that is no stream")
            return
        if self._phase == _ASKED:
            self._begin()
        self._forget()
        self._finish(b"")

    def broken(self, why: str) -> None:
        """The client said something of this request that cannot be its answer."""
        log.warning("bad answer to %s: %s", self.request_id, why, extra=self._fields("service"))
        if self._phase == _BEGUN:
            self._end_both("service")
            return
        self._forget()
        self._tell_cancel()
        self._answer(VisitorError("bad_answer"), None)

    def lost(self, reason: str) -> None:
        """The connection is gone, or goes: nothing more is sent for it."""
        sink = self.sink
        self._forget()
        self.sink = None
        if sink is not None:
            sink.cancelled(reason)

    def _begin(self) -> None:
        """The client is streaming, as far as anybody can tell."""
        self._stop_timer()
        self._phase = _BEGUN
        if self.sink is not None:
            self.sink.head(200, list(_STREAM_HEAD))

    def _answer(self, error: VisitorError, request: Open | None) -> None:
        """Answer with a problem; `request` when it is not whole and will not be."""
        sink = self.sink
        self._forget()
        if sink is None:
            return
        if request is not None:
            sink.stopped()
        if (sink := self.sink) is None:
            return
        status, headers, body = problem(error, self.request_id, request.headers if request is not None else [])
        sink.head(status, headers)
        self._finish(body)

    def _finish(self, body: bytes) -> None:
        """The last bytes and the end; the exchange may let go after each step."""
        if body and self.sink is not None:
            self.sink.data(body)
        if (sink := self.sink) is not None:
            sink.end([])

    def _end_both(self, reason: str) -> None:
        """End it on both sides."""
        self._timer = None
        sink = self.sink
        self._forget()
        self._tell_cancel()
        self.sink = None
        if sink is not None:
            sink.cancelled(reason)

    # -- inside ------------------------------------------------------------------------------------------

    def _tell_cancel(self) -> None:
        if self.handed_over:
            self._connection.send(encode_cancel(self.request_id))
        else:
            self._connection.unsend(self)

    def _forget(self) -> None:
        """Off the connection's table; what the client says of it from now on is of a request that is gone."""
        self._phase = _OVER
        self._stop_timer()
        self._text, self._body = None, []
        self._connection.streams.pop(self.request_id, None)
        self._release()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _fields(self, reason: str) -> dict[str, object]:
        return {"tunnel": self._connection.name, "request_id": self.request_id, "reason": reason}
