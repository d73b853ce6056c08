"""The agent's side of session resume, against servers made by hand (the websockets library and JSON)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from tests.support.sockets import short_dir
from tunneld.agent import tunnel as tunnels
from tunneld.agent.daemon import AgentDaemon
from tunneld.agent.tunnel import AgentTunnel
from tunneld.config.agent import AgentConfig
from tunneld.control.view import AgentView
from tunneld.protocol import frames
from tunneld.protocol.messages import Open, encode
from tunneld.protocol.session import Session

EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


class Peer:
    """One connection of the agent's, at the server."""

    def __init__(self, socket: ServerConnection) -> None:
        self.socket = socket
        self.hello: dict[str, Any] = {}
        self.counted: list[bytes] = []
        self.cancels: list[dict[str, Any]] = []

    async def said(self, kind: str) -> dict[str, Any]:
        """The next text of that type; counted messages are gathered on the way, pings answered."""
        async with asyncio.timeout(5):
            while True:
                text = await self._next()
                if text is not None and text["type"] == kind:
                    return text

    async def _next(self) -> dict[str, Any] | None:
        message = await self.socket.recv()
        if isinstance(message, bytes):
            if frames.parse_ack(message) is None:
                self.counted.append(message)
            return None
        text: dict[str, Any] = json.loads(message)
        if text["type"] == "stream_cancel":
            self.cancels.append(text)
        return text

    async def frames_until(self, kind: int) -> list[tuple[int, int, bytes]]:
        """Frames that came, once one of that type is among them."""
        async with asyncio.timeout(5):
            while True:
                found = [(k, i, bytes(p)) for message in self.counted for k, i, p in frames.split(message)]
                if any(k & 0x7F == kind for k, _, _ in found):
                    return found
                await self._next()

    async def connect(self, session: str, **more: Any) -> None:
        await self.say(
            type="connected",
            tunnel_id="t",
            public_url="http://x/t/t",
            session_id=session,
            resume_token=f"token of {session}",
            heartbeat={"interval": 30, "timeout": 10},
            sse={"keepalive": 0},
            resume={"grace": 30, "buffer": 65536},
            max_streams=10,
            stream_window=65536,
            max_header=8192,
            **more,
        )

    async def say(self, **message: Any) -> None:
        await self.socket.send(json.dumps(message))

    async def open(self, stream: int = 1, path: str = "/") -> None:
        request = Open(f"r{stream}", "GET", path, [("Accept", "text/event-stream")], "")
        await self.socket.send(frames.frame(frames.OPEN | frames.FIN, stream, encode(request)))

    def cut(self) -> None:
        self.socket.transport.abort()


