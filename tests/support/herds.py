"""Many agents in one process: tunnels of our own without a daemon, and a service that nobody is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.support.sockets import LOOPBACK
from tunneld.agent.dialer import Dial
from tunneld.agent.hello import Identity
from tunneld.agent.proxy import Proxy
from tunneld.agent.state import State
from tunneld.agent.tunnel import AgentTunnel
from tunneld.config.agent import AgentConfig
from tunneld.config.tunnel import TunnelConfig

__all__ = ["Well", "herded"]


class Well(Proxy):
    """There is no service: the server's probes find it well."""

    def __init__(self, config: TunnelConfig) -> None:
        super().__init__(config.name, config.service, config.limits)

    async def probe(self, path: str | None = None, *, timeout: float | None = None) -> str | None:
        return None


def herded(
    name: str,
    port: int,
    *,
    proxy: Callable[[TunnelConfig], Proxy],
    dials: Callable[[], None],
    changed: Callable[[AgentTunnel, State], Any],
) -> AgentTunnel:
    """A tunnel to the server at that port of loopback, as an agent of its own would have it; `run` is the caller's.

    Args:
        proxy: makes what answers its streams.
        dials: called before each dial.
        changed: as of the tunnel.
    """
    url = f"ws://{LOOPBACK}:{port}"
    tunnels = [{"name": name, "service": "http://127.0.0.1:9"}]
    config = AgentConfig.model_validate({"server": {"url": url}, "tunnels": tunnels})
    (tunnel,) = config.tunnels

    def dial() -> Dial:
        dials()
        return Dial(url, None, None)

    return AgentTunnel(
        tunnel,
        config,
        proxy=proxy(tunnel),
        identity=Identity(),
        dial=dial,
        changed=changed,
        heard=lambda *_: None,
    )
