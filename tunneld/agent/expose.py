"""``tunneld expose``: one tunnel with no file and no daemon, from the command to Ctrl-C."""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
from collections.abc import Callable
from datetime import datetime
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from tunneld.agent.daemon import AgentDaemon
from tunneld.agent.logins import saved
from tunneld.agent.qr import drawn
from tunneld.config.agent import AgentConfig
from tunneld.config.load import load_tunnel
from tunneld.config.secrets import TOKEN_VARIABLE
from tunneld.errors import ConfigError
from tunneld.lifecycle import run as run_loop
from tunneld.lifecycle import serve
from tunneld.telemetry import logs

if TYPE_CHECKING:
    from tunneld.agent.screen import Screen

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
    """The daemon, and what it tells whoever started it; what `lifecycle.serve` drives.

    Args:
        config: with one tunnel.
        terminal: stdout is one, that can be drawn on: streams are shown live.
        qr: the address is shown as a QR code too.
    """

    def __init__(self, config: AgentConfig, *, terminal: bool, qr: bool) -> None:
        self.agent = AgentDaemon(config, None)
        self.failed = False
        self._terminal = terminal
        self._qr = qr
        self._shown = False
        self._screen: Screen | None = None
        self._loading: asyncio.Task[None] | None = None
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
        if self._loading is not None:
            await asyncio.wait([self._loading])
        if self._screen is not None:
            self._screen.close()
            self._screen = None
        await self.agent.stop()

    async def reload(self) -> object:
        """There is no file: a hangup says that the terminal is gone, and then nobody is there for whom to go on."""
        self._leave()
        return None

    def status_line(self) -> str:
        """One line for an operator."""
        return self.agent.status_line()

    def on_leave(self, leave: Callable[[], None]) -> None:
        """Call `leave` when the server refuses the tunnel, or nobody reads what is told."""
        self._leave = leave

    def _tell(self, event: dict[str, Any]) -> None:
        kind = event["type"]
        if kind == "tunnel":
            self._tell_state(event["state"], event["error"])
        elif kind == "stream_closed":
            ended = f"{event['reason']} after {event['age_s']:.1f} s"
            self._line(f"{event['method']} {event['path']}  {event['client']}  {ended}")
        elif kind == "stream_opened" and self._screen is None:
            self._line(f"{event['method']} {event['path']}  {event['client']}")
        if self._screen is not None:
            self._screen.changed()

    def _tell_state(self, state: str, error: str | None) -> None:
        tunnel = self.agent.tunnels[0] if self.agent.tunnels else None
        if state in ("online", "degraded") and tunnel is not None and tunnel.connected is not None:
            if not self._shown:
                self._shown = True
                self._show(tunnel.connected.public_url, tunnel.connected.host_url, str(tunnel.config.service))
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

    def _show(self, url: str, host_url: str | None, service: str) -> None:
        self._print(f"{url}/ -> {service}")
        if host_url:
            self._print(f"{host_url}/")
        if self._qr:
            for line in drawn(f"{url}/", colour=self._terminal and "NO_COLOR" not in os.environ):
                self._print(line)
        self._print("Ctrl-C ends it. Who visits:")
        if self._terminal:
            # What draws is loaded once the address is there: that takes a fifth of a second, of a thread.
            self._loading = asyncio.get_running_loop().create_task(self._draw(), name="expose: screen")

    async def _draw(self) -> None:
        module = await asyncio.to_thread(import_module, "tunneld.agent.screen")
        self._screen = module.Screen(self.agent, self._leave)

    def _line(self, text: str) -> None:
        safe = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
        stamped = f"{datetime.now().astimezone():%H:%M:%S}  {safe}"
        if self._screen is not None:
            self._screen.line(stamped)
        else:
            self._print(stamped)

    def _print(self, text: str) -> None:
        try:
            print(text, flush=True)
        except OSError:  # a pipe that nobody reads any more, a terminal that is gone
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            self._leave()


def expose(config: AgentConfig, *, qr: bool = False) -> int:
    """Hold the tunnel of `config` until Ctrl-C or SIGTERM.

    Args:
        config: with one tunnel.
        qr: show its address as a QR code too, where stdout is a terminal.

    Returns:
        The exit status: 1 when the server refuses it.
    """
    logs.setup("error", "text")
    terminal = sys.stdout.isatty()
    if qr and not terminal:
        print("--qr: no terminal to draw it on; the address alone is printed", file=sys.stderr)
    dumb = os.environ.get("TERM", "dumb") in ("dumb", "")

    async def live() -> int:
        exposed = _Exposed(config, terminal=terminal and not dumb, qr=qr and terminal)
        status = await serve(exposed)
        return 1 if exposed.failed else status

    try:
        return run_loop(live)
    finally:
        logs.close()
