"""Two real sessions whose hellos and answers are under way too: each may be lost, late, or overtaken."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

from tests.support.sessions import Connection, Joined
from tunneld.protocol.messages import Hello
from tunneld.protocol.resume import Kept, Tokens

__all__ = ["Handshaken"]


@dataclass
class _Said:
    """A hello on its way to the server, or the `connected` that answers it on its way to the agent."""

    number: int
    token: str
    received: int
    connection: Connection


def _nothing() -> None:
    """The test asks by itself."""


class Handshaken(Joined):
    """As `Joined`, but a resume is three steps, `dial`, `arrive` and `answer`, and anything may come between them.

    The server does what `TunnelConnection` does with a hello, by the same `Kept` and `Tokens`; the agent is honest, so
    no hello of its that is not stale may ever be refused.
    """

    def __init__(self, *args: Any, **more: Any) -> None:
        self.current: dict[str, Connection | None] = {"server": None, "agent": None}
        self.hellos: deque[_Said] = deque()
        self.answers: deque[_Said] = deque()
        self.resumes = 0
        self._dials = self._newest = 0
        self._ticket = "token 0"
        self._awaited: Connection | None = None
        self._unheard: Connection | None = None  # of the server: nothing came on it yet
        self.kept: Kept | None = None
        super().__init__(*args, **more)

    # -- the three steps
    def dial(self) -> None:
        """The agent gives its connection up and says hello on another."""
        self.agent.detach()
        self.current["agent"] = None
        self._dials += 1
        self._awaited = connection = Connection()
        self.connections.append(connection)
        del self.connections[:-4]
        self.hellos.append(_Said(self._dials, self._ticket, self.agent.received, connection))

    def arrive(self, which: int = 0) -> None:
        """A hello reaches the server: none that the agent said later may have come before and be undone."""
        if not self.hellos:
            return
        said = self.hellos[which % len(self.hellos)]
        self.hellos.remove(said)
        if said.number <= self._newest:
            return  # stale_hello
        self._newest = said.number
        if self.kept is None:
            self.kept = Kept("session", "name", "owner", self.server, Tokens(self._ticket))
        hello = Hello(instance="i", dial=said.number, agent_version=None)
        hello.session_id, hello.resume_token, hello.received = "session", said.token, said.received
        refused = self.kept.refusal(hello, "name", "owner")
        assert refused is None, f"an honest agent's session is lost: {refused}"
        token = f"token {said.number}"
        self.kept.tokens.renew(said.token, token)
        self.current["server"] = self._unheard = said.connection
        self.resumes += 1
        received = self.server.received
        said.connection.epoch["server"] = self.server.attach(said.received, _nothing)
        self.answers.append(_Said(said.number, token, received, said.connection))

    def answer(self) -> None:
        """A `connected` reaches the agent, which cares for that of its newest dial only."""
        if not self.answers:
            return
        said = self.answers.popleft()
        if said.connection is not self._awaited:
            return
        self._ticket = said.token
        self.current["agent"] = said.connection
        said.connection.epoch["agent"] = self.agent.attach(said.received, _nothing)

    # -- Joined
    @property
    def connection(self) -> Connection:
        """The agent's newest."""
        return self.connections[-1]

    def connect(self) -> None:
        """A whole resume: what is under way of others comes late, or never."""
        self.dial()
        self.arrive(len(self.hellos) - 1)
        while self.answers:
            self.answer()

    def write(self, who: str, connection: Connection | None = None) -> bool:
        """As `Joined.write`; the default is what that side takes for its connection."""
        connection = connection or self.current[who]
        return connection is not None and super().write(who, connection)

    def deliver(self, who: str, connection: Connection | None = None) -> bool:
        """As `Joined.deliver`. The agent reads nothing of a connection before its `connected`."""
        connection = connection or self.current[who]
        if connection is None or connection.epoch[who] < 0:
            return False
        if who == "server" and connection.to["server"] and connection is self._unheard:
            self._unheard = None
            assert self.kept is not None
            self.kept.tokens.heard()
        return super().deliver(who, connection)

    def settle(self) -> None:
        """A connection stands at last."""
        if self.current["agent"] is None or self.current["agent"] is not self.current["server"]:
            self.connect()
        super().settle()
