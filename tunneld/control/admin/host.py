"""The server with its admin API, as one program."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from tunneld.config.server import AdminConfig, ListenConfig, ServerConfig
from tunneld.control.admin.facts import ServerFacts
from tunneld.control.admin.keeper import Keeper
from tunneld.control.admin.listener import AdminListener, admin_secret, warn_if_exposed
from tunneld.control.admin.watched import WatchedServer
from tunneld.control.alerting import Alerts
from tunneld.dashboard.files import early
from tunneld.dashboard.sampler import Sampler, dashboard_usage, remember
from tunneld.lifecycle import main
from tunneld.server.daemon import ServerDaemon
from tunneld.telemetry.trail import Trail, noted_drain, noted_reload

if TYPE_CHECKING:
    from fastapi import FastAPI

__all__ = ["ServerHost", "run"]

log = logging.getLogger("tunneld.admin")


class ServerHost:
    """A server daemon beside its admin listener: what `lifecycle.serve` drives.

    Args:
        config: the file, loaded.
        path: where it was loaded from; None: nothing to reload from.
    """

    def __init__(self, config: ServerConfig, path: str | None) -> None:
        self.server = ServerDaemon(config, path)
        self.server.reloading.append(self._reloading)
        self._alerts = Alerts(config.alerts, ServerFacts(self.server), role="server")
        self.server.usage.append(self._alerts.usage)
        self._trail = Trail(
            lambda: self.server.config.log.audit,
            repeat=lambda: self.server.config.log.audit_repeat,
            callers=lambda: self.server.config.log.audit_callers,
        )
        admin = config.admin or AdminConfig()
        self._keeper = Keeper(
            self.server.access.credentials,
            None,
            refused=_refused,
            most=admin.max_failures,
            window=admin.failure_window,
        )
        self._admin: AdminListener | None = None
        #: Writes the dashboard's past; None: no dashboard is served.
        self.sampler: Sampler | None = None
        if config.admin is not None:
            self._admin = AdminListener(config, self._make, self._early)
            sampler = self.sampler = remember(WatchedServer(self.server, self._alerts), config.dashboard)
            self.server.usage.append(lambda: dashboard_usage(sampler, config.dashboard))

    @property
    def drain_timeout(self) -> float:
        """Seconds."""
        return self.server.drain_timeout

    @property
    def admin_addresses(self) -> list[tuple[ListenConfig, str]]:
        """(listener, address as bound) of the admin API; empty without one."""
        return self._admin.addresses if self._admin is not None else []

    async def start(self) -> None:
        """Serve, then answer operators; raises ConfigError."""
        config = self.server.config
        self._keeper.configure(admin_secret(config))
        warn_if_exposed(config)
        self._trail.check()
        await self.server.start()
        if self._admin is not None:
            try:
                await self._admin.start()
            except BaseException:
                await self.server.stop()
                raise
        if self.sampler is not None:
            self.sampler.start()
        self._alerts.start()

    async def drain(self) -> None:
        """As the daemon's; operators are answered meanwhile."""
        await noted_drain(self._trail, self.server.drain)

    async def stop(self) -> None:
        """End all."""
        await self._alerts.stop()  # its tunnels go down on purpose now
        if self._admin is not None:
            await self._admin.stop()
        if self.sampler is not None:
            await self.sampler.stop()
        await self.server.stop()
        await self._trail.close()

    async def reload(self) -> object:
        """As the daemon's, as a signal asks for."""
        return await noted_reload(self._trail, self.server.reload)

    def status_line(self) -> str:
        """As the daemon's."""
        return self.server.status_line()

    def on_leave(self, leave: Callable[[], None]) -> None:
        """As the daemon's."""
        self.server.on_leave(leave)

    def _reloading(self, config: ServerConfig) -> Callable[[], None]:
        """The admin token and the listener's certificate are read anew, whatever else changed."""
        secret = admin_secret(config)

        def commit() -> None:
            self._keeper.configure(secret)
            self._alerts.configure(config.alerts)
            if self._admin is not None:
                self._admin.reload_certificates()

        return commit

    def _early(self, data: bytes, peer: object) -> bytes | None:
        return early(data, peer, self._keeper.page)

    def _make(self) -> FastAPI:
        """In a thread, when the first connection says something."""
        from tunneld.control.admin.app import create_admin_app
        from tunneld.control.admin.guard import may_change
        from tunneld.control.admin.owned import seen_by_owner
        from tunneld.control.admin.view import ServerView
        from tunneld.dashboard.routes import Dashboard

        assert self.sampler is not None
        viewers = self.server.config.dashboard.viewers
        dashboard = Dashboard(
            self.sampler,
            api="api/v1",
            viewers=viewers,
            may_change=may_change,
            seen=seen_by_owner(self.server),
            holds=self._keeper.holds,
        )
        return create_admin_app(
            ServerView(self.server, self._alerts, self._trail), self._keeper, dashboard, self._trail
        )


def _refused(address: str, reason: str) -> None:
    log.warning("Refused an operator's credential from %s: %s", address, reason, extra={"peer": address})


def run(config: ServerConfig, path: str) -> int:
    """Be the server until a signal ends it; returns the exit status."""
    return main(lambda: ServerHost(config, path), config.log.level, config.log.format, burst=config.log.burst)
