import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.control_agent import MemoryAgent
from tunneld.control import events
from tunneld.control.event_bounds import EventBounds
from tunneld.control.event_filter import EventFilter
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
        self.refused = False  # the last that was sent, at first
        self.task: asyncio.Task[None]  # that serves it

    def abort(self) -> None:
        self.aborted += 1
        self.left.set()
        self.gate.set()

    async def receive(self) -> dict[str, Any]:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.refused = not self.gate.is_set()
        await self.gate.wait()
        self.messages.append(message)
        self.got.set()

    def start(
        self, subscribers: Subscribers, *, last_id: str = "", wanted: EventFilter | None = None
    ) -> asyncio.Task[None]:
        headers = [(b"last-event-id", last_id.encode())] if last_id else []
        scope = {"type": "http", "state": {"abort": self.abort}, "headers": headers}
        return asyncio.get_running_loop().create_task(EventStream(subscribers, wanted)(scope, self.receive, self.send))

    @property
    def text(self) -> str:
        return b"".join(one.get("body", b"") for one in self.messages).decode()

    async def turn_deaf(self, subscribers: Subscribers, publish: Callable[[], object]) -> None:
        """Take nothing any more, until the write of what is published is known not to end."""
        self.gate.clear()
        publish()
        subscribers.flush()
        async with asyncio.timeout(5):
            while any(one.reads for one in subscribers._open):
                await asyncio.sleep(0.01)

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


async def test_a_reader_that_comes_back_gets_what_it_missed() -> None:
    agent, first, second = MemoryAgent(), Reader(), Reader()
    subscribers = Subscribers(agent.subscribe)
    task = first.start(subscribers)
    await first.until(": subscribed")
    agent.publish("tunnel", tunnel="a", state="online")
    await first.until("event: tunnel")
    first.left.set()
    await task
    agent.publish("tunnel", tunnel="b", state="online")
    agent.publish("tunnel", tunnel="c", state="online")
    back = second.start(subscribers, last_id="1")
    await second.until('"tunnel":"c"')
    agent.publish("tunnel", tunnel="d", state="online")
    await second.until('"tunnel":"d"')
    told = [json.loads(line[5:]) for line in second.text.splitlines() if line.startswith("data:")]
    assert [(one["id"], one["tunnel"]) for one in told] == [(2, "b"), (3, "c"), (4, "d")]
    subscribers.close()
    await back


@pytest.mark.parametrize(("last_id", "since", "told"), [("1", 1, [4, 5]), ("99", 99, [])])
async def test_what_is_not_kept_is_told_as_a_gap(last_id: str, since: int, told: list[int]) -> None:
    agent, first, second = MemoryAgent(), Reader(), Reader()
    subscribers = Subscribers(agent.subscribe, EventBounds(history=2 * 110))
    task = first.start(subscribers)
    await first.until(": subscribed")
    for name in "abcde":
        agent.publish("tunnel", tunnel=name)
    back = second.start(subscribers, last_id=last_id)
    await second.until("event: gap")
    lines = [json.loads(line[5:]) for line in second.text.splitlines() if line.startswith("data:")]
    assert (lines[0]["type"], lines[0]["since"], lines[0]["next"]) == ("gap", since, told[0] if told else None)
    assert [one["id"] for one in lines[1:]] == told
    assert lines[0]["id"] == (told[0] - 1 if told else 5), "what comes next has a higher one"
    subscribers.close()
    await asyncio.gather(task, back)


@pytest.mark.parametrize("header", ["x", "-1", "1" * 40])
async def test_an_id_that_is_none_of_ours_is_passed_over(header: str) -> None:
    agent, reader = MemoryAgent(), Reader()
    subscribers = Subscribers(agent.subscribe)
    task = reader.start(subscribers, last_id=header)
    await reader.until(": subscribed")
    subscribers.close()
    await task
    assert "event:" not in reader.text


async def test_nothing_is_kept_when_nobody_has_listened_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "RETAIN", 0.0)
    agent, reader = MemoryAgent(), Reader()
    subscribers = Subscribers(agent.subscribe)
    task = reader.start(subscribers)
    await reader.until(": subscribed")
    reader.left.set()
    await task
    while agent.listeners:
        await asyncio.sleep(0)
    assert len(subscribers) == 0


async def test_a_reader_that_leaves_is_forgotten() -> None:
    agent, reader = MemoryAgent(), Reader()
    subscribers = Subscribers(agent.subscribe)
    task = reader.start(subscribers)
    await reader.until(": subscribed")
    reader.left.set()
    await task
    assert (len(subscribers), len(agent.listeners)) == (0, 1)  # for those that come back
    subscribers.close()
    assert agent.listeners == set()


async def test_a_slow_reader_is_told_and_cut() -> None:
    agent, reader = MemoryAgent(), Reader()
    subscribers = Subscribers(agent.subscribe, EventBounds(queue=1000))
    task = reader.start(subscribers)
    await reader.until(": subscribed")
    await reader.turn_deaf(subscribers, lambda: agent.publish("heartbeat", tunnel="demo", ok=True))
    for _ in range(40):
        agent.publish("heartbeat", tunnel="demo", ok=True)
    assert all(one.ended for one in subscribers._open)  # at once, not when it reads again
    reader.gate.set()
    await task
    subscribers.close()
    last = json.loads(reader.text.strip().rpartition("data: ")[2])
    assert last["type"] == "lagged"
    assert last["dropped"] > 0
    assert reader.aborted == 0


async def test_a_cut_reader_that_reads_nothing_is_aborted(monkeypatch: Any) -> None:
    monkeypatch.setattr(events, "CUT_AFTER", 0.01)
    agent, reader = MemoryAgent(), Reader()
    subscribers = Subscribers(agent.subscribe, EventBounds(queue=1000))
    task = reader.start(subscribers)
    await reader.until(": subscribed")
    await reader.turn_deaf(subscribers, lambda: agent.publish("heartbeat", tunnel="demo", ok=True))
    for _ in range(40):
        agent.publish("heartbeat", tunnel="demo", ok=True)
    await task
    assert reader.aborted == 1
    assert len(subscribers) == 0
    subscribers.close()


async def test_quiet_streams_show_that_they_live(monkeypatch: Any) -> None:
    monkeypatch.setattr(events, "KEEPALIVE", 0.01)
    agent, reader = MemoryAgent(), Reader()
    subscribers = Subscribers(agent.subscribe)
    task = reader.start(subscribers)
    await reader.until(": keepalive\n\n: keepalive\n\n")
    subscribers.close()
    await task


async def test_subscribers_are_bounded() -> None:
    agent, reader, late = MemoryAgent(), Reader(), Reader()
    subscribers = Subscribers(agent.subscribe, EventBounds(readers=1))
    task = reader.start(subscribers)
    await reader.until(": subscribed")
    await late.start(subscribers)
    assert late.messages[0]["status"] == 503
    assert json.loads(late.text)["code"] == "too_many_subscribers"
    subscribers.close()
    await task


async def test_a_reader_of_an_agent_that_was_restarted_is_told_of_the_gap_in_the_order_of_ids() -> None:
    agent, reader = MemoryAgent(), Reader()
    subscribers = Subscribers(agent.subscribe)
    task = reader.start(subscribers, last_id="0")
    await reader.until("event: gap")
    agent.publish("tunnel", tunnel="a", state="online")
    await reader.until("event: tunnel")
    ids = [int(line[3:]) for line in reader.text.splitlines() if line.startswith("id:")]
    assert ids == [0, 1], "of a process that told nothing yet: that of the reader"
    subscribers.close()
    await task
