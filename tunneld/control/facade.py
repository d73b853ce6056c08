"""What the control API asks of the agent. The agent's daemon has these methods; nothing here imports it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Protocol

from tunneld.agent.telling import Streams
from tunneld.control.models.agent import Drained, Health, LogLevelName, Reloaded, Status
from tunneld.control.models.alerts import AlertsStatus, AlertsTested
from tunneld.control.models.events import Event
from tunneld.control.models.permissions import NewPermissions, PermissionInfo
from tunneld.control.models.streams import Replayed, SeenRequest, StreamInfo
from tunneld.control.models.tunnels import Link, NewTunnel, Reconnected, TunnelClosed, TunnelStatus

__all__ = ["AgentFacade"]


class AgentFacade(Protocol):
    """The agent as its operators see it. All values are JSON-ready; called on the agent's own event loop.

    Only what may wait is async. A `VisitorError` becomes the problem of its code.
    """

    def status(self) -> Status:
        """Everything that ``tunnelctl status`` shows."""

    def health(self) -> Health:
        """Whether the agent does its work, check by check."""

    def streams(
        self, tunnel: str | None = None, kind: str | None = None, *, oldest: int | None = None
    ) -> list[StreamInfo]:
        """Return the streams under way, oldest first; None takes every tunnel, every kind, all of them."""

    def stream(self, request_id: str) -> StreamInfo | None:
        """Return one of them, None when it is gone."""

    def cancel(self, request_ids: Collection[str]) -> list[str]:
        """Cancel these with reason ``operator``; return the ids that were there, pass over the others."""

    async def reload(self) -> Reloaded:
        """Apply the changed file.

        Raises:
            ConfigError: the file cannot be used; nothing has changed.
        """

    def reconnect(self, name: str) -> Reconnected:
        """Drop the tunnel's connection, if any, and dial now; also ends the wait of a ``failed`` one.

        Raises:
            VisitorError: ``no_such_tunnel``.
        """

    def tunnel(self, name: str) -> TunnelStatus:
        """Return one tunnel; raises VisitorError ``no_such_tunnel``."""

    async def open_tunnel(self, wanted: NewTunnel) -> TunnelStatus:
        """Open a tunnel that stands in no file; return it once it is up, has failed, or some seconds have passed.

        Raises:
            ConfigError: the section has faults.
            VisitorError: ``tunnel_exists``, ``shutdown``.
        """

    def share(self, name: str, path: str, seconds: float) -> Link:
        """Return a signed address.

        Raises:
            VisitorError: ``no_such_tunnel``, ``not_protected``, ``tunnel_offline``.
        """

    async def permissions(self, name: str) -> list[PermissionInfo]:
        """Who may visit by e-mail address, as the server keeps it.

        Raises:
            VisitorError: ``no_such_tunnel``, ``tunnel_offline``.
        """

    async def grant(self, name: str, wanted: NewPermissions) -> list[PermissionInfo]:
        """Let these visit; raises as `permissions`, and ``bad_argument``, ``too_many_permissions``."""

    async def revoke_permission(self, name: str, email: str) -> PermissionInfo:
        """Let that one visit no longer; raises as `permissions`, and ``no_such_permission``."""

    def close_tunnel(self, name: str) -> TunnelClosed:
        """Close one that was opened at run time; its streams end with reason ``operator``.

        Raises:
            VisitorError: ``no_such_tunnel``, ``tunnel_configured``.
        """

    def drain(self) -> Drained:
        """Begin to drain: take no new streams, let those under way end, then leave. Returns at once; idempotent."""

    def set_log_level(self, level: LogLevelName) -> str:
        """Log from this level on, until the next reload; return the level that held."""

    async def metrics(self, accept: str = "") -> tuple[bytes, str]:
        """Return the numbers of the agent as Prometheus's text, or as OpenMetrics where `accept` asks for it, and its
        media type."""

    def requests(self, tunnel: str | None) -> list[SeenRequest]:
        """The last requests of tunnels that may be looked into, newest first."""

    async def replay(self, request_id: str) -> Replayed:
        """Send one again; raises VisitorError ``no_such_request``, ``not_replayable``, ``service_unreachable``."""

    def tail(self, request_id: str, tell: Callable[[dict[str, Any]], None]) -> tuple[Callable[[], None], int]:
        """Call `tell` for what passes on a stream, until the returned function is called.

        Returns:
            That function, and how many events may wait for the reader.

        Raises:
            VisitorError: ``no_such_stream``, ``not_inspected``, ``too_many_subscribers``.
        """

    def alerts(self) -> AlertsStatus:
        """What the agent's alerts say now."""

    async def test_alerts(self, name: str | None) -> AlertsTested:
        """Send a test to the receivers of one rule, or of all; raises VisitorError ``no_such_alert``."""

    def subscribe(self, listener: Callable[[Event], None], streams: Streams = None) -> Callable[[], None]:
        """Call `listener` for each event from now on, until the returned function is called.

        The listener neither waits nor raises nor changes the event: it puts it into a bounded queue. `streams` is
        called in its place for the events of streams, in their compact form; False: those are not wanted.
        """
