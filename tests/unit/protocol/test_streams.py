"""The state table as a table, and what a stream does at its edges."""

from __future__ import annotations

import pytest

from tests.support.sessions import SMALL, Joined, Side
from tunneld.errors import LocalError, RemoteError
from tunneld.protocol import frames
from tunneld.protocol.directions import Direction, Event, step
from tunneld.protocol.frames import DATA, END, FIN, HEAD, STOP
from tunneld.protocol.messages import Head, encode
from tunneld.protocol.streams import MAX_INFORMATIONAL, HeadTooLarge

_D, _E = Direction, Event


@pytest.mark.parametrize(
    ("state", "outcomes"),
    [
        #                     INFORMATIONAL        HEAD               DATA               END        STOP
        (_D.HEAD_DUE, (_D.HEAD_DUE, _D.BODY, None, None, _D.HEAD_DUE_STOPPED)),
        (_D.BODY, (None, None, _D.BODY, _D.ENDED, _D.BODY_STOPPED)),
        (_D.HEAD_DUE_STOPPED, (_D.HEAD_DUE_STOPPED, _D.BODY_STOPPED, None, _D.ENDED, _D.HEAD_DUE_STOPPED)),
        (_D.BODY_STOPPED, (None, None, _D.BODY_STOPPED, _D.ENDED, _D.BODY_STOPPED)),
        (_D.ENDED, (None, None, None, None, _D.ENDED)),
    ],
)
def test_every_pair_of_state_and_event(state: Direction, outcomes: tuple[Direction | None, ...]) -> None:
    events = (_E.INFORMATIONAL, _E.HEAD, _E.DATA, _E.END, _E.STOP)
    assert len(events) == len(Event)
    assert tuple(step(state, event) for event in events) == outcomes


#: What the agent may send on a stream whose visitor's direction is in that state, on the wire.
_WIRE = {
    _E.INFORMATIONAL: (HEAD, encode(Head(103, []))),
    _E.HEAD: (HEAD, encode(Head(200, []))),
    _E.DATA: (DATA, b"r"),
    _E.END: (END, b""),
}


def _in_state(state: Direction) -> tuple[Joined, Side]:
    joined = Joined(SMALL)
    side = joined.open(ended=False)
    joined.settle()
    if state in (_D.HEAD_DUE_STOPPED, _D.BODY_STOPPED):
        side.stop()
    if state in (_D.BODY, _D.BODY_STOPPED, _D.ENDED):
        _say(joined, HEAD, encode(Head(200, [])))
    if state is _D.ENDED:
        _say(joined, END, b"")
    return joined, side


def _say(joined: Joined, kind: int, payload: bytes) -> None:
    joined.server.receive(joined.server.epoch, frames.frame(kind, 1, payload), 0.0)


@pytest.mark.parametrize("state", list(Direction))
@pytest.mark.parametrize("event", list(_WIRE))
def test_what_comes_from_the_peer_follows_the_table(state: Direction, event: Event) -> None:
    joined, side = _in_state(state)
    kind, payload = _WIRE[event]
    side.request_id, before = "any", (list(side.heads), side.received, side.ends)
    if event is _E.DATA:
        side.data = lambda data: None  # type: ignore[method-assign]
    if step(state, event) is None:
        with pytest.raises(RemoteError) as caught:
            _say(joined, kind, payload)
        assert caught.value.code == "protocol_error"
        return
    _say(joined, kind, payload)
    if state in (_D.HEAD_DUE_STOPPED, _D.BODY_STOPPED):  # nothing is called behind STOP
        assert (side.heads, side.received, side.ends) == before


def _pair() -> tuple[Joined, Side, Side]:
    joined = Joined(SMALL)
    server = joined.open(ended=False)
    joined.settle()
    return joined, server, joined.sides["r1", "agent"]


def test_heads_with_1xx_are_bounded_on_both_sides() -> None:
    joined, server, agent = _pair()
    for _ in range(MAX_INFORMATIONAL):
        agent.answer(103)
    joined.settle()
    assert server.heads == [103] * MAX_INFORMATIONAL
    with pytest.raises(LocalError):
        agent.answer(103)
    with pytest.raises(RemoteError, match="1xx"):
        _say(joined, HEAD, encode(Head(103, [])))


def test_a_head_with_1xx_never_ends() -> None:
    joined, *_ = _pair()
    with pytest.raises(RemoteError, match="1xx"):
        _say(joined, HEAD | FIN, encode(Head(100, [])))


def test_101_is_final() -> None:
    joined, server, agent = _pair()
    assert agent.stream is not None
    agent.stream.send_head(101, [])
    joined.settle()
    assert server.heads == [101]
    with pytest.raises(LocalError):
        agent.stream.send_head(200, [])


def test_one_s_own_faults_are_local_errors_and_leave_the_stream_whole() -> None:
    joined, server, agent = _pair()
    stream = agent.stream
    assert stream is not None
    with pytest.raises(LocalError, match="before HEAD"):
        stream.send(b"x")
    with pytest.raises(LocalError, match="before HEAD"):
        stream.send_end()
    with pytest.raises(HeadTooLarge):
        stream.send_head(200, [("X", "y" * 2 * SMALL.max_header)])
    with pytest.raises(LocalError, match="no reason"):
        stream.cancel("weather")
    agent.answer(200)
    agent.finish()
    assert stream.send_end()
    assert stream.send(b"after the end")  # nobody wants it any more
    joined.settle()
    assert (server.heads, server.ends, server.received) == ([200], 1, 0)


