"""The proxy and services that fail in every way: each has its own answer, and none ends cleanly that was not."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from tests.support.joined import Visitor
from tests.support.loops import on_both_loops
from tests.support.sockets import certificate, free_port, short_dir
from tests.support.tunnelled import Tunnelled, read_head, reply, serving, tunnelled, tunnelled_to, turns_until
from tunneld.agent.origin import Origin
from tunneld.agent.probe import ServiceProbe
from tunneld.config.agent import AgentConfig, ServerLink
from tunneld.config.service import parse_service
from tunneld.config.tunnel import AgentLimits, TunnelConfig
from tunneld.errors import CODES
from tunneld.wire.sockets import reset
from tunneld.wire.tls import client_context, server_context

Writer = asyncio.StreamWriter
Reader = asyncio.StreamReader

SSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def says(*parts: bytes, then: str = "wait") -> Callable[[Reader, Writer], Coroutine[Any, Any, None]]:
    """A service that answers whatever it is asked with these bytes, and then waits, closes or resets."""

    async def service(reader: Reader, writer: Writer) -> None:
        await read_head(reader)
        for part in parts:
            writer.write(part)
            await writer.drain()
        if then == "wait":
            await reader.read()
        elif then == "reset":
            await asyncio.sleep(0.01)  # so that what was written is there before the reset is
            reset(writer.transport)  # type: ignore[arg-type]

    return service


async def assert_problem(visitor: Visitor, code: str, made: Tunnelled) -> dict[str, Any]:
    assert visitor.ended
    assert visitor.reason is None
    assert visitor.status == CODES[code].status
    assert visitor.headers["x-tunnel-error"] == code
    assert visitor.headers["content-type"] == "application/problem+json"
    assert int(visitor.headers["content-length"]) == len(visitor.body)
    document: dict[str, Any] = json.loads(bytes(visitor.body))
    assert document["code"] == code
    assert document["status"] == visitor.status
    assert document["request_id"] == visitor.stream.request_id
    assert "127.0.0.1" not in document["detail"]
    await turns_until(lambda: not made.proxy.exchanges)
    assert made.ended == {"service": 1}
    return document


@pytest.mark.parametrize(
    ("service", "code"),
    [
        pytest.param(says(then="close"), "service_broke", id="closes"),
        pytest.param(says(then="reset"), "service_broke", id="resets"),
        pytest.param(says(b"HTTP/1.1 200 OK\r\nA: ", then="close"), "service_broke", id="closes in its head"),
        pytest.param(says(b"HTTP/1.1 200 OK\r\nA: ", then="reset"), "service_broke", id="resets in its head"),
        pytest.param(says(b"HTTP/1.1 100 Continue\r\n\r\n", then="close"), "service_broke", id="closes after 100"),
        pytest.param(says(b"SSH-2.0-OpenSSH\r\n"), "bad_answer", id="another protocol"),
        pytest.param(says(b"\0" * 100_000), "bad_answer", id="zeros"),
        pytest.param(says(b"HTTP/1.1 200 OK\nA: b\n\nhello"), "bad_answer", id="bare LF"),
        pytest.param(says(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"), "bad_answer", id="no length"),
        pytest.param(
            says(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n"),
            "bad_answer",
            id="switches protocols",
        ),
        pytest.param(says(b"HTTP/1.1 102 Processing\r\n\r\n" * 9), "bad_answer", id="1xx for ever"),
        pytest.param(says(b"HTTP/1.1 200 OK\r\nA: " + b"x" * 200_000), "answer_too_large", id="huge head"),
        pytest.param(says(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 1000 + b"\r\n"), "answer_too_large", id="fields"),
        pytest.param(
            says(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nA: " + b'"' * 100_000 + b"\r\n\r\n"),
            "answer_too_large",
            id="huge head once encoded",
        ),
    ],
)
@on_both_loops
async def test_a_failure_before_the_head_has_its_own_answer(service: Any, code: str) -> None:
    async with tunnelled(service) as made:
        visitor = await made.open().finished()
        await assert_problem(visitor, code, made)
        assert made.accepted == 1


@on_both_loops
async def test_a_problem_to_head_has_no_body() -> None:
    async with tunnelled(says(then="close")) as made:
        visitor = await made.get(method="HEAD")
        assert visitor.status == 502
        assert visitor.body == b""


@on_both_loops
async def test_nobody_listens() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        async with tunnelled_to(f"http://127.0.0.1:{held.getsockname()[1]}") as made:
            visitor = await made.get()
            document = await assert_problem(visitor, "service_unreachable", made)
            assert "connection refused" in document["detail"]
            assert visitor.headers["retry-after"] == "2"


@on_both_loops
async def test_a_service_that_stays_down_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "tunneld.agent")
    async with tunnelled_to(f"http://127.0.0.1:{free_port()}") as made:
        for _ in range(3):
            await made.get()
    warned = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert [record.getMessage() for record in warned] == ["The service cannot be reached: connection refused."]
    assert warned[0].__dict__["code"] == "service_unreachable"


@on_both_loops
async def test_a_name_that_does_not_resolve() -> None:
    async with tunnelled_to("http://no-such-host.invalid:80") as made:
        document = await assert_problem(await made.get(), "service_unreachable", made)
        assert "does not resolve" in document["detail"]


def full_listener() -> tuple[socket.socket, list[socket.socket]]:
    """A listener whose backlog is full: further connects hang."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    held = []
    for _ in range(4):
        client = socket.socket()
        client.setblocking(False)
        client.connect_ex(listener.getsockname())
        held.append(client)
    return listener, held


