"""The agent's control API (CONTRACT "Control API"): a FastAPI application that only translates.

Answers are encoded as they come from the facade; their shapes stand in `models`, from which ``/openapi.json``
is made when it is asked for.
"""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import Body, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from tunneld import __version__
from tunneld.config.units import MAX_SECONDS
from tunneld.control import models
from tunneld.control.events import EventStream, Subscribers
from tunneld.control.facade import AgentFacade
from tunneld.control.guard import Guard, Problem, audit, json_bytes
from tunneld.errors import CODES, ConfigError, VisitorError
from tunneld.telemetry.metrics import CONTENT_TYPE

__all__ = ["create_app"]

_DESCRIPTION = "What a tunneld agent has connected, and how to change it. On a Unix socket, with `Host: localhost`."


def _json(value: object, status: int = 200) -> Response:
    return Response(json_bytes(value), status, media_type="application/json")


def _docs(answer: Any, *codes: str, also: dict[int, Any] | None = None) -> dict[int | str, dict[str, Any]]:
    """Return what OpenAPI says of a call: its answer, and one problem a status with the codes it may carry."""
    docs: dict[int | str, dict[str, Any]] = {200: {"model": answer, "description": "Done."}}
    for status, model in (also or {}).items():
        docs[status] = {"model": model, "description": HTTPStatus(status).phrase}
    for code in (*codes, "web_page_refused", "misdirected"):
        meaning = CODES[code]
        entry = docs.setdefault(meaning.status, {"model": models.Problem, "description": ""})
        entry["description"] = f"{entry['description']} `{code}`: {meaning.title}".strip()
    return docs


def _opened(docs: dict[int | str, dict[str, Any]]) -> dict[int | str, dict[str, Any]]:
    """Return the same with 201 for what is made."""
    docs[201] = docs.pop(200)
    return docs


def _text(description: str) -> dict[int | str, dict[str, Any]]:
    """Return what OpenAPI says of a call that answers plain text."""
    docs = _docs(models.Problem)
    docs[200] = {"description": description, "content": {"text/plain": {"schema": {"type": "string"}}}}
    return docs


