"""Whether a service answers: what makes a tunnel ``degraded`` and a check of ``/v1/health`` fail."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from tunneld.agent.heads import Heads
from tunneld.agent.origin import Connection, Origin, why
from tunneld.protocol.headers import BadHeader
from tunneld.protocol.messages import Headers, Open
from tunneld.wire.http_client import AnswerReader, BadAnswer

__all__ = ["ServiceProbe"]

_HEAD_LIMIT = 128 * 1024


class _Check:
    """Uses one connection for one GET, of which only the status matters (a `User`)."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.status: asyncio.Future[int | str] = loop.create_future()

    def _say(self, status: int | str) -> None:
        if not self.status.done():
            self.status.set_result(status)

    def answer_head(self, status: int, headers: Headers, length: int) -> None:
        if status >= 200:
            self._say(status)

    def answer_data(self, data: bytes) -> None:
        """Nobody reads it."""

    def answer_end(self, trailers: Headers) -> None:
        """The head was enough."""

    def connected(self, connection: Connection) -> None:
        """Not asked for: the probe connects by itself."""

    def unreachable(self, detail: str) -> None:
        """Not asked for."""

    def bad_answer(self, fault: BadAnswer) -> None:
        self._say(f"its answer cannot be used: {fault.detail}")

    def service_gone(self) -> None:
        self._say("it closed its connection before it answered")

    def upload_flows(self) -> None:
        """There is no upload."""

    def upload_blocked(self) -> None:
        """There is no upload."""


class ServiceProbe:
    """Connects to the service, and asks for a path where one is configured.

    Args:
        origin: where the service is.
        path: to GET; a status below 400 is well. None: that it takes a connection is enough.
        headers: as for the tunnel's requests.
    """

    __slots__ = ("_headers", "_origin", "_path")

    def __init__(self, origin: Origin, *, path: str | None = None, headers: Mapping[str, str] | None = None) -> None:
        self._origin = origin
        self._path = path
        self._headers = dict(headers or {})

    async def probe(self, timeout: float) -> str | None:
        """Look once; None: the service is well, else why not, in words that name no secret.

        Args:
            timeout: seconds for the whole of it.
        """
        try:
            async with asyncio.timeout(timeout):
                return await self._look()
        except TimeoutError as fault:
            if fault.errno is not None:  # the connect's own
                return why(fault)
            return f"no answer within {timeout:g} s"
        except (OSError, UnicodeError) as fault:
            return why(fault)
        except BadHeader as fault:
            return f"its check cannot be sent: {fault}"

    async def _look(self) -> str | None:
        loop = asyncio.get_running_loop()
        connection = await self._origin.connect(loop)
        if self._path is None:
            connection.close()
            return None
        check = _Check(loop)
        try:
            request = Open("probe", "GET", self._path, [("User-Agent", "tunneld")], "")
            head, _ = Heads(self._origin.service, self._headers).request(request, ended=True)
            connection.begin(check, AnswerReader(check, to_head=False, limit=_HEAD_LIMIT), head)
            answer = await check.status
        finally:
            connection.kill()
        if isinstance(answer, str):
            return answer
        return None if answer < 400 else f"GET {self._path} was answered {answer}"
