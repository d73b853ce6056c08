"""Consumers of a session that meddle with it inside its own calls."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.sessions import RESUMED, SMALL, Joined, Meddler, frames_of, kept, opening, receive
from tunneld.errors import VisitorError
from tunneld.protocol import frames
from tunneld.protocol.frames import DATA, END, FIN, HEAD, OPEN, STOP
from tunneld.protocol.messages import Head, Open, StreamCancel, decode_text, encode
from tunneld.protocol.session import Session
from tunneld.protocol.streams import Stream


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
    receive(joined.server, _data(stream, kind), frames.frame(DATA, stream.id, b"y"))
    assert sink.calls == ["head", "data"]
    joined.settle()
    assert not kept(joined.server)


def test_a_consumer_may_cancel_others_inside_data() -> None:
    joined = Joined(SMALL)
    other, other_stream = _meddled(joined)
    sink, stream = _meddled(joined, data=lambda: other_stream.cancel("limit"))
    joined.settle()
    receive(joined.server, _data(stream), _data(other_stream), _data(stream))
    assert sink.calls == ["head", "data", "data"]
    assert other.calls == ["head"]


def test_a_consumer_may_end_the_session_inside_data() -> None:
    joined = Joined(RESUMED)
    sink, stream = _meddled(joined, data=lambda: joined.server.end("shutdown"))
    other, other_stream = _meddled(joined)
    joined.settle()
    receive(joined.server, _data(stream), _data(other_stream), frames.frame(DATA, 999, b"x"))
    assert sink.calls == ["head", "data", "cancelled"]
    assert other.calls == ["head", "cancelled"]
    assert not kept(joined.server)


def test_a_message_is_handed_over_whole_also_when_its_connection_is_let_go_of_meanwhile() -> None:
    joined = Joined(RESUMED)
    sink, stream = _meddled(joined, data=joined.server.detach)
    joined.settle()
    receive(joined.server, _data(stream), _data(stream))
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
    receive(joined.server, frames.frame(END, stream.id, b""))
    receive(joined.server, frames.frame(STOP, other_stream.id, b""))
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
    receive(joined.server, frames.window(stream.id, 100_000))
    assert woken == ["woken"]
    while joined.write("server"):
        pass
    assert "writable" in sink.calls
    assert stream.pending == 0
    receive(joined.server, frames.window(stream.id, 1))
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
    cancelled = opening(1, path="/cancel")
    answered = frames.frame(OPEN | FIN, 2, encode(Open("x2", "GET", "/", [])))
    receive(agent, cancelled, answered)
    assert not agent.streams
    said = []
    while (message := agent.next_message(epoch, 0.0)) is not None:
        said.append((message[0], b"".join(message[1])))
    assert decode_text(said[0][1]) == StreamCancel("x1", "refused")
    assert frames_of(said[1]) == [(HEAD | FIN, 2, len(encode(Head(204, []))))]
    assert sink.calls == []
    assert not kept(agent)
