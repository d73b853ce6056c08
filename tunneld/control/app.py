"""The agent's control API (CONTRACT "Control API"): a FastAPI application that only translates.

Answers are encoded as they come from the facade; their shapes stand in `models`, from which ``/openapi.json``
is made when it is asked for.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Annotated

from fastapi import Body, FastAPI, Path, Query, Request
from fastapi.responses import Response

from tunneld.config.units import MAX_SECONDS
from tunneld.control import calls
from tunneld.control.answers import describe, docs, json_answer, text_docs
from tunneld.control.event_bounds import EventBounds
from tunneld.control.event_filter import EventFilter
from tunneld.control.event_shapes import EventType, schema
from tunneld.control.events import EventStream, Subscribers
from tunneld.control.facade import AgentFacade
from tunneld.control.guard import Guard, Problem, audit
from tunneld.control.models import problem
from tunneld.control.models.agent import Drained, Health, LogLevel, NewLogLevel, Reloaded, Status
from tunneld.control.models.alerts import AlertsStatus, AlertsTested, AlertsWanted
from tunneld.control.models.events import Event
from tunneld.control.models.permissions import NewPermissions, Permissions
from tunneld.control.models.streams import Cancelled, Filter, Replayed, SeenRequests, StreamInfo, StreamKind, Streams
from tunneld.control.models.tunnels import Link, NewLink, NewTunnel, Reconnected, TunnelClosed, TunnelStatus
from tunneld.control.quick import OLDEST, Quick
from tunneld.control.tailing import Tailing
from tunneld.errors import ConfigError
from tunneld.protocol.headers import path_has_dot_segment, valid_target
from tunneld.telemetry.failures import Failures
from tunneld.telemetry.trail import Trail

__all__ = ["create_app"]

#: Characters of a path that is shared.
MAX_PATH = 4096
#: Types or tunnels that a reader of events asks for.
MAX_ASKED = 100
#: What one call about permissions may hold: what a message on the tunnel may.
MAX_EMAILS, MAX_NOTES = 100, 1000

_DESCRIPTION = "What a tunneld agent has connected, and how to change it. On a Unix socket, with `Host: localhost`."


def create_app(
    agent: AgentFacade,
    trail: Trail | None = None,
    *,
    reading: Failures | None = None,
    secret: str | None = None,
    bounds: EventBounds | None = None,
) -> FastAPI:
    """Return the application for one agent; `ControlServer` serves it.

    Args:
        agent: what it tells of.
        trail: where its changes are written; None: in the log alone.
        reading: counts wrong credentials on `metrics.listen`, whose guard is another; None: it is for the socket.
        secret: of `metrics.token_file`, with `reading`; None: there is none.
        bounds: of the readers of its events; None: the defaults.
    """
    app = calls.new_app("tunneld control", _DESCRIPTION)
    app.state.trail = trail
    app.state.subscribers = Subscribers(agent.subscribe, bounds)
    app.add_middleware(Quick, answers=_each_second(agent))
    if reading is not None:
        from tunneld.control.reading_guard import ReadingGuard

        app.add_middleware(ReadingGuard, secret=secret, failures=reading)
    else:
        app.add_middleware(Guard)
    _add_reads(app, agent)
    _add_events(app)
    _add_looks(app, agent)
    _add_cancels(app, agent)
    _add_changes(app, agent)
    _add_tunnels(app, agent)
    _add_links(app, agent)
    _add_permissions(app, agent)
    describe(app)
    return app


def _note(request: Request, action: str) -> calls.Note:
    """Writes what was done under the stable word of the change."""

    async def note(text: str, *, ok: bool = True) -> None:
        await audit(request.scope, action, text, failed=not ok)

    return note


def _status(agent: AgentFacade, *, streams: bool, oldest: int | None = None) -> Response:
    found = agent.status()
    return json_answer({**found, "streams": agent.streams(oldest=oldest)} if streams else found)


def _each_second(agent: AgentFacade) -> Mapping[tuple[str, bytes], Callable[[], Response]]:
    """What `tunnelctl top` asks; a screen of few lines asks for few streams."""
    answers = {b"streams=true": functools.partial(_status, agent, streams=True)}
    for oldest in OLDEST:
        answers[b"streams=true&oldest=%d" % oldest] = functools.partial(_status, agent, streams=True, oldest=oldest)
    return {("/v1/status", query): answer for query, answer in answers.items()}


def _add_reads(app: FastAPI, agent: AgentFacade) -> None:
    @app.get("/v1/health", responses=docs(Health, also={503: Health}))
    async def health() -> Response:
        """Whether the agent does its work: 200 for ok and degraded, 503 for down."""
        return calls.health(agent.health())

    @app.get("/v1/status", responses=docs(Status, "bad_argument"))
    async def status(
        streams: Annotated[bool, Query(description="With those under way.")] = False,
        oldest: Annotated[int | None, Query(ge=1, description="So many of these, the oldest; by itself all.")] = None,
    ) -> Response:
        """The agent, its tunnels and its totals; for who asks each second, the streams in one answer with them."""
        return _status(agent, streams=streams, oldest=oldest)

    @app.get("/v1/streams", responses=docs(Streams, "bad_argument"))
    async def streams(
        tunnel: Annotated[str | None, Query(description="Of this tunnel only.")] = None,
        kind: Annotated[StreamKind | None, Query(description="Of this kind only.")] = None,
    ) -> Response:
        """Every visitor's request that is under way, oldest first."""
        return json_answer({"streams": agent.streams(tunnel, kind)})

    @app.get("/v1/streams/{request_id}", responses=docs(StreamInfo, "no_such_stream", "bad_argument"))
    async def stream(request_id: str) -> Response:
        """One stream."""
        return calls.stream(agent, request_id)

    @app.get("/v1/alerts", responses=docs(AlertsStatus))
    async def alerts() -> Response:
        """Which alerts hold, the rules, and how telling of them went."""
        return json_answer(agent.alerts())

    @app.get("/metrics", responses=text_docs(docs(problem.Problem)), response_class=Response)
    async def metrics(request: Request) -> Response:
        """What the agent counts, for Prometheus; as OpenMetrics, with exemplars, where `Accept` asks for it."""
        return await calls.metrics(agent, request)