def test_trailers_that_are_too_large_are_left_out_and_said() -> None:
    joined, server, agent = _pair()
    agent.answer(200)
    agent.send(10)
    assert agent.stream is not None
    assert not agent.stream.send_end([("X", "y" * 2 * SMALL.max_header)])
    joined.settle()
    assert (server.received, server.ends, server.trailers) == (10, 1, [])


def test_no_empty_data_goes_out_and_none_may_come() -> None:
    joined, _, agent = _pair()
    agent.answer(200)
    joined.settle()
    assert agent.stream is not None
    for _ in range(1000):
        assert agent.stream.send(b"")
    assert agent.stream._first is None
    assert not joined.write("agent")
    for kind in (DATA, DATA | FIN):
        with pytest.raises(RemoteError, match="empty DATA"):
            _say(joined, kind, b"")


def test_a_stream_that_is_over_takes_nothing_more() -> None:
    joined, server, _ = _pair()
    stream = server.stream
    assert stream is not None
    joined.cancel("server", server, "visitor")
    for _ in range(3):
        assert stream.send(b"x" * 100_000)
        assert stream.send_end([("A", "b")])
        stream.send_head(200, [])
        stream.stop()
        stream.took(100_000)
        stream.cancel("visitor")
    assert stream.pending == 0
    assert stream.sending_ended
    assert stream.receiving_ended
    assert joined.server._outbox.backlog == 1


def test_a_source_is_paused_by_its_credit_and_told_once_to_go_on() -> None:
    joined, server, agent = _pair()
    agent.answer(200)
    agent.send(20_000)  # more than the window
    assert agent.blocked
    for _ in range(3):
        joined.write("agent")
        joined.deliver("server")
    assert agent.blocked
    assert server.received == SMALL.stream_window
    server.take(SMALL.stream_window)
    joined.settle()
    assert not agent.blocked
    assert server.received == 20_000


def test_a_large_chunk_goes_in_turns_and_whole() -> None:
    joined, server, agent = _pair()
    agent.answer(200)
    agent.send(300_000)
    agent.finish([("X-Last", "1")])
    joined.settle()
    assert (server.received, server.trailers) == (300_000, [("X-Last", "1")])


def test_stop_before_a_head_is_answered_by_a_bare_end() -> None:
    joined, server, agent = _pair()
    server.stop()
    joined.settle()
    assert agent.stopped_by_peer
    assert server.heads == []
    assert server.stream is not None
    assert server.stream.receiving_ended
    server.finish()
    joined.settle()
    assert server.over
    assert agent.over


def test_stop_drops_what_waits_its_end_and_trailers_too() -> None:
    joined, server, agent = _pair()
    agent.answer(200)
    agent.send(100_000)
    agent.finish([("X", "y")])
    server.stop()
    joined.settle()
    assert agent.stopped_by_peer
    assert server.received == server.ends == 0
    assert server.stream is not None
    assert server.stream.receiving_ended


def test_stop_and_window_for_a_direction_that_has_ended_are_ignored() -> None:
    joined, server, _ = _pair()
    server.finish()
    joined.settle()
    _say(joined, STOP, b"")
    joined.server.receive(joined.server.epoch, frames.window(1, 2**31 - 1) * 3, 0.0)
    assert not server.stopped_by_peer
    assert not server.over


def test_more_credit_than_any_window_has_is_an_error() -> None:
    joined, *_ = _pair()
    with pytest.raises(RemoteError) as caught:
        joined.server.receive(joined.server.epoch, frames.window(1, 2**31), 0.0)
    assert caught.value.code == "flow_control"


def test_more_bytes_than_credit_is_an_error() -> None:
    joined, server, _ = _pair()
    server.data = lambda data: None  # type: ignore[method-assign]
    _say(joined, HEAD, encode(Head(200, [])))
    _say(joined, DATA, bytes(SMALL.stream_window))
    with pytest.raises(RemoteError) as caught:
        _say(joined, DATA, b"x")
    assert caught.value.code == "flow_control"


def test_an_agent_cannot_answer_what_it_was_not_yet_given() -> None:
    joined = Joined(SMALL)
    joined.open(ended=True)  # its OPEN waits
    for kind, payload in ((HEAD, encode(Head(200, []))), (END, b""), (STOP, b"")):
        with pytest.raises(RemoteError) as caught:
            _say(joined, kind, payload)
        assert caught.value.code == "unknown_stream"
    with pytest.raises(RemoteError, match="protocol_error"):
        _say(joined, DATA, b"x")
    assert joined.write("server")


@pytest.mark.parametrize("who", ["server", "agent"])
def test_the_end_of_an_unknown_type_stands(who: str) -> None:
    joined, server, agent = _pair()
    agent.answer(200)
    joined.settle()
    session = joined.session(who)
    session.receive(session.epoch, frames.frame(0x45, 1, b"x"), 0.0)
    assert (server.ends, agent.ends) == (0, 0)
    session.receive(session.epoch, frames.frame(0x45 | FIN, 1, b"x"), 0.0)
    assert (server.ends, agent.ends) == ((1, 0) if who == "server" else (0, 1))
