"""Visitors in: which request goes where, and what they share (CONTRACT "Public addresses").

`Ingress` makes a `ServerConnection` for each visitor, finds the tunnel that an address means, and lets an `Exchange`
carry the request. `/tunnel/connect` is handed to the daemon.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from time import monotonic
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from tunneld.config.server import ListenConfig, ServerConfig, ServerLimits
from tunneld.errors import VisitorError
from tunneld.protocol.forwarded import outer_prefix
from tunneld.protocol.headers import Headers, get, get_all, to_service
from tunneld.protocol.messages import Open
from tunneld.protocol.windows import Holders, MemoryBudget
from tunneld.server import tracing
from tunneld.server.connections import Connections
from tunneld.server.exchange import Exchange
from tunneld.server.offers import ConnectTunnel, LegacyAddresses, Listener
from tunneld.server.own_addresses import CONNECT, REGISTER, OwnAddresses, is_permissions
from tunneld.server.problems import problem
from tunneld.server.registry import SessionDirectory, Tunnel
from tunneld.server.replay import Replays, without_cookie
from tunneld.server.sockets import SocketVisit
from tunneld.server.stops import StopList, stop_key
from tunneld.server.visit import Visit
from tunneld.server.visitors.desk import Desk, Refused
from tunneld.server.visitors.rules import Grant
from tunneld.telemetry.metrics import StreamCounts
from tunneld.wire.http1 import RequestHead
from tunneld.wire.http_date import date
from tunneld.wire.http_server import ServerConnection
from tunneld.wire.short_reads import ShortReads
from tunneld.wire.ws_upgrade import VERSION, asked, request_fields

if TYPE_CHECKING:
    from tunneld.telemetry.traces import Tracer

__all__ = ["Ingress", "Totals"]

log = logging.getLogger("tunneld.ingress")

_IDS = 4096  # bytes of randomness taken at a time: 256 ids


@dataclass(slots=True)
class Totals:
    """Requests of visitors that reached a tunnel: how many, the bytes of their bodies and of the answers', events."""

    streams: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    events: int = 0


