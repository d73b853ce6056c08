"""Anything at all into a session of either role: RemoteError or nothing, and tables that agree with each other."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from tests.support.sessions import SMALL, kept
from tunneld.agent.heads import Heads
from tunneld.config.service import parse_service
from tunneld.errors import CODES, RemoteError
from tunneld.protocol import frames
from tunneld.protocol.headers import BadHeader, encode_head, to_visitor
from tunneld.protocol.messages import Head, Headers, Open, Ping, Pong, StreamCancel, decode_text, encode
from tunneld.protocol.session import TEXT, Session
from tunneld.protocol.streams import REASONS, Stream

KINDS = [1, 2, 3, 4, 5, 6, 0x81, 0x82, 0x83, 0x40, 0xC5]
TEXTS = ["", "a", "é", "€", "\ud800", "a\r\nb: c", "\0", "x" * 5000, "💓", " ", "content-length", "12"]


class Consumer:
    """Answers, takes, stops and cancels as its dice say; follows the text of heads where it goes in the daemons."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.stream: Stream | None = None
        self.over = False

    def _act(self) -> None:
        stream, dice = self.stream, self.dice.random()
        if stream is None or stream.closed:
            return
        if dice < 0.1:
            stream.cancel(self.dice.choice(REASONS))
        elif dice < 0.2:
            stream.stop()
        elif dice < 0.4 and stream._sending == 1 and not stream.sending_ended:
            stream.send(b"x" * self.dice.choice([1, 100, 70_000]))
        elif dice < 0.5 and stream._sending == 1 and not stream.sending_ended:
            stream.send_end([("A", "b")] if self.dice.random() < 0.5 else None)

    def head(self, status: int, headers: Headers) -> None:
        assert not self.over
        _to_a_visitor(status, headers)
        self._act()

    def data(self, data: bytes) -> None:
        assert not self.over
        if self.stream is not None and self.dice.random() < 0.8:
            self.stream.took(len(data))
        self._act()

    def end(self, trailers: Headers) -> None:
        assert not self.over
        _to_a_visitor(200, trailers)
        self._act()

    def stopped(self) -> None:
        assert not self.over
        self._act()

    def cancelled(self, reason: str) -> None:
        assert not self.over
        assert reason in REASONS
        self.over = True

    def writable(self) -> None:
        assert not self.over
        self._act()


HEADS = Heads(parse_service("http://127.0.0.1:9000"), {})


def _to_a_visitor(status: int, headers: Headers) -> None:
    """An answer's head on its way through the server: octets, or BadHeader, which is answered 502."""
    try:
        encode_head(f"HTTP/1.1 {status} ", to_visitor(headers, prefix="/t/n"))
    except BadHeader:
        return


def _to_a_service(request: Open, *, ended: bool) -> None:
    """A request's head on its way through the agent: octets, or BadHeader, which is answered 400."""
    try:
        head, _ = HEADS.request(request, ended=ended)
    except BadHeader:
        return
    assert head.count(b"\r\n\r\n") == 1
    assert head.count(b"\n") == head.count(b"\r\n")


def _session(role: str, grace: float, dice: random.Random) -> Session:
    def accept(stream: Stream, request: Open, ended: bool) -> Consumer:
        consumer = Consumer(dice)
        consumer.stream = stream
        _to_a_service(request, ended=ended)
        if dice.random() < 0.5:
            stream.send_head(200, [("A", "b")], end=dice.random() < 0.3)
        return consumer

    chosen = replace(SMALL, grace=grace, max_streams=8)
    session = Session(chosen, accept=accept if role == "agent" else None)
    session.attach(0, lambda: None)
    if role == "server":
        for number in range(1, 6):
            consumer = Consumer(dice)
            consumer.stream = session.open(Open(f"r{number}", "GET", "/", []), consumer, ended=number % 2 == 0)
        session.next_message(session.epoch, 0.0)
    return session


def _feed(session: Session, opcode: int, payload: bytes, now: float) -> None:
    """What link.py does with a message."""
    if opcode != TEXT:
        session.receive(session.epoch, payload, now)
        return
    message = decode_text(payload)
    if isinstance(message, StreamCancel):
        session.receive_cancel(session.epoch, message, now)
    elif isinstance(message, Ping):
        session.say(Pong(message.timestamp, message.seq))


def _run(role: str, grace: float, messages: list[tuple[int, bytes]], seed: int) -> str | None:
    """Feed until an error; returns its code. The state is whole after each message, and nothing is left at the end."""
    dice = random.Random(seed)
    session = _session(role, grace, dice)
    code, detail, now = None, "", 0.0
    try:
        for opcode, payload in messages:
            now += 0.1
            _feed(session, opcode, payload, now)
            assert len(session.streams) <= 8
            assert set(session._by_request.values()) == set(session.streams.values())
            assert not any(stream.closed for stream in session.streams.values())
            if dice.random() < 0.5:
                written = session.next_message(session.epoch, now)
                if written is not None and written[0] != TEXT:
                    payload = b"".join(written[1])
                    assert frames.parse_ack(payload) is not None or list(frames.split(payload))
    except RemoteError as error:
        code, detail = error.code, error.detail
    assert len(detail) < 1000
    session.end("peer_lost")
    assert not kept(session)
    return code


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


