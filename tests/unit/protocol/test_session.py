"""One session: what goes in which order, which ids are whose, and consumers that meddle while it works."""

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
from tunneld.errors import LocalError, RemoteError, VisitorError
from tunneld.protocol import frames
from tunneld.protocol.frames import DATA, END, HEAD, WINDOW
from tunneld.protocol.messages import Head, Open, Ping, Pong, StreamCancel, decode_text, encode
from tunneld.protocol.outgoing import MAX_TEXTS, TURN
from tunneld.protocol.session import BINARY, TEXT, Session
from tunneld.protocol.streams import MAX_INFORMATIONAL, Stream

WIDE = replace(SMALL, stream_window=1024 * 1024, stream_window_max=1024 * 1024, buffer=16 * 1024 * 1024)


# -- the order of what goes out ------------------------------------------------------------------------


def test_data_goes_in_turns_of_16_kib_while_several_have_some() -> None:
    joined = Joined(WIDE)
    for _, agent in opened(joined, 3):
        agent.send(100_000)
    said = [one for message in written_by(joined, "agent") for one in frames_of(message)]
    first = [stream_id for kind, stream_id, size in said[:9]]
    assert first == [1, 2, 3] * 3
    assert all(size <= TURN for _, _, size in said[:15])
    for number in (1, 2, 3):
        assert sum(size for _, stream_id, size in said if stream_id == number) == 100_000


def test_a_stream_alone_need_not_wait_for_its_next_turn() -> None:
    joined = Joined(WIDE)
    [(_, agent)] = opened(joined, 1)
    agent.send(200_000)
    said = written_by(joined, "agent")
    assert [frames_of(message) for message in said[:3]] == [[(DATA, 1, 65536)]] * 3


def test_messages_are_gathered_up_to_64_kib() -> None:
    joined = Joined(WIDE)
    pairs = opened(joined, 4)
    for _ in range(40):
        for _, agent in pairs:
            agent.send(3_000)
    said = written_by(joined, "agent")
    assert all(60_000 < len(payload) <= 66 * 1024 for _, payload in said[:-1])
    large = [("X", "y" * 1900)]
    for server, _ in pairs:
        assert server.stream is not None
        server.stream.cancel("visitor")
    assert len(written_by(joined, "server")) == 4
    for number in range(4):
        joined.server.open(Open(f"q{number}", "GET", "/", large), Meddler(), ended=True)
    assert len(written_by(joined, "server")) == 1


def test_no_message_is_larger_than_the_connection_allows() -> None:
    settings = replace(WIDE, max_streams=200, max_header=8 * 1024)
    session = Session(settings)
    epoch = session.attach(0, lambda: None)
    for number in range(200):
        session.open(Open(f"q{number}", "GET", "/", [("X", "y" * 15_000)]), Meddler(), ended=True)
    sizes = []
    while (message := session.next_message(epoch, 0.0)) is not None:
        sizes.append(len(b"".join(message[1])))
    assert 64 * 1024 <= max(sizes) <= frames.max_message(8 * 1024)


def test_heartbeats_then_cancels_then_control_then_credit_then_data() -> None:
    joined = Joined(SMALL)
    (one, one_agent), (two, two_agent), (three, three_agent) = opened(joined, 3)
    one.send(10_000)
    joined.settle()
    joined.settle()
    assert one_agent.received == 10_000
    two.send(5_000)
    joined.write("server")
    joined.deliver("agent")
    two_agent.take(5_000)
    two.send(6_000)
    joined.write("server")
    joined.deliver("agent")
    two_agent.take(6_000)  # credit is due
    one_agent.send(100)
    two_agent.finish()
    three_agent.cancel("service")
    joined.agent.say(Ping("now", 1))
    said = written_by(joined, "agent")
    assert [opcode for opcode, _ in said] == [TEXT, TEXT, BINARY]
    assert decode_text(said[0][1]) == Ping("now", 1)
    assert decode_text(said[1][1]) == StreamCancel("r3", "service")
    assert frames_of(said[2]) == [(END, 2, 0), (WINDOW, 2, 4), (DATA, 1, 100)]
    assert three.stream is not None


@pytest.mark.parametrize("grace", [0.0, 60.0])
def test_a_cancel_overtakes_data_and_drops_it(grace: float) -> None:
    joined = Joined(replace(WIDE, grace=grace))
    (_, one), (_, two) = opened(joined, 2)
    one.send(500_000)
    two.send(500_000)
    joined.write("agent")
    joined.cancel("agent", one, "operator")
    said = written_by(joined, "agent")[1:]
    assert decode_text(said[0][1]) == StreamCancel("r1", "operator")
    assert {stream_id for message in said[1:] for _, stream_id, _ in frames_of(message)} == {2}


