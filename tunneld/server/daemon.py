"""The server: listeners, the visitors' ingress, the agents' connections, and their end."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Iterable
from time import monotonic, time
from urllib.parse import parse_qs, urlsplit

from tunneld.config.advice import descriptors_needed
from tunneld.config.changes import LOG_FORMAT, diff, until_restart
from tunneld.config.load import load_server
from tunneld.config.server import ListenConfig, ServerConfig
from tunneld.errors import ConfigError, VisitorError
from tunneld.lifecycle import raise_descriptor_limit, tracer, warn_about_descriptors
from tunneld.protocol.frames import max_message
from tunneld.protocol.handshake import Bounds
from tunneld.protocol.headers import lower
from tunneld.protocol.messages import HeartbeatSettings, ResumeSettings, SseSettings
from tunneld.server.access import Access
from tunneld.server.auth import check_listeners
from tunneld.server.carried import flows, under_way
from tunneld.server.ingress import Ingress
from tunneld.server.legacy.connection import LegacyConnection, LegacyPolicy
from tunneld.server.legacy.door import LegacyDoor
from tunneld.server.legacy.keys import LegacyKeys
from tunneld.server.legacy.names import Labels
from tunneld.server.listeners import Listeners
from tunneld.server.offers import TunnelOffer
from tunneld.server.principals import Principal
from tunneld.server.registry import Registry
from tunneld.server.store.files import login_secret
from tunneld.server.tunnels import TunnelConnection
from tunneld.server.welcome import TunnelPolicy
from tunneld.telemetry import logs
from tunneld.telemetry.flow import FlowTimer
from tunneld.telemetry.lag import LoopLag
from tunneld.telemetry.trail import check_writable
from tunneld.telemetry.usage import Usage
from tunneld.wire.http1 import RequestHead
from tunneld.wire.ws_accept import Acceptance

__all__ = ["RESTART_SECTIONS", "ServerDaemon"]

log = logging.getLogger("tunneld.server")

SUBPROTOCOL = "tunneld.v3"
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
#: Seconds after which the first agent that was sent away may come back, and how many may in each second from then on.
#: Each spreads itself over half as long again.
_COME_BACK = 1.0
_BACK_A_SECOND = 500
#: Sections of the file that hold from the next start only.
RESTART_SECTIONS = frozenset(
    {"listen", "admin", "dashboard", "public_url", "domain", "tls", "store", "telemetry", LOG_FORMAT}
)


class ServerDaemon:
    """One server. `start` and `stop` belong to one task.

    Args:
        config: the file, loaded.
        path: where it was loaded from, for the reload; None: nothing to reload from.

    Attributes:
        access: who may open what, and the store behind it.
        public_url: where visitors find it.
        reloading: each is asked at a reload, before anything changes, and may raise ConfigError; what it returns is
            called once everything holds.
        usage: asked beside the daemon's own bounds how full those of its host are.
        draining: it takes no new visitors and no agents.
    """

    def __init__(self, config: ServerConfig, path: str | None) -> None:
        self.config = config
        self.path = path
        self.started = monotonic()
        self.lag = LoopLag()
        self._flows = FlowTimer(lambda: flows(self.registry.all(), under_way(self.ingress.exchanges.values())))
        self.connections: set[TunnelConnection | LegacyConnection] = set()
        self.registry: Registry
        self.ingress: Ingress
        self.reloading: list[Callable[[ServerConfig], Callable[[], None]]] = []
        self.usage: list[Callable[[], Iterable[Usage]]] = []
        self.access = Access(config, changed=self._look_who_is_welcome, permitted=self._look_who_may_visit)
        self._listeners = Listeners(config)
        self.public_url = config.public_url or ""
        self._legacy: LegacyDoor
        self._labels: Labels
        self.draining = False
        self._login_secret = b""
        self._gone = asyncio.Event()

    # -- life ------------------------------------------------------------------------------------------

    @property
    def drain_timeout(self) -> float:
        """Seconds."""
        return self.config.drain_timeout

    @property
    def listening(self) -> list[tuple[ListenConfig, str]]:
        """(listener, address as bound) of each socket."""
        return self._listeners.addresses

    async def start(self) -> None:
        """Bind and serve; raises ConfigError with one line a fault."""
        config = self.config
        check_listeners(config)
        self._check_login(config)
        descriptors = raise_descriptor_limit()
        limits = config.limits
        warn_about_descriptors(
            descriptors,
            descriptors_needed(config),
            f"{limits.max_tunnels} tunnels and {limits.max_streams} streams on one of them",
        )
        await self.access.start()
        try:
            self._listeners.open()
        except ConfigError:
            await self.access.stop()
            raise
        self.public_url = config.public_url or self._own_url()
        self.registry = Registry(
            max_tunnels=limits.max_tunnels, max_waiting=limits.max_waiting, urls=self._urls, quality=config.quality
        )
        self.ingress = Ingress(
            config,
            self.registry,
            connect_tunnel=self._offered,
            ready=self._is_ready,
            secret=lambda: self._login_secret,
        )
        self.ingress.tracer = tracer(config.telemetry, role="server")
        self.ingress.desk.one_owner = self._has_one_owner
        self.ingress.owned = lambda name: self.access.names.served(name, time())
        labels = self._labels = Labels(self.access.store, taken=self._is_an_agents, most=limits.v2_clients)
        await labels.refresh()
        keys = LegacyKeys(self.access.store)
        await keys.refresh()
        self._legacy = self.ingress.legacy = LegacyDoor(self, labels, keys)
        self.ingress.desk.permissions = self.access.permissions
        await self._listeners.serve(lambda listener, tls: self.ingress.protocol_factory(listener, tls=tls))
        for listener, address in self.listening:
            log.info("Listening on %s for %s", address, " and ".join(listener.serve), extra={"address": address})
        self.lag.start()
        self._flows.start()
        if self.ingress.desk.login is not None:
            self.ingress.desk.login.reach()

    def labels_kept(self) -> tuple[int, int]:
        """Clients of the older dialect whose labels are known, and how many may be."""
        return len(self._labels), self.config.limits.v2_clients

    async def drain(self) -> None:
        """Take no new visitors, tell the agents to go; return when every open stream has ended."""
        self._begin_drain()
        await self.ingress.close(self.drain_timeout)

    def _begin_drain(self) -> None:
        if self.draining:
            return
        self.draining = True
        self._listeners.close()
        for tunnel in self.registry.all():
            tunnel.away = "the server is drained"
        for connection, after in self._sent_away():
            connection.go_away(after)

    async def stop(self) -> None:
        """End what is open with reason `shutdown`, visibly; return when every connection is gone."""
        self.lag.stop()
        self._flows.stop()
        if not hasattr(self, "_legacy"):  # `start` failed, let go of what it had, and said why
            return
        self._begin_drain()
        await self.ingress.close(0)
        await self._legacy.close()
        for connection, after in self._sent_away():
            connection.shut(after)
        while self.connections:  # each ends within its close timeout
            self._gone.clear()
            await self._gone.wait()
        await self.access.stop()
        if self.ingress.tracer is not None:
            await self.ingress.tracer.close()

    def _sent_away(self) -> list[tuple[TunnelConnection | LegacyConnection, float]]:
        """Every agent, and the seconds after which it may come back: all at once would be a stampede."""
        return [(each, _COME_BACK + number / _BACK_A_SECOND) for number, each in enumerate(self.connections)]

    async def reload(self) -> list[str]:
        """Read the file again; returns the sections that changed. Raises ConfigError and changes nothing."""
        if self.path is None:
            raise ConfigError(["this server was started without a configuration file: there is nothing to reload"])
        config = load_server(self.path)
        if config.log.audit != self.config.log.audit:
            check_writable(config.log.audit)
        check_listeners(config)
        self._check_login(config)
        changes = diff(self.config, config)
        # What waits for a restart keeps its old value here, so that nothing of it holds by half.
        config = until_restart(self.config, config, RESTART_SECTIONS)
        commits = [prepare(config) for prepare in self.reloading]
        self.config = config
        self.access.configure(config)
        for commit in commits:
            commit()
        self._listeners.reload_certificates()
        self.ingress.configure(config)
        self.registry.configure(
            max_tunnels=config.limits.max_tunnels, max_waiting=config.limits.max_waiting, quality=config.quality
        )
        logs.set_burst(config.log.burst)
        logs.set_level(config.log.level)
        for connection in list(self.connections):
            connection.retune()
        for section in sorted(changes.sections):
            if section in RESTART_SECTIONS:
                log.warning("Reloaded, but only a restart applies %s", section)
            else:
                log.info("Reloaded: %s", section)
        return sorted(changes.sections)

    def status_line(self) -> str:
        """As ``systemctl status`` shows it; of several round trips the middle one, and the worst."""
        online = [tunnel for tunnel in self.registry.all() if tunnel.online]
        line = f"{len(online)} tunnels up, {len(self.ingress.exchanges)} streams"
        connections = [tunnel.connection for tunnel in online if tunnel.connection is not None]
        trips = sorted(one.round_trip for one in connections if one.round_trip is not None)
        if trips:
            line += f", rtt {trips[(len(trips) - 1) // 2] * 1000:.0f} ms"
        return f"{line}, at worst {trips[-1] * 1000:.0f} ms" if len(trips) > 1 else line

    def on_leave(self, leave: Callable[[], None]) -> None:
        """Nobody asks a server to leave but by a signal."""

    # -- tunnels ---------------------------------------------------------------------------------------

    def policy(self) -> TunnelPolicy:
        """What agents may wish, as the configuration says now."""
        config = self.config
        beat, sse, limits = config.heartbeat, config.sse, config.limits
        return TunnelPolicy(
            bounds=Bounds(
                heartbeat=HeartbeatSettings(beat.interval, beat.timeout),
                heartbeat_min=beat.min,
                heartbeat_max=beat.max,
                sse=SseSettings(sse.keepalive, sse.max_event, True),
                keepalive_min=sse.min,
                keepalive_max=sse.max,
                resume=ResumeSettings(config.resume.grace, config.resume.buffer),
                max_streams=limits.max_streams,
                stream_window=limits.stream_window,
                login=config.login is not None,
            ),
            max_header=limits.max_header,
            stream_window_max=limits.stream_window_max,
            hello_timeout=limits.hello_timeout,
        )

    def _offered(self, offer: TunnelOffer, head: RequestHead, leftover: bytes) -> None:
        """An agent asks for ``/tunnel/connect``."""
        try:
            if self._is_legacy(head):
                self._legacy.connect(offer, head, leftover)
                return
            name, principal = self._allowed(offer, head)
            accepting = Acceptance(head, subprotocols=[SUBPROTOCOL])
        except VisitorError as error:
            more = [("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13")] if error.status == 426 else []
            challenge = [("WWW-Authenticate", "Bearer")] if error.status == 401 else []
            offer.problem(error, [*more, *challenge])
            return
        pipe = accepting.take(
            asyncio.get_running_loop(),
            offer.take(),
            leftover,
            max_message=max_message(self.config.limits.max_header),
        )
        served = TunnelConnection(
            pipe,
            name,
            peer=offer.client or "unix",
            principal=principal,
            policy=self.policy,
            registry=self.registry,
            names=self.access.names,
            permissions=self.access.permissions,
            budget=self.ingress.budget,
            forget=self.forget,
        )
        self.connections.add(served)
        pipe.handler = served.link

    def _is_legacy(self, head: RequestHead) -> bool:
        """A dial of the older dialect, and not of an agent whose subprotocol was lost on the way: that has a token."""
        if self.draining:
            raise VisitorError("shutdown", "This server is stopping.", retry_after=1)
        names = {lower(name) for name, _ in head.headers}
        return "sec-websocket-protocol" not in names and "authorization" not in names

    def legacy_policy(self) -> LegacyPolicy:
        """What clients of the older dialect may, as the configuration says now."""
        beat, sse, limits = self.config.heartbeat, self.config.sse, self.config.limits
        return LegacyPolicy(
            heartbeat=HeartbeatSettings(beat.interval, beat.timeout),
            sse=SseSettings(sse.keepalive, sse.max_event, True),
            max_streams=limits.max_streams,
            max_message=limits.v2_message,
            queue=limits.v2_queue,
            response_timeout=limits.v2_response_timeout,
        )

    def adopt(self, connection: LegacyConnection) -> None:
        """A connection of the older dialect begins."""
        self.connections.add(connection)

    def _is_an_agents(self, label: str) -> bool:
        """A tunnel of the current dialect has this name, or an owner who opened none of the older has it."""
        return self.registry.find(label) is not None or self.access.names.known(label)

    def _allowed(self, offer: TunnelOffer, head: RequestHead) -> tuple[str, Principal]:
        query = parse_qs(head.target.partition("?")[2], keep_blank_values=True)
        names = query.get("name", [])
        if len(names) != 1 or not _LABEL.fullmatch(names[0]):
            raise VisitorError("bad_name", "The query must carry one `name`, a DNS label.")
        name = names[0]
        peer = offer.client or "unix"
        principal = self.access.gate.dial(head, name, address=peer, certificate=offer.certificate)
        self.access.names.check(name, principal, time())
        self.registry.check_owner(name, principal.id)
        self.registry.check_room(name)
        return name, principal

    def _has_one_owner(self) -> bool:
        return self.config.auth.mode == "open" or self.access.credentials.one_owner(time())

    def _look_who_is_welcome(self) -> None:
        """Credentials were changed, or one ended: tunnels of those that are good no longer close."""
        for connection in [one for one in self.connections if not self._is_welcome(one)]:
            connection.revoke()

    def _look_who_may_visit(self, name: str) -> None:
        """Other permissions hold for a tunnel: visitors that they let in no longer leave."""
        tunnel = self.registry.find(name) if hasattr(self, "registry") else None
        if tunnel is None:
            return
        if isinstance(tunnel.connection, LegacyConnection):
            tunnel.connection.protect()
        else:
            self.ingress.desk.changed(tunnel)

    def _is_welcome(self, connection: TunnelConnection | LegacyConnection) -> bool:
        if isinstance(connection, LegacyConnection):
            return self._legacy.welcome(connection)
        return self.access.gate.alive(connection.principal)

    def forget(self, connection: TunnelConnection | LegacyConnection) -> None:
        """A connection is over."""
        self.connections.discard(connection)
        self._gone.set()

    # -- inside ----------------------------------------------------------------------------------------

    def _check_login(self, config: ServerConfig) -> None:
        """Have at hand what visitors' cookies are signed with, where they sign in; raises ConfigError."""
        if config.login is not None and not self._login_secret:
            self._login_secret = login_secret(self.config.store)

    def _is_ready(self) -> bool:
        return not self.draining

    def _own_url(self) -> str:
        """Where visitors find this server when the file does not say: the first listener that serves them."""
        for listener, address in self.listening:
            if "visitors" in listener.serve and listener.unix is None:
                secure = listener.tls is not None or self.config.tls is not None
                shown = address.replace("0.0.0.0", "127.0.0.1").replace("[::]", "[::1]")  # noqa: S104 - shown only
                return f"{'https' if secure else 'http'}://{shown}"
        return "http://localhost"

    def _urls(self, name: str) -> tuple[str, str | None]:
        parts = urlsplit(self.public_url)
        host_url = None
        if self.config.domain is not None:
            port = f":{parts.port}" if parts.port else ""
            host_url = f"{parts.scheme}://{name}.{self.config.domain}{port}"
        return f"{self.public_url}/t/{name}", host_url
