"""Who serves what: the names that this server knows, and the session behind each. Pure: the time is passed in.

A name is known from its first session until it is pushed out by newer names; `limits.max_tunnels` bounds how many.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from tunneld.errors import VisitorError
from tunneld.protocol.grades import NOT_CONNECTED, Thresholds
from tunneld.protocol.messages import HeartbeatSettings, Open, SseSettings
from tunneld.protocol.quality import Quality, Reading
from tunneld.protocol.resume import Kept
from tunneld.protocol.session import Session
from tunneld.protocol.sinks import Sink
from tunneld.server.carriers import Carried, Carrier, Connection, Recovering
from tunneld.server.conflicts import Conflicts
from tunneld.server.pacing import Paced
from tunneld.server.principals import OPEN, Principal
from tunneld.server.probing import Proof
from tunneld.server.round_trips import RoundTrips
from tunneld.server.visitors.rules import OPEN_RULES, Rules
from tunneld.telemetry.flow import Flow
from tunneld.telemetry.metrics import LATENCY, Histogram
from tunneld.telemetry.outages import Outages

__all__ = ["Registry", "SessionDirectory", "Tunnel"]

#: Agent processes whose last dial is remembered for one name.
_MAX_INSTANCES = 16


class Tunnel:
    """One known name.

    Attributes:
        name: the tunnel's id, a DNS label.
        offline_since: monotonic seconds; meaningful while not `online`.
        sse: what holds for events now.
        heartbeat: what holds for the heartbeat now.
        keepalive_changed: called when `keepalive` changes live.
        public_url: the ``/t/`` form, without a slash at its end.
        host_url: the form by host; None without a domain.
        max_waiting: requests that may wait for the name to come back.
        kept: the session, connected or waiting for its agent; None when there is none.
        expired: id of the last session that waited in vain.
        conflicts: who took the name from whom.
        outages: times without a connection, and what they cost.
        flow: its throughput; the daemon samples it.
        away: why no connection stands, where none does, in words.
        quality: of its connections.
        proof: what the probes through it found.
        grace: the server's `resume.grace`, seconds.
        max_streams: what the session carries at most.
        connects: connections that have served it.
        streams: requests that are over.
        bytes_in: of their bodies.
        bytes_out: of their answers' bodies.
        principal: who serves the name, or did last; its limits hold over all its tunnels.
        pace: says what a stream's bytes are to pass through; None: nothing bounds them.
        access: who may visit.
        access_changed: told when other rules hold.
        lost_at: monotonic seconds at which the last session that ended lost its connection.
        recover_until: monotonic seconds until which its event streams may go on in another session.
        recovering: event streams that wait for one; admitted long ago, so `max_waiting` does not hold them.
    """

    __slots__ = (
        "_dials",
        "_session",
        "_waiting",
        "access",
        "access_changed",
        "away",
        "bytes_in",
        "bytes_out",
        "conflicts",
        "connection",
        "connects",
        "expired",
        "flow",
        "grace",
        "heartbeat",
        "host_url",
        "keepalive_changed",
        "kept",
        "lost_at",
        "max_streams",
        "max_waiting",
        "name",
        "offline_since",
        "outages",
        "pace",
        "principal",
        "proof",
        "public_url",
        "quality",
        "recover_until",
        "recovering",
        "sse",
        "streams",
    )

    def __init__(
        self,
        name: str,
        *,
        now: float,
        public_url: str,
        host_url: str | None,
        max_waiting: int,
        thresholds: Thresholds,
    ) -> None:
        self.name = name
        self.quality = Quality(thresholds)
        self.public_url = public_url
        self.host_url = host_url
        self.offline_since = now
        self.sse = SseSettings()
        self.heartbeat = HeartbeatSettings(30.0, 10.0)
        self.keepalive_changed: set[Callable[[], None]] = set()
        self.connection: Connection | None = None
        self.kept: Kept | None = None
        self.expired: str | None = None
        self.conflicts = Conflicts()
        self.proof = Proof()
        self.outages = Outages()
        self.flow = Flow()
        self.away = NOT_CONNECTED
        self.grace = 0.0
        self.connects = 0
        self.streams = self.bytes_in = self.bytes_out = 0
        self.max_streams = 1
        self.principal: Principal = OPEN
        self.pace: Callable[[Tunnel, str, Sink], Paced | None] | None = None
        self.access: Rules = OPEN_RULES
        self.access_changed: Callable[[Tunnel], None] = lambda tunnel: None
        self.lost_at = self.recover_until = now
        self.recovering: dict[Recovering, None] = {}
        self._session: Carrier | None = None
        self._waiting: dict[Callable[[], None], None] = {}
        self.max_waiting = max_waiting
        self._dials: dict[str, int] = {}

    @property
    def online(self) -> bool:
        """A session stands that takes new streams."""
        return self._session is not None

    @property
    def idle(self) -> bool:
        """Nobody serves the name and nobody waits for it."""
        return self.connection is None and not self._waiting and not self.recovering

    @property
    def websockets(self) -> bool:
        """What serves the name carries WebSockets of visitors: the older dialect does not."""
        return isinstance(self._session, Session)

    @property
    def keepalive(self) -> float:
        """Seconds of quiet after which an SSE stream gets a comment; 0 is off."""
        return self.sse.keepalive

    @property
    def identity(self) -> bool:
        """Whether requests for events lose their Accept-Encoding."""
        return self.sse.identity

    @property
    def max_event(self) -> int:
        """Bytes of a partial event that may be held."""
        return self.sse.max_event

    def open(self, request: Open, sink: Sink, *, ended: bool) -> Carried:
        """Open a stream; raises VisitorError (``tunnel_offline``, ``too_many_streams``, ``head_too_large``)."""
        if self._session is None:
            raise VisitorError("tunnel_offline", f"The tunnel {self.name} is not connected.", retry_after=5)
        paced = self.pace(self, request.client, sink) if self.pace is not None else None
        if paced is None:
            return self._session.open(request, sink, ended=ended)
        paced.carried = self._session.open(request, paced, ended=ended)
        return paced

    def read_quality(self, now: float) -> Reading:
        """How good its connection is (`now`: monotonic seconds); one that takes no new streams stands all the same."""
        lost = self.kept is not None and self.kept.lost_at is not None
        return self.quality.read(now, connected=self.connection is not None and not lost, why=self.away)

    @property
    def waiting(self) -> int:
        """Requests that wait for it to come back, of `max_waiting`."""
        return len(self._waiting)

    def wait(self, waiter: Callable[[], None]) -> None:
        """Call `waiter` once when the tunnel is online again; raises VisitorError ``too_many_waiting``."""
        if len(self._waiting) >= self.max_waiting:
            raise VisitorError(
                "too_many_waiting", f"{len(self._waiting)} requests wait for {self.name} already.", retry_after=5
            )
        self._waiting[waiter] = None

    def unwait(self, waiter: Callable[[], None]) -> None:
        """Wait no longer."""
        self._waiting.pop(waiter, None)

    def newest_dial(self, instance: str, dial: int) -> bool:
        """Note a hello's dial number; False when one of the same process was not below it (PROTOCOL.md, stale)."""
        last = self._dials.pop(instance, -1)
        self._dials[instance] = max(last, dial)
        if len(self._dials) > _MAX_INSTANCES:
            del self._dials[next(iter(self._dials))]
        return dial > last

    def take(self, connection: Connection, *, resumed: bool) -> None:
        """This connection serves the name from now on; the one before it is told that it was replaced."""
        before, self.connection = self.connection, connection
        self.connects += 1
        self.away = NOT_CONNECTED
        self._session = None
        if before is not None:
            before.replaced(resumed=resumed)

    def serve(self, session: Carrier, heartbeat: HeartbeatSettings, sse: SseSettings) -> None:
        """Take new streams on this session, those that waited first."""
        self._session = session
        self.max_streams = session.max_streams
        self.retune(heartbeat, sse)
        recovering, self.recovering = self.recovering, {}
        for stream in recovering:
            stream.back()
        waiting, self._waiting = self._waiting, {}
        for waiter in waiting:
            waiter()

    def protect(self, rules: Rules) -> None:
        """Let other rules hold for visitors, those that are there already too."""
        before, self.access = self.access, rules
        if not (before.free and rules.free):
            self.access_changed(self)

    def lose(self, lost_at: float, *, for_good: bool) -> None:
        """A session is about to end: whether its event streams may go on in another, and how long they wait."""
        self.lost_at = lost_at
        self.recover_until = lost_at if for_good else lost_at + self.grace
        if for_good:
            recovering, self.recovering = self.recovering, {}
            for stream in recovering:
                stream.forsaken()

    def retune(self, heartbeat: HeartbeatSettings, sse: SseSettings) -> None:
        """Values that a live reload changed."""
        changed = sse.keepalive != self.sse.keepalive
        self.heartbeat, self.sse = heartbeat, sse
        if changed:
            for tell in list(self.keepalive_changed):
                tell()

    def hold(self, now: float) -> None:
        """Take no new streams for now (the agent says goaway); those that are open go on."""
        if self._session is not None:
            self._session = None
            self.offline_since = now

    def leave(self, connection: Connection, now: float) -> bool:
        """The connection is gone; False when a newer one serves already."""
        if self.connection is not connection:
            return False
        self.connection = None
        self.hold(now)
        return True