class Bench:
    """An agent, and its connections as they come."""

    agent: AgentDaemon

    def __init__(self) -> None:
        self.peers: asyncio.Queue[Peer] = asyncio.Queue()
        self.service: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]] = self.events
        self.writers: list[asyncio.StreamWriter] = []

    @property
    def tunnel(self) -> AgentTunnel:
        return self.agent.tunnels[0]

    async def events(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(EVENTS + b"9\r\ndata: 1\n\n\r\n")

    async def next(self) -> Peer:
        """The next connection, its hello read."""
        async with asyncio.timeout(5):
            return await self.peers.get()

    async def state(self, *wanted: str) -> None:
        changed = asyncio.Event()
        unsubscribe = self.agent.subscribe(lambda _: changed.set())
        try:
            async with asyncio.timeout(5):
                while self.tunnel.state not in wanted:
                    changed.clear()
                    await changed.wait()
        finally:
            unsubscribe()

    async def _accept(self, socket: ServerConnection) -> None:
        peer = Peer(socket)
        try:
            peer.hello = await peer.said("hello")
            self.peers.put_nowait(peer)
            await socket.wait_closed()
        except ConnectionClosed:
            pass

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        try:
            await self.service(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            writer.transport.abort()


@asynccontextmanager
async def bench(**settings: Any) -> AsyncIterator[Bench]:
    it = Bench()
    service = await asyncio.start_server(it._serve, "127.0.0.1", 0)
    async with serve(
        it._accept, "127.0.0.1", 0, subprotocols=["tunneld.v3"], compression=None, ping_interval=None
    ) as server:
        with short_dir() as folder:
            document: dict[str, Any] = {
                "server": {"url": f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}"},
                "reconnect": {"initial": "20ms", "max": "60ms"},
                "control": {"socket": str(Path(folder) / "c.sock")},
                "tunnels": [{"name": "t", "service": f"http://127.0.0.1:{service.sockets[0].getsockname()[1]}"}],
                **settings,
            }
            it.agent = AgentDaemon(AgentConfig.model_validate(document), None)
            await it.agent.start()
            try:
                yield it
            finally:
                await it.agent.stop()
                for writer in it.writers:
                    writer.transport.abort()
                service.close()
                await service.wait_closed()


async def online(it: Bench, session: str = "s1", **more: Any) -> Peer:
    peer = await it.next()
    await peer.connect(session, **more)
    await it.state("online")
    return peer


async def test_hello_resumes_with_what_was_received_and_a_higher_dial() -> None:
    async with bench() as it:
        first = await online(it)
        assert "session_id" not in first.hello
        await first.open()
        await first.frames_until(frames.DATA)
        first.cut()
        second = await it.next()
        assert (second.hello["session_id"], second.hello["resume_token"]) == ("s1", "token of s1")
        assert second.hello["received"] == 1
        assert second.hello["dial"] > first.hello["dial"]
        assert second.hello["instance"] == first.hello["instance"]


async def test_the_agent_sends_again_what_the_server_lacks_and_nothing_before_connected() -> None:
    async with bench() as it:
        first = await online(it)
        await first.open()
        await first.frames_until(frames.DATA)
        first.cut()
        second = await it.next()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await second._next()
        await second.connect("s1", resumed=True, received=0)
        await second.frames_until(frames.DATA)
        assert second.counted[: len(first.counted)] == first.counted
        assert it.tunnel.outages.count == 1
        assert it.tunnel.outages.replayed_bytes >= sum(map(len, first.counted))


@pytest.mark.parametrize(
    ("code", "kept"),
    [
        ("hello_timeout", True),
        ("bad_hello", True),
        ("stale_hello", True),
        ("going_away", True),
        ("overloaded", True),
        ("protocol_error", False),
        ("unknown_stream", False),
        ("flow_control", False),
        ("too_large", False),
        ("replaced", False),
        ("conflict", False),
        ("revoked", False),
    ],
)
async def test_what_each_error_does_to_the_session(caplog: pytest.LogCaptureFixture, code: str, *, kept: bool) -> None:
    async with bench() as it:
        first = await online(it)
        await first.open()
        await first.frames_until(frames.DATA)
        await first.say(type="error", code=code, message="", retry_after=0.05)
        second = await it.next()
        assert ("session_id" in second.hello) is kept
        assert it.agent.active_streams == int(kept)
        if kept:  # and the log says what ended the connection
            [lost] = [record for record in caplog.records if record.message == "✗ Tunnel disconnected: t"]
            assert lost.__dict__["why"].startswith(f"{code}: ")


async def test_a_message_that_cannot_be_taken_ends_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resumed, the server would send it again, and the agent would have no more memory for it than before."""

    def full(*_: Any) -> None:
        raise MemoryError

    async with bench() as it:
        first = await online(it)
        await first.open()
        await first.frames_until(frames.DATA)
        monkeypatch.setattr(Session, "receive", full)
        await first.open(2)
        second = await it.next()
        monkeypatch.undo()
        assert "session_id" not in second.hello
        assert it.agent.active_streams == 0
        assert it.tunnel.last_error == "a message of the server's could not be taken here"


@pytest.mark.parametrize(
    "said",
    [
        {"session": "another", "resumed": True, "received": 0},
        {"session": "s1", "resumed": True, "received": 99},
        {"session": "s2", "resumed": False, "received": 1},
    ],
)
async def test_a_server_that_resumes_what_cannot_be_is_told_so(said: dict[str, Any]) -> None:
    async with bench() as it:
        first = await online(it)
        await first.open()
        await first.frames_until(frames.DATA)
        first.cut()
        second = await it.next()
        await second.connect(**said)
        await second.socket.wait_closed()
        third = await it.next()
        assert "session_id" not in third.hello
        assert it.agent.active_streams == 0


@pytest.mark.parametrize(
    ("refused", "words"),
    [
        ("expired", "the outage was longer than the server's resume.grace"),
        ("unknown", "the server does not have it any more, as after its own restart"),
        ("a newer word", "a newer word"),
    ],
)
async def test_a_refused_resume_ends_the_streams_and_begins_anew(
    caplog: pytest.LogCaptureFixture, refused: str, words: str
) -> None:
    async with bench() as it:
        told: list[dict[str, Any]] = []
        it.agent.subscribe(told.append)
        first = await online(it)
        await first.open()
        await first.frames_until(frames.DATA)
        first.cut()
        second = await it.next()
        await second.connect("s2", resumed=False, resume_refused=refused)
        await it.state("online")
        assert f"The session of t was not resumed: {words}" in caplog.messages
        assert it.agent.active_streams == 0
        last = it.tunnel.outages.last
        assert last is not None
        assert (last.resumed, last.streams_lost) == (False, 1)
        [event] = [event for event in told if "resumed" in event]
        assert (event["type"], event["resumed"], event["streams_lost"]) == ("tunnel", False, 1)
        second.cut()
        third = await it.next()
        assert third.hello["session_id"] == "s2"


async def test_an_outage_is_told_by_event_and_status() -> None:
    async with bench() as it:
        told: list[dict[str, Any]] = []
        it.agent.subscribe(told.append)
        first = await online(it)
        first.cut()
        second = await it.next()
        await it.state("resuming")
        await second.connect("s1", resumed=True, received=0)
        await it.state("online")
        [event] = [event for event in told if "resumed" in event]
        assert (event["type"], event["state"], event["was"], event["resumed"]) == ("tunnel", "online", "resuming", True)
        assert event["outage_s"] >= 0
        assert event["replayed_bytes"] == 0
        [status] = AgentView(it.agent).status()["tunnels"]
        assert status["outages"]["count"] == 1
        last = status["outages"]["last"]
        assert last is not None
        assert set(last) == {"at", "seconds", "resumed", "replayed_bytes", "streams_lost"}
        assert last["at"].endswith("Z")


async def test_a_server_that_resumes_after_the_agents_grace_is_still_believed() -> None:
    async with bench(resume={"grace": "150ms"}) as it:
        first = await it.next()
        await first.say(
            type="connected", tunnel_id="t", public_url="", session_id="s1", resume_token="x",
            heartbeat={"interval": 30, "timeout": 10}, sse={}, resume={"grace": 0.15, "buffer": 65536},
            max_streams=10, stream_window=65536, max_header=8192,
        )  # fmt: skip
        await it.state("online")
        await first.open()
        await first.frames_until(frames.DATA)
        first.cut()
        second = await it.next()
        await asyncio.sleep(0.3)  # the grace ends while the answer is under way
        await second.connect("s1", resumed=True, received=0)
        await it.state("online")
        await second.frames_until(frames.DATA)
        assert it.agent.active_streams == 1


async def test_the_grace_ends_the_streams_of_the_service() -> None:
    async with bench(resume={"grace": "100ms"}) as it:
        peer = await it.next()
        await peer.say(
            type="connected", tunnel_id="t", public_url="", session_id="s1", resume_token="x",
            heartbeat={"interval": 30, "timeout": 10}, sse={}, resume={"grace": 0.1, "buffer": 65536},
            max_streams=10, stream_window=65536, max_header=8192,
        )  # fmt: skip
        await it.state("online")
        await peer.open()
        await peer.frames_until(frames.DATA)
        peer.cut()
        silent = await it.next()  # says nothing, and its hello is cut too
        silent.cut()
        async with asyncio.timeout(5):
            while it.agent.active_streams:
                await asyncio.sleep(0.01)
                if not it.peers.empty():
                    it.peers.get_nowait().cut()
        last = it.tunnel.outages.last
        assert last is not None
        assert not last.resumed


# -- waking up -------------------------------------------------------------------------------------------


async def test_a_doubted_connection_is_pinged_and_kept_when_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunnels, "_DOUBT", 0.5)
    async with bench() as it:
        peer = await online(it)
        await peer.said("ping")
        it.agent._woke("this machine slept for 90 s")
        ping = await peer.said("ping")
        await peer.say(type="pong", timestamp=ping["timestamp"], seq=ping["seq"])
        await asyncio.sleep(0.7)
        assert it.tunnel.state == "online"
        assert it.peers.empty()


async def test_a_doubted_connection_that_says_nothing_is_replaced_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunnels, "_DOUBT", 0.2)
    async with bench() as it:
        await online(it)
        began = monotonic()
        it.agent._woke("the network changed")
        second = await it.next()
        assert 0.15 < monotonic() - began < 1.5  # and not after 40 s
        assert second.hello["session_id"] == "s1"


async def test_waking_ends_the_wait_for_the_next_dial() -> None:
    async with bench(reconnect={"initial": "100ms", "max": "1h"}) as it:
        first = await it.next()
        await first.say(type="error", code="overloaded", message="", retry_after=3000)
        await it.state("offline")
        it.agent._woke("the network changed")
        await it.next()


async def test_waking_does_not_hurry_a_dial_that_was_refused() -> None:
    async with bench(reconnect={"initial": "20ms", "max": "1h"}) as it:
        first = await it.next()
        await first.say(type="error", code="revoked", message="")
        await it.state("failed")
        it.agent._woke("the network changed")
        await asyncio.sleep(0.2)
        assert it.peers.empty()


async def test_waking_while_hello_waits_dials_anew() -> None:
    async with bench() as it:
        await it.next()
        it.agent._woke("the network changed")
        second = await it.next()
        await second.connect("s1")
        await it.state("online")


# -- drain -----------------------------------------------------------------------------------------------


async def test_goaway_is_said_again_after_a_resume_and_opens_are_refused() -> None:
    async with bench() as it:
        first = await online(it)
        await first.open()
        await first.frames_until(frames.DATA)
        it.agent.begin_drain()
        assert (await first.said("goaway"))["reason"] == "drain"
        first.cut()
        second = await it.next()
        await second.connect("s1", resumed=True, received=len(first.counted))
        assert (await second.said("goaway"))["reason"] == "drain"
        await second.open(2)
        cancel = await second.said("stream_cancel")
        assert (cancel["request_id"], cancel["reason"]) == ("r2", "refused")
        assert it.agent.active_streams == 1


async def test_what_remains_when_the_agent_stops_is_cancelled_shutdown_and_goaway_is_said() -> None:
    async with bench() as it:
        peer = await online(it)
        await peer.open()
        await peer.frames_until(frames.DATA)
        stopping = asyncio.get_running_loop().create_task(it.agent.stop())
        cancel = await peer.said("stream_cancel")
        assert (cancel["request_id"], cancel["reason"]) == ("r1", "shutdown")
        await peer.socket.wait_closed()
        assert peer.socket.close_code == 1000
        await stopping


# -- time without a connection ---------------------------------------------------------------------------


async def test_an_outage_does_not_count_towards_response_timeout() -> None:
    async with bench(limits={"response_timeout": "400ms"}) as it:

        async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            await reader.read()

        it.service = slow
        first = await online(it)
        await first.open()
        async with asyncio.timeout(5):
            while not it.agent.active_streams:
                await asyncio.sleep(0.01)
        first.cut()
        await it.state("resuming")
        second = await it.next()
        await asyncio.sleep(0.6)
        assert it.agent.active_streams == 1
        began = monotonic()
        await second.connect("s1", resumed=True, received=0)
        found = await second.frames_until(frames.HEAD)
        head = json.loads(next(payload for kind, _, payload in found if kind & 0x7F == frames.HEAD))
        assert head["status"] == 504
        assert monotonic() - began > 0.1


async def test_a_service_that_breaks_during_an_outage_is_noticed_then() -> None:
    async with bench() as it:
        first = await online(it)
        await first.open()
        await first.frames_until(frames.DATA)
        first.cut()
        await it.state("resuming")
        for writer in it.writers:  # that of the service check among them
            writer.transport.abort()
        async with asyncio.timeout(2):
            while it.agent.active_streams:
                await asyncio.sleep(0.01)
        second = await it.next()
        await second.connect("s1", resumed=True, received=len(first.counted))
        assert (await second.said("stream_cancel"))["reason"] == "service"


async def test_a_network_that_changes_all_the_time_does_not_keep_the_agent_away() -> None:
    async with bench() as it:
        await it.next()
        it.agent._woke("the network changed")
        second = await it.next()
        for _ in range(5):
            it.agent._woke("the network changed")
            await asyncio.sleep(0.02)
        await second.connect("s1")
        await it.state("online")
        assert it.peers.empty()