def test_a_cancel_at_the_limit_makes_room_before_the_next_open() -> None:
    joined = Joined(SMALL)
    pairs = opened(joined, SMALL.max_streams, answered=False)
    joined.cancel("server", pairs[0][0], "visitor")
    newest = joined.open(ended=True)
    joined.settle()
    assert newest.reason is None
    assert (newest.request_id, "agent") in joined.sides


def test_a_stream_cancelled_before_it_was_handed_over_vanishes() -> None:
    joined = Joined(RESUMED)
    joined.cancel("server", joined.open(ended=False), "visitor")
    assert not joined.write("server")
    assert not kept(joined.server)
    newest = joined.open(ended=True)
    joined.settle()
    assert newest.stream is not None
    assert newest.stream.id == 2  # gaps are normal
    assert (newest.request_id, "agent") in joined.sides


# -- limits --------------------------------------------------------------------------------------------


def test_heads_over_the_limit_are_not_sent() -> None:
    joined = Joined(SMALL)
    large = [("X", "y" * 2 * SMALL.max_header)]
    with pytest.raises(VisitorError) as caught:
        joined.server.open(Open("r", "GET", "/", large), Meddler(), ended=True)
    assert (caught.value.code, caught.value.status) == ("head_too_large", 431)
    assert not kept(joined.server)
    for kind, payload in (
        (HEAD, encode(Head(200, large))),
        (END, encode(large)),
    ):
        joined = Joined(SMALL)
        opened(joined, 1, answered=kind == END)
        with pytest.raises(RemoteError, match="protocol_error"):
            receive(joined.server, frames.frame(kind, 1, payload))
    with pytest.raises(RemoteError, match="protocol_error"):
        receive(Joined(SMALL).agent, opening(1, headers=large))


@pytest.mark.parametrize("grace", [0.0, 60.0])
def test_too_many_streams(grace: float) -> None:
    joined = Joined(replace(SMALL, grace=grace))
    pairs = opened(joined, SMALL.max_streams)
    with pytest.raises(VisitorError) as caught:
        joined.open(ended=True)
    assert (caught.value.code, caught.value.status, caught.value.retry_after) == ("too_many_streams", 503, 1)
    joined.cancel("server", pairs[0][0], "visitor")
    assert joined.server.in_use == (SMALL.max_streams if grace else SMALL.max_streams - 1)
    joined.settle()  # acknowledged
    assert joined.server.in_use == SMALL.max_streams - 1
    joined.open(ended=True)


def test_an_agent_that_holds_more_refuses_and_the_session_stands() -> None:
    joined = Joined(SMALL, agent_streams=2)
    opened(joined, 2)
    refused = joined.open(ended=False)
    joined.settle()
    assert refused.reason == "refused"
    joined.agent.refuse_new()
    joined.cancel("server", joined.sides["r1", "server"], "visitor")
    also = joined.open(ended=False)
    joined.settle()
    assert also.reason == "refused"
    assert (also.request_id, "agent") not in joined.sides
    assert len(joined.agent.streams) == 1


def test_texts_for_a_peer_that_does_not_read_are_bounded() -> None:
    joined = Joined(SMALL)
    for number in range(MAX_TEXTS):
        joined.agent.say(Pong("now", number))
    with pytest.raises(RemoteError, match="does not read"):
        joined.agent.say(Pong("now", 0))
    joined.agent.detach()
    joined.agent.say(Ping("now", 1))  # nobody is there
    assert not kept(joined.agent)


# -- counting, epochs ----------------------------------------------------------------------------------


def test_input_and_output_of_another_epoch_are_ignored() -> None:
    joined = Joined(RESUMED)
    opened(joined, 2)
    old = joined.connection
    joined.write("server")
    joined.connect()
    before = joined.agent.counters, joined.agent._replay.received  # type: ignore[union-attr]
    epoch = old.epoch["agent"]
    joined.agent.receive(epoch, frames.frame(DATA, 1, b"x"), 0.0)
    joined.agent.receive(epoch, b"", 0.0)
    joined.agent.receive_cancel(epoch, StreamCancel("r1", "visitor"), 0.0)
    assert joined.agent.next_message(epoch, 0.0) is None
    assert (joined.agent.counters, joined.agent._replay.received) == before  # type: ignore[union-attr]
    assert len(joined.agent.streams) == 2


def test_what_was_not_acknowledged_goes_again_before_anything_new() -> None:
    joined = Joined(RESUMED)
    [(_, agent)] = opened(joined, 1)
    agent.send(1_000)
    joined.write("agent")
    agent.cancel("service")
    joined.write("agent")
    lost = list(joined.connection.to["server"])
    assert [opcode for opcode, _ in lost] == [BINARY, TEXT]
    joined.connect()
    assert written_by(joined, "agent")[:2] == lost