class SessionDirectory(Protocol):
    """Where the sessions are: what the server's other parts ask of a `Registry`.

    A server of several nodes answers these from elsewhere, with a `Tunnel` whose requests go to the node that has it.

    Attributes:
        round_trips: of the heartbeats of all its tunnels.
        probes: seconds of the probes that came back.
        cancels: seconds from each cancel to the agent's ACK of it.
        pace: given to each tunnel that is made known: what its streams' bytes are to pass through.
        access_changed: given to each tunnel that is made known: told when other rules hold for its visitors.
    """

    round_trips: RoundTrips
    probes: Histogram
    cancels: Histogram
    pace: Callable[[Tunnel, str, Sink], Paced | None] | None
    access_changed: Callable[[Tunnel], None]

    def find(self, name: str) -> Tunnel | None:
        """The tunnel of that name, if one is known, connected or not."""

    def all(self) -> list[Tunnel]:
        """Every known tunnel."""

    def check_room(self, name: str) -> None:
        """Raise VisitorError ``too_many_tunnels`` when there is none for a new name."""

    def check_owner(self, name: str, owner: str) -> None:
        """Raise VisitorError ``name_taken`` while a session of another owner's has the name."""

    def claim(self, name: str, now: float) -> Tunnel:
        """The tunnel of that name, made known if it is new; raises as `check_room`."""


