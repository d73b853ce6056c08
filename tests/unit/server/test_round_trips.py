"""What the server counts of its tunnels' heartbeats."""

from __future__ import annotations

import pytest

from tunneld.config.common import QualityConfig
from tunneld.protocol.quality import Quality
from tunneld.server.round_trips import RoundTrips
from tunneld.wire.tcp_info import TcpInfo


def test_what_was_waiting_is_counted_apart_where_the_kernel_knows_the_connection() -> None:
    trips, quality = RoundTrips(), Quality(QualityConfig())
    trips.answered(quality, 1.0, 0.05, None, late=False)
    assert (trips.whole.count, trips.queued.count) == (1, 0)
    kernel = TcpInfo(0.05, 0.01, 0.04, 0, 0, 10, 0, 0, 0, 0)
    trips.answered(quality, 2.0, 0.24, kernel, late=False)
    trips.answered(quality, 3.0, 0.03, kernel, late=False)
    assert (trips.whole.count, trips.queued.count) == (3, 2)
    assert trips.queued.sum == pytest.approx(0.2)
    reading = quality.read(3.0, connected=True)
    assert (reading.pings, reading.last, reading.queued) == (3, 0.03, 0.0)
    trips.answered(quality, 4.0, 0.24, None, late=False)  # the tunnel's next connection is one that it does not know
    assert (trips.whole.count, trips.queued.count) == (4, 2)
    assert quality.read(4.0, connected=True).queued is None


def test_one_that_came_late_is_lost_to_the_tunnel_and_counted_here() -> None:
    trips, quality = RoundTrips(), Quality(QualityConfig())
    trips.answered(quality, 1.0, 30.0, None, late=True)
    assert trips.whole.count == 1
    assert quality.read(1.0, connected=True).lost == 1
