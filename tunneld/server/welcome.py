"""What an agent's hello is answered with: the session that it gets, or gets back, and `connected`. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from tunneld import __version__
from tunneld.protocol.handshake import Agreed, Bounds
from tunneld.protocol.messages import Connected, Hello, ResumeSettings
from tunneld.protocol.resume import Kept
from tunneld.protocol.session import Session, SessionSettings
from tunneld.protocol.windows import MemoryBudget
from tunneld.server.registry import Tunnel

__all__ = ["TunnelPolicy", "connected", "new_session", "refusal"]


@dataclass(frozen=True, slots=True)
class TunnelPolicy:
    """What a server allows its agents.

    Attributes:
        bounds: of what they may wish.
        max_header: bytes.
        stream_window_max: bytes that receive windows may grow to.
        hello_timeout: seconds.
    """

    bounds: Bounds
    max_header: int
    stream_window_max: int
    hello_timeout: float


def new_session(agreed: Agreed, policy: TunnelPolicy, budget: MemoryBudget) -> Session:
    """A session of what both sides agreed on."""
    settings = SessionSettings(
        max_streams=agreed.max_streams,
        stream_window=agreed.stream_window,
        stream_window_max=max(agreed.stream_window, policy.stream_window_max),
        max_header=policy.max_header,
        grace=agreed.resume.grace,
        buffer=agreed.resume.buffer,
        peer_buffer=agreed.resume.buffer,
    )
    return Session(settings, budget=budget)


def refusal(tunnel: Tunnel, hello: Hello, owner: str) -> str | None:
    """Why the session that a hello asks for is not resumed; None when it is."""
    kept = tunnel.kept
    if kept is None or kept.session_id != hello.session_id:
        return "expired" if hello.session_id == tunnel.expired else "unknown"
    return kept.refusal(hello, tunnel.name, owner)


def connected(
    tunnel: Tunnel,
    kept: Kept,
    agreed: Agreed,
    token: str,
    refused: str | None,
    *,
    resumed: bool,
    mode: str,
    expires: float | None,
) -> Connected:
    """The answer to a hello that was taken.

    Args:
        tunnel: whose agent said it.
        kept: its session; the count that it has received goes out with this, as in an ACK.
        agreed: what holds for it.
        token: resumes it the next time. A secret.
        refused: why the one that was asked for is not resumed; None: it is, or none was asked for.
        resumed: this is the one that was asked for.
        mode: who may visit.
        expires: seconds that the agent's credential is still good; None: for ever.
    """
    settings = kept.session.settings
    return Connected(
        tunnel_id=tunnel.name,
        public_url=tunnel.public_url,
        host_url=tunnel.host_url,
        session_id=kept.session_id,
        resume_token=token,
        resumed=resumed,
        resume_refused=refused,
        received=kept.session.received,
        heartbeat=agreed.heartbeat,
        sse=agreed.sse,
        resume=ResumeSettings(grace=settings.grace, buffer=settings.buffer),
        max_streams=settings.max_streams,
        stream_window=settings.stream_window,
        max_header=settings.max_header,
        server_version=__version__,
        probe=agreed.probe,
        access=mode,
        token_expires_s=expires,
    )
