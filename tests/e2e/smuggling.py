"""The table of smuggling: bytes that front and back might read differently, and what each made of them.

Each row is sent raw to the server, to nginx before it, and to the service itself (uvicorn, with no tunnel at all);
what the service then saw is told by its own account. Behind each row goes one request more, so that every connection
comes to an end by itself and what was taken for another request shows. `python -m tests.e2e.smuggling` writes
SMUGGLING.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.sockets import LOOPBACK

__all__ = ["PAGE", "ROWS", "Outcome", "Row", "Witness", "page", "send"]

PAGE = Path(__file__).with_name("SMUGGLING.md")
_LAST = b"GET /t/app/last-@ HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
_STATUS = re.compile(rb"HTTP/1\.[01] ([0-9]{3}) ")


@dataclass(frozen=True)
class Row:
    """One case; `@` in it becomes its number and way, so that its requests can be told from all others.

    Attributes:
        name: what it is called.
        raw: what is sent.
        status: what the server answers, the request behind it not counted.
        seen: what the service sees by the server, ``METHOD path body``, in order.
        last: the request behind it is answered too.
    """

    name: str
    raw: bytes
    status: tuple[int, ...]
    seen: tuple[str, ...] = ()
    last: bool = False


@dataclass
class Outcome:
    """What became of a row on one way."""

    status: list[int] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    ended: bool = True

    def __str__(self) -> str:
        shown = " ".join(map(str, self.status)) or "no answer"
        if self.seen:
            shown += "; saw " + ", ".join(f"`{one}`" for one in self.seen)
        return shown if self.ended else f"{shown}; left open"


_P = b"POST /t/app/up-@ HTTP/1.1\r\nHost: h\r\n"
_G = b"GET /t/app/up-@ HTTP/1.1\r\nHost: h\r\n"
_S = b"GET /t/app/smuggled-@ HTTP/1.1\r\nHost: h\r\n\r\n"
_C = _P + b"Transfer-Encoding: chunked\r\n\r\n"


def _fit(head: bytes, body: bytes) -> bytes:
    """A head with the length of a body that holds `@`, which becomes four bytes."""
    return head + b"Content-Length: %d\r\n\r\n" % (len(body) + 3 * body.count(b"@")) + body


def _bad(name: str, raw: bytes, status: int = 400) -> Row:
    return Row(name, raw, (status,))


def _good(name: str, raw: bytes, *seen: str) -> Row:
    return Row(name, raw, (200,) * len(seen), seen, last=True)


_UP = "POST /up"
ROWS = [
    # -- which of two lengths holds
    _bad("CL.TE", _P + b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + _S),
    _bad("TE.CL", _P + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n" + _S),
    _bad("CL.TE, Content-Length 0", _P + b"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + _S),
    _bad(
        "TE.TE: chunked twice", _P + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + _S
    ),
    _bad(
        "TE.TE: chunked, then a coding nobody knows",
        _P + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n" + _S,
        501,
    ),
    _bad("TE: a coding nobody knows, with a length", _P + b"Transfer-Encoding: x\r\nContent-Length: 3\r\n\r\nabc" + _S),
    _bad("TE: xchunked", _P + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + _S, 501),
    _bad("TE: identity", _P + b"Transfer-Encoding: identity\r\n\r\n" + _S, 501),
    _bad("TE: gzip, chunked", _P + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n" + _S, 501),
    _bad("TE: chunked, identity", _P + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + _S, 501),
    _bad("TE: empty", _P + b"Transfer-Encoding:\r\n\r\n0\r\n\r\n" + _S),
    _bad("TE: chunked;q=1", _P + b"Transfer-Encoding: chunked;q=1\r\n\r\n0\r\n\r\n" + _S),
    _bad('TE: "chunked" in quotes', _P + b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n' + _S),
    _bad("TE with a space before the colon", _P + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + _S),
    _bad("TE with a vertical tab before its value", _P + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n" + _S),
    _bad("TE with a NUL behind its value", _P + b"Transfer-Encoding: chunked\0\r\n\r\n0\r\n\r\n" + _S),
    _bad("TE on a folded line", _P + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n" + _S),
    _bad("TE behind a bare LF", _P + b"X: a\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + _S),
    _bad("TE behind a bare CR", _P + b"X: a\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + _S),
    _bad("TE in HTTP/1.0", _C.replace(b"HTTP/1.1", b"HTTP/1.0") + b"0\r\n\r\n" + _S),
    _good("TE: Chunked, in capitals", _P + b"TRANSFER-ENCODING: Chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", f"{_UP} abc"),
    _good(
        "TE with a tab before its value", _P + b"Transfer-Encoding:\tchunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", f"{_UP} abc"
    ),
    _good(
        "Transfer_Encoding with an underscore",
        _P + b"Transfer_Encoding: chunked\r\nContent-Length: 3\r\n\r\nabc",
        f"{_UP} abc",
    ),
    _good(
        "Connection names Content-Length",
        _P + b"Connection: Content-Length\r\nContent-Length: 3\r\n\r\nabc",
        f"{_UP} abc",
    ),
    _good(
        "Connection names Transfer-Encoding",
        _P + b"Connection: Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        f"{_UP} abc",
    ),
    # -- Content-Length
    _bad("CL twice, unequal", _P + b"Content-Length: 3\r\nContent-Length: 0\r\n\r\nabc" + _S),
    _bad("CL twice, equal", _P + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc" + _S),
    _bad("CL: 3, 3", _P + b"Content-Length: 3, 3\r\n\r\nabc" + _S),
    _bad("CL: +3", _P + b"Content-Length: +3\r\n\r\nabc" + _S),
    _bad("CL: -1", _P + b"Content-Length: -1\r\n\r\n" + _S),
    _bad("CL: 0x3", _P + b"Content-Length: 0x3\r\n\r\nabc" + _S),
    _bad("CL: 1_0", _P + b"Content-Length: 1_0\r\n\r\nabc" + _S),
    _bad("CL: 3.0", _P + b"Content-Length: 3.0\r\n\r\nabc" + _S),
    _bad("CL: a digit of Unicode", _P + b"Content-Length: \xb3\r\n\r\nabc" + _S),
    _bad("CL: empty", _P + b"Content-Length:\r\n\r\n" + _S),
    _bad("CL: twenty digits", _P + b"Content-Length: 18446744073709551619\r\n\r\nabc" + _S),
    _good("CL: 003", _P + b"Content-Length: 003\r\n\r\nabc", f"{_UP} abc"),
    _good("CL with white space around it", _P + b"Content-Length: \t 3 \t\r\n\r\nabc", f"{_UP} abc"),
    _good("GET with a body that looks like a request", _fit(_G, _S), "GET /up GET /t/app/smuggled"),
    # -- chunks
    _bad("chunk size 0x3", _C + b"0x3\r\nabc\r\n0\r\n\r\n" + _S),
    _bad("chunk size with a space before it", _C + b" 3\r\nabc\r\n0\r\n\r\n" + _S),
    _bad("chunk size with a space behind it", _C + b"3 \r\nabc\r\n0\r\n\r\n" + _S),
    _bad("chunk size -1", _C + b"-1\r\nabc\r\n0\r\n\r\n" + _S),
    _bad("chunk size of 17 digits", _C + b"10000000000000003\r\nabc\r\n0\r\n\r\n" + _S),
    _bad("chunk size empty", _C + b"\r\nabc\r\n0\r\n\r\n" + _S),
    _bad("chunk size ended by LF", _C + b"3\nabc\r\n0\r\n\r\n" + _S),
    _bad("chunk longer than its size", _C + b"3\r\nabcd\r\n0\r\n\r\n" + _S),
    _bad("chunk ended by LF", _C + b"3\r\nabc\n0\r\n\r\n" + _S),
    _bad("chunk extension with a bare LF", _C + b"3;a=b\nX: y\r\nabc\r\n0\r\n\r\n" + _S),
    _bad("chunk extension with a bare CR", _C + b"3;a\rb\r\nabc\r\n0\r\n\r\n" + _S),
    _bad("chunk extension of 2,000 bytes", _C + b"3;" + b"a" * 2000 + b"\r\nabc\r\n0\r\n\r\n" + _S),
    _good("chunk extension", _C + b'3;a=b;c="d"\r\nabc\r\n0;e\r\n\r\n', f"{_UP} abc"),
    _good("chunk size with zeros before it", _C + b"0003\r\nabc\r\n000\r\n\r\n", f"{_UP} abc"),
    _bad("trailer with a bare LF", _C + b"3\r\nabc\r\n0\r\nX: a\nY: b\r\n\r\n" + _S),
    _bad("trailer without a colon", _C + b"3\r\nabc\r\n0\r\nnonsense\r\n\r\n" + _S),
    _good("trailer Content-Length", _C + b"3\r\nabc\r\n0\r\nContent-Length: 50\r\n\r\n", f"{_UP} abc"),
    _good("trailer Transfer-Encoding", _C + b"3\r\nabc\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n", f"{_UP} abc"),
    # -- Host and target
    _bad("Host twice", _G + b"Host: other\r\n\r\n" + _S),
    _bad("Host twice, equal", _G + b"Host: h\r\n\r\n" + _S),
    _bad("no Host", b"GET /t/app/up-@ HTTP/1.1\r\n\r\n" + _S),
    _bad("Host: h, other", b"GET /t/app/up-@ HTTP/1.1\r\nHost: h, other\r\n\r\n" + _S),
    _bad("Host: user@h", b"GET /t/app/up-@ HTTP/1.1\r\nHost: user@h\r\n\r\n" + _S),
    _bad("Host: h/path", b"GET /t/app/up-@ HTTP/1.1\r\nHost: h/path\r\n\r\n" + _S),
    _bad("Host with a space before the colon", b"GET /t/app/up-@ HTTP/1.1\r\nHost : h\r\n\r\n" + _S),
    _bad("absolute target with another Host", b"GET http://other/t/app/up-@ HTTP/1.1\r\nHost: h\r\n\r\n" + _S),
    _bad("target *", b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n" + _S),
    _bad("CONNECT", b"CONNECT h:443 HTTP/1.1\r\nHost: h\r\n\r\n" + _S),
    _bad("target with a space", b"GET /t/app/up-@ x HTTP/1.1\r\nHost: h\r\n\r\n" + _S),
    _bad("target with a NUL", b"GET /t/app/up-@\0 HTTP/1.1\r\nHost: h\r\n\r\n" + _S),
    _bad("target with a fragment", b"GET /t/app/up-@#x HTTP/1.1\r\nHost: h\r\n\r\n" + _S),
    _bad("target with dot segments", b"GET /t/app/../other/up-@ HTTP/1.1\r\nHost: h\r\n\r\n" + _S),
    _bad("target with dot segments, encoded", b"GET /t/app/%2e%2E/other/up-@ HTTP/1.1\r\nHost: h\r\n\r\n" + _S),
    _good("target with CR LF, encoded", b"GET /t/app/up%0d%0aX:y-@ HTTP/1.1\r\nHost: h\r\n\r\n", "GET /up%0d%0aX:y"),
    # -- the head's form
    _bad("HTTP/0.9", b"GET /t/app/up-@\r\n\r\n" + _S),
    _bad("HTTP/1.2", b"GET /t/app/up-@ HTTP/1.2\r\nHost: h\r\n\r\n" + _S, 505),
    _bad("HTTP/2.0", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _S, 505),
    _bad("http/1.1 in small letters", b"GET /t/app/up-@ http/1.1\r\nHost: h\r\n\r\n" + _S),
    _bad("two spaces in the request line", b"GET  /t/app/up-@ HTTP/1.1\r\nHost: h\r\n\r\n" + _S),
    _bad("tabs in the request line", b"GET\t/t/app/up-@\tHTTP/1.1\r\nHost: h\r\n\r\n" + _S),
    _bad("a space before the method", b" GET /t/app/up-@ HTTP/1.1\r\nHost: h\r\n\r\n" + _S),
    _bad("a method with a bracket", b"GE(T /t/app/up-@ HTTP/1.1\r\nHost: h\r\n\r\n" + _S),
    _bad("lines ended by LF", b"GET /t/app/up-@ HTTP/1.1\nHost: h\n\n" + _S),
    _bad("head ended by LF LF", _G + b"X: y\n\n" + _S),
    _bad("header without a colon", _G + b"nonsense\r\n\r\n" + _S),
    _bad("header without a name", _G + b": x\r\n\r\n" + _S),
    _bad("header's name with a space", _G + b"X y: z\r\n\r\n" + _S),
    _bad("header's name with a high byte", _G + b"X\xff: z\r\n\r\n" + _S),
    _bad("header's value with a NUL", _G + b"X: a\0b\r\n\r\n" + _S),
    _bad("header's value with DEL", _G + b"X: a\x7fb\r\n\r\n" + _S),
    _bad("folded line", _G + b"X: a\r\n b\r\n\r\n" + _S),
    _bad("first header folded", b"GET /t/app/up-@ HTTP/1.1\r\n X: a\r\nHost: h\r\n\r\n" + _S),
    _bad("head of 70,000 bytes", _G + b"X: " + b"a" * 70_000 + b"\r\n\r\n" + _S, 431),
    _good("header's value with high bytes", _G + b"X: \xe9\xff\r\n\r\n", "GET /up"),
    _good("empty lines before the request", b"\r\n\r\n" + _G + b"\r\n", "GET /up"),
    # -- Expect, Upgrade, what comes early or behind
    Row(
        "Expect: 100-continue",
        _P + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\nabc",
        (100, 200),
        (f"{_UP} abc",),
        last=True,
    ),
    _bad("Expect: nonsense", _P + b"Expect: nonsense\r\nContent-Length: 3\r\n\r\nabc" + _S, 417),
    _good(
        "Upgrade: h2c",
        _G + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
        "GET /up",
    ),
    _good("Upgrade: TLS/1.0", _G + b"Connection: Upgrade\r\nUpgrade: TLS/1.0\r\n\r\n", "GET /up"),
    _bad(
        "early answer: 404 to a body that looks like a request",
        _fit(b"POST /t/none/up HTTP/1.1\r\nHost: h\r\n", _S),
        404,
    ),
    _bad("early answer: 405 to such a body", _fit(b"POST /healthz HTTP/1.1\r\nHost: h\r\n", _S), 405),
    _bad("pipelined behind what is no request", b"nonsense\r\n\r\n" + _S),
    _bad("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + _S),
    _good(
        "pipelined",
        _fit(_P, b"abc") + _G + b"\r\n" + _fit(_P, _S),
        f"{_UP} abc",
        "GET /up",
        f"{_UP} GET /t/app/smuggled",
    ),
    _good("pipelined behind HEAD", _G.replace(b"GET", b"HEAD", 1) + b"\r\n" + _G + b"\r\n", "HEAD /up", "GET /up"),
]


class Witness:
    """An ASGI service that keeps what it saw, by the mark in each path."""

    def __init__(self) -> None:
        self.seen: dict[str, list[str]] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        path = scope["raw_path"].decode("latin-1")
        body = b""
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return  # it was never whole
            body += message.get("body", b"")
            more = message.get("more_body", False)
        first = body.split(b" HTTP/")[0].decode("latin-1")
        mark = re.search(r"-(\d{3}[snd])", path)
        shown = re.sub(r"-\d{3}[snd]", "", f"{scope['method']} {path.removeprefix('/t/app')} {first}").strip()
        if mark:
            self.seen.setdefault(mark[1], []).append(shown)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


async def send(row: Row, number: int, way: str, port: int, witness: Witness) -> Outcome:
    """One row on one way (``s`` server, ``n`` nginx, ``d`` the service itself)."""
    mark = f"{number:03d}{way}"
    raw = (row.raw + _LAST).replace(b"-@", b"-" + mark.encode())
    reader, writer = await asyncio.open_connection(LOOPBACK, port)
    got = b""
    outcome = Outcome()
    writer.write(raw)
    try:
        async with asyncio.timeout(4):
            while data := await reader.read(65536):
                got += data
    except TimeoutError:
        outcome.ended = False
    except ConnectionResetError:
        pass
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    outcome.status = [int(found) for found in _STATUS.findall(got)]
    outcome.seen = list(witness.seen.get(mark, []))
    return outcome


def page(found: list[dict[str, Outcome]]) -> str:
    """SMUGGLING.md."""
    lines = [
        "# What is smuggled, and what each made of it",
        "",
        "Written by `python -m tests.e2e.smuggling`; `make test-e2e` holds the server's column against what it does.",
        "Each row is sent raw, with one request more behind it (`/last`), to the server, to nginx before it",
        "(`packaging/proxies/nginx.conf`), and to a service itself (uvicorn) without a tunnel. `saw` is what the",
        "service saw. Where nginx takes for two requests what the server refuses, it answers two: none was hidden.",
        "",
        "| sent | the server | nginx before it | the service itself |",
        "| --- | --- | --- | --- |",
    ]
    for row, ways in zip(ROWS, found, strict=True):
        lines.append(f"| {row.name} | {ways['s']} | {ways['n']} | {ways['d']} |")
    return "\n".join(lines) + "\n"


@contextlib.asynccontextmanager
async def _service(witness: Witness) -> AsyncIterator[int]:
    import socket

    import uvicorn

    sock = socket.create_server((LOOPBACK, 0))
    config = uvicorn.Config(witness, log_level="critical", lifespan="off", h11_max_incomplete_event_size=65536)
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    task = asyncio.get_running_loop().create_task(server.serve(sockets=[sock]))
    try:
        yield sock.getsockname()[1]
    finally:
        server.should_exit = True
        server.force_exit = True
        await task


async def all_rows(server: int, nginx: int, service: int, witness: Witness) -> list[dict[str, Outcome]]:
    """Every row on every way."""
    ways = {"s": server, "n": nginx, "d": service}
    found: list[dict[str, Outcome]] = []
    for start in range(0, len(ROWS), 20):
        some = range(start, min(start + 20, len(ROWS)))
        jobs = [send(ROWS[n], n, way, port, witness) for n in some for way, port in ways.items()]
        outcomes = await asyncio.gather(*jobs)
        found += [dict(zip(ways, outcomes[i * 3 : i * 3 + 3], strict=True)) for i in range(len(some))]
    return found


def nginx_before(folder: Path, server: int, port: int) -> Path:
    """nginx's whole configuration: the shipped one, without TLS."""
    text = (Path(__file__).parents[2] / "packaging" / "proxies" / "nginx.conf").read_text()
    text = text.replace("listen 443 ssl http2", f"listen {LOOPBACK}:{port} default_server")
    text = text.replace("127.0.0.1:8440;", f"{LOOPBACK}:{server};")
    text = "\n".join(line for line in text.splitlines() if not re.match(r"\s*(ssl_|http2_|listen \[)", line))
    temp = "".join(
        f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    file = folder / "nginx.conf"
    file.write_text(
        f"daemon off;\nmaster_process off;\npid {folder}/pid;\nerror_log stderr crit;\n"
        f"events {{}}\nhttp {{\naccess_log off;\n{temp}{text}\n}}\n"
    )
    return file


async def measure(folder: Path) -> list[dict[str, Outcome]]:
    """Start everything, send every row, stop everything."""
    import shutil

    from tests.support.daemons import Pair
    from tests.support.processes import Process
    from tests.support.sockets import accepts, free_port

    witness = Witness()
    async with _service(witness) as service:
        settings = {"trusted_proxies": [LOOPBACK], "limits": {"header_timeout": "2s", "body_timeout": "2s"}}
        pair = await asyncio.to_thread(Pair, folder, {"app": f"http://{LOOPBACK}:{service}"}, server=settings)
        port = free_port()
        program = shutil.which("nginx") or "/usr/sbin/nginx"
        file = nginx_before(folder, pair.server.port, port)
        nginx = Process([program, "-c", str(file), "-p", str(folder)], name="nginx")
        try:
            await asyncio.to_thread(nginx.wait_until, lambda: accepts(port), what="listening")
            found = await all_rows(pair.server.port, port, service, witness)
            await asyncio.to_thread(pair.close)
        finally:
            nginx.discard()
            pair.discard()
    return found


if __name__ == "__main__":
    from tests.support.sockets import short_dir

    with short_dir() as room:
        PAGE.write_text(page(asyncio.run(measure(room))))
    sys.stdout.write(f"{PAGE} written\n")
