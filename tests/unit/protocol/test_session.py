"""One session: what goes in which order, which ids are whose, and consumers that meddle while it works."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.support.sessions import SMALL, Joined, Side, kept
from tunneld.errors import LocalError, RemoteError, VisitorError
from tunneld.protocol import frames
from tunneld.protocol.frames import DATA, END, FIN, HEAD, OPEN, STOP, WINDOW
from tunneld.protocol.messages import Head, Open, Ping, Pong, StreamCancel, decode_text, encode
from tunneld.protocol.outgoing import MAX_TEXTS, TURN
from tunneld.protocol.session import BINARY, TEXT, Session
from tunneld.protocol.streams import MAX_INFORMATIONAL, Stream

RESUMED = replace(SMALL, grace=60.0)
WIDE = replace(SMALL, stream_window=1024 * 1024, stream_window_max=1024 * 1024, buffer=16 * 1024 * 1024)


class Meddler:
    """A consumer that does what it is told inside a callback."""

    def __init__(self, **doings: Callable[[], None]) -> None:
        self.doings = doings
        self.calls: list[str] = []

    def _do(self, call: str) -> None:
        self.calls.append(call)
        self.doings.pop(call, lambda: None)()

    def head(self, status: int, headers: list[tuple[str, str]]) -> None:
        self._do("head")

    def data(self, data: bytes) -> None:
        self._do("data")

    def end(self, trailers: list[tuple[str, str]]) -> None:
        self._do("end")

    def stopped(self) -> None:
        self._do("stopped")

    def cancelled(self, reason: str) -> None:
        self._do("cancelled")

    def writable(self) -> None:
        self._do("writable")


def _open(joined: Joined, count: int, *, answered: bool = True) -> list[tuple[Side, Side]]:
    pairs = []
    for _ in range(count):
        server = joined.open(ended=False)
        joined.settle()
        agent = joined.sides[server.request_id, "agent"]
        if answered:
            agent.answer(200)
        pairs.append((server, agent))
    joined.settle()
    return pairs


def _written(joined: Joined, who: str) -> list[tuple[int, bytes]]:
    """All that this side has to say now; none of it arrives."""
    while joined.write(who):
        pass
    queue = joined.connection.to["agent" if who == "server" else "server"]
    said = list(queue)
    queue.clear()
    return said


def _frames(message: tuple[int, bytes]) -> list[tuple[int, int, int]]:
    """(type, id, length) of each frame."""
    assert message[0] == BINARY
    return [(kind, stream_id, len(payload)) for kind, stream_id, payload in frames.split(message[1])]


def _receive(session: Session, *parts: bytes) -> None:
    session.receive(session.epoch, b"".join(parts), 0.0)


def _opening(number: int, **changes: object) -> bytes:
    fields = {"request_id": f"x{number}", "method": "GET", "path": "/", "headers": [], **changes}
    return frames.frame(OPEN, number, encode(Open(**fields)))  # type: ignore[arg-type]


# -- the order of what goes out


def test_data_goes_in_turns_of_16_kib_while_several_have_some() -> None:
    joined = Joined(WIDE)
    for _, agent in _open(joined, 3):
        agent.send(100_000)
    said = [one for message in _written(joined, "agent") for one in _frames(message)]
    first = [stream_id for kind, stream_id, size in said[:9]]
    assert first == [1, 2, 3] * 3
    assert all(size <= TURN for _, _, size in said[:15])
    for number in (1, 2, 3):
        assert sum(size for _, stream_id, size in said if stream_id == number) == 100_000


def test_a_stream_alone_need_not_wait_for_its_next_turn() -> None:
    joined = Joined(WIDE)
    [(_, agent)] = _open(joined, 1)
    agent.send(200_000)
    said = _written(joined, "agent")
    assert [_frames(message) for message in said[:3]] == [[(DATA, 1, 65536)]] * 3


def test_messages_are_gathered_up_to_64_kib() -> None:
    joined = Joined(WIDE)
    pairs = _open(joined, 4)
    for _ in range(40):
        for _, agent in pairs:
            agent.send(3_000)
    said = _written(joined, "agent")
    assert all(60_000 < len(payload) <= 66 * 1024 for _, payload in said[:-1])
    large = [("X", "y" * 1900)]
    for server, _ in pairs:
        assert server.stream is not None
        server.stream.cancel("visitor")
    assert len(_written(joined, "server")) == 4
    for number in range(4):
        joined.server.open(Open(f"q{number}", "GET", "/", large), Meddler(), ended=True)
    assert len(_written(joined, "server")) == 1


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
    (one, one_agent), (two, two_agent), (three, three_agent) = _open(joined, 3)
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
    said = _written(joined, "agent")
    assert [opcode for opcode, _ in said] == [TEXT, TEXT, BINARY]
    assert decode_text(said[0][1]) == Ping("now", 1)
    assert decode_text(said[1][1]) == StreamCancel("r3", "service")
    assert _frames(said[2]) == [(END, 2, 0), (WINDOW, 2, 4), (DATA, 1, 100)]
    assert three.stream is not None


@pytest.mark.parametrize("grace", [0.0, 60.0])
def test_a_cancel_overtakes_data_and_drops_it(grace: float) -> None:
    joined = Joined(replace(WIDE, grace=grace))
    (_, one), (_, two) = _open(joined, 2)
    one.send(500_000)
    two.send(500_000)
    joined.write("agent")
    joined.cancel("agent", one, "operator")
    said = _written(joined, "agent")[1:]
    assert decode_text(said[0][1]) == StreamCancel("r1", "operator")
    assert {stream_id for message in said[1:] for _, stream_id, _ in _frames(message)} == {2}


def test_a_cancel_at_the_limit_makes_room_before_the_next_open() -> None:
    joined = Joined(SMALL)
    pairs = _open(joined, SMALL.max_streams, answered=False)
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


# -- limits


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
        _open(joined, 1, answered=kind == END)
        with pytest.raises(RemoteError, match="protocol_error"):
            _receive(joined.server, frames.frame(kind, 1, payload))
    with pytest.raises(RemoteError, match="protocol_error"):
        _receive(Joined(SMALL).agent, _opening(1, headers=large))


@pytest.mark.parametrize("grace", [0.0, 60.0])
def test_too_many_streams(grace: float) -> None:
    joined = Joined(replace(SMALL, grace=grace))
    pairs = _open(joined, SMALL.max_streams)
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
    _open(joined, 2)
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


# -- ids


def test_frames_of_closed_streams_are_late_and_ignored() -> None:
    joined = Joined(SMALL)
    pairs = _open(joined, 2)
    for server, _ in pairs:
        joined.cancel("server", server, "visitor")
    for kind, payload in ((HEAD, b"?"), (DATA, b"x"), (END, b"?"), (STOP, b"?"), (WINDOW, b"?"), (0x45 | FIN, b"x")):
        _receive(joined.server, frames.frame(kind, 1, payload), frames.frame(kind, 2, payload))
    _receive(joined.server, frames.frame(0x45, 3000, b"x"))
    assert not joined.server.streams


@pytest.mark.parametrize("who", ["server", "agent"])
@pytest.mark.parametrize("stream_id", [0, 3, 2**31])
def test_frames_of_streams_that_never_were(who: str, stream_id: int) -> None:
    joined = Joined(SMALL)
    _open(joined, 2)
    session = joined.session(who)
    with pytest.raises(RemoteError) as caught:
        _receive(session, frames.frame(DATA, stream_id, b"x"))
    assert caught.value.code == "unknown_stream"


@pytest.mark.parametrize("stream_id", [0, 1, 2, 2**31 + 2, 2**32 - 1])
def test_opens_whose_id_is_not_above_the_highest(stream_id: int) -> None:
    joined = Joined(SMALL)
    _open(joined, 2)
    with pytest.raises(RemoteError, match="protocol_error"):
        _receive(joined.agent, _opening(stream_id))


def test_ids_wrap_and_skip_those_in_use() -> None:
    joined = Joined(RESUMED, high=2**32 - 2)
    (first, _), (second, _) = _open(joined, 2)
    assert first.stream is not None
    assert second.stream is not None
    assert (first.stream.id, second.stream.id) == (2**32 - 1, 1)
    joined.cancel("server", second, "visitor")
    joined.server._high = 0
    third = joined.open(ended=True)
    assert third.stream is not None
    assert third.stream.id == 2  # the cancel of 1 is not acknowledged
    _receive(joined.server, frames.frame(DATA, 2**32 - 100, b"x"))  # late: below the highest across the wrap
    with pytest.raises(RemoteError, match="unknown_stream"):
        _receive(joined.server, frames.frame(DATA, 3, b"x"))


def test_after_half_of_all_ids_any_free_one_may_be_opened_and_any_other_frame_is_late() -> None:
    joined = Joined(SMALL)
    _open(joined, 1)
    joined.agent._passed = joined.server._passed = 2**31
    _receive(joined.server, frames.frame(DATA, 77, b"x"))
    _receive(joined.agent, frames.frame(DATA, 77, b"x"), _opening(77))
    assert 77 in joined.agent.streams
    with pytest.raises(RemoteError, match="in use"):
        _receive(joined.agent, _opening(77))


def test_gaps_count_towards_that_half_on_both_sides() -> None:
    joined = Joined(SMALL)
    joined.server._high = 2**30
    joined.server._passed = 2**30
    _open(joined, 1)
    assert joined.agent._passed == joined.server._passed == 2**30 + 1


def test_opens_that_may_not_be() -> None:
    joined = Joined(SMALL)
    _open(joined, 1)
    with pytest.raises(RemoteError, match="from the agent"):
        _receive(joined.server, _opening(2))
    with pytest.raises(RemoteError, match="live stream"):
        _receive(joined.agent, _opening(2, request_id="r1"))
    with pytest.raises(RemoteError, match="in use"):
        _receive(joined.agent, _opening(1))
    with pytest.raises(RemoteError, match="from the server"):
        _receive(joined.agent, frames.frame(HEAD, 1, encode(Head(200, []))))
    with pytest.raises(RemoteError, match="STOP with a payload"):
        _receive(joined.agent, frames.frame(STOP, 1, b"x"))
    with pytest.raises(LocalError, match="live stream"):
        joined.server.open(Open("r1", "GET", "/", []), Meddler(), ended=True)


def test_an_id_is_free_once_both_ends_are_in() -> None:
    joined = Joined(RESUMED)
    [(server, agent)] = _open(joined, 1)
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
    [(server, agent)] = _open(joined, 1)
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
    (one, _), (two, _) = _open(joined, 2)
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
    (one, one_agent), (two, two_agent) = _open(joined, 2)
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
    assert [_frames(message) for message in _written(joined, "server")] == [[(STOP, 1, 0)]]


def test_a_source_whose_last_bytes_used_up_its_credit_goes_on_with_the_next() -> None:
    joined = Joined(replace(SMALL, stream_window=64 * 1024))
    [(server, agent)] = _open(joined, 1)
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
    [(server, _)] = _open(joined, 1)
    joined.server.receive_cancel(joined.server.epoch, StreamCancel("r1", "weather"), 0.0)
    assert server.reason == "service"
    joined.server.receive_cancel(joined.server.epoch, StreamCancel("r1", "visitor"), 0.0)
    assert server.reason == "service"


# -- counting, epochs


def test_input_and_output_of_another_epoch_are_ignored() -> None:
    joined = Joined(RESUMED)
    _open(joined, 2)
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
    [(_, agent)] = _open(joined, 1)
    agent.send(1_000)
    joined.write("agent")
    agent.cancel("service")
    joined.write("agent")
    lost = list(joined.connection.to["server"])
    assert [opcode for opcode, _ in lost] == [BINARY, TEXT]
    joined.connect()
    assert _written(joined, "agent")[:2] == lost


def test_a_resume_acknowledges_as_an_ack_does() -> None:
    joined = Joined(RESUMED)
    [(server, _)] = _open(joined, 1)
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
    assert _written(joined, "agent") == [(BINARY, frames.ack(1))]
    assert joined.agent.ack_at is None


def test_a_full_replay_buffer_holds_back_data_alone() -> None:
    joined = Joined(replace(WIDE, grace=60.0, buffer=64 * 1024))
    (_, one), (two, two_agent) = _open(joined, 2)
    one.send(300_000)
    _written(joined, "agent")
    assert one.stream is not None
    assert one.stream.pending > 200_000
    two_agent.finish()
    two_agent_said = _written(joined, "agent")
    assert [_frames(message) for message in two_agent_said] == [[(END, 2, 0)]]
    woken = []
    joined.agent._outbox.wake = lambda: woken.append(1)
    joined.agent.receive(joined.agent.epoch, frames.ack(joined.agent.counters[1]), 0.0)
    assert woken == [1]
    assert sum(size for _, _, size in _frames(_written(joined, "agent")[0])) == 65536
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
    [(server, agent)] = _open(joined, 1)
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


# -- memory of what is gone


@pytest.mark.parametrize("grace", [0.0, 60.0])
def test_streams_that_end_while_nobody_reads_leave_the_queues(grace: float) -> None:
    accepted: list[Stream] = []

    def accept(stream: Stream, request: Open, ended: bool) -> Meddler:
        accepted.append(stream)
        return Meddler()

    agent = Session(replace(SMALL, grace=grace), accept=accept)
    agent.attach(0, lambda: None)
    for number in range(1, 2000):
        _receive(agent, _opening(number), frames.frame(DATA, number, bytes(10_000)))
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
    pairs = _open(joined, 32)
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


# -- consumers that meddle


def _meddled(joined: Joined, **doings: Callable[[], None]) -> tuple[Meddler, Stream]:
    sink = Meddler(**doings)
    joined.opened += 1
    stream = joined.server.open(Open(f"r{joined.opened}", "GET", "/", []), sink, ended=False)
    joined.settle()
    agent = joined.sides[f"r{joined.opened}", "agent"]
    agent.answer(200)
    return sink, stream


def _data(stream: Stream, kind: int = DATA) -> bytes:
    return frames.frame(kind, stream.id, b"x")


@pytest.mark.parametrize("kind", [DATA, DATA | FIN])
def test_a_consumer_may_cancel_itself_inside_data(kind: int) -> None:
    joined = Joined(SMALL)
    sink, stream = _meddled(joined, data=lambda: stream.cancel("visitor"))
    joined.settle()
    _receive(joined.server, _data(stream, kind), frames.frame(DATA, stream.id, b"y"))
    assert sink.calls == ["head", "data"]
    joined.settle()
    assert not kept(joined.server)


def test_a_consumer_may_cancel_others_inside_data() -> None:
    joined = Joined(SMALL)
    other, other_stream = _meddled(joined)
    sink, stream = _meddled(joined, data=lambda: other_stream.cancel("limit"))
    joined.settle()
    _receive(joined.server, _data(stream), _data(other_stream), _data(stream))
    assert sink.calls == ["head", "data", "data"]
    assert other.calls == ["head"]


def test_a_consumer_may_end_the_session_inside_data() -> None:
    joined = Joined(RESUMED)
    sink, stream = _meddled(joined, data=lambda: joined.server.end("shutdown"))
    other, other_stream = _meddled(joined)
    joined.settle()
    _receive(joined.server, _data(stream), _data(other_stream), frames.frame(DATA, 999, b"x"))
    assert sink.calls == ["head", "data", "cancelled"]
    assert other.calls == ["head", "cancelled"]
    assert not kept(joined.server)


def test_a_message_is_handed_over_whole_also_when_its_connection_is_let_go_of_meanwhile() -> None:
    joined = Joined(RESUMED)
    sink, stream = _meddled(joined, data=joined.server.detach)
    joined.settle()
    _receive(joined.server, _data(stream), _data(stream))
    assert sink.calls == ["head", "data", "data"]  # it was counted, so the peer will not say it again


def test_a_consumer_may_open_and_cancel_when_its_session_ends() -> None:
    joined = Joined(SMALL)
    refusals: list[str] = []

    def again() -> None:
        stream.cancel("visitor")
        other_stream.cancel("visitor")
        with pytest.raises(VisitorError) as caught:
            joined.server.open(Open("again", "GET", "/", []), Meddler(), ended=True)
        refusals.append(caught.value.code)
        joined.server.end("operator")

    sink, stream = _meddled(joined, cancelled=again)
    other, other_stream = _meddled(joined)
    joined.settle()
    joined.server.end("peer_lost")
    assert refusals == ["tunnel_offline"]
    assert sink.calls == ["head", "cancelled"]
    assert other.calls == ["head"]
    assert not kept(joined.server)


def test_a_consumer_may_finish_inside_end_and_stopped() -> None:
    joined = Joined(SMALL)
    sink, stream = _meddled(joined, end=lambda: stream.send_end() and None)
    other, other_stream = _meddled(joined, stopped=lambda: other_stream.cancel("service"))
    joined.settle()
    _receive(joined.server, frames.frame(END, stream.id, b""))
    _receive(joined.server, frames.frame(STOP, other_stream.id, b""))
    assert stream.closed
    assert sink.calls == ["head", "end"]
    assert other.calls == ["head", "stopped"]
    assert other_stream.closed


def test_what_a_consumer_sends_when_told_to_go_on_wakes_the_shell() -> None:
    joined = Joined(SMALL)
    sink, stream = _meddled(joined, writable=lambda: stream.send(b"more") and None)
    joined.settle()
    assert not stream.send(b"x" * 70_000)
    woken: list[str] = []
    while joined.write("server"):
        pass
    joined.server._outbox.wake = lambda: woken.append("woken")
    _receive(joined.server, frames.window(stream.id, 100_000))
    assert woken == ["woken"]
    while joined.write("server"):
        pass
    assert "writable" in sink.calls
    assert stream.pending == 0
    _receive(joined.server, frames.window(stream.id, 1))
    assert joined.server._outbox.woken is False


def test_a_stream_may_be_ended_while_it_is_accepted() -> None:
    def accept(stream: Stream, request: Open, ended: bool) -> Meddler:
        if request.path == "/cancel":
            stream.cancel("refused")
        else:
            stream.send_head(204, [], end=True)
        return sink

    sink = Meddler()
    agent = Session(SMALL, accept=accept)
    epoch = agent.attach(0, lambda: None)
    cancelled = _opening(1, path="/cancel")
    answered = frames.frame(OPEN | FIN, 2, encode(Open("x2", "GET", "/", [])))
    _receive(agent, cancelled, answered)
    assert not agent.streams
    said = []
    while (message := agent.next_message(epoch, 0.0)) is not None:
        said.append((message[0], b"".join(message[1])))
    assert decode_text(said[0][1]) == StreamCancel("x1", "refused")
    assert _frames(said[1]) == [(HEAD | FIN, 2, len(encode(Head(204, []))))]
    assert sink.calls == []
    assert not kept(agent)