_DEEP, _LONG = b"[" * 30_000, b'{"status":' + b"9" * 30_000 + b"}"
_TEXT = st.sampled_from(TEXTS)
_PAIRS = st.lists(st.tuples(_TEXT, _TEXT), max_size=3)
_ANYTHING = st.recursive(st.none() | st.booleans() | st.integers() | _TEXT, lambda inner: st.lists(inner, max_size=3))
_PAYLOAD = st.one_of(
    st.binary(max_size=64),
    st.integers(0, 20_000).map(bytes),
    st.integers(0, 2**32 - 1).map(lambda number: number.to_bytes(4, "big")),
    _PAIRS.map(_json),
    st.builds(lambda s, h: _json({"status": s, "headers": h}), st.integers(90, 1001) | _ANYTHING, _PAIRS | _ANYTHING),
    st.builds(
        lambda r, m, p, h: _json({"request_id": r, "method": m, "path": p, "headers": h}),
        st.sampled_from([*TEXTS, "r1", "r2", "r9"]),
        st.sampled_from([*TEXTS, "GET", "CONNECT"]),
        st.sampled_from([*TEXTS, "/", "/a b", "/%2e%2e"]),
        _PAIRS | _ANYTHING,
    ),
    st.just(_DEEP),
    st.just(_LONG),
)
_FRAME = st.builds(frames.frame, st.sampled_from(KINDS) | st.integers(0, 255), st.integers(0, 12), _PAYLOAD)
_BINARY = st.one_of(
    st.lists(_FRAME, min_size=1, max_size=5).map(b"".join), st.binary(max_size=80), st.integers(0, 5).map(frames.ack)
)
_SAID = st.one_of(
    st.binary(max_size=80),
    st.builds(lambda r, why: _json({"type": "stream_cancel", "request_id": r, "reason": why}), _TEXT, _TEXT),
    st.builds(lambda n: encode(StreamCancel(f"r{n}", "visitor")), st.integers(1, 9)),
    st.builds(lambda stamp, seq: _json({"type": "ping", "timestamp": stamp, "seq": seq}), _TEXT, st.integers()),
    st.dictionaries(_TEXT, _ANYTHING, max_size=3).map(_json),
)
_MESSAGES = st.lists(st.tuples(st.just(2), _BINARY) | st.tuples(st.just(1), _SAID), max_size=25)


@given(
    role=st.sampled_from(["server", "agent"]),
    grace=st.sampled_from([0.0, 60.0]),
    messages=_MESSAGES,
    seed=st.integers(0, 99),
)
@settings(max_examples=100, deadline=None)
def test_any_messages(role: str, grace: float, messages: list[tuple[int, bytes]], seed: int) -> None:
    code = _run(role, grace, messages, seed)
    assert code is None or CODES[code].status == 0


def _valid(role: str, dice: random.Random) -> list[tuple[int, bytes]]:
    """A conversation that a peer of this role may hear, with one fault at most."""
    said: list[tuple[int, bytes]] = []
    for number in range(1, 6):
        parts = []
        if role == "agent":
            opening = encode(Open(f"r{number}", "POST", f"/{number}", [("A", "b")], "::1"))
            parts.append(frames.frame(1, number, opening))
        else:
            parts.append(frames.frame(2, number, encode(Head(103, []))))
            parts.append(frames.frame(2, number, encode(Head(200, [("A", "b")]))))
        parts += [frames.frame(3, number, bytes(dice.randint(1, 3000))) for _ in range(dice.randint(0, 4))]
        parts.append(frames.window(number, dice.randint(1, 70_000)))
        parts.append(dice.choice([frames.frame(4, number, b""), frames.frame(0x83, number, b"x"), b""]))
        said.append((2, b"".join(parts)))
        if dice.random() < 0.3:
            said.append((1, encode(StreamCancel(f"r{dice.randint(1, 6)}", "visitor"))))
    return said