@on_both_loops
async def test_a_connect_that_hangs_times_out_or_is_cancelled() -> None:
    listener, held = full_listener()
    try:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with tunnelled_to(address, limits={"connect_timeout": 0.1}) as made:
            left = made.open()
            await turns_until(lambda: made.proxy.exchanges)
            assert made.proxy.exchanges["r1"].state == "connecting"
            left.stream.cancel("visitor")
            await turns_until(lambda: not made.proxy.exchanges)
            await turns_until(lambda: not made.proxy.pool.connecting)
            assert made.ended.pop("visitor") == 1
            visitor = await made.open("POST", "/", [], ended=False).finished()
            document = await assert_problem(visitor, "service_unreachable", made)
            assert "0.1 s" in document["detail"]
            assert visitor.stop
    finally:
        for sock in (listener, *held):
            sock.close()


@on_both_loops
async def test_a_service_that_does_not_answer_times_out() -> None:
    async with tunnelled(says(), limits={"response_timeout": 0.1}) as made:
        await assert_problem(await made.get(), "service_timeout", made)


@on_both_loops
async def test_the_time_to_answer_begins_when_the_upload_is_over() -> None:
    async with tunnelled(says(), limits={"response_timeout": 0.1}) as made:
        visitor = made.open("POST", "/", [], ended=False)
        visitor.stream.send(b"x")
        await turns_until(lambda: made.proxy.totals.streams)
        await turns_until(lambda: made.proxy.exchanges["r1"].bytes_in)
        await asyncio.sleep(0.2)  # longer than the limit: nothing happens
        assert not visitor.over
        visitor.stream.send_end()
        await assert_problem(await visitor.finished(), "service_timeout", made)


@on_both_loops
async def test_a_new_limit_holds_for_what_is_open() -> None:
    async with tunnelled(says()) as made:
        visitor = made.open()
        await turns_until(lambda: made.proxy.exchanges)
        await turns_until(lambda: made.proxy.exchanges["r1"].state == "waiting")
        config = TunnelConfig(
            name="demo",
            service=made.proxy.service,
            limits=AgentLimits(response_timeout=0.05),
            headers={"X-New": "1"},
        )
        made.proxy.update(config)
        await assert_problem(await visitor.finished(), "service_timeout", made)
    assert AgentConfig(server=ServerLink(url="ws://127.0.0.1:1"), tunnels=(config,)).tunnels


@pytest.mark.parametrize(
    "begin",
    [
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello", id="length"),
        pytest.param(SSE + b"5\r\nhello\r\n", id="chunks"),
        pytest.param(SSE + b"5\r\nhello\r\n0\r\n", id="trailers"),
        pytest.param(SSE + b"9\r\nhello", id="in a chunk"),
    ],
)
@pytest.mark.parametrize("then", ["close", "reset"])
@on_both_loops
async def test_a_body_that_breaks_off_is_no_clean_end(begin: bytes, then: str) -> None:
    async with tunnelled(says(begin, then=then)) as made:
        visitor = await made.get()
        assert visitor.status == 200
        assert visitor.reason == "service"
        assert not visitor.ended
        assert made.ended == {"service": 1}


@on_both_loops
async def test_a_reset_is_no_clean_end_even_where_the_close_would_be() -> None:
    async with tunnelled(says(b"HTTP/1.1 200 OK\r\n\r\nhello", then="reset")) as made:
        visitor = await made.get()
        assert visitor.body == b"hello"
        assert visitor.reason == "service"


