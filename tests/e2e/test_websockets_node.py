"""Node's `ws` package, as service and as client: through the tunnel it sees what it sees direct."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import need
from tests.support.socketed import through
from tests.support.ws_cases import CASES, SERVED, Case
from tests.support.ws_raw import CLOSE, FIN, RawSocket, close_payload, raw_client, raw_service

HERE = Path(__file__).parent / "node"
#: Codes of a hop's own close frames, whose words are each program's own.
OWN_WORDS = (1002, 1007, 1009)
#: What `ws` says of frames that the tunnel's hop answers itself: the other end sees only that its connection ends.
OF_THE_HOP = (
    *("WS_ERR_INVALID_OPCODE", "WS_ERR_EXPECTED_FIN", "WS_ERR_INVALID_CONTROL_PAYLOAD_LENGTH", "WS_ERR_EXPECTED_MASK"),
    *("WS_ERR_UNEXPECTED_MASK", "WS_ERR_UNEXPECTED_RSV_1", "WS_ERR_UNEXPECTED_RSV_2_3"),
)
LIMIT = 16


class Program:
    """A Node program that says a line of JSON at a time."""

    def __init__(self, process: asyncio.subprocess.Process, key: str) -> None:
        self._process = process
        self._key = key
        self._told: dict[str, asyncio.Future[Any]] = {}

    def told(self, key: object) -> asyncio.Future[Any]:
        return self._told.setdefault(str(key), asyncio.get_running_loop().create_future())

    def say(self, what: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(what).encode() + b"\n")

    def forget(self) -> None:
        self._told.clear()

    async def line(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(await self._process.stdout.readline())

    async def read(self) -> None:
        with contextlib.suppress(json.JSONDecodeError):  # the end
            while True:
                said = await self.line()
                self.told(said.pop(self._key)).set_result(said)


@contextlib.asynccontextmanager
async def program(name: str, key: str) -> AsyncIterator[Program]:
    """One of the programs beside this file; its lines are found by `key`."""
    node = need("node", "apt-get install nodejs npm")
    if not (HERE / "node_modules" / "ws").exists():
        pytest.skip("the `ws` package is missing: make test-e2e installs it")
    process = await asyncio.create_subprocess_exec(
        node, name, cwd=HERE, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=1 << 20
    )
    made = Program(process, key)
    try:
        yield made
    finally:
        process.kill()
        await process.wait()


@contextlib.asynccontextmanager
async def service() -> AsyncIterator[tuple[Program, int]]:
    """(the service, its port)"""
    async with program("ws_service.mjs", "query") as made:
        port = (await made.line())["port"]
        reading = asyncio.get_running_loop().create_task(made.read())
        yield made, port
        reading.cancel()


@contextlib.asynccontextmanager
async def client() -> AsyncIterator[Program]:
    async with program("ws_client.mjs", "id") as made:
        reading = asyncio.get_running_loop().create_task(made.read())
        yield made
        reading.cancel()


def _plain(said: dict[str, Any]) -> dict[str, Any]:
    if said["error"] in OF_THE_HOP:
        said = {**said, "error": None}
    return {**said, "reason": ""} if said["code"] in OWN_WORDS else said


def _frames(socket: RawSocket) -> list[tuple[int, bytes]]:
    """Frames that came, fragments of large messages put together, the hop's own close frames without their words."""
    found: list[tuple[int, bytes]] = []
    for first, payload in socket.got:
        if first & 0x0F == 0:
            before, said = found.pop()
            found.append((before | first & FIN, said + payload))
        elif first == FIN | CLOSE and int.from_bytes(payload[:2], "big") in OWN_WORDS:
            found.append((first, payload[:2]))
        else:
            found.append((first, payload))
    return found


async def _each(one: Callable[[int], Any], count: int) -> dict[int, Any]:
    limit = asyncio.Semaphore(LIMIT)
    found: dict[int, Any] = {}

    async def run(number: int) -> None:
        async with limit, asyncio.timeout(30):
            found[number] = await one(number)

    async with asyncio.TaskGroup() as group:
        for number in range(count):
            group.create_task(run(number))
    return found


