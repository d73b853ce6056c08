"""``tunneld expose``: one tunnel with no file and no daemon, from the command to Ctrl-C."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from tunneld.agent.daemon import AgentDaemon
from tunneld.agent.logins import saved
from tunneld.config.agent import AgentConfig
from tunneld.config.load import load_tunnel
from tunneld.config.secrets import TOKEN_VARIABLE
from tunneld.errors import ConfigError
from tunneld.lifecycle import run as run_loop
from tunneld.lifecycle import serve
from tunneld.telemetry import logs

__all__ = ["DEFAULT_SERVER", "configuration", "expose"]

DEFAULT_SERVER = "ws://127.0.0.1:8440"
"""Where a server of one's own listens by itself."""
#: Seconds that streams have to end after Ctrl-C: someone waits for the prompt.
_DRAIN = 2.0


def configuration(service: str, *, name: str | None, server: str | None, token_file: str | None) -> AgentConfig:
    """The agent's configuration for one tunnel.

    Args:
        service: a port of this machine, or an address as in a file.
        name: None: a new one.
        server: None: that of ``TUNNELD_SERVER``, else the one that `tunneld login` stored, else `DEFAULT_SERVER`.
        token_file: None: ``TUNNELD_TOKEN``, else what `tunneld login` stored for that server, if anything.

    Raises:
        ConfigError: with one line a fault.
    """
    url = server or os.environ.get("TUNNELD_SERVER")
    stored = saved()
    if stored is not None and url in (None, stored[0]):
        url = stored[0]
        if token_file is None and not os.environ.get(TOKEN_VARIABLE):
            token_file = stored[1]
    url = url or DEFAULT_SERVER
    link: dict[str, Any] = {"url": url} | ({"token_file": token_file} if token_file else {})
    try:
        agent = AgentConfig.model_validate({"server": link, "drain_timeout": _DRAIN})
    except ValidationError as error:
        faults = [str(item.get("ctx", {}).get("error", item["msg"])) for item in error.errors(include_url=False)]
        raise ConfigError([f"--server: {fault}" for fault in faults]) from None
    if service.isascii() and service.isdigit():
        service = f"http://127.0.0.1:{service}"
    section = {"name": name or f"x{secrets.token_hex(4)}", "service": service}
    return agent.model_copy(update={"tunnels": (load_tunnel(section, agent),)})


class _Exposed:
    """The daemon, and what it tells the terminal; what `lifecycle.serve` drives."""

    def __init__(self, config: AgentConfig) -> None:
        self.agent = AgentDaemon(config, None)
        self.failed = False
        self._shown = False
        self._leave: Callable[[], None] = lambda: None

    @property
    def drain_timeout(self) -> float:
        """Seconds."""
        return self.agent.drain_timeout

    async def start(self) -> None:
        """Begin to dial."""
        self.agent.subscribe(self._tell)
        await self.agent.start()

    async def drain(self) -> None:
        """Return when open streams have ended."""
        await self.agent.drain()

    async def stop(self) -> None:
        """Close the tunnel."""
        await self.agent.stop()

    async def reload(self) -> object:
        """Refuse: there is no file."""
        raise ConfigError(["tunneld expose has no file to reload"])

    def status_line(self) -> str:
        """One line for an operator."""
        return self.agent.status_line()

    def on_leave(self, leave: Callable[[], None]) -> None:
        """Call `leave` when the server refuses the tunnel."""
        self._leave = leave

    def _tell(self, event: dict[str, Any]) -> None:
        kind = event["type"]
        if kind == "tunnel":
            self._tell_state(event["state"], event["error"])
        elif kind == "stream_closed":
            ended = f"{event['reason']} after {event['age_s']:.1f} s"
            self._line(f"{event['method']} {event['path']}  {event['client']}  {ended}")
        elif kind == "stream_opened":
            self._line(f"{event['method']} {event['path']}  {event['client']}")

    def _tell_state(self, state: str, error: str | None) -> None:
        tunnel = self.agent.tunnels[0] if self.agent.tunnels else None
        if state in ("online", "degraded") and tunnel is not None and tunnel.connected is not None:
            if not self._shown:
                self._shown = True
                print(f"{tunnel.connected.public_url}/ -> {tunnel.config.service}", flush=True)
                if tunnel.connected.host_url:
                    print(f"{tunnel.connected.host_url}/", flush=True)
                print("Ctrl-C ends it. Who visits:", flush=True)
            elif state == "online":
                self._line("the tunnel is up again")
            if state == "degraded":
                self._line(f"the service does not answer: {error}")
        elif state == "failed":  # the log on stderr says why, and what to do
            if not self._shown:
                self.failed = True
                self._leave()
        elif state in ("offline", "resuming") and error:
            self._line(f"no connection: {error}; dialling again")

    def _line(self, text: str) -> None:
        safe = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
        print(f"{datetime.now().astimezone():%H:%M:%S}  {safe}", flush=True)


def expose(config: AgentConfig) -> int:
    """Hold the tunnel of `config` until Ctrl-C or SIGTERM; returns the exit status: 1 when the server refuses it."""
    logs.setup("error", "text")

    async def live() -> int:
        exposed = _Exposed(config)
        status = await serve(exposed)
        return 1 if exposed.failed else status

    try:
        return run_loop(live)
    finally:
        logs.close()
