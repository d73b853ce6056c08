"""``GET /v1/streams/{request_id}/tail``: one stream's events as they pass, to one reader."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from tunneld.control.guard import json_bytes

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

__all__ = ["Tailing"]

KEEPALIVE = 15.0
"""Seconds of quiet after which a comment shows the reader that the stream lives."""


class Tailing(Response):
    """The response: SSE until the stream that is looked into ends, or the reader leaves.

    Args:
        subscribe: begins to tell of what passes; returns what ends that, and how many events may wait for this reader:
            then the oldest go, and are counted. Raises VisitorError.
    """

    def __init__(self, subscribe: Callable[[Callable[[dict[str, Any]], None]], tuple[Callable[[], None], int]]) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers({"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
        self._waiting: deque[dict[str, Any]] = deque()
        self._lost = 0  # events in front of those that wait
        self._news = asyncio.Event()
        self._left = False
        self._end, self._most = subscribe(self._tell)

    def _tell(self, event: dict[str, Any]) -> None:
        if len(self._waiting) >= self._most:
            gone = self._waiting.popleft()
            self._lost += gone["events"] if gone["type"] == "skipped" else 1
        self._waiting.append(event)
        self._news.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one reader (ASGI)."""
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await send({"type": "http.response.body", "body": b": tailing\n\n", "more_body": True})
            async with asyncio.TaskGroup() as group:
                watcher = group.create_task(self._watch(receive), name="control tail: reader")
                await self._pump(send)
                watcher.cancel()
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._end()

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._left = True
        self._news.set()

    async def _pump(self, send: Send) -> None:
        while not self._left:
            while self._waiting:
                lost, self._lost = self._lost, 0
                event = {"type": "skipped", "events": lost} if lost else self._waiting.popleft()
                kind = str(event["type"]).encode()
                body = b"event: %s\ndata: %s\n\n" % (kind, json_bytes(event))
                await send({"type": "http.response.body", "body": body, "more_body": True})
                if event["type"] == "end":
                    return
            self._news.clear()
            try:
                async with asyncio.timeout(KEEPALIVE):
                    await self._news.wait()
            except TimeoutError:
                await send({"type": "http.response.body", "body": b": keepalive\n\n", "more_body": True})
