"""Who is told to stop, and for how long."""

from __future__ import annotations

from tunneld.server.stops import StopList, stop_key

HEADERS = [("Authorization", "Bearer x"), ("cookie", "a=b"), ("Accept", "*/*")]


def test_a_client_is_told_for_a_while():
    stops = StopList(seconds=30)
    key = stop_key("demo", "/sse?x", "192.0.2.1", HEADERS)
    assert stops.find(key, 0.0) is None
    stops.add(key, [("Vary", "Origin")], 100.0)
    assert stops.find(key, 129.9) == [("Vary", "Origin")]
    assert stops.find(stop_key("demo", "/sse?x", "192.0.2.1", HEADERS[:2]), 129.9) is not None
    assert stops.find(key, 130.0) is None
    assert len(stops) == 0


def test_what_makes_another_client():
    key = stop_key("demo", "/sse", "192.0.2.1", HEADERS)
    others = {
        stop_key("demo2", "/sse", "192.0.2.1", HEADERS),
        stop_key("demo", "/sse?", "192.0.2.1", HEADERS),
        stop_key("demo", "/sse", "192.0.2.2", HEADERS),
        stop_key("demo", "/sse", "192.0.2.1", HEADERS[1:]),
        stop_key("demo", "/sse", "192.0.2.1", HEADERS[:1]),
        stop_key("demo", "/sse", "192.0.2.1", [*HEADERS, ("Cookie", "c=d")]),
        stop_key("dem", "o/sse", "192.0.2.1", HEADERS),
    }
    assert len(others) == 7
    assert key not in others
    assert b"Bearer" not in key


def test_the_list_is_bounded_and_a_second_stop_counts_anew():
    stops = StopList(seconds=30, most=2)
    for number, key in enumerate((b"a", b"b", b"a", b"c")):
        stops.add(key, [], float(number))
    assert len(stops) == 2
    assert stops.find(b"a", 31.0) == []
    assert stops.find(b"b", 5.0) is None
    assert stops.find(b"c", 32.5) == []