class Registry:
    """The `SessionDirectory` of one process: the names of one server.

    Args:
        max_tunnels: names known at one time.
        max_waiting: requests that may wait for one name to come back.
        urls: name -> (public_url, host_url).
        quality: thresholds of the grades of connections.
    """

    def __init__(
        self,
        *,
        max_tunnels: int,
        max_waiting: int,
        urls: Callable[[str], tuple[str, str | None]],
        quality: Thresholds,
    ) -> None:
        #: Of all heartbeats.
        self.round_trips = RoundTrips()
        #: Probes that came back.
        self.probes = Histogram(LATENCY)
        #: Cancels of streams, until the agent had them.
        self.cancels = Histogram(LATENCY)
        self._quality = quality
        self._max_tunnels = max_tunnels
        self._max_waiting = max_waiting
        self._urls = urls
        self._tunnels: dict[str, Tunnel] = {}
        #: Given to every tunnel that is made from then on; see there.
        self.pace: Callable[[Tunnel, str, Sink], Paced | None] | None = None
        self.access_changed: Callable[[Tunnel], None] = lambda tunnel: None

    def configure(self, *, max_tunnels: int, max_waiting: int, quality: Thresholds) -> None:
        """Let other bounds hold from now on; names that are known already stay."""
        self._max_tunnels = max_tunnels
        self._max_waiting = max_waiting
        self._quality = quality
        for tunnel in self._tunnels.values():
            tunnel.max_waiting = max_waiting
            tunnel.quality.thresholds = quality

    def __len__(self) -> int:
        return len(self._tunnels)

    def find(self, name: str) -> Tunnel | None:
        """The tunnel of that name, if one is known, connected or not."""
        return self._tunnels.get(name)

    def all(self) -> list[Tunnel]:
        """Every known tunnel."""
        return list(self._tunnels.values())

    def check_room(self, name: str) -> None:
        """Raise VisitorError ``too_many_tunnels`` when `name` is new and every place is taken by one in use."""
        if name not in self._tunnels and len(self._tunnels) >= self._max_tunnels and self._oldest_idle() is None:
            raise VisitorError(
                "too_many_tunnels", f"This server holds {len(self._tunnels)} tunnels, the most it may.", retry_after=30
            )

    def check_owner(self, name: str, owner: str) -> None:
        """Raise VisitorError ``name_taken`` while a session or a connection of another owner's has the name."""
        tunnel = self._tunnels.get(name)
        if tunnel is None or (tunnel.kept is None and tunnel.connection is None):
            return
        if (tunnel.kept.owner if tunnel.kept is not None else tunnel.principal.id) != owner:
            raise VisitorError("name_taken", f"Another owner holds the name {name}.")

    def claim(self, name: str, now: float) -> Tunnel:
        """The tunnel of that name, made known if it is new; raises as `check_room`."""
        tunnel = self._tunnels.get(name)
        if tunnel is not None:
            return tunnel
        self.check_room(name)
        if len(self._tunnels) >= self._max_tunnels and (oldest := self._oldest_idle()) is not None:
            del self._tunnels[oldest.name]
        public_url, host_url = self._urls(name)
        tunnel = Tunnel(
            name,
            now=now,
            public_url=public_url,
            host_url=host_url,
            max_waiting=self._max_waiting,
            thresholds=self._quality,
        )
        tunnel.pace = self.pace
        tunnel.access_changed = self.access_changed
        self._tunnels[name] = tunnel
        return tunnel

    def _oldest_idle(self) -> Tunnel | None:
        idle = (tunnel for tunnel in self._tunnels.values() if tunnel.idle)
        return min(idle, key=lambda tunnel: tunnel.offline_since, default=None)
