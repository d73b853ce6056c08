"""The sample service behind the demo's tunnel: plain FastAPI, and nothing in it knows of a tunnel.

It counts the handlers that are at work and says in the log when one stops because its client went away, so that the
effect of a closed tab can be seen where it matters: at the service.
"""

from __future__ import annotations

import asyncio
import html
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from fastapi import FastAPI, Header, Query, Request, Response
from fastapi.responses import HTMLResponse, StreamingResponse

__all__ = ["MAX_ECHO", "create_app"]

log = logging.getLogger("tunneld.demo")

MAX_ECHO = 16 * 1024 * 1024
"""Bytes of a body that ``/echo`` takes."""

_PAGE = Path(__file__).with_name("page.html")


class _Work:
    """How many handlers are at work now."""

    def __init__(self) -> None:
        self.live = 0

    @contextmanager
    def handler(self, name: str) -> Iterator[Callable[[], None]]:
        """One handler's work. What it gives is called when the client is gone; being cancelled says the same."""
        began = time.monotonic()

        def gone() -> None:
            elapsed = round((time.monotonic() - began) * 1000)
            log.info("service: client gone, work stopped after %d ms", elapsed, extra={"handler": name})

        self.live += 1
        try:
            yield gone
        except (asyncio.CancelledError, GeneratorExit):
            gone()
            raise
        finally:
            self.live -= 1


def create_app(*, commands: dict[str, str], interval: float = 1.0) -> FastAPI:
    """The service.

    Args:
        commands: what the page offers to paste: ``curl``, ``streams``, ``cancel``.
        interval: seconds between two events.
    """
    app = FastAPI(title="tunneld demo", docs_url=None, redoc_url=None)
    work = _Work()
    page = _PAGE.read_text(encoding="utf-8")
    for name, command in commands.items():
        page = page.replace(f"{{{{{name}}}}}", html.escape(command))

    @app.get("/", response_class=HTMLResponse)
    async def index() -> str:
        return page

    @app.get("/sse")
    async def events(last_event_id: Annotated[str, Header()] = "") -> StreamingResponse:
        """An event a second, for ever; a client that comes back goes on after the last one it saw."""
        first = int(last_event_id) + 1 if last_event_id.isascii() and last_event_id.isdigit() else 1

        async def stream() -> AsyncIterator[str]:
            with work.handler("/sse"):
                number = first
                while True:
                    data = {"number": number, "time": time.strftime("%H:%M:%S"), "live": work.live}
                    yield f"id: {number}\ndata: {json.dumps(data)}\n\n"
                    number += 1
                    await asyncio.sleep(interval)

        headers = {"Cache-Control": "no-store"}
        return StreamingResponse(stream(), media_type="text/event-stream", headers=headers)

    @app.post("/echo")
    async def echo(request: Request) -> Response:
        """The request's body, sent back."""
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > MAX_ECHO:
                return Response(f"at most {MAX_ECHO} bytes\n", status_code=413, media_type="text/plain")
        kind = request.headers.get("content-type", "application/octet-stream")
        return Response(bytes(body), headers={"Content-Type": kind})

    @app.get("/slow")
    async def slow(request: Request, seconds: Annotated[float, Query(ge=0, le=60)] = 10) -> Response:
        """Think for a while before the answer, unless the client goes away first."""
        with work.handler("/slow") as gone:
            try:
                await asyncio.wait_for(_gone(request), seconds)
            except TimeoutError:
                return Response(f"thought for {seconds:g} s\n", media_type="text/plain")
            gone()
            return Response(status_code=499)  # nobody reads it

    @app.get("/live")
    async def live() -> dict[str, int]:
        """How many handlers are at work."""
        return {"live": work.live}

    return app


async def _gone(request: Request) -> None:
    """Return when the client has closed its connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