def create_app(agent: AgentFacade) -> FastAPI:
    """Return the application for one agent; `ControlServer` serves it."""
    app = FastAPI(
        title="tunneld control",
        version=__version__,
        description=_DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.subscribers = Subscribers(agent.subscribe)
    app.add_middleware(Guard)
    _add_errors(app)
    _add_reads(app, agent)
    _add_cancels(app, agent)
    _add_changes(app, agent)
    return app


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        faults = []
        for fault in error.errors():
            where = ".".join(part for part in fault["loc"][1:] if isinstance(part, str)) or "body"
            faults.append(f"{where}: {fault['msg']}")
        return Problem("bad_argument", "; ".join(faults), faults=faults)

    @app.exception_handler(VisitorError)
    async def refused(request: Request, error: VisitorError) -> Response:
        return Problem(error.code, error.detail)

    @app.exception_handler(HTTPException)
    async def missing(request: Request, error: HTTPException) -> Response:
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            return Problem("method_not_allowed", headers=error.headers)
        if error.status_code == HTTPStatus.NOT_FOUND:
            return Problem("not_found", "no such call; /openapi.json lists them all")
        if error.status_code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            return Problem("body_too_large", str(error.detail), headers=error.headers)
        return Problem("bad_argument", str(error.detail))

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> Response:
        return Problem("internal", "the agent met a fault of its own; its log has the reason")


def _add_reads(app: FastAPI, agent: AgentFacade) -> None:
    @app.get("/v1/health", responses=_docs(models.Health, also={503: models.Health}))
    async def health() -> Response:
        """Whether the agent does its work: 200 for ok and degraded, 503 for down."""
        found = agent.health()
        return _json(found, 503 if found["status"] == "down" else 200)

    @app.get("/v1/status", responses=_docs(models.Status))
    async def status() -> Response:
        """The agent, its tunnels and its totals."""
        return _json(agent.status())

    @app.get("/v1/streams", responses=_docs(models.Streams, "bad_argument"))
    async def streams(
        tunnel: Annotated[str | None, Query(description="Of this tunnel only.")] = None,
        kind: Annotated[models.StreamKind | None, Query(description="Of this kind only.")] = None,
    ) -> Response:
        """Every visitor's request that is under way, oldest first."""
        return _json({"streams": agent.streams(tunnel, kind)})

    @app.get("/v1/streams/{request_id}", responses=_docs(models.StreamInfo, "no_such_stream", "bad_argument"))
    async def stream(request_id: str) -> Response:
        """One stream."""
        found = agent.stream(request_id)
        return Problem("no_such_stream", f"no stream {request_id}") if found is None else _json(found)

    @app.get("/metrics", responses=_text("Prometheus's text format."), response_class=Response)
    async def metrics() -> Response:
        """What the agent counts, for Prometheus."""
        return Response(agent.metrics(), media_type=CONTENT_TYPE)

    events_docs = _docs(models.Event, "too_many_subscribers")
    events_docs[200] = {
        "description": "Server-sent events; `event` is the type, `data` the event as a JSON object.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }

    @app.get("/v1/events", responses=events_docs, response_class=EventStream, status_code=200)
    async def events() -> Response:
        """Every state change, heartbeat, stream and alert, as it happens."""
        return EventStream(app.state.subscribers)


def _add_cancels(app: FastAPI, agent: AgentFacade) -> None:
    @app.delete("/v1/streams/{request_id}", responses=_docs(models.Cancelled, "no_such_stream", "bad_argument"))
    async def cancel_one(request: Request, request_id: str) -> Response:
        """Cancel one stream: its service's work stops, its visitor is told."""
        done = agent.cancel([request_id])
        if not done:
            return Problem("no_such_stream", f"no stream {request_id}")
        await audit(request.scope, "cancel", f"cancelled stream {request_id}")
        return _json({"cancelled": done})

    @app.post("/v1/streams/cancel", responses=_docs(models.Cancelled, "bad_argument", "empty_filter", "body_too_large"))
    async def cancel_some(request: Request, wanted: Annotated[models.Filter, Body()]) -> Response:
        """Cancel every stream that passes all keys of the filter; an empty filter is refused."""
        if not wanted:
            return Problem("empty_filter")
        for key in ("older_than_s", "idle_s"):
            seconds: float = wanted.get(key, 0)  # type: ignore[assignment]
            if not (math.isfinite(seconds) and seconds >= 0):
                return Problem("bad_argument", f"{key}: give seconds, 0 or more")
        found = agent.streams(wanted.get("tunnel"), wanted.get("kind"))
        done = agent.cancel([one["request_id"] for one in found if models.matches(one, wanted)])
        shown = ", ".join(done[:20]) + (" …" if len(done) > 20 else "")
        await audit(request.scope, "cancel", f"cancelled {len(done)} streams by filter: {shown or 'none matched'}")
        return _json({"cancelled": done})


def _add_changes(app: FastAPI, agent: AgentFacade) -> None:
    @app.post("/v1/reload", responses=_docs(models.Reloaded, "bad_config"))
    async def reload(request: Request) -> Response:
        """Apply the changed configuration file; a bad one changes nothing and the answer says why."""
        try:
            changed = await agent.reload()
        except ConfigError as error:
            await audit(request.scope, "reload", f"reload refused: {'; '.join(error.faults)}", failed=True)
            return Problem("bad_config", str(error), faults=error.faults)
        await audit(request.scope, "reload", f"reloaded: {'; '.join(changed['changed']) or 'nothing changed'}")
        return _json(changed)

    @app.post("/v1/tunnels/{name}/reconnect", responses=_docs(models.Reconnected, "no_such_tunnel", "bad_argument"))
    async def reconnect(request: Request, name: str) -> Response:
        """Drop the tunnel's connection, if any, and dial now."""
        changed = agent.reconnect(name)
        await audit(request.scope, "reconnect", f"tunnel {name} dials again")
        return _json(changed)

    @app.get("/v1/tunnels/{name}", responses=_docs(models.TunnelStatus, "no_such_tunnel", "bad_argument"))
    async def tunnel(name: str) -> Response:
        """One tunnel, as in the status."""
        return _json(agent.tunnel(name))

    @app.post(
        "/v1/tunnels",
        status_code=201,
        responses=_opened(_docs(models.TunnelStatus, "bad_argument", "tunnel_exists", "shutdown", "body_too_large")),
    )
    async def open_tunnel(request: Request, wanted: Annotated[models.NewTunnel, Body()]) -> Response:
        """Open a tunnel that stands in no file: it goes with the agent, or after `for_s` seconds."""
        seconds = wanted.get("for_s")
        if seconds is not None and not 0 < seconds <= MAX_SECONDS:
            return Problem("bad_argument", f"for_s: give seconds above 0, at most {MAX_SECONDS:.0f}")
        try:
            opened = await agent.open_tunnel(wanted)
        except ConfigError as error:
            return Problem("bad_argument", "; ".join(error.faults), faults=error.faults)
        await audit(request.scope, "open", f"opened tunnel {opened['name']} to {opened['service']}")
        return _json(opened, 201)

    @app.delete(
        "/v1/tunnels/{name}",
        responses=_docs(models.TunnelClosed, "no_such_tunnel", "tunnel_configured", "bad_argument"),
    )
    async def close_tunnel(request: Request, name: str) -> Response:
        """Close a tunnel that was opened at run time; its streams end."""
        closed = agent.close_tunnel(name)
        await audit(request.scope, "close", f"closed tunnel {name}, {closed['streams']} streams ended")
        return _json(closed)

    @app.post("/v1/drain", responses=_docs(models.Drained))
    async def drain(request: Request) -> Response:
        """Take no new streams and let those under way end."""
        changed = agent.drain()
        await audit(request.scope, "drain", f"draining, {changed['streams']} streams left")
        return _json(changed)

    @app.put("/v1/log-level", responses=_docs(models.LogLevel, "bad_argument", "body_too_large"))
    async def log_level(request: Request, wanted: Annotated[models.NewLogLevel, Body()]) -> Response:
        """Log from this level on, until the next reload or restart."""
        level = wanted["level"]
        was = agent.set_log_level(level)
        await audit(request.scope, "log-level", f"log level {was} is now {level}")
        return _json({"level": level, "was": was})