@on_both_loops
async def test_a_bad_chunk_is_no_clean_end() -> None:
    async with tunnelled(says(SSE + b"5\r\nhello\r\n", b"nonsense\r\n")) as made:
        visitor = await made.get()
        assert visitor.reason == "service"
        assert not visitor.ended


@on_both_loops
async def test_trailers_over_the_limit_are_dropped() -> None:
    trailers = b"A: " + b"x" * 200_000 + b"\r\n\r\n"
    async with tunnelled(says(SSE + b"5\r\nhello\r\n0\r\n" + trailers)) as made:
        visitor = await made.get()
        assert visitor.body == b"hello"
        assert visitor.trailers == []
        assert made.ended == {"done": 1}
        assert made.proxy.pool.open == 0


@on_both_loops
async def test_a_connection_closed_as_the_request_goes_out_is_tried_once_more() -> None:
    seen: list[bytes] = []

    async def fickle(reader: Reader, writer: Writer) -> None:
        """Answers one request a connection, and closes at the second."""
        seen.append((await read_head(reader))[:9])
        writer.write(reply(b"first"))
        seen.append((await read_head(reader))[:9])

    async with tunnelled(fickle) as made:
        for path in ("/1", "/2", "/3"):
            visitor = await made.get(path)
            assert visitor.body == b"first"
        assert made.ended == {"done": 3}
        assert made.accepted == 3
        visitor = await made.open("POST", "/4", []).finished()
        assert visitor.headers["x-tunnel-error"] == "service_broke"
        assert made.ended == {"done": 3, "service": 1}
        assert made.accepted == 3
    assert seen == [b"GET /1 HT", b"GET /2 HT", b"GET /2 HT", b"GET /3 HT", b"GET /3 HT", b"POST /4 H"]


@on_both_loops
async def test_a_second_failure_is_told() -> None:
    count = 0

    async def dying(reader: Reader, writer: Writer) -> None:
        nonlocal count
        await read_head(reader)
        count += 1
        if count == 1:
            writer.write(reply())
            await read_head(reader)

    async with tunnelled(dying) as made:
        await made.get()
        visitor = await made.get()
        assert visitor.headers["x-tunnel-error"] == "service_broke"
        assert made.accepted == 2


@on_both_loops
async def test_a_body_that_began_is_not_sent_again() -> None:
    async def dying(reader: Reader, writer: Writer) -> None:
        await read_head(reader)
        writer.write(reply())
        await read_head(reader)
        await reader.readexactly(1)

    async with tunnelled(dying) as made:
        await made.get()
        visitor = made.open("PUT", "/", [], ended=False)
        visitor.stream.send(b"x" * 10)
        await visitor.finished()
        assert visitor.headers["x-tunnel-error"] == "service_broke"
        assert visitor.stop
        assert made.accepted == 1


@on_both_loops
async def test_an_empty_body_in_chunks_is_ended_again_when_it_is_sent_again() -> None:
    async def fickle(reader: Reader, writer: Writer) -> None:
        await read_head(reader)
        assert (await reader.readline(), await reader.readline()) == (b"0\r\n", b"\r\n")
        writer.write(reply(b"first"))
        await read_head(reader)
        await reader.readexactly(5)

    async with tunnelled(fickle) as made:
        for _ in range(2):
            visitor = made.open("PUT", "/", [], ended=False)
            visitor.stream.send_end()
            await visitor.finished()
            assert visitor.body == b"first"
        assert made.accepted == 2


@on_both_loops
async def test_what_comes_before_there_is_a_connection_is_sent_whole() -> None:
    async def gather(reader: Reader, writer: Writer) -> None:
        await read_head(reader)
        body = await reader.readuntil(b"0\r\nX-Sum: 1\r\n\r\n")
        writer.write(reply(body))

    async with tunnelled(gather) as made:
        visitor = made.open("POST", "/", [], ended=False)
        visitor.stream.send(b"hello")
        visitor.stream.send_end([("X-Sum", "1")])
        await turns_until(lambda: made.proxy.exchanges)
        assert made.proxy.exchanges["r1"].state == "connecting"
        await visitor.finished()
        assert visitor.body == b"5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n"


