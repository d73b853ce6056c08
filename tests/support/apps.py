"""Services as users write them: FastAPI, aiohttp, an MCP server on both transports, a static site by nginx.

`python -m tests.support.apps KIND --port N`, KIND of fastapi, aiohttp, mcp-http, mcp-sse. Like the sample service they
tell of their streams on stdout; MCP tools tell `started`, `cancelled` and `finished` with the call's name.
"""

# no postponed annotations here: FastAPI and mcp read those of functions whose names are local
import argparse
import asyncio
import functools
import hashlib
import json
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from tests.support.processes import Process, python_module
from tests.support.services import ToldService
from tests.support.sockets import LOOPBACK, accepts, free_port

__all__ = ["AppService", "Nginx"]


class AppService(ToldService):
    """One of this module's applications in a process of its own."""

    def __init__(self, kind: str) -> None:
        self.port = free_port()
        argv = python_module("tests.support.apps", kind, "--port", str(self.port))
        super().__init__(argv, name=kind, url=f"http://{LOOPBACK}:{self.port}")


class Nginx:
    """nginx serving `folder` as a static site, with gzip, on a loopback port."""

    def __init__(self, folder: Path, state: Path) -> None:
        self.port = free_port()
        self.url = f"http://{LOOPBACK}:{self.port}"
        config = state / "nginx.conf"
        temporary = "".join(
            f"{kind}_temp_path {state}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        config.write_text(
            f"daemon off; master_process off; pid {state}/nginx.pid; error_log stderr notice;\n"
            "events { worker_connections 256; }\n"
            f"http {{ access_log off; {temporary} types {{ text/html html; text/plain txt; }}\n"
            "default_type application/octet-stream; gzip on; gzip_min_length 200;\n"
            f"gzip_types text/plain; server {{ listen {LOOPBACK}:{self.port}; root {folder}; }} }}\n"
        )
        self.process = Process(["nginx", "-e", "stderr", "-c", str(config)], name="nginx")
        try:
            self.process.wait_until(functools.partial(accepts, self.port), what="listening")
        except BaseException:
            self.process.discard()
            raise

    def stop(self) -> None:
        """End it."""
        self.process.discard()


def tell(event: str, name: str, **more: Any) -> None:
    """One line of JSON on stdout."""
    print(json.dumps({"event": event, "id": name, **more, "at": time.monotonic_ns()}), flush=True)


def _fastapi() -> Any:
    from fastapi import FastAPI, Request, UploadFile
    from fastapi.responses import JSONResponse, RedirectResponse, StreamingResponse

    app = FastAPI()

    async def numbers(name: str, gap: float) -> AsyncIterator[str]:
        tell("open", name)
        try:
            number = 0
            while True:
                number += 1
                yield f"id: {number}\ndata: {number}\n\n"
                await asyncio.sleep(gap)
        finally:
            tell("close", name)

    @app.get("/events")
    async def events(id: str, gap: float = 0.05) -> StreamingResponse:
        return StreamingResponse(numbers(id, gap), media_type="text/event-stream")

    @app.get("/items/{item}")
    async def item(item: str, q: str = "") -> JSONResponse:
        answer = JSONResponse({"item": item, "q": q})
        answer.set_cookie("first", "1", path="/")
        answer.set_cookie("second", "2", path="/items")
        return answer

    @app.get("/away")
    async def away() -> RedirectResponse:
        return RedirectResponse("/items/moved", status_code=307)

    @app.post("/file")
    async def file(file: UploadFile) -> dict[str, Any]:
        data = await file.read()
        return {"name": file.filename, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    @app.post("/raw")
    async def raw(request: Request) -> dict[str, Any]:
        digest, count = hashlib.sha256(), 0
        async for piece in request.stream():
            digest.update(piece)
            count += len(piece)
        return {"bytes": count, "sha256": digest.hexdigest()}

    return app


async def _aiohttp(port: int) -> None:
    from aiohttp import web

    async def events(request: web.Request) -> web.StreamResponse:
        name = request.query["id"]
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        tell("open", name)
        try:
            number = 0
            while True:
                number += 1
                await answer.write(f"id: {number}\ndata: {number}\n\n".encode())
                await asyncio.sleep(0.05)
        finally:
            tell("close", name)

    async def raw(request: web.Request) -> web.Response:
        digest, count = hashlib.sha256(), 0
        async for piece in request.content.iter_any():
            digest.update(piece)
            count += len(piece)
        return web.json_response({"bytes": count, "sha256": digest.hexdigest()})

    async def item(request: web.Request) -> web.Response:
        return web.json_response({"item": request.match_info["item"], "raw": request.raw_path})

    app = web.Application()
    app.add_routes([web.get("/events", events), web.post("/raw", raw), web.get("/items/{item}", item)])
    # a handler is cancelled when its client leaves only where the application asks for it
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, LOOPBACK, port).start()
    tell("ready", "")
    try:
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


def _event_store() -> Any:
    from mcp.server.streamable_http import EventCallback, EventId, EventMessage, EventStore, StreamId

    class Kept(EventStore):
        """Every message of every stream, so that a client may come back with Last-Event-ID."""

        def __init__(self) -> None:
            self.messages: list[tuple[StreamId, Any]] = []

        async def store_event(self, stream_id: StreamId, message: Any) -> EventId:
            self.messages.append((stream_id, message))
            return str(len(self.messages))

        async def replay_events_after(self, last_event_id: EventId, send_callback: EventCallback) -> StreamId | None:
            at = int(last_event_id)
            stream = self.messages[at - 1][0]
            for number, (owner, message) in enumerate(self.messages[at:], at + 1):
                if owner == stream and message is not None:
                    await send_callback(EventMessage(message, str(number)))
            return stream

    return Kept()


def _mcp() -> Any:
    from mcp.server.mcpserver import Context, MCPServer

    server = MCPServer("sample", version="1", log_level="WARNING")

    @server.tool()
    def add(a: int, b: int) -> int:
        """Add."""
        return a + b

    @server.tool()
    async def steps(count: int, ctx: Context) -> str:
        """Report progress `count` times."""
        for number in range(1, count + 1):
            await ctx.report_progress(number, count, f"step {number}")
        return "done"

    @server.tool()
    async def wait(name: str, seconds: float, ctx: Context) -> str:
        """Wait, and tell how the wait ended."""
        tell("started", name)
        try:
            await ctx.report_progress(0, 1, "waiting")
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            tell("cancelled", name)
            raise
        tell("finished", name)
        return f"waited for {name}"

    return server


def main() -> None:
    """Serve the application named until SIGTERM."""
    import uvicorn

    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=["fastapi", "aiohttp", "mcp-http", "mcp-sse"])
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    if options.kind == "aiohttp":
        import signal

        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        asyncio.run(_aiohttp(options.port))
        return
    if options.kind == "fastapi":
        app = _fastapi()
    elif options.kind == "mcp-http":
        app = _mcp().streamable_http_app(event_store=_event_store())
    else:
        app = _mcp().sse_app()

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            tell("ready", "")

    Server(
        uvicorn.Config(app, host=LOOPBACK, port=options.port, log_level="warning", timeout_graceful_shutdown=1)
    ).run()


if __name__ == "__main__":
    main()
