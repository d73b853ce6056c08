"""WebSockets of visitors: through the tunnel a service and its client see of each other what they see direct."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from tests.support.loops import FACTORIES
from tests.support.socketed import through
from tests.support.ws_cases import CASES, SERVED, Case
from tests.support.ws_raw import CLOSE, FIN, RawSocket, close_payload, raw_client, raw_service

#: Codes of the hop's own close frames, whose words are each program's own.
OWN_WORDS = (1002, 1007, 1009)
AT_A_TIME = 16


def _short(message: str | bytes) -> tuple[str, int, str]:
    data = message.encode() if isinstance(message, str) else message
    return type(message).__name__, len(data), hashlib.sha256(data).hexdigest()[:12]


@dataclass
class EchoService:
    """The ``websockets`` package's server: says all back under ``/echo``, and notes what it saw by the query."""

    port: int = 0
    seen: dict[str, asyncio.Future[Any]] = field(default_factory=dict)

    def future(self, name: str) -> asyncio.Future[Any]:
        return self.seen.setdefault(name, asyncio.get_running_loop().create_future())

    async def handle(self, socket: ServerConnection) -> None:
        messages: list[Any] = []
        assert socket.request is not None
        path, _, name = socket.request.path.partition("?")
        raised = "none"
        try:
            async for message in socket:
                messages.append(_short(message))
                if path == "/echo":
                    await socket.send(message)
        except ConnectionClosed as closed:
            raised = "closed" if closed.rcvd else "lost"
        await socket.wait_closed()
        reason = "" if socket.close_code in OWN_WORDS else socket.close_reason
        self.future(name).set_result((messages, raised, socket.close_code, reason))


@contextlib.asynccontextmanager
async def echo_service() -> AsyncIterator[EchoService]:
    made = EchoService()
    async with serve(made.handle, "127.0.0.1", 0, max_size=32 << 20, compression=None, ping_interval=None) as server:
        made.port = next(iter(server.sockets)).getsockname()[1]
        yield made


def _frames(got: list[tuple[int, bytes]]) -> list[tuple[int, int, str]]:
    """Frames as they are compared: close frames of the hop without their words."""
    found = []
    for first, payload in got:
        if first == FIN | CLOSE and payload and int.from_bytes(payload[:2], "big") in OWN_WORDS:
            payload = payload[:2]
        found.append((first, len(payload), hashlib.sha256(payload).hexdigest()[:12]))
    return found


async def _ask(url: str, case: Case) -> tuple[Any, str]:
    """What the client sees: messages and control frames, and that it ends."""
    socket = await raw_client(f"{url}{'echo' if case.echo else 'read'}?{CASES.index(case)}")
    socket.raw(case.sent)
    if case.end:
        socket.half_close()
    else:
        socket.send(FIN | CLOSE, close_payload(1000, "done"))
    with contextlib.suppress(ConnectionError):
        await socket.writer.drain()
    await socket.until_end()
    socket.close()
    return _joined(socket), "ended" if socket.end else ""


def _joined(socket: RawSocket) -> Any:
    """Frames that came, fragments of large messages put together: those may be cut on their way."""
    frames: list[tuple[int, bytes]] = []
    for first, payload in socket.got:
        if first & 0x0F == 0:
            before, said = frames.pop()
            frames.append((before | first & FIN, said + payload))
        else:
            frames.append((first, payload))
    return _frames(frames)


async def _table(url: str, service: EchoService, cases: list[Case]) -> dict[str, Any]:
    limit = asyncio.Semaphore(AT_A_TIME)
    found: dict[str, Any] = {}

    async def one(case: Case) -> None:
        async with limit:
            client = await _ask(url, case)
            async with asyncio.timeout(10):
                at_service = await service.future(str(CASES.index(case)))
        found[case.name] = (client, at_service) if case.strict else ("refused", at_service)

    async with asyncio.TaskGroup() as group:
        for case in cases:
            group.create_task(one(case))
    return found