@pytest.mark.parametrize("polite", [True, False])
@on_both_loops
async def test_an_early_answer_goes_out_whole_and_the_upload_is_stopped(polite: bool) -> None:
    body = b"too much" * 5000

    async def early(reader: Reader, writer: Writer) -> None:
        await read_head(reader)
        await reader.readexactly(1000)
        extra = "Connection: close\r\n" if polite else ""
        writer.write(reply(body, status="413 Content Too Large", extra=extra))
        await writer.drain()
        # and closes with the upload unread, which is a reset

    async with tunnelled(early) as made:
        visitor = made.open("POST", "/", [("Content-Length", str(64 << 20))], ended=False)
        await visitor.upload(b"x" * (64 << 20))
        await visitor.finished()
        assert visitor.status == 413
        assert bytes(visitor.body) == body
        await visitor.until(lambda: visitor.stop)
        await turns_until(lambda: not made.proxy.exchanges)
        assert made.ended == {"done": 1}
        await turns_until(lambda: not made.joined.agent.streams)
        assert made.proxy.pool.open == 0


@on_both_loops
async def test_a_service_that_takes_nothing_is_given_up() -> None:
    release = asyncio.Event()

    async def deaf(reader: Reader, writer: Writer) -> None:
        await read_head(reader)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await release.wait()

    async with tunnelled(deaf, limits={"stall": 0.2}) as made:
        visitor = made.open("POST", "/", [], ended=False)
        await visitor.upload(b"x" * (64 << 20))
        await visitor.finished()
        assert visitor.reason == "limit"
        assert made.ended == {"limit": 1}
        release.set()


