"""The proxy in front of what people run: aiohttp and FastAPI on uvicorn, in this very loop."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
from collections.abc import AsyncIterator

import uvicorn
from aiohttp import web
from fastapi import FastAPI, Request
from fastapi.responses import RedirectResponse, StreamingResponse

from tests.support.loops import on_both_loops
from tests.support.tunnelled import tunnelled_to


class Work:
    """What both services do, and whether they noticed that nobody wants it any more."""

    def __init__(self) -> None:
        self.stopped = asyncio.Event()


def aiohttp_app(work: Work) -> web.Application:
    async def events(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        try:
            for number in range(10**6):
                await answer.write(b"id: %d\ndata: tick\n\n" % number)
                await asyncio.sleep(0.005)
        finally:
            work.stopped.set()
        return answer

    async def digest(request: web.Request) -> web.Response:
        sha = hashlib.sha256()
        async for data in request.content.iter_any():
            sha.update(data)
        return web.Response(text=sha.hexdigest())

    async def go(request: web.Request) -> web.Response:
        raise web.HTTPFound(str(request.url.with_path("/there")))

    async def refuse(request: web.Request) -> web.Response:
        raise web.HTTPRequestEntityTooLarge(max_size=10, actual_size=11)

    app = web.Application(client_max_size=1 << 30)
    app.router.add_get("/events", events)
    app.router.add_post("/digest", digest)
    app.router.add_get("/go", go)
    app.router.add_post("/refuse", refuse)
    return app


def fastapi_app(work: Work) -> FastAPI:
    app = FastAPI()

    @app.get("/events")
    async def events() -> StreamingResponse:
        async def ticks() -> AsyncIterator[bytes]:
            try:
                for number in range(10**6):
                    yield b"id: %d\ndata: tick\n\n" % number
                    await asyncio.sleep(0.005)
            finally:
                work.stopped.set()

        return StreamingResponse(ticks(), media_type="text/event-stream")

    @app.post("/digest")
    async def digest(request: Request) -> str:
        sha = hashlib.sha256()
        async for data in request.stream():
            sha.update(data)
        return sha.hexdigest()

    @app.get("/go")
    async def go(request: Request) -> RedirectResponse:
        return RedirectResponse(str(request.url.replace(path="/there")), 302)

    @app.post("/refuse", status_code=413)
    async def refuse() -> None:
        return None

    return app


@contextlib.asynccontextmanager
async def aiohttp_service(work: Work) -> AsyncIterator[str]:
    runner = web.AppRunner(aiohttp_app(work), shutdown_timeout=0.1, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def uvicorn_service(work: Work) -> AsyncIterator[str]:
    config = uvicorn.Config(
        fastapi_app(work),
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        config.load()
        server.lifespan = config.lifespan_class(config)
        await server.startup(sockets=[sock])
        try:
            yield f"http://127.0.0.1:{sock.getsockname()[1]}"
        finally:
            await server.shutdown(sockets=[sock])


async def _through(address: str, work: Work) -> None:
    async with tunnelled_to(address) as made:
        visitor = made.open("GET", "/events")
        await visitor.until(lambda: visitor.body.count(b"\n\n") >= 3)
        assert visitor.headers["content-type"].startswith("text/event-stream")
        assert made.proxy.exchanges["r1"].kind == "sse"
        assert made.proxy.exchanges["r1"].events >= 3
        visitor.stream.cancel("visitor")
        await asyncio.wait_for(work.stopped.wait(), 2)

        body = b"0123456789abcdef" * 100_000
        for headers in ([("Content-Length", str(len(body)))], []):
            visitor = made.open("POST", "/digest", headers, ended=False)
            await visitor.upload(body)
            visitor.stream.send_end()
            await visitor.finished()
            assert hashlib.sha256(body).hexdigest().encode() in visitor.body

        visitor = await made.get("/go")
        assert visitor.status == 302
        assert visitor.headers["location"] == "/there"

        visitor = made.open("POST", "/refuse", [("Content-Length", str(64 << 20))], ended=False)
        upload = asyncio.ensure_future(visitor.upload(b"x" * (64 << 20)))
        await visitor.answered()
        assert visitor.status == 413
        await visitor.finished()
        assert visitor.ended
        visitor.stream.cancel("visitor")
        visitor.could_write = True
        visitor._changed.set()
        await upload
        assert made.ended.get("service") is None


@on_both_loops
async def test_aiohttp() -> None:
    work = Work()
    async with aiohttp_service(work) as address:
        await _through(address, work)


@on_both_loops
async def test_fastapi_on_uvicorn() -> None:
    work = Work()
    async with uvicorn_service(work) as address:
        await _through(address, work)