class Dice(random.Random):
    """Anything that a peer could say, right or wrong; a hundred times cheaper than strategies that make the same."""

    def text(self) -> str:
        return self.choice(TEXTS)

    def pairs(self) -> list[tuple[str, str]]:
        return [(self.text(), self.text()) for _ in range(self.randint(0, 3))]

    def number(self) -> int:
        return self.choice([0, 1, -1, self.randint(-300, 300), self.getrandbits(self.randint(1, 130))])

    def anything(self, depth: int = 3) -> object:
        if depth and self.random() < 0.3:
            return [self.anything(depth - 1) for _ in range(self.randint(0, 3))]
        return self.choice([None, True, False, self.number(), self.text()])

    def some(self, most: int) -> bytes:
        return self.randbytes(self.randint(0, most))

    def status(self) -> bytes:
        headers = self.pairs() if self.random() < 0.7 else self.anything()
        return _json({"status": self.randint(90, 1001) if self.random() < 0.7 else self.anything(), "headers": headers})

    def opening(self) -> bytes:
        return _json(
            {
                "request_id": self.choice([*TEXTS, "r1", "r2", "r9"]),
                "method": self.choice([*TEXTS, "GET", "CONNECT"]),
                "path": self.choice([*TEXTS, "/", "/a b", "/%2e%2e"]),
                "headers": self.pairs() if self.random() < 0.7 else self.anything(),
            }
        )

    def payload(self) -> bytes:
        return self.choice(
            [
                lambda: self.some(64),
                lambda: bytes(self.randint(0, 20_000)),
                lambda: self.randbytes(4),
                lambda: _json(self.pairs()),
                self.status,
                self.opening,
                lambda: _DEEP,
                lambda: _LONG,
            ]
        )()

    def frame(self) -> bytes:
        kind = self.choice(KINDS) if self.random() < 0.7 else self.randrange(256)
        return frames.frame(kind, self.randint(0, 12), self.payload())

    def binary(self) -> bytes:
        what = self.random()
        if what < 0.7:
            return b"".join([self.frame() for _ in range(self.randint(1, 5))])
        return self.some(80) if what < 0.85 else frames.ack(self.randint(0, 5))

    def said(self) -> bytes:
        return self.choice(
            [
                lambda: self.some(80),
                lambda: _json({"type": "stream_cancel", "request_id": self.text(), "reason": self.text()}),
                lambda: encode(StreamCancel(f"r{self.randint(1, 9)}", "visitor")),
                lambda: _json({"type": "ping", "timestamp": self.text(), "seq": self.number()}),
                lambda: _json({self.text(): self.anything() for _ in range(self.randint(0, 3))}),
            ]
        )()

    def messages(self) -> list[tuple[int, bytes]]:
        return [(2, self.binary()) if self.random() < 0.6 else (1, self.said()) for _ in range(self.randint(0, 25))]


def test_any_messages_of_many_seeds() -> None:
    codes: dict[str | None, int] = {}
    for seed in range(2000):
        dice = Dice(seed)
        role, grace = dice.choice(["server", "agent"]), dice.choice([0.0, 60.0])
        heard = _valid(role, dice) if dice.random() < 0.5 else []  # most of what is wrong ends a session at once
        messages = heard[: dice.randint(0, len(heard))] + dice.messages()
        try:
            code = _run(role, grace, messages, seed)
        except Exception as error:
            error.add_note(f"seed {seed}, {role}, grace {grace:g}: {messages!r:.2000}")
            raise
        assert code is None or CODES[code].status == 0, (seed, code)
        codes[code] = codes.get(code, 0) + 1
    assert codes.keys() == {None, "protocol_error", "unknown_stream", "flow_control"}  # it reaches far
    assert codes[None] > 10


def _mutated(messages: list[tuple[int, bytes]], dice: random.Random) -> list[tuple[int, bytes]]:
    changed = [(opcode, bytearray(payload)) for opcode, payload in messages]
    for _ in range(dice.randint(0, 3)):
        opcode, payload = dice.choice(changed)
        place = dice.randrange(len(payload))
        what = dice.random()
        if what < 0.5:
            payload[place] = dice.choice([0, 1, 0x7F, 0x80, 0xFF, dice.randrange(256)])
        elif what < 0.7:
            del payload[place:]
            payload.append(dice.randrange(256))
        elif what < 0.9:
            payload[place:place] = dice.randbytes(dice.randint(1, 9))
        else:
            changed.append((opcode, bytearray(payload)))  # said twice
    return [(opcode, bytes(payload)) for opcode, payload in changed]


def _mutations(count: int, start: int) -> dict[str | None, int]:
    codes: dict[str | None, int] = {}
    for seed in range(start, start + count):
        dice = random.Random(seed)
        role = dice.choice(["server", "agent"])
        code = _run(role, dice.choice([0.0, 60.0]), _mutated(_valid(role, dice), dice), seed)
        codes[code] = codes.get(code, 0) + 1
    return codes


def test_conversations_with_a_few_octets_changed() -> None:
    codes = _mutations(1500, 0)
    assert codes.keys() <= {None, "protocol_error", "unknown_stream", "flow_control"}
    assert min(codes[None], codes["protocol_error"], codes["unknown_stream"]) > 10  # it reaches far, and finds faults


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_very_many_conversations_with_a_few_octets_changed() -> None:
    _mutations(100_000, 10_000)