@on_both_loops
async def test_a_service_that_takes_little_is_not_given_up() -> None:
    size = 8 << 20

    async def slow(reader: Reader, writer: Writer) -> None:
        await read_head(reader)
        left = size
        for _ in range(8):
            await asyncio.sleep(0.05)
            left -= len(await reader.readexactly(size // 8))
        assert not left
        writer.write(reply(b"thanks"))
        await reader.read()

    async with tunnelled(slow, limits={"stall": 0.2}) as made:
        visitor = made.open("POST", "/", [("Content-Length", str(size))], ended=False)
        await visitor.upload(b"x" * size)
        visitor.stream.send_end()
        await visitor.finished()
        assert visitor.body == b"thanks"


async def _paused(made: Tunnelled) -> Visitor:
    """A visitor that takes nothing; returns when reading from the service is paused."""
    visitor = made.open(greedy=False)
    await visitor.answered()
    await turns_until(lambda: made.proxy.exchanges["r1"]._connection.paused)  # type: ignore[union-attr]
    return visitor


@pytest.mark.parametrize("how", ["reset", "short", "short chunk"])
@on_both_loops
async def test_a_failure_while_reading_is_paused_is_noticed(how: str) -> None:
    fail = asyncio.Event()

    async def failing(reader: Reader, writer: Writer) -> None:
        await read_head(reader)
        if how == "short":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10000000\r\n\r\n")
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n989680\r\n")
        writer.write(b"x" * 150_000)
        await fail.wait()
        if how == "reset":
            reset(writer.transport)  # type: ignore[arg-type]

    async with tunnelled(failing, stream_window=65536) as made:
        visitor = await _paused(made)
        fail.set()
        await visitor.finished()
        assert visitor.reason == "service"
        assert made.ended == {"service": 1}


@pytest.mark.parametrize("framed", [True, False])
@on_both_loops
async def test_a_clean_end_while_reading_is_paused_waits_for_the_visitor(framed: bool) -> None:
    size = 1_000_000
    end, ended = asyncio.Event(), asyncio.Event()

    async def ending(reader: Reader, writer: Writer) -> None:
        await read_head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n")
        writer.write(b"Content-Length: %d\r\n\r\n" % size if framed else b"\r\n")
        writer.write(b"x" * size)
        await writer.drain()
        await end.wait()
        writer.close()
        ended.set()

    async with tunnelled(ending, stream_window=65536) as made:
        visitor = await _paused(made)
        end.set()
        await ended.wait()
        for _ in range(20):
            await asyncio.sleep(0)
        assert not visitor.over
        visitor.greedy = True
        visitor.take()
        await visitor.finished()
        assert visitor.ended
        assert len(visitor.body) == size
        assert made.ended == {"done": 1}


@on_both_loops
async def test_a_unix_socket() -> None:
    async def serve(reader: Reader, writer: Writer) -> None:
        writer.write(reply(await read_head(reader)))
        await reader.read()

    with short_dir() as folder:
        path = folder / "s"
        async with tunnelled_to(f"unix:{path}") as made:
            document = await assert_problem(await made.get(), "service_unreachable", made)
            assert "does not exist" in document["detail"]
        async with serving(serve, path=path) as address, tunnelled_to(address) as made:
            visitor = await made.get()
            assert visitor.body.startswith(b"GET / HTTP/1.1\r\nHost: localhost\r\n")


@on_both_loops
async def test_a_unix_socket_whose_backlog_is_full() -> None:
    async def serve(reader: Reader, writer: Writer) -> None:
        try:
            await read_head(reader)
            writer.write(reply(b"at last", extra="Connection: close\r\n"))
            await writer.drain()
        except asyncio.IncompleteReadError:  # the one that filled the backlog
            pass
        finally:
            writer.close()
            await writer.wait_closed()

    with short_dir() as folder:
        path = str(folder / "s")
        with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
            listener.bind(path)
            listener.listen(0)
            first.connect(path)
            async with tunnelled_to(f"unix:{path}") as made:
                visitors = [made.open() for _ in range(3)]
                await turns_until(lambda: made.proxy.pool.connecting == 3)
                for _ in range(20):
                    await asyncio.sleep(0)
                assert made.proxy.pool.connecting == 3
                first.close()
                async with await asyncio.start_unix_server(serve, sock=listener):
                    for visitor in visitors:
                        assert (await visitor.finished()).body == b"at last"


@on_both_loops
async def test_tls_is_verified_and_a_cut_is_no_clean_end() -> None:
    async def serve(reader: Reader, writer: Writer) -> None:
        head = await read_head(reader)
        if b"/cut" in head:
            writer.write(b"HTTP/1.1 200 OK\r\n\r\nhalf")
            await writer.drain()
            under = writer.get_extra_info("socket").fileno()
            with socket.fromfd(under, socket.AF_INET, socket.SOCK_STREAM) as same:
                same.shutdown(socket.SHUT_RDWR)
        elif b"/whole" in head:
            writer.write(b"HTTP/1.1 200 OK\r\n\r\nwhole")
        else:
            writer.write(reply(b"x" * 300_000, extra="Connection: close\r\n"))

    with short_dir() as folder:
        ours = certificate(folder)
        async with serving(serve, ssl=server_context(ours.cert, ours.key)) as address:
            async with tunnelled_to(address, tls=client_context(ca_file=ours.cert)) as made:
                visitor = await made.get()
                assert len(visitor.body) == 300_000
                assert (await made.get("/whole")).ended
                cut = await made.get("/cut")
                assert (cut.body, cut.reason) == (b"half", "service")
                assert made.ended == {"done": 2, "service": 1}
            async with tunnelled_to(address) as made:
                document = await assert_problem(await made.get(), "service_unreachable", made)
                assert "certificate" in document["detail"]


@on_both_loops
async def test_a_plain_service_spoken_to_in_tls() -> None:
    async def serve(reader: Reader, writer: Writer) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with serving(serve) as address, tunnelled_to(address.replace("http:", "https:")) as made:
        document = await assert_problem(await made.get(), "service_unreachable", made)
        assert "TLS failed" in document["detail"]


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (b"HTTP/1.1 204 No Content\r\n\r\n", None),
        (b"HTTP/1.1 302 Found\r\nLocation: /login\r\n\r\n", None),
        (b"HTTP/1.1 503 Busy\r\n\r\n", "GET /healthz was answered 503"),
        (b"nonsense\r\n", "its answer cannot be used: it does not begin with HTTP/1."),
        (b"", "no answer within 0.1 s"),
    ],
)
@on_both_loops
async def test_a_probe_says_why_a_service_is_not_well(answer: bytes, fault: str | None) -> None:
    heads: list[bytes] = []

    async def serve(reader: Reader, writer: Writer) -> None:
        heads.append(await read_head(reader))
        writer.write(answer)
        await reader.read()

    async with serving(serve) as address:
        origin = Origin(parse_service(address))
        probe = ServiceProbe(origin, path="/healthz", headers={"Host": "app"})
        assert await probe.probe(5 if answer else 0.1) == fault
        assert heads[0].startswith(b"GET /healthz HTTP/1.1\r\nHost: app\r\n")
    assert await ServiceProbe(origin).probe(1) == "connection refused"


@on_both_loops
async def test_a_probe_without_a_path_only_connects() -> None:
    closed = asyncio.Event()

    async def serve(reader: Reader, writer: Writer) -> None:
        assert await reader.read() == b""
        closed.set()

    async with serving(serve) as address, tunnelled_to(address) as made:
        assert await made.proxy.probe() is None
        await closed.wait()
