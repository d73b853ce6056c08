"""The agent with its control socket, as one program."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tunneld.agent.daemon import AgentDaemon
from tunneld.config.agent import AgentConfig
from tunneld.control.agent_facts import AgentFacts
from tunneld.control.alerting import Alerts
from tunneld.control.event_bounds import EventBounds, events_usage
from tunneld.control.listener import ControlServer
from tunneld.lifecycle import main
from tunneld.telemetry.failures import Failures
from tunneld.telemetry.trail import Trail, noted_drain, noted_reload

if TYPE_CHECKING:
    from fastapi import FastAPI

    from tunneld.control.reading import ReadingServer
    from tunneld.dashboard.sampler import Sampler
    from tunneld.telemetry.usage import Usage

__all__ = ["AgentHost", "run"]


class AgentHost:
    """An agent daemon behind its control socket: what `lifecycle.serve` drives.

    Args:
        config: the file, loaded.
        path: where it was loaded from; None: nothing to reload from.
    """

    def __init__(self, config: AgentConfig, path: str | None) -> None:
        runtime = os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
        self.agent = AgentDaemon(config, path, Path(runtime) if runtime.startswith("/") else None)
        self._alerts = Alerts(config.alerts, AgentFacts(self.agent), role="agent", tell=self._tell_alert)
        self.agent.usage.append(self._alerts.usage)
        self.agent.reloaded.append(lambda changed: self._alerts.configure(changed.alerts))
        self._trail = Trail(
            lambda: self.agent.config.log.audit,
            repeat=lambda: self.agent.config.log.audit_repeat,
            callers=lambda: self.agent.config.log.audit_callers,
        )
        self._started_with = config
        control = config.control
        self._reading: ReadingServer | None = None
        self._sampler: Sampler | None = None
        if config.metrics.listen is not None:
            self._open_dashboard(config)
        self._doors: list[FastAPI] = []  # made so far, whose readers are counted
        self.agent.usage.append(self._events_usage)
        self._control = ControlServer(
            self._make,
            Path(control.socket),
            mode=control.mode,
            group=control.group,
            readonly_socket=Path(control.readonly_socket) if control.readonly_socket else None,
        )

    @property
    def drain_timeout(self) -> float:
        """Seconds."""
        return self.agent.drain_timeout

    async def start(self) -> None:
        """The socket first: a second agent on it must not dial. Raises ConfigError."""
        self._trail.check()
        await self._control.start()
        try:
            if self._reading is not None:
                await self._reading.start()
            await self.agent.start()
            self._alerts.start()
            if self._sampler is not None and self.metrics_address is not None:
                self._sampler.start()
        except BaseException:
            await self._stop_answering()
            raise

    async def drain(self) -> None:
        """Take no new streams; return when the open ones have ended."""
        by_signal = not self.agent.draining  # else an operator asked, which is noted
        await noted_drain(self._trail if by_signal else Trail(), self.agent.drain)

    async def stop(self) -> None:
        """Close every tunnel, then the socket."""
        await self._alerts.stop()  # its tunnels go down on purpose now
        try:
            await self.agent.stop()
        finally:
            await self._stop_answering()
            await self._trail.close()

    async def _stop_answering(self) -> None:
        if self._sampler is not None:
            await self._sampler.stop()
        if self._reading is not None:
            await self._reading.stop()
        await self._control.stop()

    @property
    def metrics_address(self) -> tuple[str, int] | None:
        """(host, port) of `metrics.listen` as bound; None: it is not served."""
        return self._reading.address if self._reading is not None else None

    async def reload(self) -> object:
        """Apply the changed file, as a signal asks for; raises ConfigError."""
        return await noted_reload(self._trail, self.agent.reload)

    def _tell_alert(self, alert: str, state: str, subject: str, message: str) -> None:
        self.agent.tell("alert", alert=alert, state=state, subject=subject, message=message)

    def status_line(self) -> str:
        """One line for an operator."""
        return self.agent.status_line()

    def on_leave(self, leave: Callable[[], None]) -> None:
        """Call `leave` when the agent is asked to drain and go."""
        self.agent.leave = leave

    def _open_dashboard(self, config: AgentConfig) -> None:
        """Where a dashboard is served, and only there: an agent at rest remembers nothing."""
        from tunneld.control.reading import ReadingServer
        from tunneld.control.watched import WatchedAgent
        from tunneld.dashboard.sampler import dashboard_usage, remember

        self._reading = ReadingServer(config.metrics, self._make_reading)
        sampler = self._sampler = remember(WatchedAgent(self.agent, self._alerts), config.dashboard)
        self.agent.usage.append(lambda: dashboard_usage(sampler, config.dashboard))

    def _make(self) -> FastAPI:
        """In a thread, when the first connection says something."""
        from tunneld.control.app import create_app
        from tunneld.control.view import AgentView

        return self._door(create_app(AgentView(self.agent, self._alerts), self._trail, bounds=self._bounds()))

    def _make_reading(self, secret: str | None) -> FastAPI:
        """The same for `metrics.listen`, with the dashboard."""
        from tunneld.control.app import create_app
        from tunneld.control.view import AgentView
        from tunneld.dashboard.routes import Dashboard

        assert self._sampler is not None
        metrics = self.agent.config.metrics
        failures = Failures(most=metrics.max_failures, window=metrics.failure_window)
        view = AgentView(self.agent, self._alerts)
        app = create_app(view, self._trail, reading=failures, secret=secret, bounds=self._bounds())
        dashboard = Dashboard(
            self._sampler,
            api="v1",
            viewers=self.agent.config.dashboard.viewers,
            may_change=lambda scope: secret is not None,
        )
        dashboard.mount(app)
        return self._door(app)

    def _door(self, app: FastAPI) -> FastAPI:
        self._doors.append(app)
        return app

    def _bounds(self) -> EventBounds:
        """As the file had it at the start: another one holds after a restart."""
        control = self._started_with.control
        return EventBounds(control.event_readers, control.event_queue, control.event_history)

    def _events_usage(self) -> Iterator[Usage]:
        """Of the readers of events."""
        return events_usage([app.state.subscribers for app in self._doors], self._bounds())


def run(config: AgentConfig, path: str) -> int:
    """Be the agent until a signal ends it; returns the exit status."""
    return main(lambda: AgentHost(config, path), config.log.level, config.log.format, burst=config.log.burst)
