"""What both APIs do alike, the agent's and the server's: their routes differ in address, guard and who may see what."""

from __future__ import annotations

from collections.abc import Awaitable, Collection
from typing import Protocol

from fastapi import FastAPI, Request
from fastapi.responses import Response

from tunneld import __version__
from tunneld.control.answers import add_errors, json_answer
from tunneld.control.guard import Problem
from tunneld.control.models.agent import Health, Reloaded
from tunneld.control.models.alerts import AlertsTested, AlertsWanted
from tunneld.control.models.streams import Filter, StreamInfo, matches
from tunneld.errors import ConfigError

__all__ = ["Note", "cancel_one", "cancel_some", "health", "metrics", "new_app", "reload", "stream", "test_alerts"]

_SHOWN = 20  # request ids that a line of the audit names


class Note(Protocol):
    """Writes one change into the audit, a phrase; not `ok`: it was asked for, but refused."""

    def __call__(self, text: str, *, ok: bool = True) -> Awaitable[None]:
        """Return once it is written."""


class Common(Protocol):
    """What `AgentFacade` and `ServerFacade` have in common, and is called here."""

    def streams(self, tunnel: str | None = None, kind: str | None = None) -> list[StreamInfo]:
        """Return the streams under way, oldest first; None takes every tunnel, every kind."""

    def stream(self, request_id: str) -> StreamInfo | None:
        """Return one of them, None when it is gone."""

    def cancel(self, request_ids: Collection[str]) -> list[str]:
        """Cancel these; return the ids that were there, pass over the others."""

    async def reload(self) -> Reloaded:
        """Apply the changed file; raises ConfigError when it cannot be used."""

    async def test_alerts(self, name: str | None) -> AlertsTested:
        """Send a test to the receivers of one rule, or of all; raises VisitorError ``no_such_alert``."""

    async def metrics(self, accept: str = "") -> tuple[bytes, str]:
        """Return Prometheus's text, in the dialect that `accept` asks for, and its media type."""


def new_app(title: str, description: str) -> FastAPI:
    """An application without calls, whose errors are problems; `answers.describe` is called when it has them all."""
    app = FastAPI(
        title=title,
        version=__version__,
        description=description,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    add_errors(app)
    return app


def health(found: Health) -> Response:
    """200 for ok and degraded, 503 for down."""
    return json_answer(found, 503 if found["status"] == "down" else 200)


def stream(view: Common, request_id: str) -> Response:
    """One stream, or that there is none."""
    found = view.stream(request_id)
    return Problem("no_such_stream", f"no stream {request_id}") if found is None else json_answer(found)


async def metrics(view: Common, request: Request) -> Response:
    """Prometheus's text, in the dialect that `Accept` asks for."""
    text, kind = await view.metrics(request.headers.get("accept", ""))
    return Response(text, headers={"Content-Type": kind})


async def cancel_one(view: Common, request_id: str, note: Note) -> Response:
    """Cancel one stream, or tell that there is none."""
    done = view.cancel([request_id])
    if not done:
        return Problem("no_such_stream", f"no stream {request_id}")
    await note(f"cancelled stream {request_id}")
    return json_answer({"cancelled": done})


async def cancel_some(view: Common, wanted: Filter, note: Note) -> Response:
    """Cancel what passes the filter, whose numbers the caller has checked."""
    found = view.streams(wanted.get("tunnel"), wanted.get("kind"))
    done = view.cancel([one["request_id"] for one in found if matches(one, wanted)])
    shown = ", ".join(done[:_SHOWN]) + (" …" if len(done) > _SHOWN else "")
    await note(f"cancelled {len(done)} streams by filter: {shown or 'none matched'}")
    return json_answer({"cancelled": done})


async def reload(view: Common, note: Note) -> Response:
    """Apply the changed file, or tell why it cannot be."""
    try:
        changed = await view.reload()
    except ConfigError as error:
        await note(f"reload refused: {'; '.join(error.faults)}", ok=False)
        return Problem("bad_config", str(error), faults=error.faults)
    await note(f"reloaded: {'; '.join(changed['changed']) or 'nothing changed'}")
    return json_answer(changed)


async def test_alerts(view: Common, wanted: AlertsWanted | None, note: Note) -> Response:
    """Send a test message to the receivers of one rule, or of all."""
    name = (wanted or {}).get("alert")
    tested = await view.test_alerts(name)
    await note(f"tested the alert {name}" if name else "tested the alerts")
    return json_answer(tested)
