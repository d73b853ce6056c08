"""A visitor's request as a span: what the conventions of OpenTelemetry call it (HTTP, server)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunneld.protocol.headers import Headers, get

if TYPE_CHECKING:
    from tunneld.server.visit import Visit
    from tunneld.telemetry.traces import Attributes, Tracer
    from tunneld.wire.http1 import RequestHead

__all__ = ["begin", "end"]

_MOST_AGENT = 256  # characters of a User-Agent that are kept


def begin(
    tracer: Tracer,
    request_id: str,
    headers: Headers,
    head: RequestHead,
    *,
    path: str,
    prefix: str,
    scheme: str,
    client: str,
    tunnel: str,
) -> Headers:
    """Open its span; returns the headers for the service, with the span in them.

    Args:
        head: the request's, as the visitor sent it.
        path: behind the prefix; its query, which may hold secrets, is left out.
        prefix: ``/t/NAME``, or empty.
    """
    route = f"{prefix}/*"
    about: Attributes = {
        "http.route": route,
        "url.scheme": scheme,
        "url.path": prefix + path.partition("?")[0],
        "tunneld.tunnel": tunnel,
    }
    if host := head.host:
        name, colon, port = host.rpartition(":")
        if colon and port.isdigit():
            about["server.address"], about["server.port"] = name.strip("[]"), int(port)
        else:
            about["server.address"] = host.strip("[]")
    if client:
        about["client.address"] = client
    if agent := get(headers, "user-agent"):
        about["user_agent.original"] = agent[:_MOST_AGENT]
    return tracer.begin(request_id, headers, route, head.method, about)


def end(tracer: Tracer, visit: Visit) -> None:
    """It is over."""
    tracer.end(
        visit.request_id,
        kind=visit.kind,
        reason=visit.reason,
        status=visit.status,
        bytes_in=visit.bytes_in,
        bytes_out=visit.bytes_out,
        events=visit.events,
    )
