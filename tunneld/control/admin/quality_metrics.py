"""How good the connections of a server's tunnels are, as Prometheus's metric families.

No label is a tunnel's name: of the figures that each tunnel has, the middle one and the worst are told, over those that
are connected; where there is one tunnel both are its own. Counts are sums.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from time import monotonic, time

from tunneld.protocol.grades import CAUSES, GRADES, cause_of
from tunneld.protocol.quality import Reading
from tunneld.server.carriers import Seen
from tunneld.server.registry import Tunnel
from tunneld.telemetry import causes as service
from tunneld.telemetry.exposition import KERNEL_TUNNELS, Family, gauge
from tunneld.wire.tcp_info import TcpInfo

__all__ = ["quality_families"]

_LOOK = 16  # tunnels between two turns of the loop


@dataclass(slots=True)
class _Found:
    """What a look at every tunnel found."""

    grades: Counter[str | None] = field(default_factory=Counter)
    causes: Counter[str | None] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    connected: list[Reading] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)


def quality_families(tunnels: list[Tunnel]) -> Iterator[Family | None]:
    """The families; None between some tunnels: see `render`."""
    found, now = _Found(), monotonic()
    asked = len(tunnels) <= KERNEL_TUNNELS
    for number, tunnel in enumerate(tunnels, 1):
        _look(tunnel, now, found, asked=asked)
        if number % _LOOK == 0:
            yield None
    yield gauge("tunneld_connection_grade", "Tunnels by the grade of their connection.", ("grade",), [
        ((grade,), found.grades[grade]) for grade in GRADES
    ])  # fmt: skip
    yield gauge(
        "tunneld_connection_grade_cause", "Tunnels below excellent, by what their grade is no better for.", ("cause",),
        [((cause,), found.causes[cause]) for cause in CAUSES],
    )  # fmt: skip
    yield gauge("tunneld_service_fault", "Tunnels whose service fails, by why.", ("cause",), [
        ((cause,), found.faults[cause]) for cause in service.CAUSES
    ])  # fmt: skip
    yield from _of_readings(found.connected)
    if asked:
        yield from _of_connections(found.seen)


def _look(tunnel: Tunnel, now: float, found: _Found, *, asked: bool) -> None:
    reading = tunnel.read_quality(now)
    found.grades[reading.grade] += 1
    if reading.reason:
        found.causes[cause_of(reading.reason)] += 1
    if tunnel.online and tunnel.connection is not None:
        found.connected.append(reading)
        if asked:
            found.seen.append(tunnel.connection.seen(now))
        if tunnel.proof.fault is not None:
            found.faults[service.cause_of(tunnel.proof.fault)] += 1


def _of_readings(readings: list[Reading]) -> Iterator[Family]:
    def of(value: Callable[[Reading], float | None]) -> list[float]:
        return [one for one in map(value, readings) if one is not None]

    trips = (
        ("last", of(lambda each: each.last)),
        ("p50", of(lambda each: each.p50)),
        ("p95", of(lambda each: each.p95)),
    )
    yield gauge(
        "tunneld_known_heartbeat_rtt_seconds", "Round trips of tunnels' windows, and the last, over tunnels.",
        ("stat", "tunnels"), [((stat, *labels), value) for stat, all_ in trips for labels, value in _over(all_)],
    )  # fmt: skip
    for name, help_, values in (
        ("heartbeat_jitter_seconds", "RFC 3550's estimate, over tunnels.", of(lambda each: each.jitter)),
        (
            "heartbeat_queue_seconds",
            "The last round trip beyond the shortest that the kernel saw, over tunnels.",
            of(lambda each: each.queued),
        ),
        (
            "connection_loss_ratio",
            "Share of pings lost, or of segments sent again, over tunnels.",
            of(lambda each: each.loss),
        ),
    ):
        yield gauge(f"tunneld_known_{name}", help_, ("tunnels",), _over(values))


def _of_connections(seen: list[Seen]) -> Iterator[Family]:
    kernels: list[TcpInfo] = [each.kernel for each in seen if each.kernel is not None]
    trips = (("smoothed", [each.rtt for each in kernels]), ("least", [each.least_rtt for each in kernels]))
    yield gauge(
        "tunneld_known_connection_rtt_seconds",
        "The kernel's round trip, smoothed, and the least of late, over tunnels; of servers with up to 256.",
        ("stat", "tunnels"), [((stat, *labels), value) for stat, all_ in trips for labels, value in _over(all_)],
    )  # fmt: skip
    for name, help_, total in (
        ("segments", "Segments sent on connections that stand.", sum(each.segments for each in kernels)),
        ("retransmitted_segments", "Of these, sent again.", sum(each.retransmitted for each in kernels)),
    ):
        yield gauge(f"tunneld_known_connection_{name}", help_, (), [((), total)])
    yield gauge(
        "tunneld_known_connection_delivery_bytes_per_second",
        "What agents acknowledged lately, over tunnels of which that is known.", ("tunnels",),
        _over([each.delivery_rate for each in kernels if each.delivery_rate], worst=min),
    )  # fmt: skip
    at = time()
    yield gauge(
        "tunneld_known_connection_last_byte_timestamp_seconds", "When the last byte came, over tunnels.", ("tunnels",),
        _over([round(at - each.last_heard_s, 3) for each in seen], worst=min),
    )  # fmt: skip


def _over(
    values: list[float], *, worst: Callable[[Iterable[float]], float] = max
) -> list[tuple[tuple[str, ...], float]]:
    """Rows of the middle one and of the worst; none without any."""
    if not values:
        return []
    return [(("median",), sorted(values)[(len(values) - 1) // 2]), (("worst",), worst(values))]