@pytest.mark.timeout(60)  # seconds on a machine that is busy with other things
@pytest.mark.parametrize("half", [0, 1], ids=["asyncio", "uvloop"])
def test_every_case_of_the_table_is_seen_at_both_ends_as_it_is_direct(half: int) -> None:
    """Octets of all kinds, good and bad, to the ``websockets`` package's echo service; half the table on each loop."""
    cases = CASES[half::2]
    assert len(cases) > 75

    async def compare() -> None:
        left = cases
        async with echo_service() as service, through(f"http://127.0.0.1:{service.port}") as world:
            # What a service makes of a message and a close frame that come together is a race of its own, direct as
            # well: a case that differs is asked again, and one that always differs is the tunnel's doing.
            for _ in range(3):
                service.seen.clear()
                direct = await _table(f"ws://127.0.0.1:{service.port}/", service, left)
                service.seen.clear()
                tunnelled = await _table(world.url, service, left)
                left = [case for case in left if direct[case.name] != tunnelled[case.name]]
                if not left:
                    return
        differing = {case.name: (direct[case.name], tunnelled[case.name]) for case in left}
        assert not differing, "\n".join(f"{name}\n  direct {a}\n  tunnel {b}" for name, (a, b) in differing.items())

    with asyncio.Runner(loop_factory=FACTORIES[half % len(FACTORIES)], debug=True) as runner:
        runner.run(compare())


# -- and the other way ---------------------------------------------------------------------------------------


class SpeakingService:
    """A service that sends a case's octets to whoever comes, and notes what it hears back."""

    def __init__(self) -> None:
        self.heard: dict[int, asyncio.Future[Any]] = {}

    async def script(self, socket: RawSocket) -> None:
        number = int(socket.head.split(" ")[1].rpartition("?")[2])
        case = SERVED[number]
        socket.raw(case.sent)
        if case.end:
            socket.half_close()
        else:
            socket.send(FIN | CLOSE, close_payload(1000, "done"))
        async with asyncio.timeout(10):
            while (found := await socket.receive()) is not None and found[0] != FIN | CLOSE:
                pass
        self.heard[number].set_result(_frames(socket.got))


async def _listen(url: str) -> Any:
    """What the ``websockets`` package's client makes of it."""
    messages: list[Any] = []
    async with connect(url, compression=None, max_size=32 << 20, ping_interval=None, close_timeout=5) as socket:
        raised = "none"
        try:
            async for message in socket:
                messages.append(_short(message))
        except ConnectionClosed as closed:
            raised = "closed" if closed.rcvd else "lost"
        await socket.wait_closed()
        reason = "" if socket.close_code in OWN_WORDS else socket.close_reason
        return messages, raised, socket.close_code, reason


async def _heard(url: str, service: SpeakingService, numbers: range) -> dict[str, Any]:
    limit = asyncio.Semaphore(AT_A_TIME)
    found: dict[str, Any] = {}

    async def one(number: int) -> None:
        async with limit:
            service.heard[number] = asyncio.get_running_loop().create_future()
            client = await _listen(f"{url}?{number}")
            async with asyncio.timeout(10):
                heard = await service.heard[number]
        case = SERVED[number]
        found[case.name] = (client, heard) if case.strict else client[:2]

    async with asyncio.TaskGroup() as group:
        for number in numbers:
            group.create_task(one(number))
    return found


@pytest.mark.timeout(60)
@pytest.mark.parametrize("half", [0, 1], ids=["uvloop", "asyncio"])
def test_every_case_that_a_service_says_is_seen_at_both_ends_as_it_is_direct(half: int) -> None:
    """The same octets from a service to the ``websockets`` package's client; the other half on each loop."""

    async def compare() -> None:
        speaking = SpeakingService()
        async with raw_service(speaking.script) as service:
            direct = await _heard(service.replace("http:", "ws:") + "/", speaking, range(half, len(SERVED), 2))
            async with through(service) as world:
                tunnelled = await _heard(world.url, speaking, range(half, len(SERVED), 2))
        differing = {name: (direct[name], tunnelled[name]) for name in direct if direct[name] != tunnelled[name]}
        assert not differing, "\n".join(f"{name}\n  direct {a}\n  tunnel {b}" for name, (a, b) in differing.items())

    with asyncio.Runner(loop_factory=FACTORIES[half - 1], debug=True) as runner:
        runner.run(compare())
