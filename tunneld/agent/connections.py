"""The connections of one tunnel, one after another: which is in use, and the verdict that ends it."""

from __future__ import annotations

import asyncio

from tunneld.agent.dialer import DIAL_TIMEOUT
from tunneld.agent.reconnect import Retry, Verdict
from tunneld.link import Link, LinkOwner
from tunneld.protocol.messages import Hello
from tunneld.wire.ws_protocol import WebSocket

__all__ = ["Connections"]


class Connections:
    """A connection is in use from its hello until it is taken out of use; then it closes beside whatever comes next.

    Args:
        owner: of the links.
        name: of the tunnel.

    Attributes:
        link: that which is in use; None: none is.
    """

    def __init__(self, owner: LinkOwner, *, name: str) -> None:
        self.link: Link | None = None
        self._owner = owner
        self._name = name
        self._links: set[Link] = set()  # those not gone yet, that which is in use among them
        self._gone = asyncio.Event()
        self._over: asyncio.Future[Verdict] | None = None

    @property
    def standing(self) -> Link | None:
        """The link in use, if it carries a session: the server has answered its hello."""
        link = self.link
        return link if link is not None and link.session is not None else None

    async def serve(self, pipe: WebSocket, hello: Hello) -> Verdict:
        """Use this connection, beginning with the hello; returns the verdict of `finish`, or that no answer came."""
        loop = asyncio.get_running_loop()
        over = self._over = loop.create_future()
        self.link = link = Link(pipe, self._owner, name=self._name)
        self._links.add(link)
        pipe.handler = link
        try:
            link.say(hello)
            waiting = loop.call_later(DIAL_TIMEOUT, self._no_answer, link)
            try:
                verdict: Verdict = await over
            finally:
                waiting.cancel()
            return verdict
        finally:
            self._over = None
            if self.link is link:
                self.link = None
                link.abort()

    def _no_answer(self, link: Link) -> None:
        if self.link is link and link.session is None:
            self.finish(Retry(f"no answer to hello within {DIAL_TIMEOUT:.0f} s"))

    def finish(self, verdict: Verdict) -> None:
        """Let `serve` return this, if it has not returned yet, nor was told of another."""
        if self._over is not None and not self._over.done():
            self._over.set_result(verdict)

    def take(self) -> Link | None:
        """Take the link that is in use out of use, for the caller to close."""
        link, self.link = self.link, None
        return link

    def part(self, link: Link, code: int, reason: str) -> None:
        """Close in order; the close goes out whatever the tunnel does next."""
        if self.link is link:
            self.link = None
        link.close(code, reason)

    def closed(self, link: Link) -> bool:
        """A link is closed; returns whether it was in use."""
        self._links.discard(link)
        self._gone.set()
        if self.link is not link:
            return False
        self.link = None
        return True

    async def all_gone(self) -> None:
        """Return when no connection is left; each ends within the WebSocket's close timeout once it was closed."""
        while self._links:
            self._gone.clear()
            await self._gone.wait()
