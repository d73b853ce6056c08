"""The dashboard's addresses, for either daemon's API to carry: the page, its files, its past and its live feed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from tunneld.dashboard.feed import Feed
from tunneld.dashboard.files import FILES, PAGE, content, fields, is_known
from tunneld.dashboard.history import SPANS
from tunneld.dashboard.part import part, past
from tunneld.dashboard.sampler import Sampler

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

__all__ = ["Dashboard"]

TICK = 1.0
"""Seconds between two messages of the feed."""
KEEPALIVE = 5
"""Ticks without a message after which a comment shows that the feed lives."""
_SPARKS = 300  # tunnels whose curves one answer holds


class Dashboard:
    """The routes of one daemon's dashboard.

    Args:
        sampler: of the daemon's past; another starts and stops it.
        api: where the API's calls are, relative to the page: ``api/v1`` or ``v1``.
        viewers: pages that may be open at a time.
        may_change: whether the caller of that request may cancel and reconnect.
        seen: says of a tunnel's name whether the caller of that request is shown it; None: they are shown all.
        holds: whether what let the caller of that request in is still good; their feed ends when it is not.
    """

    def __init__(
        self,
        sampler: Sampler,
        *,
        api: str,
        viewers: int,
        may_change: Callable[[Mapping[str, Any]], bool],
        seen: Callable[[Mapping[str, Any]], Callable[[str], bool] | None] = lambda scope: None,
        holds: Callable[[Mapping[str, Any]], bool] = lambda scope: True,
    ) -> None:
        self._source = sampler.source
        self._sampler = sampler
        self._api = api
        self._may_change = may_change
        self._seen = seen
        self._holds = holds
        self._most = viewers
        self._viewers: set[_Viewer] = set()
        self._closed = False
        self._files = {name: content(name) for name in FILES}

    def mount(self, app: FastAPI) -> None:
        """Add the routes to an application, whose guard stands before them and which ends the feeds when it stops."""
        app.state.dashboard = self
        app.router.routes.extend(
            [
                Route(PAGE, self._get_page),
                Route(f"{PAGE}/", self._redirect),
                Route(f"{PAGE}/feed", self._get_feed),
                Route(f"{PAGE}/sparks", self._get_sparks),
                Route(f"{PAGE}/history", self._get_history),
                Route(f"{PAGE}/{{name}}", self._get_file),
            ]
        )

    def close(self) -> None:
        """End every feed; none begins any more."""
        self._closed = True
        for viewer in self._viewers:
            viewer.end()

    async def _get_page(self, request: Request) -> Response:
        # Without the token there is the page alone, which asks for it.
        if request.scope.get("state", {}).get("anonymous"):
            headers = {**fields("index.html"), "WWW-Authenticate": "Bearer"}
            return Response(self._files["index.html"], 401, headers)
        return self._file("index.html", request)

    async def _redirect(self, request: Request) -> Response:
        return RedirectResponse("../dashboard", 308)

    async def _get_file(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self._files:
            return Response("There is no such file.\n", 404, media_type="text/plain")
        return self._file(name, request)

    def _file(self, name: str, request: Request) -> Response:
        if is_known(name, request.scope["headers"]):
            return Response(None, 304, fields(name))
        return Response(self._files[name], 200, fields(name))

    async def _get_sparks(self, request: Request) -> Response:
        source = part(self._source, self._seen(request.scope))
        names = [brief.name for brief in source.briefs()[:_SPARKS]]
        return _json(self._sampler.history.sparks(names, self._sampler.now()))

    async def _get_history(self, request: Request) -> Response:
        name, span = request.query_params.get("tunnel", ""), request.query_params.get("span", "0")
        if span not in map(str, range(len(SPANS))):
            return Response("span: 0, 1 or 2\n", 400, media_type="text/plain")
        seen = self._seen(request.scope)
        if seen is not None and not seen(name):
            name = ""  # of which nothing is known
        return _json(self._sampler.history.curves(name, self._sampler.now(), int(span)))

    async def _get_feed(self, request: Request) -> Response:
        if self._closed or len(self._viewers) >= self._most:
            text = f"{self._most} pages of this dashboard are open already (dashboard.viewers); close one.\n"
            return Response(text, 503, {"Retry-After": "10"}, "text/plain")
        viewer = _Viewer()
        self._viewers.add(viewer)  # before anything waits: a crowd that comes at once is counted too
        self._sampler.viewers = len(self._viewers)
        feed = Feed(
            part(self._source, self._seen(request.scope)),
            past(self._sampler.history, self._seen(request.scope)),
            _encode,
        )
        about = {"api": self._api, "changes": self._may_change(request.scope)}
        return _FeedResponse(self, feed, about, viewer, lambda: self._holds(request.scope))

    def leave(self, viewer: _Viewer) -> None:
        """One page less."""
        self._viewers.discard(viewer)
        self._sampler.viewers = len(self._viewers)

    async def stream(
        self,
        feed: Feed,
        about: dict[str, Any],
        send: Callable[[bytes], Any],
        viewer: _Viewer,
        holds: Callable[[], bool],
    ) -> None:
        """Send one page what there is and what changes, until it leaves, may look no longer, or the daemon stops."""
        now = self._sampler.now
        quiet = 0
        await send(_event("all", feed.snapshot(now()) | about))
        while await viewer.tick() and holds():
            quiet += 1
            if changes := feed.tick(now()):
                quiet = 0
                await send(_event("tick", changes))
            elif quiet >= KEEPALIVE:
                quiet = 0
                await send(b":\n\n")


class _Viewer:
    """One page that is open."""

    __slots__ = ("_ended", "_woken")

    def __init__(self) -> None:
        self._ended = False
        self._woken = asyncio.Event()

    def end(self) -> None:
        """It has left, or is to."""
        self._ended = True
        self._woken.set()

    async def tick(self) -> bool:
        """Wait for the next message's time; False, and at once: it has ended."""
        # A timer of its own: asyncio.timeout raises and catches two exceptions for each.
        timer = asyncio.get_running_loop().call_later(TICK, self._woken.set)
        try:
            await self._woken.wait()
        finally:
            timer.cancel()
        self._woken.clear()
        return not self._ended


class _FeedResponse(Response):
    """Server-sent events to one page."""

    def __init__(
        self,
        dashboard: Dashboard,
        feed: Feed,
        about: dict[str, Any],
        viewer: _Viewer,
        holds: Callable[[], bool],
    ) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers(
            {"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
        )
        self._dashboard = dashboard
        self._feed = feed
        self._about = about
        self._viewer = viewer
        self._holds = holds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one reader (ASGI)."""
        try:
            await self._serve(receive, send)
        finally:
            self._dashboard.leave(self._viewer)

    async def _serve(self, receive: Receive, send: Send) -> None:
        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            self._viewer.end()

        async def write(data: bytes) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": True})

        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async with asyncio.TaskGroup() as group:
            watcher = group.create_task(watch(), name="dashboard: reader")
            await self._dashboard.stream(self._feed, self._about, write, self._viewer, self._holds)
            watcher.cancel()
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _encode(value: object) -> bytes:
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:  # half a surrogate in a path
        import json

        return json.dumps(value, separators=(",", ":")).encode()


def _event(kind: str, value: object) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), _encode(value))


def _json(value: object) -> Response:
    headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    return Response(_encode(value), 200, headers, "application/json")
