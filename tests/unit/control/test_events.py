import asyncio
import json
from typing import Any

from tests.support.control_agent import MemoryAgent
from tunneld.control import events
from tunneld.control.events import EventStream, Subscribers


class Reader:
    """The ASGI side of one reader, in memory: `gate` holds its sends back, `left` ends it."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.got = asyncio.Event()
        self.left = asyncio.Event()
        self.aborted = 0

    def abort(self) -> None:
        self.aborted += 1
        self.left.set()
        self.gate.set()

    async def receive(self) -> dict[str, Any]:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        await self.gate.wait()
        self.messages.append(message)
        self.got.set()

    def start(self, subscribers: Subscribers) -> asyncio.Task[None]:
        scope = {"type": "http", "state": {"abort": self.abort}}
        return asyncio.get_running_loop().create_task(EventStream(subscribers)(scope, self.receive, self.send))

    @property
    def text(self) -> str:
        return b"".join(one.get("body", b"") for one in self.messages).decode()

    async def until(self, part: str) -> None:
        while part not in self.text:
            self.got.clear()
            await self.got.wait()


async def test_events_come_in_order_and_end_with_the_agent() -> None:
    agent, reader = MemoryAgent(), Reader()
    subscribers = Subscribers(agent.subscribe)
    task = reader.start(subscribers)
    await reader.until(": subscribed")
    agent.publish("tunnel", tunnel="demo", state="online")
    agent.publish("alert", message="zwei\nZeilen ü")
    subscribers.close()
    await task
    first, second = (block for block in reader.text.split("\n\n") if block.startswith("id:"))
    assert first.startswith("id: 1\nevent: tunnel\ndata: {")
    assert json.loads(second.partition("data: ")[2])["message"] == "zwei\nZeilen ü"
    assert reader.messages[-1] == {"type": "http.response.body", "body": b"", "more_body": False}
    assert (len(subscribers), agent.listeners) == (0, set())


async def test_a_reader_that_leaves_is_forgotten() -> None:
    agent, reader = MemoryAgent(), Reader()
    subscribers = Subscribers(agent.subscribe)
    task = reader.start(subscribers)
    await reader.until(": subscribed")
    reader.left.set()
    await task
    assert (len(subscribers), agent.listeners) == (0, set())


async def test_a_slow_reader_is_told_and_cut(monkeypatch: Any) -> None:
    monkeypatch.setattr(events, "MAX_HELD", 1000)
    agent, reader = MemoryAgent(), Reader()
    subscribers = Subscribers(agent.subscribe)
    task = reader.start(subscribers)
    await reader.until(": subscribed")
    reader.gate.clear()
    for _ in range(40):
        agent.publish("heartbeat", tunnel="demo", ok=True)
    assert agent.listeners == set()  # at once, not when it reads again
    reader.gate.set()
    await task
    last = json.loads(reader.text.strip().rpartition("data: ")[2])
    assert last["type"] == "lagged"
    assert last["dropped"] > 0
    assert reader.aborted == 0


async def test_a_cut_reader_that_reads_nothing_is_aborted(monkeypatch: Any) -> None:
    monkeypatch.setattr(events, "MAX_HELD", 1000)
    monkeypatch.setattr(events, "CUT_AFTER", 0.01)
    agent, reader = MemoryAgent(), Reader()
    subscribers = Subscribers(agent.subscribe)
    task = reader.start(subscribers)
    await reader.until(": subscribed")
    reader.gate.clear()
    for _ in range(40):
        agent.publish("heartbeat", tunnel="demo", ok=True)
    await task
    assert reader.aborted == 1
    assert len(subscribers) == 0


async def test_quiet_streams_show_that_they_live(monkeypatch: Any) -> None:
    monkeypatch.setattr(events, "KEEPALIVE", 0.01)
    agent, reader = MemoryAgent(), Reader()
    subscribers = Subscribers(agent.subscribe)
    task = reader.start(subscribers)
    await reader.until(": keepalive\n\n: keepalive\n\n")
    subscribers.close()
    await task


async def test_subscribers_are_bounded(monkeypatch: Any) -> None:
    monkeypatch.setattr(events, "MAX_SUBSCRIBERS", 1)
    agent, reader, late = MemoryAgent(), Reader(), Reader()
    subscribers = Subscribers(agent.subscribe)
    task = reader.start(subscribers)
    await reader.until(": subscribed")
    await late.start(subscribers)
    assert late.messages[0]["status"] == 503
    assert json.loads(late.text)["code"] == "too_many_subscribers"
    subscribers.close()
    await task