def test_a_resume_acknowledges_as_an_ack_does() -> None:
    joined = Joined(RESUMED)
    [(server, _)] = opened(joined, 1)
    joined.cancel("server", server, "visitor")
    joined.write("server")
    joined.deliver("agent")
    assert joined.server.in_use == 1
    joined.connect()
    assert joined.server.in_use == 0


def test_an_ack_goes_when_the_timer_fires_a_little_early() -> None:
    joined = Joined(RESUMED)
    joined.open(ended=True)
    joined.write("server")
    joined.deliver("agent")
    assert joined.agent.ack_at == 0.25
    assert not joined.write("agent")
    joined.now = 0.2495
    joined.agent.wake_for_ack()
    assert written_by(joined, "agent") == [(BINARY, frames.ack(1))]
    assert joined.agent.ack_at is None


def test_a_full_replay_buffer_holds_back_data_alone() -> None:
    joined = Joined(replace(WIDE, grace=60.0, buffer=64 * 1024))
    (_, one), (two, two_agent) = opened(joined, 2)
    one.send(300_000)
    written_by(joined, "agent")
    assert one.stream is not None
    assert one.stream.pending > 200_000
    two_agent.finish()
    two_agent_said = written_by(joined, "agent")
    assert [frames_of(message) for message in two_agent_said] == [[(END, 2, 0)]]
    woken = []
    joined.agent._outbox.wake = lambda: woken.append(1)
    joined.agent.receive(joined.agent.epoch, frames.ack(joined.agent.counters[1]), 0.0)
    assert woken == [1]
    assert sum(size for _, _, size in frames_of(written_by(joined, "agent")[0])) == 65536
    assert two.ends == 0


@pytest.mark.parametrize("grace", [0.0, 60.0])
def test_acks_that_cannot_be(grace: float) -> None:
    joined = Joined(replace(SMALL, grace=grace))
    joined.server.receive(joined.server.epoch, frames.ack(0), 0.0)
    for bad in (frames.ack(1), frames.ack(0) + b"x", b"\x07", b""):
        with pytest.raises(RemoteError, match="protocol_error"):
            joined.server.receive(joined.server.epoch, bad, 0.0)


def test_nothing_is_asked_of_a_session_that_has_ended() -> None:
    joined = Joined(RESUMED)
    [(server, agent)] = opened(joined, 1)
    server.send(10_000)
    for session in (joined.server, joined.agent):
        session.end("peer_lost")
        session.end("shutdown")
        assert session.ended
        assert not kept(session)
        with pytest.raises(LocalError):
            session.attach(0, lambda: None)
    assert server.reason == agent.reason == "peer_lost"
    with pytest.raises(VisitorError) as caught:
        joined.server.open(Open("r", "GET", "/", []), Meddler(), ended=True)
    assert caught.value.code == "tunnel_offline"


# -- memory of what is gone ----------------------------------------------------------------------------


@pytest.mark.parametrize("grace", [0.0, 60.0])
def test_streams_that_end_while_nobody_reads_leave_the_queues(grace: float) -> None:
    accepted: list[Stream] = []

    def accept(stream: Stream, request: Open, ended: bool) -> Meddler:
        accepted.append(stream)
        return Meddler()

    agent = Session(replace(SMALL, grace=grace), accept=accept)
    agent.attach(0, lambda: None)
    for number in range(1, 2000):
        receive(agent, opening(number), frames.frame(DATA, number, bytes(10_000)))
        stream = accepted.pop()
        stream.took(10_000)  # WINDOW waits
        for _ in range(MAX_INFORMATIONAL):
            stream.send_head(103, [])
        stream.send_head(200, [])
        stream.send(b"x" * 100)  # a turn waits
        agent.receive_cancel(agent.epoch, StreamCancel(f"x{number}", "visitor"), 0.0)
        assert kept(agent) - (len(agent._replay._messages) if agent._replay else 0) <= 40


def test_sweeping_loses_nothing_that_lives() -> None:
    joined = Joined(replace(WIDE, max_streams=64))
    pairs = opened(joined, 32)
    for server, agent in pairs:
        agent.send(10)
        agent.send(20)
        server.send(600_000 if server is pairs[0][0] else 10)
    for server, _ in pairs[::2]:
        joined.cancel("server", server, "visitor")
    joined.settle()
    for server, agent in pairs[1::2]:
        assert (server.received, agent.received) == (30, 10)
        server.finish()
        agent.finish()
    joined.settle()
    assert not kept(joined.server)
    assert not kept(joined.agent)
