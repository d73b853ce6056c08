"""Which resume tokens open a session, and what a hello that asks to resume is answered. Pure.

Valid are the newest token and the one that the last accepted hello presented, until the agent's first message on
that connection; then the newest alone. Anything stricter loses the session when one or two ``connected`` are lost.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hmac import compare_digest

from tunneld.protocol.messages import Hello
from tunneld.protocol.session import Session

__all__ = ["Kept", "Tokens"]


class Tokens:
    """The resume tokens of one session."""

    __slots__ = ("_newest", "_presented")

    def __init__(self, first: str) -> None:
        self._newest = first
        self._presented: str | None = None

    def fits(self, token: str) -> bool:
        """Whether a hello with this token may resume; takes as long whichever octet differs."""
        newest = compare_digest(self._newest.encode(), token.encode())
        presented = self._presented is not None and compare_digest(self._presented.encode(), token.encode())
        return newest or presented

    def renew(self, presented: str, newest: str) -> None:
        """A hello was accepted: `newest` goes out with its ``connected``."""
        self._presented = presented
        self._newest = newest

    def heard(self) -> None:
        """The agent's first message on the new connection came: it has the newest."""
        self._presented = None


@dataclass(slots=True)
class Kept:
    """A session, as the server keeps it from its first connection to its end.

    Attributes:
        session_id: as told in ``connected``.
        name: of the tunnel; a resume must be for the same.
        owner: of the credential that made it; a resume must come with the same.
        lost_at: monotonic seconds since when it is without one; None while it has one.
    """

    session_id: str
    name: str
    owner: str
    session: Session
    tokens: Tokens
    lost_at: float | None = field(default=None)

    def refusal(self, hello: Hello, name: str, owner: str) -> str | None:
        """Why this hello may not resume (``unknown``, ``token`` or ``counters``); None when it may."""
        session = self.session
        if name != self.name or owner != self.owner or session.ended or session.settings.grace <= 0:
            return "unknown"  # without grace nothing was kept that could be sent again
        assert hello.resume_token is not None
        assert hello.received is not None
        if not self.tokens.fits(hello.resume_token):
            return "token"
        acknowledged, sent = session.counters
        return None if acknowledged <= hello.received <= sent else "counters"
