"""What a WebSocket's client may meet: refusals, answers that are no upgrade, addresses that hang or refuse."""

import asyncio
import contextlib
import socket as socketlib
import ssl

import pytest

from tests.support.wired import Says, dialled, joined, listening
from tunneld.wire import dial, ws_connect
from tunneld.wire.tls import client_context
from tunneld.wire.websocket import (
    SubprotocolRemoved,
    UpgradeFailed,
    UpgradeRefused,
    connect,
)

PROBLEM = b'{"type": "about:blank", "code": "unauthorized"}'
HEAD_401 = b"HTTP/1.1 401 Unauthorized\r\nX-Tunnel-Error: unauthorized\r\nRetry-After: 7\r\n"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"


# -- what a client may meet ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "close", "body"),
    [
        (HEAD_401 + b"Content-Length: %d\r\n\r\n" % len(PROBLEM) + PROBLEM, False, PROBLEM),
        (HEAD_401 + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", False, b"abcde"),
        (HEAD_401 + b"\r\nuntil the end", True, b"until the end"),
        (HEAD_401 + b"Content-Length: 100\r\n\r\ncut", True, b"cut"),
        (HEAD_401 + b"Content-Length: 100\r\n\r\nslow", False, b"slow"),
        (HEAD_401 + b"Content-Length: 0\r\n\r\n", False, b""),
        (HEAD_401 + b"\r\n" + b"x" * 100_000, False, b"x" * 65536),
        (b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + HEAD_401 + b"Content-Length: 0\r\n\r\n", False, b""),
        (HEAD_401.replace(b"1.1", b"1.0") + b"\r\nold", True, b"old"),
    ],
    ids=["length", "chunked", "eof", "cut", "slow", "empty", "endless", "interim", "1.0"],
)
def test_a_refusal_brings_its_document(run, tls, monkeypatch, answer: bytes, close: bool, body: bytes) -> None:
    monkeypatch.setattr(ws_connect, "_BODY_TIME", 0.2)

    async def main() -> None:
        async with listening(lambda: Says(answer, close=close), tls) as port:
            with pytest.raises(UpgradeRefused) as caught:
                await dialled(port, tls)
            refused = caught.value
            assert (refused.status, refused.code, refused.retry_after) == (401, "unauthorized", 7)
            assert refused.body == body
            assert ("X-Tunnel-Error", "unauthorized") in refused.headers
            assert "401" in str(refused)

    run(main())


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (SWITCH + b"Sec-WebSocket-Accept: KEY\r\n\r\n", SubprotocolRemoved),
        (SWITCH + b"Sec-WebSocket-Accept: KEY\r\nSec-WebSocket-Protocol: chat\r\n\r\n", UpgradeFailed),
        (SWITCH + b"Sec-WebSocket-Accept: wrong\r\nSec-WebSocket-Protocol: tunneld.v3\r\n\r\n", UpgradeFailed),
        (SWITCH + b"Sec-WebSocket-Accept: KEY\r\nSec-WebSocket-Extensions: x\r\n\r\n", UpgradeFailed),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", UpgradeFailed),
        (b"HTTP/1.1 101 S\r\n" + b"no colon\r\n\r\n", UpgradeFailed),
        (b"SSH-2.0-OpenSSH_9\r\n\r\n", UpgradeFailed),
        (b"\0" * 70_000, UpgradeFailed),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000, UpgradeFailed),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000 + b"\r\n\r\n", UpgradeFailed),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 20, UpgradeFailed),
    ],
)
def test_an_answer_that_is_no_upgrade(run, answer: bytes, error: type[Exception]) -> None:
    async def main() -> None:
        async with listening(lambda: Says(answer)) as port:
            with pytest.raises(error) as caught:
                await dialled(port)
            assert type(caught.value) is error

    run(main())


def test_no_answer_at_all(run, tls) -> None:
    async def main() -> None:
        async with listening(lambda: Says(b"", close=True), tls) as port:
            with pytest.raises(ConnectionError):
                await dialled(port, tls)
        async with listening(lambda: Says(b"HTTP/1.1 "), tls) as port:
            with pytest.raises(TimeoutError):
                await dialled(port, tls, timeout=0.2)
        with pytest.raises(ConnectionRefusedError):
            await dialled(port)

    run(main())


def test_tls_that_does_not_come_about(run, tls, pair) -> None:
    if tls[0] is None:
        pytest.skip("only TLS")

    async def main() -> None:
        async with listening(lambda: Says(b""), tls) as port:
            with pytest.raises(ssl.SSLCertVerificationError):
                await dialled(port, (None, client_context()))
        async with listening(lambda: Says(b"no TLS here\n" * 20)) as port:
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await dialled(port, tls)

    run(main())


@pytest.mark.parametrize("url", ["http://x/", "ws://", "nonsense", "ws://x:99999/", "ws://x/#part"])
async def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(ValueError, match="is not the URL of a WebSocket"):
        await connect(url, max_message=1, timeout=1)


# -- addresses -----------------------------------------------------------------------------------------


async def test_names_below_localhost_are_loopback() -> None:
    for name in ("localhost", "demo.localhost", "a.b.LOCALHOST."):
        assert [address[:2] for _, address in await dial.resolve(name, 7)] == [("127.0.0.1", 7), ("::1", 7)]
    assert [address[:2] for _, address in await dial.resolve("127.0.0.9", 7)] == [("127.0.0.9", 7)]
    assert [address[:2] for _, address in await dial.resolve("::1", 7)] == [("::1", 7)]


def test_the_second_address_is_tried_when_the_first_refuses(run) -> None:
    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(lambda: Says(b""), "::1", 0)
        port = server.sockets[0].getsockname()[1]
        sock = await dial.dial("demo.localhost", port)
        assert sock.getpeername()[0] == "::1"
        sock.close()
        server.close()
        await server.wait_closed()
        with pytest.raises(OSError, match=str(port)):
            await dial.dial("demo.localhost", port)

    run(main())


def test_an_address_that_hangs_is_overtaken(run, monkeypatch) -> None:
    monkeypatch.setattr(dial, "ATTEMPT_DELAY", 0.05)

    async def main() -> None:
        with socketlib.socket() as full, contextlib.ExitStack() as waiting:
            full.bind(("127.0.0.1", 0))
            full.listen(0)  # with its queue full, the kernel answers no further SYN
            for _ in range(4):
                each = waiting.enter_context(socketlib.socket())
                each.setblocking(False)
                each.connect_ex(full.getsockname())
            hangs = (socketlib.AF_INET, full.getsockname())
            async with listening(lambda: Says(b"")) as port:
                answers = (socketlib.AF_INET, ("127.0.0.1", port))
                sock = await dial._race([hangs, answers], None)
                assert sock.getpeername()[1] == port
                sock.close()
            with pytest.raises(TimeoutError):
                await connect(f"ws://127.0.0.1:{hangs[1][1]}/", max_message=1, timeout=0.1)

    run(main())


def test_a_local_address_is_used(run) -> None:
    async def main() -> None:
        async with joined(local_addr=("127.0.0.3", 0)) as (_, far):
            assert far.transport.get_extra_info("peername")[0] == "127.0.0.3"

    run(main())
