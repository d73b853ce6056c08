"""Outages, by an injected clock."""

from __future__ import annotations

from tunneld.telemetry.outages import Outage, Outages


def test_an_outage_that_is_resumed() -> None:
    outages = Outages()
    outages.begin(10.0, 0.5)
    outages.begin(11.0, 1.5)  # lost is lost
    assert (outages.count, outages.since, outages.last) == (1, 10.0, None)
    told = outages.resumed(12.5, 4096)
    assert told == outages.last == Outage("1970-01-01T00:00:00.500Z", 2.5, True, 4096, 0)
    assert (outages.count, outages.seconds, outages.replayed_bytes, outages.since) == (1, 2.5, 4096, None)


def test_the_silence_before_it_was_noticed_belongs_to_it() -> None:
    outages = Outages()
    outages.begin(50.0, 100.0, 40.0)
    assert outages.since == 10.0
    assert outages.resumed(50.5, 0) == Outage("1970-01-01T00:01:00.000Z", 40.5, True, 0, 0)


def test_an_outage_that_outlasts_the_session() -> None:
    outages = Outages()
    outages.begin(0.0, 0.0)
    assert outages.lost(60.0, 7) == Outage("1970-01-01T00:00:00.000Z", 60.0, False, 0, 7)
    assert (outages.streams_lost, outages.replayed_bytes) == (7, 0)


def test_what_is_no_outage_still_counts_what_it_cost() -> None:
    outages = Outages()
    assert outages.resumed(1.0, 100) is None  # taken over by a newer connection
    assert outages.lost(2.0, 3) is None  # the peer broke the protocol
    assert (outages.count, outages.replayed_bytes, outages.streams_lost, outages.last) == (0, 100, 3, None)


def test_of_many_outages_the_newest_are_kept_and_all_are_summed() -> None:
    outages = Outages()
    for number in range(100):
        outages.begin(10.0 * number, 0.0)
        outages.resumed(10.0 * number + 1, 0)
    assert (outages.count, outages.over, outages.seconds, outages.resumes) == (100, 100, 100.0, 100)
    assert len(outages.recent) == 8
    assert outages.recent[-1] is outages.last
