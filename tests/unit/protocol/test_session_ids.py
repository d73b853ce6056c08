"""Ids of streams: which may be opened, which are late, when one is free again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.support.sessions import (
    RESUMED,
    SMALL,
    Joined,
    Meddler,
    frames_of,
    kept,
    opened,
    opening,
    receive,
    written_by,
)
from tunneld.errors import LocalError, RemoteError
from tunneld.protocol import frames
from tunneld.protocol.frames import DATA, END, FIN, HEAD, STOP, WINDOW
from tunneld.protocol.messages import Head, Open, StreamCancel, encode


def test_frames_of_closed_streams_are_late_and_ignored() -> None:
    joined = Joined(SMALL)
    pairs = opened(joined, 2)
    for server, _ in pairs:
        joined.cancel("server", server, "visitor")
    for kind, payload in ((HEAD, b"?"), (DATA, b"x"), (END, b"?"), (STOP, b"?"), (WINDOW, b"?"), (0x45 | FIN, b"x")):
        receive(joined.server, frames.frame(kind, 1, payload), frames.frame(kind, 2, payload))
    receive(joined.server, frames.frame(0x45, 3000, b"x"))
    assert not joined.server.streams


@pytest.mark.parametrize("who", ["server", "agent"])
@pytest.mark.parametrize("stream_id", [0, 3, 2**31])
def test_frames_of_streams_that_never_were(who: str, stream_id: int) -> None:
    joined = Joined(SMALL)
    opened(joined, 2)
    session = joined.session(who)
    with pytest.raises(RemoteError) as caught:
        receive(session, frames.frame(DATA, stream_id, b"x"))
    assert caught.value.code == "unknown_stream"


@pytest.mark.parametrize("stream_id", [0, 1, 2, 2**31 + 2, 2**32 - 1])
def test_opens_whose_id_is_not_above_the_highest(stream_id: int) -> None:
    joined = Joined(SMALL)
    opened(joined, 2)
    with pytest.raises(RemoteError, match="protocol_error"):
        receive(joined.agent, opening(stream_id))


def test_ids_wrap_and_skip_those_in_use() -> None:
    joined = Joined(RESUMED, high=2**32 - 2)
    (first, _), (second, _) = opened(joined, 2)
    assert first.stream is not None
    assert second.stream is not None
    assert (first.stream.id, second.stream.id) == (2**32 - 1, 1)
    joined.cancel("server", second, "visitor")
    joined.server._high = 0
    third = joined.open(ended=True)
    assert third.stream is not None
    assert third.stream.id == 2  # the cancel of 1 is not acknowledged
    receive(joined.server, frames.frame(DATA, 2**32 - 100, b"x"))  # late: below the highest across the wrap
    with pytest.raises(RemoteError, match="unknown_stream"):
        receive(joined.server, frames.frame(DATA, 3, b"x"))


def test_after_half_of_all_ids_any_free_one_may_be_opened_and_any_other_frame_is_late() -> None:
    joined = Joined(SMALL)
    opened(joined, 1)
    joined.agent._passed = joined.server._passed = 2**31
    receive(joined.server, frames.frame(DATA, 77, b"x"))
    receive(joined.agent, frames.frame(DATA, 77, b"x"), opening(77))
    assert 77 in joined.agent.streams
    with pytest.raises(RemoteError, match="in use"):
        receive(joined.agent, opening(77))


def test_gaps_count_towards_that_half_on_both_sides() -> None:
    joined = Joined(SMALL)
    joined.server._high = 2**30
    joined.server._passed = 2**30
    opened(joined, 1)
    assert joined.agent._passed == joined.server._passed == 2**30 + 1


def test_opens_that_may_not_be() -> None:
    joined = Joined(SMALL)
    opened(joined, 1)
    with pytest.raises(RemoteError, match="from the agent"):
        receive(joined.server, opening(2))
    with pytest.raises(RemoteError, match="live stream"):
        receive(joined.agent, opening(2, request_id="r1"))
    with pytest.raises(RemoteError, match="in use"):
        receive(joined.agent, opening(1))
    with pytest.raises(RemoteError, match="from the server"):
        receive(joined.agent, frames.frame(HEAD, 1, encode(Head(200, []))))
    with pytest.raises(RemoteError, match="STOP with a payload"):
        receive(joined.agent, frames.frame(STOP, 1, b"x"))
    with pytest.raises(LocalError, match="live stream"):
        joined.server.open(Open("r1", "GET", "/", []), Meddler(), ended=True)


def test_an_id_is_free_once_both_ends_are_in() -> None:
    joined = Joined(RESUMED)
    [(server, agent)] = opened(joined, 1)
    server.finish()
    agent.finish()
    joined.write("server")
    joined.deliver("agent")
    assert 1 not in joined.agent.streams
    assert 1 in joined.server.streams
    joined.settle()
    assert not kept(joined.server)


def test_both_sides_cancel_at_once() -> None:
    joined = Joined(RESUMED)
    [(server, agent)] = opened(joined, 1)
    joined.cancel("server", server, "visitor")
    joined.cancel("agent", agent, "service")
    joined.write("server")
    joined.write("agent")
    joined.deliver("server")
    assert joined.server.in_use == 1  # its own cancel is not acknowledged
    joined.settle()
    assert not kept(joined.server)
    assert not kept(joined.agent)


def test_an_ack_of_something_earlier_frees_no_id() -> None:
    joined = Joined(RESUMED)
    (one, _), (two, _) = opened(joined, 2)
    before = joined.server.counters[1]
    joined.cancel("server", one, "visitor")
    joined.write("server")
    joined.cancel("server", two, "visitor")  # not even handed over
    joined.server.receive(joined.server.epoch, frames.ack(before), 0.0)
    assert joined.server.in_use == 2
    joined.server.receive(joined.server.epoch, frames.ack(before + 1), 0.0)
    assert joined.server.in_use == 1
    joined.write("server")
    joined.server.receive(joined.server.epoch, frames.ack(before + 2), 0.0)
    assert joined.server.in_use == 0


def test_no_credit_goes_back_for_a_direction_that_was_stopped_or_has_ended() -> None:
    joined = Joined(SMALL)
    (one, one_agent), (two, two_agent) = opened(joined, 2)
    for agent in (one_agent, two_agent):
        agent.send(10_000)
    joined.write("agent")
    joined.deliver("server")
    one.take(10_000)
    one.stop()
    two.take(10_000)
    two_agent.finish()
    joined.write("agent")
    joined.deliver("server")
    assert [frames_of(message) for message in written_by(joined, "server")] == [[(STOP, 1, 0)]]


def test_a_source_whose_last_bytes_used_up_its_credit_goes_on_with_the_next() -> None:
    joined = Joined(replace(SMALL, stream_window=64 * 1024))
    [(server, agent)] = opened(joined, 1)
    agent.send(64 * 1024)
    assert agent.blocked
    joined.write("agent")
    joined.deliver("server")
    assert agent.stream is not None
    assert agent.stream.pending == 0
    assert agent.blocked
    server.take(64 * 1024)
    joined.write("server")
    joined.deliver("agent")
    assert not agent.blocked


def test_a_cancel_with_an_unknown_reason_is_the_services() -> None:
    joined = Joined(SMALL)
    [(server, _)] = opened(joined, 1)
    joined.server.receive_cancel(joined.server.epoch, StreamCancel("r1", "weather"), 0.0)
    assert server.reason == "service"
    joined.server.receive_cancel(joined.server.epoch, StreamCancel("r1", "visitor"), 0.0)
    assert server.reason == "service"