def _add_events(app: FastAPI) -> None:
    events_docs = docs(Event, "too_many_subscribers", "bad_argument")
    events_docs[200] = {
        "description": "Server-sent events; `event` is the type, `data` the event as JSON of this schema. With "
        "`Last-Event-ID` those that came since are told first, after an event `gap` where not all are kept. Ids count "
        "the events of all readers: where `type` or `tunnel` leave some out, others are not next to each other.",
        "content": {"text/event-stream": {"schema": schema()}},
    }

    @app.get("/v1/events", responses=events_docs, response_class=EventStream, status_code=200)
    async def events(
        types: Annotated[
            list[EventType] | None,
            Query(alias="type", max_length=MAX_ASKED, description="Of this type only; may be given several times."),
        ] = None,
        tunnels: Annotated[
            list[str] | None,
            Query(
                alias="tunnel",
                max_length=MAX_ASKED,
                description="Of this tunnel only, and alerts of it; what belongs to no tunnel is left out. May be "
                "given several times.",
            ),
        ] = None,
    ) -> Response:
        """Every state change, heartbeat, stream and alert, as it happens; resumable by `Last-Event-ID`.

        With `type` or `tunnel` some of them; `lagged` and `gap`, which tell of the reader itself, are sent all the
        same. Where no reader asks for events of streams, those cost the agent nothing.
        """
        wanted = EventFilter(types or (), tunnels or ()) if types or tunnels else None
        return EventStream(app.state.subscribers, wanted)


