"""A request to a service as a span: what the conventions of OpenTelemetry call it (HTTP, client)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from tunneld.config.service import Service
from tunneld.errors import CODES
from tunneld.protocol.messages import Open

if TYPE_CHECKING:
    from tunneld.agent.record import Record
    from tunneld.telemetry.traces import Attributes, Tracer

__all__ = ["begin", "end"]


def begin(tracer: Tracer, request: Open, service: Service, tunnel: str) -> Open:
    """Open its span; returns the request for the service, with the span in its headers."""
    path = request.path.partition("?")[0]  # the query may hold secrets
    about: Attributes = {"url.path": path, "tunneld.tunnel": tunnel}
    if service.scheme == "unix":
        about |= {"url.scheme": "http", "network.transport": "unix", "server.address": service.path}
    else:
        about |= {
            "url.scheme": service.scheme,
            "url.full": f"{service}{path}",
            "server.address": service.host,
            "server.port": service.port,
        }
    headers = tracer.begin(request.request_id, request.headers, tunnel, request.method, about)
    return msgspec.structs.replace(request, headers=headers)


def end(tracer: Tracer, record: Record) -> None:
    """It is over."""
    tracer.end(
        record.request_id,
        kind=record.kind,
        reason=record.reason,
        status=CODES[record.code].status or 0 if record.code in CODES else record.status,
        bytes_in=record.bytes_in,
        bytes_out=record.bytes_out,
        events=record.events,
        code=record.code,
    )