class Ingress(Connections):
    """All visitors of one server; `Service` of their connections.

    Args:
        config: what holds now; `configure` changes it.
        registry: of tunnels.
        connect_tunnel: is given what asks for ``/tunnel/connect``.
        ready: whether ``/readyz`` says yes.
        secret: see `Desk`.

    Attributes:
        exchanges: request id -> the request under way, or the WebSocket that became of it.
        stops: clients that are told to stop.
        counts: streams that ended, for the metrics.
        budget: bytes that the process holds, of `limits.memory`.
        holders: for whom, where a stream can be ended for it.
        legacy: the older dialect's addresses; None: there are none.
        replays: event streams whose visitors may come back.
        desk: lets visitors in to protected tunnels.
        tracer: makes a span of each request; None: nobody wants them.
        owned: whether a name that this process has not served yet is somebody's, whose agent is to come back.
    """

    def __init__(
        self,
        config: ServerConfig,
        registry: SessionDirectory,
        *,
        connect_tunnel: ConnectTunnel,
        ready: Callable[[], bool],
        budget: MemoryBudget | None = None,
        secret: Callable[[], bytes] | None = None,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.draining = False
        self.legacy: LegacyAddresses | None = None
        self.exchanges: dict[str, Exchange | SocketVisit] = {}
        self._ended = Totals()
        self.stops = StopList()
        self.counts = StreamCounts()
        self.budget = budget or MemoryBudget(config.limits.memory)
        self.holders = Holders(self.budget)
        self.replays = Replays(self.budget, config.sse.replay_total)
        super().__init__(config, ShortReads(self.budget))
        self._registry = registry
        registry.pace = self.guard.pace
        self.desk = Desk(self, config, secret=secret)
        self.tracer: Tracer | None = None
        registry.access_changed = self.desk.changed
        self.owned: Callable[[str], bool] = lambda name: False
        self._since = monotonic()
        self._own_addresses = OwnAddresses(self, connect_tunnel, ready)
        self._ids = ""
        self._next_id = 0  # where it stands in them
        self.configure(config)

    def configure(self, config: ServerConfig) -> None:
        """Apply a configuration; connections and requests that are open go on by it."""
        self.limits: ServerLimits = config.limits
        self.guard.configure(config.limits)
        self.desk.configure(config)
        self.log_queries = config.log.queries
        self.budget.limit = config.limits.memory
        # What is kept for replay alone must not make memory short for good.
        self.replays.total = min(config.sse.replay_total, config.limits.memory // 2)
        self.peers.configure(config)
        self._suffix = f".{config.domain}" if config.domain else ""
        own = urlsplit(config.public_url).hostname if config.public_url else None
        self._own_host = own or ""
        self._named_by = lru_cache(1024)(self._name_in_host)

    def tunnel(self, name: str) -> Tunnel | None:
        """The tunnel of that name, if one is known."""
        return self._registry.find(name)

    def protocol_factory(self, config: ListenConfig, *, tls: bool = False) -> Callable[[], ServerConnection]:
        """What ``loop.create_server`` wants for this listener."""
        listener = Listener(config, tls=tls)
        return lambda: ServerConnection(self, listener)

    def new_id(self) -> str:
        """A request id: 128 random bits, in hex."""
        at = self._next_id
        if at == len(self._ids):
            self._ids, at = os.urandom(_IDS).hex(), 0
        self._next_id = end = at + 32
        return self._ids[at:end]

    # -- Service of connections --------------------------------------------------------------------------

    def fault(self, connection: ServerConnection, head: RequestHead | None, error: VisitorError) -> None:
        """Answer a request that cannot be served."""
        request_id = self.new_id()
        log.debug(
            "refused a request: %s",
            error,
            extra={"request_id": request_id, "code": error.code, "client": connection.address},
        )
        extra: Headers = []
        if error.code == "websocket_version":
            extra = [("Upgrade", "websocket"), ("Sec-WebSocket-Version", VERSION)]
        elif isinstance(error, Refused):
            extra = error.extra
        self.answer(connection, error, request_id, head.headers if head is not None else [], extra)

    def request(self, connection: ServerConnection, head: RequestHead) -> None:
        """Route a request by its address."""
        target = head.target
        listener = connection.listener
        assert isinstance(listener, Listener)
        name = self._named_by(head.host) if self._suffix and head.host else None
        try:
            if not self.counted.get(connection, True):
                connection.end_after_answer()
                raise self.guard.surplus()
            if name is not None and listener.visitors:
                self._to_tunnel(connection, head, listener, name, target, "")
            elif target.startswith("/t/") and listener.visitors:
                self._by_path(connection, head, listener)
            elif target.startswith("/v2/") and listener.tunnels and self.legacy is not None:
                self._under_token(connection, head, listener, self.legacy)
            else:
                self._own_addresses.serve(connection, head, listener)
        except VisitorError as error:
            self.fault(connection, head, error)

    def _name_in_host(self, host: str) -> str | None:
        """The tunnel that this Host names; None when it is not of our domain, or our own."""
        bare = host.lower().partition(":")[0].removesuffix(".")  # of an IPv6 address "[" is left: no name of ours
        if not bare.endswith(self._suffix) or bare == self._own_host:
            return None
        return bare[: -len(self._suffix)]

    def _by_path(self, connection: ServerConnection, head: RequestHead, listener: Listener) -> None:
        target = head.target
        query = target.find("?")
        slash = target.find("/", 3, query if query >= 0 else len(target))
        end = slash if slash >= 0 else query if query >= 0 else len(target)
        name = target[3:end]
        if not name:
            raise VisitorError("not_found")
        if slash >= 0:
            self._to_tunnel(connection, head, listener, name, target[slash:], target[:slash])
            return
        self._known(name)
        location = f"/t/{name}/{target[query:] if query >= 0 else ''}"
        if self.peers.trusts(connection, listener):
            location = outer_prefix(get_all(head.headers, "x-forwarded-prefix")) + location
        self.answer_text(connection, 308, "", [("Location", location)])

    def _under_token(
        self, connection: ServerConnection, head: RequestHead, listener: Listener, legacy: LegacyAddresses
    ) -> None:
        """``/v2/TOKEN``, under which every other address stands: nothing behind this sees the token in an address."""
        token, slash, rest = head.target[4:].partition("/")
        head.target = slash + rest or "/"
        if "?" in token or not token:
            raise VisitorError("not_found")
        token = unquote(token)
        path = head.target.partition("?")[0]
        if path not in (CONNECT, REGISTER) and not is_permissions(path):  # those judge it themselves
            legacy.admit(token, self.peers.client(connection, head, listener) or "unix")
        if head.target.startswith("/t/") and listener.visitors:
            self._by_path(connection, head, listener)
        else:
            self._own_addresses.serve(connection, head, listener, token)

    def _to_tunnel(
        self, connection: ServerConnection, head: RequestHead, listener: Listener, name: str, path: str, prefix: str
    ) -> None:
        """Carry a request to the service behind a tunnel, unless it is refused or answered here."""
        tunnel = self._tunnel_for(name)
        upgrade = asked(head) if head.upgrade else None
        if self.budget.over:
            raise VisitorError("over_memory", retry_after=5)
        trusted = self.peers.trusts(connection, listener)
        client = self.peers.named(head, connection) if trusted else connection.address
        self.guard.request(tunnel, client)
        grant = None
        if not tunnel.access.free:
            admitted = self.desk.admit(connection, head, tunnel, path, prefix, client)
            if admitted is None:
                return
            grant, path = admitted
        plain = head.method == "GET" and upgrade is None
        said, cookies = head.headers, None
        if plain and (tunnel.sse.replay > 0 or self.replays):
            said, cookies = without_cookie(said)
        headers = to_service(
            said,
            client=client,
            peer=connection.address,
            trusted=trusted,
            scheme=listener.scheme,
            host=head.host,
            prefix=prefix,
            identity=plain and tunnel.sse.identity,
        )
        host, seen = head.host, prefix
        if trusted and prefix:  # the proxy knows better by which address the visitor came: as the service is told
            host = get(headers, "x-forwarded-host") or host
            seen = get(headers, "x-forwarded-prefix") or prefix
        if (plain and len(self.stops)) or cookies:
            who = said if grant is None else [*said, *grant.headers]
            if plain and self._stopped(connection, who, tunnel.name, path, client):
                return
            if cookies and self._back(connection, who, tunnel, seen + path, client, cookies, grant):
                return
        if upgrade is not None:
            headers = request_fields(headers)
        if grant is not None:
            headers += grant.headers
        request_id = self.new_id()
        if self.tracer is not None:
            scheme = listener.scheme
            about = {"path": path, "prefix": prefix, "scheme": scheme, "client": client, "tunnel": tunnel.name}
            headers = tracing.begin(self.tracer, request_id, headers, head, **about)
        exchange = Exchange(
            self,
            connection,
            tunnel,
            Open(request_id, head.method, path, headers, client),
            whole=not head.length and upgrade is None,
            upgrade=upgrade,
            prefix=seen,
            host=host,
            cookies=cookies if tunnel.sse.replay > 0 else None,
        )
        self._begin(connection, exchange, grant)

    def _tunnel_for(self, name: str) -> Tunnel:
        tunnel = self._known(name)
        if self.draining:
            raise VisitorError("shutdown", retry_after=5)
        return tunnel

    def _known(self, name: str) -> Tunnel:
        """The tunnel of that name. One that was served before the server was started anew is offline since then: a 404
        meanwhile would tell an EventSource to stop for good."""
        tunnel = self._registry.find(name)
        if tunnel is None:
            if not self.owned(name):
                raise _unknown(name)
            tunnel = self._registry.claim(name, self._since)
        return tunnel

    def _begin(self, connection: ServerConnection, exchange: Exchange, grant: Grant | None) -> None:
        """A request goes under way."""
        self.guard.enter(exchange.request_id, exchange.tunnel, exchange.client)
        self.exchanges[exchange.request_id] = exchange
        if grant is not None:
            exchange.grant = grant
            if grant.expires is not None:
                self.desk.enter(grant)
        self.budget.opened()
        connection.begin(exchange)
        exchange.start()

    def _back(
        self,
        connection: ServerConnection,
        asked: Headers,
        tunnel: Tunnel,
        path: str,
        client: str,
        cookies: list[str],
        grant: Grant | None,
    ) -> bool:
        """Let a visitor that comes back go on with the event stream that it left."""
        found = self.replays.find(tunnel.name, path, asked, cookies)
        if found is None:
            return False
        recording, missed = found
        if grant is not None:
            recording.exchange.grant = grant
            if grant.expires is not None:
                self.desk.enter(grant)
        recording.exchange.come_back(connection, client, get(asked, "last-event-id") or "", missed)
        return True

    def _stopped(self, connection: ServerConnection, asked: Headers, tunnel: str, path: str, client: str) -> bool:
        """Answer 204 to a client whose event stream an operator ended."""
        found = self.stops.find(stop_key(tunnel, path, client, asked), monotonic())
        if found is None:
            return False
        connection.send_head(204, [*found, ("X-Tunnel-Request-Id", self.new_id()), ("Date", date())], length=None)
        connection.finish([])
        return True

    # -- answers -----------------------------------------------------------------------------------------

    def answer(
        self,
        connection: ServerConnection,
        error: VisitorError,
        request_id: str,
        asked: Headers,
        extra: Headers | None = None,
    ) -> None:
        """Answer the request under way with a problem."""
        self.guard.hits.refused(error)
        self.answer_whole(connection, *problem(error, request_id, asked, extra=extra))

    def answer_text(self, connection: ServerConnection, status: int, text: str, extra: Headers | None = None) -> None:
        """Answer the request under way with a few words."""
        headers: Headers = [
            ("Content-Type", "text/plain; charset=utf-8"),
            ("Cache-Control", "no-store"),
            ("X-Tunnel-Request-Id", self.new_id()),
            *(extra or ()),
        ]
        self.answer_whole(connection, status, headers, text.encode())

    def answer_whole(self, connection: ServerConnection, status: int, headers: Headers, body: bytes) -> None:
        """Answer the request under way; its length and the date are added to `headers`."""
        headers = [pair for pair in headers if pair[0] != "Content-Length"]
        headers += [("Content-Length", str(len(body))), ("Date", date())]
        connection.send_head(status, headers, length=len(body))
        if body and connection.has_body:
            connection.send(body)
        connection.finish([])

    # -- exchanges ---------------------------------------------------------------------------------------

    @property
    def totals(self) -> Totals:
        """Sums since the start, what is under way included."""
        live = self.exchanges.values()
        return Totals(
            self._ended.streams + len(live),
            self._ended.bytes_in + sum(exchange.bytes_in for exchange in live),
            self._ended.bytes_out + sum(exchange.bytes_out for exchange in live),
            self._ended.events + sum(exchange.events for exchange in live),
        )

    def forget(self, exchange: Visit) -> None:
        """An exchange is over."""
        request_id = exchange.request_id
        self.guard.leave(request_id)
        if self.exchanges.pop(request_id, None) is None:
            return
        self.budget.closed()
        self.counts.over(exchange.kind, exchange.reason, monotonic() - exchange.started, request_id)
        if self.tracer is not None:
            tracing.end(self.tracer, exchange)
        for of in (self._ended, exchange.tunnel):
            of.streams += 1
            of.bytes_in += exchange.bytes_in
            of.bytes_out += exchange.bytes_out
        self._ended.events += exchange.events

    def holds(self, exchange: Visit, size: int) -> None:
        """`size` more bytes wait in a visitor's transport; over the limit, who stalls the longest must go."""
        self.budget.add(size)
        self.holders.add(exchange.crowded, slow=True)

    def released(self, exchange: Visit, size: int) -> None:
        """The visitor took `size` bytes, or left them."""
        self.budget.sub(size)
        self.holders.discard(exchange.crowded)

    async def close(self, grace: float) -> None:
        """End all: idle connections now, requests when they are done or after `grace` seconds (``shutdown``).

        WebSockets, which do not end by themselves, hold nothing up: they are told when no request is left.
        """
        self.draining = True
        self.replays.close()
        await self.desk.close()
        for connection in list(self.connections):
            connection.end_idle()
        await self.emptied(grace, hops=False)
        for exchange in list(self.exchanges.values()):
            exchange.cancel("shutdown")
        await self.emptied(1.0)
        for connection in list(self.connections):
            connection.abort()
        for hop in list(self.hops):
            hop.abort()
        await self.emptied(1.0)


def _unknown(name: str) -> VisitorError:
    return VisitorError("no_such_tunnel", f"No tunnel named {name[:63]!r} is known here.")