def _compare(direct: dict[int, Any], tunnelled: dict[int, Any], cases: list[Case]) -> None:
    differing = [number for number in direct if direct[number] != tunnelled[number] and cases[number].strict]
    assert not differing, "\n".join(
        f"{cases[number].name}\n  direct {direct[number]}\n  tunnel {tunnelled[number]}"[:1000] for number in differing
    )


async def test_a_service_made_with_ws_hears_every_case_as_it_does_direct() -> None:
    async with service() as (node, port):

        def asking(url: str) -> Callable[[int], Any]:
            async def one(number: int) -> Any:
                case = CASES[number]
                socket = await raw_client(f"{url}{'echo' if case.echo else 'read'}?{number}")
                socket.raw(case.sent)
                if case.end:
                    socket.half_close()
                else:
                    socket.send(FIN | CLOSE, close_payload(1000, "done"))
                await socket.until_end()
                socket.close()
                return _frames(socket), _plain(await node.told(number))

            return one

        direct = await _each(asking(f"ws://127.0.0.1:{port}/"), len(CASES))
        node.forget()
        async with through(f"http://127.0.0.1:{port}") as world:
            tunnelled = await _each(asking(world.url), len(CASES))
    _compare(direct, tunnelled, CASES)


async def test_a_client_made_with_ws_hears_every_case_as_it_does_direct() -> None:
    heard: dict[int, asyncio.Future[Any]] = {}

    async def script(socket: RawSocket) -> None:
        number = int(socket.head.split(" ")[1].rpartition("?")[2])
        socket.raw(SERVED[number].sent)
        if SERVED[number].end:
            socket.half_close()
        else:
            socket.send(FIN | CLOSE, close_payload(1000, "done"))
        while (found := await socket.receive()) is not None and found[0] != FIN | CLOSE:
            pass
        heard[number].set_result(_frames(socket))

    async with client() as node, raw_service(script) as address:

        def listening(url: str) -> Callable[[int], Any]:
            async def one(number: int) -> Any:
                heard[number] = asyncio.get_running_loop().create_future()
                node.say({"id": number, "url": f"{url}?{number}"})
                return _plain(await node.told(number)), await heard[number]

            return one

        direct = await _each(listening(address.replace("http:", "ws:") + "/"), len(SERVED))
        node.forget()
        async with through(address) as world:
            tunnelled = await _each(listening(world.url), len(SERVED))
    _compare(direct, tunnelled, SERVED)


async def test_both_ends_made_with_ws() -> None:
    """Sizes up to 16 MiB, subprotocols, pings, close codes; deflate is offered, and refused by the tunnel alone."""
    sends: list[list[list[Any]]] = [
        [["text", "hello"], ["text", ""], ["text", "ü€𝄞" * 1000]],
        [["binary", size] for size in (0, 1, 125, 126, 65_535, 65_536, 1 << 20)],
        [["binary", 16 << 20]],
        [["ping", "one"], ["text", "x"], ["ping", ""], ["ping", "p" * 125]],
    ]
    closes = [[code, f"because {code}"] for code in (1000, 1001, 1003, 1008, 1011, 1012, 1013, 3000, 4999)]
    asked = [{"send": send, "close": [1000, "done"], "protocols": ["chat.v1", "chat.v2"]} for send in sends]
    asked += [{"send": [["text", "x"]], "close": close} for close in closes]
    async with client() as node, service() as (echoing, port):

        def asking(url: str) -> Callable[[int], Any]:
            async def one(number: int) -> Any:
                node.say({"id": number, "url": f"{url}echo?{number}", **asked[number]})
                saw = await node.told(number)
                return saw.pop("extensions"), saw, await echoing.told(number)

            return one

        direct = await _each(asking(f"ws://127.0.0.1:{port}/"), len(asked))
        node.forget()
        echoing.forget()
        async with through(f"http://127.0.0.1:{port}") as world:
            tunnelled = await _each(asking(world.url), len(asked))
            node.say({"id": "nowhere", "url": world.url.replace("/app/", "/nobody/")})
            assert await node.told("nowhere") == {"status": 404, "code": "no_such_tunnel"}
    for number, (extensions, *saw) in direct.items():
        assert "permessage-deflate" in extensions
        assert tunnelled[number][0] == ""
        assert tunnelled[number][1:] == tuple(saw)
    assert [tunnelled[number][1]["protocol"] for number in range(4)] == ["chat.v2"] * 4
