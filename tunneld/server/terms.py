"""What an agent wishes for its tunnel and what the server lets hold of it, while a connection stands."""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import asdict

from tunneld.link import Link
from tunneld.protocol.handshake import agree_live, agree_probe, check_access, check_probe, live_settings
from tunneld.protocol.messages import (
    AccessSettings,
    HeartbeatSettings,
    Hello,
    Probed,
    ProbeSettings,
    Settings,
    SseChange,
    SseSettings,
    Wishes,
)
from tunneld.protocol.settings import added
from tunneld.server.carriers import Connection
from tunneld.server.probing import Prober
from tunneld.server.registry import Tunnel
from tunneld.server.visitors.rules import Rules
from tunneld.server.welcome import TunnelPolicy
from tunneld.telemetry.metrics import Histogram

__all__ = ["Terms"]


class Terms:
    """Heartbeat, keepalive, probes and access of one connection, from its hello's being taken to `end`.

    Args:
        connection: that serves the tunnel, unless a newer one does.
        tunnel: whose they are.
        hello: what the agent wished, and wishes after each of its settings.
        link: tells the agent what holds.
        policy: asked anew at each change.
        times: of probes.
    """

    def __init__(
        self,
        connection: Connection,
        tunnel: Tunnel,
        hello: Hello,
        link: Link,
        *,
        policy: Callable[[], TunnelPolicy],
        times: Histogram,
    ) -> None:
        self._connection = connection
        self._tunnel = tunnel
        self._hello = hello
        self._link = link
        self._policy = policy
        self._probe: ProbeSettings | None = None
        self._over = False
        self._prober = Prober(
            tunnel.name, tunnel.proof, link.tell, patience=lambda: tunnel.heartbeat.timeout, times=times
        )

    def begin(self, probe: ProbeSettings | None, *, resumed: bool) -> None:
        """Probe as agreed; None: not at all."""
        self._tunnel.proof.begin(asked=probe is not None, resumed=resumed)
        self._probe = probe
        self._prober.start(probe)

    def end(self) -> None:
        """Probe no more: the connection, or the session, is over."""
        self._over = True
        self._prober.stop()

    def probed(self, message: Probed) -> None:
        """The agent answers a probe."""
        self._prober.answered(message)

    def retune(self) -> None:
        """The server's own bounds or defaults were reloaded: say what holds now."""
        wishes, bounds = self._hello.wishes, self._policy().bounds
        self._apply(*agree_live(wishes.heartbeat, wishes.sse, bounds), agree_probe(wishes.probe, bounds))

    def said(self, message: Settings) -> None:
        """The agent wishes otherwise from now on; raises RemoteError where that cannot be wished."""
        wishes = self._hello.wishes
        check_probe(message.probe, code="protocol_error")
        check_access(message.access, login=self._policy().bounds.login, code="protocol_error")
        said = Settings(
            heartbeat=message.heartbeat or wishes.heartbeat,
            sse=added(wishes.sse, message.sse),
            probe=message.probe or wishes.probe,
        )
        self._hello.wishes = Wishes(
            said.heartbeat,
            said.sse,
            wishes.resume,
            wishes.max_streams,
            wishes.stream_window,
            said.probe,
            message.access or wishes.access,
        )
        if message.access is not None and self._tunnel.connection is self._connection:
            self._tunnel.protect(Rules(self._tunnel.name, message.access))
            self._link.tell(Settings(access=AccessSettings(mode=message.access.mode)))
        bounds = self._policy().bounds
        self._apply(*live_settings(said, bounds), agree_probe(said.probe, bounds))

    def _apply(self, heartbeat: HeartbeatSettings, sse: SseSettings, probe: ProbeSettings | None) -> None:
        tunnel = self._tunnel
        if probe != self._probe and not self._over:
            self._probe = probe
            tunnel.proof.asked = probe is not None
            self._link.tell(Settings(probe=probe))
            self._prober.start(probe)
        if (heartbeat, sse) == (tunnel.heartbeat, tunnel.sse):
            return
        if tunnel.connection is self._connection:
            tunnel.retune(heartbeat, sse)
        self._link.retime(heartbeat.interval, heartbeat.timeout)
        self._link.tell(Settings(heartbeat=heartbeat, sse=SseChange(**asdict(sse))))
