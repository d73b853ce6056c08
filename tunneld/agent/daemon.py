"""The agent: its tunnels as tasks, live reload, drain, and what happens as events for whoever listens."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from tunneld.agent import handover
from tunneld.agent.dialer import Dial, dial_to
from tunneld.agent.hello import Identity
from tunneld.agent.proxy import Proxy
from tunneld.agent.roster import Roster, Running
from tunneld.agent.state import State
from tunneld.agent.telling import Listener, Streams, Teller
from tunneld.agent.tunnel import AgentTunnel
from tunneld.agent.wake import WakeWatch
from tunneld.config import dropins
from tunneld.config.advice import descriptors_needed
from tunneld.config.agent import AgentConfig
from tunneld.config.changes import LOG_FORMAT, Changes, diff, until_restart
from tunneld.config.load import load_agent
from tunneld.config.tunnel import TunnelConfig
from tunneld.errors import ConfigError, VisitorError
from tunneld.lifecycle import raise_descriptor_limit, tracer, warn_about_descriptors
from tunneld.protocol.windows import Holders, MemoryBudget
from tunneld.telemetry import logs
from tunneld.telemetry.flow import FlowTimer
from tunneld.telemetry.lag import LoopLag
from tunneld.telemetry.metrics import StreamCounts
from tunneld.telemetry.trail import check_writable
from tunneld.telemetry.usage import Usage

if TYPE_CHECKING:
    from tunneld.telemetry.traces import Tracer

__all__ = ["AgentDaemon", "Applied"]

log = logging.getLogger("tunneld.agent")

#: Sections of the file that hold from the next start only.
_RESTART_SECTIONS = frozenset({"control", "metrics", "dashboard", "telemetry", LOG_FORMAT})
#: What `resume` and two of the limits wait for.
_NEXT_SESSION = "resume: holds for a tunnel from its next session on"


@dataclass(slots=True)
class Applied:
    """What a reload did, in lines for people: what changed, and what waits for a restart."""

    changed: list[str] = field(default_factory=list)
    restart: list[str] = field(default_factory=list)


class AgentDaemon(Roster):
    """All tunnels of one process. `start` and `stop` belong to one task.

    Args:
        config: the file, loaded.
        path: where it was loaded from, for the reload; None: nothing to reload from.
        runtime: directory that outlives the process over a restart by the service manager, and no stop: what the next
            process needs to go on is left there. None: this process has no successor.
    """

    def __init__(self, config: AgentConfig, path: str | None, runtime: Path | None = None) -> None:
        super().__init__()
        self.config = config
        self.path = path
        self.started = monotonic()
        self.draining = False
        #: Called when an operator wants the process to drain and go; whoever runs it sets this.
        self.leave: Callable[[], None] = lambda: None
        #: Called with the file that a reload applied.
        self.reloaded: list[Callable[[AgentConfig], None]] = []
        #: Of all tunnels, for the metrics.
        self.counts = StreamCounts()
        #: Asked beside the daemon's own bounds how full those of its host are.
        self.usage: list[Callable[[], Iterable[Usage]]] = []
        #: How late this process runs what is due.
        self.lag = LoopLag()
        self._flows = FlowTimer(lambda: ((each.flow, *each.proxy.carried) for each in self.tunnels))
        #: Makes the traces; None: there are none.
        self.tracer: Tracer | None = None
        #: Whose bytes this process holds, against `limits.memory`.
        self.holders = Holders(MemoryBudget(config.limits.memory))
        self._identity = Identity()
        self._runtime = runtime
        self._for_good = runtime is None  # an operator wants it to go: nobody comes after it
        self._legacies: dict[str, handover.Legacy] = {}
        self._teller = Teller()
        self._stack = AsyncExitStack()
        self._group: asyncio.TaskGroup
        self._dial: Dial

    # -- life ------------------------------------------------------------------------------------------

    @property
    def drain_timeout(self) -> float:
        """Seconds."""
        return self.config.drain_timeout

    async def start(self) -> None:
        """Begin to dial; raises ConfigError when the credential or a certificate cannot be used."""
        self._dial = dial_to(self.config.server)
        if (proxy := self._dial.proxy) is not None:
            log.info("Dialling through the proxy %s (%s)", proxy, proxy.source)
        descriptors = raise_descriptor_limit()
        what = f"{len(self.config.tunnels)} tunnels with their streams"
        warn_about_descriptors(descriptors, descriptors_needed(self.config), what)
        self.tracer = tracer(self.config.telemetry, role="agent")
        if self.tracer is not None:
            self._stack.push_async_callback(self.tracer.close)
        self._stack.callback(WakeWatch(self._woke).close)
        self.lag.start()
        self._stack.callback(self.lag.stop)
        self._flows.start()
        self._stack.callback(self._flows.stop)
        if self._runtime is not None and (estate := handover.take(self._runtime)) is not None:
            self._identity = Identity(estate.instance, itertools.count(estate.dial + 1))
            with contextlib.suppress(ValueError):  # left by an older version: addresses that were shared are over
                self._identity.links = bytes.fromhex(estate.links) or self._identity.links
            self._legacies = dict(estate.tunnels)
        self._group = await self._stack.enter_async_context(asyncio.TaskGroup())
        for config in self.config.tunnels:
            self._open(config)

    async def drain(self) -> None:
        """Take no new streams; return when the open ones have ended, but for those that a successor goes on with.

        WebSockets do not end by themselves: nobody waits for them.
        """
        self._begin_drain()
        changed = asyncio.Event()
        unsubscribe = self._teller.subscribe(lambda _: changed.set())
        try:
            while any(tunnel.must_end(succession=self._has_successor) for tunnel in self.tunnels):
                changed.clear()
                await changed.wait()
        finally:
            unsubscribe()

    def begin_drain(self) -> int:
        """Take no new streams from now on, as an operator asked; returns how many are open."""
        self._for_good = True
        return self._begin_drain()

    def _begin_drain(self) -> int:
        if not self.draining:
            self.draining = True
            log.info("Draining: no new streams are taken.")
            for tunnel in self.tunnels:
                tunnel.drain()
            self.tell("drain", streams=self.active_streams)
        return self.active_streams

    async def stop(self) -> None:
        """Leave sessions to a successor, cancel what is open with reason `shutdown`, close every tunnel."""
        if self._has_successor and self._running:
            await self._hand_over()
        for name in list(self._running):
            self._close(name, "shutdown")
        await self._stack.aclose()

    @property
    def _has_successor(self) -> bool:
        return not self._for_good and self.config.resume.restart > 0

    async def _hand_over(self) -> None:
        """Write down what another process needs to go on. That one knows of nothing else, whatever fails here."""
        assert self._runtime is not None
        tunnels = self.tunnels
        within = self.config.resume.restart
        found = await asyncio.gather(*(tunnel.hand_over(within) for tunnel in tunnels))
        legacies = {tunnel.name: legacy for tunnel, legacy in zip(tunnels, found, strict=True) if legacy is not None}
        identity = self._identity
        handover.leave(self._runtime, identity.instance, next(identity.dials), legacies, links=identity.links.hex())
        streams = sum(len(legacy.streams) for legacy in legacies.values())
        log.info("Left %d sessions and %d streams to the next start.", len(legacies), streams)

    async def reload(self) -> Applied:
        """Read the file again and apply what changed.

        Raises:
            ConfigError: the file cannot be used; nothing has changed.
        """
        if self.path is None:
            raise ConfigError(["this agent was started without a configuration file: there is nothing to reload"])
        config = load_agent(self.path)
        if config.log.audit != self.config.log.audit:
            check_writable(config.log.audit)
        dial = dial_to(config.server)
        changes = diff(self.config, config)
        elsewhere = dial.url != self._dial.url
        before = self._dial
        redial = (dial.url, dial.token, dial.proxy) != (before.url, before.token, before.proxy)
        redial = redial or "server" in changes.sections
        self._dial = dial
        applied = self._apply(config, changes)
        if redial:
            applied.changed.append("server: every tunnel dials anew")
            for tunnel in self.tunnels:
                tunnel.reconnect(elsewhere=elsewhere)
        for told in self.reloaded:
            told(config)
        for line in applied.changed:
            log.info("Reloaded: %s", line)
        for line in applied.restart:
            log.warning("Reloaded, but only a restart applies %s", line)
        self.tell("reload", changed=applied.changed, restart=applied.restart)
        return applied

    def status_line(self) -> str:
        """As ``systemctl status`` shows it."""
        up = sum(1 for tunnel in self.tunnels if tunnel.state in ("online", "degraded"))
        trips = [tunnel.round_trip for tunnel in self.tunnels if tunnel.round_trip is not None]
        line = f"{up} of {len(self._running)} tunnels up, {self.active_streams} streams"
        return f"{line}, rtt {max(trips) * 1000:.0f} ms" if trips else line

    # -- what operators ask ----------------------------------------------------------------------------

    def reconnect(self, name: str) -> State:
        """Dial anew; returns the state before.

        Raises:
            VisitorError: ``no_such_tunnel``, or ``shutdown`` while the agent drains: what is open would be lost.
        """
        running = self.running(name)
        if self.draining:
            raise VisitorError("shutdown", "This agent is draining.")
        before = running.tunnel.state
        running.tunnel.reconnect()
        return before

    def open_tunnel(self, config: TunnelConfig, lifetime: float | None) -> AgentTunnel:
        """Open a tunnel that stands in no file; it goes with the process, or after `lifetime` seconds.

        Raises:
            VisitorError: ``tunnel_exists``, or ``shutdown`` while the agent drains.
        """
        if config.name in self._running:
            raise VisitorError("tunnel_exists", f"This agent has a tunnel named {config.name} already.")
        if self.draining:
            raise VisitorError("shutdown", "This agent is draining.")
        self._open(config)
        running = self._running[config.name]
        running.at_run_time = True
        if lifetime is not None:
            loop = asyncio.get_running_loop()
            running.expires = loop.time() + lifetime
            running.expiry = loop.call_later(lifetime, self._expired, config.name)
        return running.tunnel

    async def open_saved(self, config: TunnelConfig, section: Mapping[str, Any]) -> AgentTunnel:
        """Open a tunnel and write it to a file of its own, which the next start reads too.

        Args:
            config: made of `section`.
            section: as in the file's `tunnels`.

        Raises:
            VisitorError: as `open_tunnel`; ``not_saved``: it could not be written, and is not open.
        """
        if self.path is None:
            raise VisitorError("not_saved", "This agent was started without a configuration file.")
        tunnel = self.open_tunnel(config, None)
        try:
            source = await asyncio.to_thread(dropins.save, self.path, section)
        except ConfigError as error:
            if self._is_open(tunnel):
                self._close(config.name, "operator")
            raise VisitorError("not_saved", f"{'; '.join(error.faults)}.") from None
        if self._is_open(tunnel):  # no reload has read the file meanwhile
            self._running[config.name].at_run_time = False
            self.config = self.config.with_dropins([config], {config.name: str(source)})
        elif config.name not in self._running:
            dropins.forget(str(source), config.name)
            raise VisitorError("no_such_tunnel", f"The tunnel {config.name} was closed before it was saved.")
        log.info("Saved the tunnel %s in %s.", config.name, source, extra={"tunnel": config.name})
        return self._running[config.name].tunnel

    def _is_open(self, tunnel: AgentTunnel) -> bool:
        running = self._running.get(tunnel.name)
        return running is not None and running.tunnel is tunnel

    def close_tunnel(self, name: str) -> None:
        """Close a tunnel that was opened at run time; its streams end with reason `operator`. A saved one's file goes.

        Raises:
            VisitorError: ``no_such_tunnel``, or ``tunnel_configured`` for one that stands in the agent's file, or in
                one with others.
        """
        running = self.running(name)
        if not running.at_run_time:
            source = self.config.source(name)
            if source is None:
                where = self.path or "the configuration"
                raise VisitorError("tunnel_configured", f"The tunnel {name} stands in {where}.")
            try:
                dropins.forget(source, name)
            except ConfigError as error:
                raise VisitorError("tunnel_configured", f"{'; '.join(error.faults)}.") from None
            self.config = self.config.without(name)
        self._close(name, "operator")

    def subscribe(self, listener: Listener, streams: Streams = None) -> Callable[[], None]:
        """See `Teller.subscribe`."""
        return self._teller.subscribe(listener, streams)

    # -- inside ----------------------------------------------------------------------------------------

    def _open(self, config: TunnelConfig) -> None:
        proxy = Proxy(
            config.name,
            config.service,
            config.limits,
            headers=config.headers,
            told=self._teller,
            counts=self.counts,
            holders=self.holders,
        )
        proxy.log_queries = self.config.log.queries
        proxy.tracer = self.tracer
        proxy.inspect(self.config.inspection if config.inspect else None)
        tunnel = AgentTunnel(
            config,
            self.config,
            proxy=proxy,
            identity=self._identity,
            dial=lambda: self._dial,
            changed=self._tunnel_changed,
            heard=self._heartbeat,
            legacy=self._legacies.pop(config.name, None),
        )
        task = self._group.create_task(tunnel.run(), name=f"tunnel {config.name}")
        self._running[config.name] = Running(tunnel, task)

    def _close(self, name: str, reason: str) -> None:
        running = self._running.pop(name)
        if running.expiry is not None:
            running.expiry.cancel()
        running.tunnel.close(reason)
        self._add_up(running.tunnel)

    def _expired(self, name: str) -> None:
        log.info("The time of tunnel %s is over.", name, extra={"tunnel": name})
        self._close(name, "operator")

    def _apply(self, config: AgentConfig, changes: Changes) -> Applied:
        applied = Applied()
        self.holders.budget.limit = config.limits.memory
        # What waits for a restart keeps its old value here, so that the next reload says so again.
        self.config = until_restart(self.config, config, _RESTART_SECTIONS)
        for name in changes.removed:
            self._close(name, "shutdown")
            applied.changed.append(f"tunnel {name}: closed")
        for tunnel in changes.repointed:
            self._close(tunnel.name, "shutdown")
            self._open(tunnel)
            applied.changed.append(f"tunnel {tunnel.name}: points to {tunnel.service} now")
        for tunnel in changes.added:
            if tunnel.name in self._running:  # opened at run time: from now on it stands in the file
                self._close(tunnel.name, "operator")
            self._open(tunnel)
            applied.changed.append(f"tunnel {tunnel.name}: opened")
        retuned = {tunnel.name for tunnel in changes.retuned}
        for tunnel in config.tunnels:
            if tunnel.name in retuned or changes.sections & {"resume", "reconnect", "inspection"}:
                self._running[tunnel.name].tunnel.update(tunnel, config)
            if tunnel.name in retuned:
                applied.changed.append(f"tunnel {tunnel.name}: changed in place")
        for running in self._running.values():
            running.tunnel.proxy.log_queries = config.log.queries
        logs.set_burst(config.log.burst)
        logs.set_level(config.log.level)  # also when an operator had set another meanwhile
        for section in sorted(changes.sections - {"server"}):
            line = _NEXT_SESSION if section == "resume" else section
            (applied.restart if section in _RESTART_SECTIONS else applied.changed).append(line)
        return applied

    def _woke(self, why: str) -> None:
        """Connections may be dead, and a wait for the next dial has lost its reason."""
        if self._running:
            log.debug("Looking after every connection: %s.", why)
        for tunnel in self.tunnels:
            tunnel.doubt()

    def _tunnel_changed(self, tunnel: AgentTunnel, before: State) -> None:
        outage = tunnel.take_outage()
        more = {}
        if outage is not None:
            more = {
                "resumed": outage.resumed,
                "outage_s": outage.seconds,
                "replayed_bytes": outage.replayed_bytes,
                "streams_lost": outage.streams_lost,
            }
        self.tell("tunnel", tunnel=tunnel.name, state=tunnel.state, was=before, error=tunnel.last_error, **more)

    def _heartbeat(self, tunnel: AgentTunnel, round_trip: float | None) -> None:
        self.tell(
            "heartbeat",
            tunnel=tunnel.name,
            ok=round_trip is not None,
            rtt_ms=None if round_trip is None else round(round_trip * 1000, 3),
        )

    def tell(self, kind: str, /, **fields: Any) -> None:
        """Tell whoever subscribed of an event."""
        self._teller.tell(kind, fields)
