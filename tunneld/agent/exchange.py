"""One visitor's request on its way to the service and the answer on its way back.

An `Exchange` is what consumes a stream (the `Sink` of the session), what uses a connection (the `User` of a
`Connection`), and what operators see of it, in one object: thousands of quiet ones live at a time.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from tunneld.agent.heads import problem
from tunneld.agent.origin import Connection
from tunneld.agent.record import STALL_CHECKS, Record
from tunneld.agent.sockets import SocketExchange
from tunneld.agent.upload import Upload
from tunneld.errors import CODES
from tunneld.protocol.headers import BadHeader, is_encoded, is_event_stream
from tunneld.protocol.messages import Headers, Open
from tunneld.protocol.sse import EventCounter
from tunneld.protocol.streams import MAX_INFORMATIONAL, HeadTooLarge, Stream
from tunneld.wire.http_client import AnswerReader, BadAnswer
from tunneld.wire.ws_upgrade import checked_answer, is_upgrade, new_key, offered

if TYPE_CHECKING:
    from tunneld.agent.proxy import Proxy

__all__ = ["Exchange"]

log = logging.getLogger("tunneld.agent")

#: Methods that may reach a service twice without harm (RFC 9110, 9.2.2).
_IDEMPOTENT = frozenset(("GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"))


class Exchange(Record):
    """Made by `Proxy.accept`; what `Record` says of it is kept up to date."""

    __slots__ = (
        "_answer_over",
        "_answered",
        "_blocked_checks",
        "_connection",
        "_ending",
        "_head",
        "_informational",
        "_key",
        "_offered",
        "_proxy",
        "_retried",
        "_stream",
        "_taken",
        "_upload",
        "_upload_over",
    )

    def __init__(self, proxy: Proxy, stream: Stream, request: Open, ended: bool) -> None:
        super().__init__(proxy.name, request)
        self._proxy = proxy
        self._stream = stream
        self._connection: Connection | None = None
        self._head: bytes | None = None  # of the request, while it may have to be sent (again)
        # Of an upgrade to a WebSocket; empty: the request asks for none. It has no body, though its direction goes on.
        self._key = new_key() if not ended and is_upgrade(request) else ""
        self._offered = offered(request.headers) if self._key else []  # subprotocols
        self._upload_over = ended or self._key != ""
        self._upload = None if self._upload_over else Upload(self, stream, proxy.heads, proxy.holders)
        self._taken = 0  # bytes of the upload that the kernel had taken at the last look
        self._blocked_checks = 0
        self._answered = False  # the final head is on its way
        self._answer_over = False
        self._informational = 0
        self._retried = False
        self._ending = ""  # why it ends, while the last of the answer is being sent
        if proxy.inspector is not None:
            self.opening = stream.opening

    @property
    def stuck(self) -> bool:
        """Bytes of the answer wait, and their reader takes none at present."""
        return self._stream.stuck

    # -- ends from outside -----------------------------------------------------------------------------

    def cancel(self, reason: str) -> None:
        """End it now, whatever it is doing; `reason` is one of the protocol's REASONS."""
        if not self.reason:
            self._stream.cancel(reason)
            self._end(reason)
            self._over(reason)

    @property
    def goes_on(self) -> bool:
        """Another process could go on with it: an event stream that its last id leads on from (server/recovery.py)."""
        recoverable = self.counter is not None and self.counter.recoverable
        return recoverable and self.method == "GET" and self._upload_over and not self._answer_over and not self.reason

    def leave(self) -> str:
        """Let go of the service and of the stream without a word to the visitor; returns the request's id."""
        self._drop_connection()
        self._stream.leave()
        self._over("shutdown")
        return self.request_id

    # -- the way to the service ------------------------------------------------------------------------

    def start(self, request: Open) -> None:
        """Send the request on a connection that waits for work, or ask for a new one."""
        proxy = self._proxy
        if proxy.holders.budget.over:
            self._fail("over_memory", "The agent holds as many bytes as it may.", reason="limit")
            return
        try:
            self._head, length = proxy.heads.request(request, ended=self._upload_over, key=self._key)
        except BadHeader as fault:
            self._fail("bad_request", f"The request cannot be passed on: {fault}.", reason="visitor")
            return
        if self._upload is not None:
            self._upload.left = length
        repeatable = self._upload_over and self.method in _IDEMPOTENT
        connection = proxy.pool.take(repeatable=repeatable)
        if connection is None:
            self._want()
        else:
            self.connected(connection)

    def _want(self) -> None:
        self.state = "connecting"
        self._proxy.connects.add(self)
        self._proxy.pool.want(self)

    def connected(self, connection: Connection) -> None:
        """See `User`: send the head, and what came of the body meanwhile."""
        proxy = self._proxy
        assert self._head is not None
        proxy.connects.discard(self)
        self._connection = connection
        self.state = "waiting"
        reader = AnswerReader(self, to_head=self.method == "HEAD", limit=proxy.head_limit)
        connection.begin(self, reader, self._head)
        if self._upload is None or not self._upload.flush(connection):
            proxy.answers.add(self)

    def held_up(self) -> None:
        """The process holds too much, bytes of this that wait among it: of the answer, or of the request's body."""
        self._proxy.tell_limit(self, "memory")
        self.cancel("limit")

    def unreachable(self, detail: str) -> None:
        """See `User`."""
        self._proxy.connects.discard(self)
        self._fail("service_unreachable", f"The service cannot be reached: {detail}.")

    def connect_expired(self) -> None:
        """`limits.connect_timeout` is over."""
        self._proxy.pool.abandon(self)
        after = self._proxy.connects.after
        what = "no connection" if self._proxy.origin.tls is None else "no connection with TLS"
        self._fail("service_unreachable", f"The service cannot be reached: {what} within {after:g} s.")

    # -- the stream's Sink -----------------------------------------------------------------------------

    def head(self, status: int, headers: Headers) -> None:
        """See `Sink`; no head comes from the side that opens."""

    def data(self, data: bytes) -> None:
        """See `Sink`."""
        if self.reason:
            return
        self.bytes_in += len(data)
        if self.opening and (inspector := self._proxy.inspector) is not None:
            seen = inspector.of(self)
            if seen is not None:
                seen.upload(data)
        self.active = time.monotonic()
        upload = self._upload
        if upload is not None and not upload.begun:
            self._proxy.answers.discard(self)
        if upload is None or not upload.data(data, self._connection):
            self._broken_upload("more")

    def end(self, trailers: Headers) -> None:
        """See `Sink`."""
        if self.reason:
            return
        upload = self._upload
        if upload is not None and upload.left > 0:
            self._broken_upload("fewer")
            return
        self._upload_over = True
        self.active = time.monotonic()
        connection = self._connection
        if upload is not None:
            upload.end(trailers, connection)
        if connection is None:
            return
        if self._answer_over:
            self._end("done")
        elif not self._answered:
            self._proxy.answers.add(self)

    def stopped(self) -> None:
        """See `Sink`: nobody wants the answer any more."""
        if not self.reason:
            self._stream.stop()
            self._end("visitor")

    def cancelled(self, reason: str) -> None:
        """See `Sink`."""
        self._proxy.cancel_came(self.request_id)
        self._end(reason)
        self._over(reason)

    def writable(self) -> None:
        """See `Sink`."""
        self._proxy.holders.discard(self.held_up)
        if self._connection is not None:
            self._connection.resume()

    def _broken_upload(self, word: str) -> None:
        log.warning(
            "a request's body has %s bytes than its Content-Length says",
            word,
            extra={"tunnel": self.tunnel, "request_id": self.request_id},
        )
        self.cancel("visitor")

    # -- the connection's User -------------------------------------------------------------------------

    def answer_head(self, status: int, headers: Headers, length: int) -> None:
        """See `AnswerSink`."""
        self.active = time.monotonic()
        if status == 101 and self._key:
            self._switch(headers)
            return
        passed = self._proxy.heads.answer(headers)
        final = status >= 200
        if not final:
            self._informational += 1
            if status == 101 or self._informational > MAX_INFORMATIONAL:
                what = "a switch of protocols that nobody asked for" if status == 101 else "too many 1xx answers"
                raise BadAnswer("bad_answer", f"it is {what}")
        try:
            self._stream.send_head(status, passed, end=final and not length)
        except HeadTooLarge:
            raise BadAnswer("answer_too_large", "its head is over the limit once encoded") from None
        if not final:
            if self in self._proxy.answers:
                self._proxy.answers.add(self)
            return
        self._proxy.answers.discard(self)
        self._proxy.counts.first_byte.observe(time.monotonic() - self.started, self.request_id)
        self.status = status
        self._answered = True
        self._head = None
        self.state = "streaming"
        if is_event_stream(headers):
            self.kind = "sse"
            if not is_encoded(headers):
                self.counter = EventCounter()
        if self.opening:
            self._note_answer()

    def _switch(self, headers: Headers) -> None:
        """The service takes the upgrade: another object carries the WebSocket from here on."""
        connection, stream, proxy = self._connection, self._stream, self._proxy
        assert connection is not None
        assert connection.reader is not None
        try:
            passed, protocol = checked_answer(headers, self._offered, key=self._key)
        except BadHeader as fault:
            raise BadAnswer("bad_answer", str(fault)) from None
        passed = proxy.heads.answer(passed)
        if protocol is not None:
            passed.append(("Sec-WebSocket-Protocol", protocol))
        try:
            stream.send_head(101, passed)
        except HeadTooLarge:
            raise BadAnswer("answer_too_large", "its head is over the limit once encoded") from None
        proxy.answers.discard(self)
        proxy.counts.first_byte.observe(time.monotonic() - self.started, self.request_id)
        self.status = 101
        if self.opening:
            self._note_answer()
        self._connection = self._head = None
        reader = connection.reader
        socket = SocketExchange(proxy, self, stream, connection.hand_over())
        reader.switch(socket.begin())

    def _note_answer(self) -> None:
        """Keep the head that the service's connection is telling, for who looks into this."""
        connection, inspector = self._connection, self._proxy.inspector
        if connection is None or connection.reader is None or inspector is None:
            return
        self.answer = connection.reader.head
        if self.seen is not None:
            self.seen.answered(self.status, self.answer, sse=self.kind == "sse")
        elif self.kind == "sse" and self.counter is None:
            inspector.of(self)  # it is packed, and can be read only from its first byte on

    def answer_data(self, data: bytes) -> None:
        """See `AnswerSink`."""
        self.bytes_out += len(data)
        self.active = time.monotonic()
        if self.counter is not None:
            self.counter.feed(data)
        if self.seen is not None and self.seen.minds:
            self.seen.passed(data)
        if not self._stream.send(data) and self._connection is not None:
            self._connection.pause()
            self._proxy.holders.add(self.held_up, slow=False)

    def answer_end(self, trailers: Headers) -> None:
        """See `AnswerSink`."""
        connection = self._connection
        if connection is None or connection.reader is None:
            return
        fit = self._stream.send_end(self._proxy.heads.trailers(trailers))
        if not fit or connection.reader.dropped_trailers:
            log.warning(
                "the trailers of an answer are over the limit and were dropped",
                extra={"tunnel": self.tunnel, "request_id": self.request_id},
            )
        self._answer_over = True
        if self._upload_over:
            self._end("done")
        elif connection.reader.keep_alive:
            self.state = "uploading"
            connection.resume()  # nothing more comes, but its end
        else:
            self._stream.stop()
            self._end("done")

    def answer_expired(self) -> None:
        """`limits.response_timeout` is over."""
        after = self._proxy.answers.after
        self._fail("service_timeout", f"The service did not begin to answer within {after:g} s.")

    def bad_answer(self, fault: BadAnswer) -> None:
        """See `User`."""
        if self._answered:
            self._break(f"its answer cannot be read on: {fault.detail}")
        else:
            self._fail(fault.code, f"The service's answer cannot be used: {fault.detail}.")

    def service_gone(self) -> None:
        """See `User`."""
        connection = self._connection
        if connection is None:
            return
        begun, upload = connection.reader is not None and connection.reader.begun, self._upload
        if self._answer_over:
            self._stream.stop()
            self._end("done")
        elif self._answered:
            self._break("it closed its connection in the middle of its answer")
        elif begun or (upload is not None and upload.begun) or self._retried or not self._may_repeat(connection):
            where = "in the middle of its answer's head" if begun else "before it answered"
            self._fail("service_broke", f"The service closed its connection {where}.")
        else:
            self._retried = True
            self._drop_connection()
            if upload is not None:
                upload.again()
            self._want()

    def _may_repeat(self, connection: Connection) -> bool:
        """A connection that waited too long for work may be closed just as the request goes out on it."""
        return connection.reused and self.method in _IDEMPOTENT

    def upload_blocked(self) -> None:
        """See `User`."""
        self._blocked_checks = STALL_CHECKS
        self._taken = self._kernel_has()
        self._proxy.stalls.add(self)

    def upload_flows(self) -> None:
        """See `User`."""
        self._proxy.stalls.discard(self)
        if self._upload is not None:
            self._upload.taken()

    def stall_check(self) -> None:
        """A part of `limits.stall` is over since the service was last seen to take bytes."""
        taken = self._kernel_has()
        if taken > self._taken:
            self._blocked_checks = STALL_CHECKS
        else:
            self._blocked_checks -= 1
        self._taken = taken
        if self._blocked_checks > 0:
            self._proxy.stalls.add(self)
        else:
            self._proxy.tell_limit(self, "stall")
            self.cancel("limit")

    def _kernel_has(self) -> int:
        return self.bytes_in - (self._connection.waiting if self._connection is not None else 0)

    # -- ends ------------------------------------------------------------------------------------------

    def _fail(self, code: str, detail: str, *, reason: str = "service") -> None:
        """Answer with a problem document of our own, before the service's head went out."""
        self.code = code
        headers, document = problem(code, detail, self.request_id)
        self._proxy.tell_fault(self, detail, reason)
        stream = self._stream
        empty = self.method == "HEAD"
        stream.send_head(CODES[code].status, headers, end=empty)
        if not empty:
            stream.send(document)
            stream.send_end()
        if not self._upload_over:
            stream.stop()
        self._end(reason)

    def _break(self, detail: str) -> None:
        """The service failed after its head went out: the visitor must not take it for a clean end."""
        self._proxy.tell_fault(self, f"The service failed: {detail}.", "service")
        self.cancel("service")

    def _end(self, reason: str) -> None:
        """Let go of the service, and of everything once the answer's last byte is written; the first reason counts."""
        if self.reason or self.state == "sending":
            return
        was, self.state = self.state, "closed"
        if was == "connecting":
            self._proxy.pool.abandon(self)
        connection = self._connection
        if connection is not None and reason == "done":
            self._connection = None
            reader = connection.reader
            connection.leave(reusable=self._upload_over and reader is not None and reader.keep_alive)
        else:
            self._drop_connection()
        self._head = None
        if self._upload is not None:
            self._upload.close()
        stream = self._stream
        if stream.closed:
            self._over(reason)
        else:
            self.state = "sending"
            self._ending = reason
            stream.when_sent = self._sent
            if stream.pending and not self.code:
                self._proxy.holders.add(self.held_up, slow=False)

    def _sent(self) -> None:
        self._over(self._ending)

    def _over(self, reason: str) -> None:
        """The one place where an exchange ends."""
        if self.reason:
            return
        self.reason = reason
        self.state = "closed"
        upload, self._upload = self._upload, None
        if upload is not None:
            upload.close()
        self._proxy.holders.discard(self.held_up)
        self._proxy.over(self)

    def _drop_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            if connection.reader is not None:
                connection.reader.abandon()
            connection.kill()