def _add_looks(app: FastAPI, agent: AgentFacade) -> None:
    tail_docs = docs(Event, "no_such_stream", "not_inspected", "too_many_subscribers", "bad_argument")
    tail_docs[200] = {
        "description": "Server-sent events, by type: `event` (`id`, `event`, `data`, `cut`), `comment`, `bytes` of "
        "what is no event stream or is packed (`encoding`), `frame` of a WebSocket (`from`, `kind`, `final`, `bytes`, "
        "`text`), `skipped` over the rate, `end` with the stream's reason.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }

    @app.get("/v1/streams/{request_id}/tail", responses=tail_docs, response_class=Response, status_code=200)
    async def tail(request_id: str) -> Response:
        """What passes on a stream from now on, decoded; of tunnels with `inspect: true` alone."""
        return Tailing(lambda tell: agent.tail(request_id, tell))

    @app.get("/v1/requests", responses=docs(SeenRequests, "bad_argument"))
    async def requests(
        tunnel: Annotated[str | None, Query(description="Of this tunnel only.")] = None,
    ) -> Response:
        """The last requests of tunnels with `inspect: true`, newest first; secrets' headers are masked."""
        return json_answer({"requests": agent.requests(tunnel)})


def _add_cancels(app: FastAPI, agent: AgentFacade) -> None:
    @app.delete("/v1/streams/{request_id}", responses=docs(Cancelled, "no_such_stream", "bad_argument"))
    async def cancel_one(request: Request, request_id: str) -> Response:
        """Cancel one stream: its service's work stops, its visitor is told."""
        return await calls.cancel_one(agent, request_id, _note(request, "cancel"))

    @app.post("/v1/streams/cancel", responses=docs(Cancelled, "bad_argument", "empty_filter", "body_too_large"))
    async def cancel_some(request: Request, wanted: Annotated[Filter, Body()]) -> Response:
        """Cancel every stream that passes all keys of the filter; an empty filter is refused."""
        if not wanted:
            return Problem("empty_filter")
        for key in ("older_than_s", "idle_s"):
            seconds: float = wanted.get(key, 0)  # type: ignore[assignment]
            if not (math.isfinite(seconds) and seconds >= 0):
                return Problem("bad_argument", f"{key}: give seconds, 0 or more")
        return await calls.cancel_some(agent, wanted, _note(request, "cancel"))


def _add_changes(app: FastAPI, agent: AgentFacade) -> None:
    @app.post("/v1/reload", responses=docs(Reloaded, "bad_config"))
    async def reload(request: Request) -> Response:
        """Apply the changed configuration file; a bad one changes nothing and the answer says why."""
        return await calls.reload(agent, _note(request, "reload"))

    @app.post("/v1/alerts/test", responses=docs(AlertsTested, "bad_argument", "no_such_alert", "body_too_large"))
    async def test_alerts(request: Request, wanted: Annotated[AlertsWanted | None, Body()] = None) -> Response:
        """Send a test message to the receivers, and tell how each went."""
        return await calls.test_alerts(agent, wanted, _note(request, "alerts-test"))

    @app.post(
        "/v1/requests/{request_id}/replay",
        responses=docs(
            Replayed, "no_such_request", "not_replayable", "service_unreachable", "bad_request", "bad_argument"
        ),
    )
    async def replay(request: Request, request_id: str) -> Response:
        """Send a request that was seen to the local service again, and tell what it answers."""
        answer = await agent.replay(request_id)
        await audit(request.scope, "replay", f"sent request {request_id} to its service again")
        return json_answer(answer)

    @app.post("/v1/drain", responses=docs(Drained))
    async def drain(request: Request) -> Response:
        """Take no new streams, let those under way end within `drain_timeout`, then leave, as after SIGTERM."""
        changed = agent.drain()
        await audit(request.scope, "drain", f"draining, {changed['streams']} streams left")
        return json_answer(changed)

    @app.put("/v1/log-level", responses=docs(LogLevel, "bad_argument", "body_too_large"))
    async def log_level(request: Request, wanted: Annotated[NewLogLevel, Body()]) -> Response:
        """Log from this level on, until the next reload or restart."""
        level = wanted["level"]
        was = agent.set_log_level(level)
        await audit(request.scope, "log-level", f"log level {was} is now {level}")
        return json_answer({"level": level, "was": was})


def _add_tunnels(app: FastAPI, agent: AgentFacade) -> None:
    @app.post("/v1/tunnels/{name}/reconnect", responses=docs(Reconnected, "no_such_tunnel", "shutdown", "bad_argument"))
    async def reconnect(request: Request, name: str) -> Response:
        """Drop the tunnel's connection, if any, and dial now; not while the agent drains."""
        changed = agent.reconnect(name)
        await audit(request.scope, "reconnect", f"tunnel {name} dials again")
        return json_answer(changed)

    @app.get("/v1/tunnels/{name}", responses=docs(TunnelStatus, "no_such_tunnel", "bad_argument"))
    async def tunnel(name: str) -> Response:
        """One tunnel, as in the status."""
        return json_answer(agent.tunnel(name))

    @app.post(
        "/v1/tunnels",
        status_code=201,
        responses=docs(
            TunnelStatus,
            "bad_argument",
            "tunnel_exists",
            "not_saved",
            "no_such_tunnel",
            "shutdown",
            "body_too_large",
            good=201,
        ),
    )
    async def open_tunnel(request: Request, wanted: Annotated[NewTunnel, Body()]) -> Response:
        """Open a tunnel: it goes with the agent, or after `for_s` seconds, unless it is to be saved."""
        seconds = wanted.get("for_s")
        if seconds is not None and not 0 < seconds <= MAX_SECONDS:
            return Problem("bad_argument", f"for_s: give seconds above 0, at most {MAX_SECONDS:.0f}")
        if seconds is not None and wanted.get("save"):
            return Problem("bad_argument", "save: a tunnel that goes after for_s is not saved; give one of the two")
        try:
            opened = await agent.open_tunnel(wanted)
        except ConfigError as error:
            return Problem("bad_argument", "; ".join(error.faults), faults=error.faults)
        saved = f", saved in {opened.get('file')}" if wanted.get("save") else ""
        text = f"opened tunnel {opened['name']} to {opened['service']}{saved}"
        await audit(request.scope, "open", text, tunnel=opened["name"])
        return json_answer(opened, 201)

    @app.delete(
        "/v1/tunnels/{name}",
        responses=docs(TunnelClosed, "no_such_tunnel", "tunnel_configured", "bad_argument"),
    )
    async def close_tunnel(request: Request, name: str) -> Response:
        """Close a tunnel that was opened at run time; its streams end, and what was saved of it goes."""
        closed = agent.close_tunnel(name)
        await audit(request.scope, "close", f"closed tunnel {name}, {closed['streams']} streams ended")
        return json_answer(closed)


def _add_links(app: FastAPI, agent: AgentFacade) -> None:
    @app.post(
        "/v1/tunnels/{name}/links",
        status_code=201,
        responses=docs(
            Link, "bad_argument", "no_such_tunnel", "not_protected", "tunnel_offline", "body_too_large", good=201
        ),
    )
    async def share(request: Request, name: str, wanted: Annotated[NewLink, Body()]) -> Response:
        """Sign an address of a protected tunnel: it lets a visitor in, for that path and that long."""
        path, seconds = wanted["path"], wanted["for_s"]
        if not valid_target(path) or path_has_dot_segment(path) or len(path) > MAX_PATH:
            return Problem("bad_argument", "path: give a path that begins with '/', as the service sees it")
        if not 0 < seconds <= MAX_SECONDS:
            return Problem("bad_argument", f"for_s: give seconds above 0, at most {MAX_SECONDS:.0f}")
        link = agent.share(name, path, seconds)
        await audit(request.scope, "share", f"shared {path.partition('?')[0]} of tunnel {name} until {link['expires']}")
        return json_answer(link, 201)


def _add_permissions(app: FastAPI, agent: AgentFacade) -> None:
    path = "/v1/tunnels/{name}/permissions"

    @app.get(path, responses=docs(Permissions, "no_such_tunnel", "tunnel_offline", "bad_argument"))
    async def permissions(name: str) -> Response:
        """Who may visit a tunnel by e-mail address, as its server keeps it."""
        return json_answer({"permissions": await agent.permissions(name)})

    changes = ("bad_argument", "no_such_tunnel", "tunnel_offline", "store_failed", "rate_limited")

    @app.post(
        path,
        status_code=201,
        responses=docs(Permissions, *changes, "too_many_permissions", "body_too_large", good=201),
    )
    async def grant(request: Request, name: str, wanted: Annotated[NewPermissions, Body()]) -> Response:
        """Let somebody visit; one who may already keeps their permission, with what is said otherwise."""
        if not 0 < wanted.get("expires_s", 1) <= MAX_SECONDS:
            return Problem("bad_argument", f"expires_s: give seconds above 0, at most {MAX_SECONDS:.0f}")
        if len(wanted["emails"]) > MAX_EMAILS or len(wanted.get("notes", "")) > MAX_NOTES:
            return Problem("bad_argument", f"at most {MAX_EMAILS} emails, and {MAX_NOTES} characters of notes")
        kept = await agent.grant(name, wanted)
        await audit(request.scope, "grant", f"tunnel {name} may be visited by {', '.join(wanted['emails'])}")
        return json_answer({"permissions": kept}, 201)

    @app.delete(path + "/{email}", responses=docs(Permissions, *changes, "no_such_permission"))
    async def revoke(request: Request, name: str, email: Annotated[str, Path(max_length=254)]) -> Response:
        """Let somebody visit no longer; their open streams end at once."""
        gone = await agent.revoke_permission(name, email)
        await audit(request.scope, "revoke", f"tunnel {name} may be visited by {email} no longer")
        return json_answer({"permissions": [gone]})
