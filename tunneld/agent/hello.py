"""What a tunnel says of itself to the server: its hello, its wishes, and what shared addresses are signed with."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from secrets import token_bytes, token_hex

from tunneld import __version__
from tunneld.agent.access import access_wish, enforces
from tunneld.agent.checking import ServiceCheck
from tunneld.config.agent import AgentConfig
from tunneld.config.tunnel import TunnelConfig
from tunneld.errors import VisitorError
from tunneld.protocol.links import secret_of, sign
from tunneld.protocol.messages import Connected, HeartbeatSettings, Hello, ResumeChange, Settings, SseChange, Wishes

__all__ = ["Identity", "Wishing"]


@dataclass(slots=True)
class Identity:
    """This process, as all its tunnels tell it: `instance` in every hello, `dial` raised with each.

    Attributes:
        links: what shared addresses are signed with where there is no token. Told to nobody: a server is told what is
            made of it for a protected tunnel, and only then.
    """

    instance: str = field(default_factory=lambda: token_hex(16))
    dials: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    links: bytes = field(default_factory=lambda: token_bytes(32), repr=False)


class Wishing:
    """What one tunnel wishes, and what of that was said last.

    Args:
        config: this tunnel's part of the file, whole.
        agent: the file.
        identity: of the process.
        check: knows how the service is to be probed.

    Attributes:
        token: the credential of the last dial; None: there was none.
    """

    def __init__(self, config: TunnelConfig, agent: AgentConfig, identity: Identity, check: ServiceCheck) -> None:
        self.token: str | None = None
        self._config = config
        self._agent = agent
        self._identity = identity
        self._check = check
        self._said = Settings()

    def update(self, config: TunnelConfig, agent: AgentConfig) -> None:
        """Wish what a reloaded file says."""
        self._config, self._agent = config, agent

    def hello(self, number: int) -> Hello:
        """The fresh hello of the dial of that number."""
        config = self._config
        self._said = self._live()
        wishes = Wishes(
            heartbeat=self._said.heartbeat,
            sse=self._said.sse,
            resume=ResumeChange(self._agent.resume.grace, self._agent.resume.buffer),
            max_streams=config.limits.max_streams,
            stream_window=config.limits.stream_window,
            probe=self._said.probe,
            access=self._said.access,
        )
        return Hello(instance=self._identity.instance, dial=number, agent_version=__version__, wishes=wishes)

    def news(self) -> Settings | None:
        """What is wished now, which counts as said by that; None: the server was told already."""
        said, self._said = self._said, self._live()
        return self._said if self._said != said else None

    def enforced(self, mode: str | None) -> bool:
        """Whether a server that says this mode of access in `connected` protects the tunnel as is wished."""
        return enforces(mode, self._config.access)

    def share(self, path: str, until: int, connected: Connected | None) -> str:
        """A public address that lets a visitor in for `path` until then, seconds since the epoch.

        Args:
            connected: the server's last; None: it has not answered yet.

        Raises:
            VisitorError: ``not_protected``, or ``tunnel_offline`` while the address is not known yet.
        """
        name = self._config.name
        if self._config.access.mode == "open":
            raise VisitorError("not_protected", f"The tunnel {name} is open: its address needs no signature.")
        if connected is None:
            raise VisitorError("tunnel_offline", f"The tunnel {name} has not been connected yet.", retry_after=5)
        return connected.public_url + sign(self._link_secret(), name, path, until)

    def _live(self) -> Settings:
        """What may change while a session stands."""
        config = self._config
        return Settings(
            heartbeat=HeartbeatSettings(config.heartbeat.interval, config.heartbeat.timeout),
            sse=SseChange(**config.sse.model_dump()),
            probe=self._check.wish,
            access=access_wish(config.access, self._link_secret()),
        )

    def _link_secret(self) -> bytes:
        """Of the token, so that shared addresses outlive this process; without one, of the process's own."""
        return secret_of(self.token.encode() if self.token else self._identity.links, self._config.name)
