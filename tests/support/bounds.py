"""The bounds of both configurations: the figure that says how close each is, or why there is none."""

from __future__ import annotations

__all__ = ["FIGURES", "REASONS"]

#: Key of the configuration -> the `limit` of its series.
FIGURES = {
    "agent.alerts.to.queue": "alert_queue",
    "agent.control.event_history": "event_history",
    "agent.control.event_queue": "event_queue",
    "agent.control.event_readers": "event_readers",
    "agent.dashboard.events": "dashboard_events",
    "agent.dashboard.tunnels": "dashboard_tunnels",
    "agent.dashboard.viewers": "dashboard_viewers",
    "agent.inspection.readers": "inspection_readers",
    "agent.inspection.requests": "inspected",
    "agent.limits.max_streams": "tunnel_streams",
    "agent.limits.memory": "memory",
    "agent.resume.buffer": "resume_buffer",
    "agent.telemetry.queue": "trace_spans",
    "agent.tunnels.limits.max_streams": "tunnel_streams",
    "agent.tunnels.limits.memory": "memory",
    "server.alerts.to.queue": "alert_queue",
    "server.auth.max_names": "names",
    "server.dashboard.events": "dashboard_events",
    "server.dashboard.tunnels": "dashboard_tunnels",
    "server.dashboard.viewers": "dashboard_viewers",
    "server.limits.address_connections": "address_connections",
    "server.limits.address_streams": "address_streams",
    "server.limits.max_streams": "tunnel_streams",
    "server.limits.max_tunnels": "tunnels",
    "server.limits.max_waiting": "tunnel_waiting",
    "server.limits.memory": "memory",
    "server.limits.password_checks": "password_checks",
    "server.limits.passwords": "passwords",
    "server.limits.permissions": "permissions",
    "server.limits.store_waiting": "store_waiting",
    "server.limits.v2_clients": "v2_clients",
    "server.login.remembered": "login_remembered",
    "server.login.waiting": "login_waiting",
    "server.resume.buffer": "resume_buffer",
    "server.sse.replay_total": "replay",
    "server.telemetry.queue": "trace_spans",
}

_ONE = "of one message, head or body: it fits or it is refused, which limit_hits or the error's own count tells"
_STREAM = "of one stream, which waits there while its reader is slow: tunneld_streams_stalled, and limits.memory in all"
_RATE = "a rate, at which who is over it waits or is refused: tunneld_limit_hits counts both"
_WRONG = "wrong credentials of one address, for attackers to fill: those that are refused are logged"
_NOTHING = "bounds what is told, not what is held"
_CALLERS = "those who were refused of late, for attackers to fill: what others do is counted together in the audit"

#: Key of the configuration -> why there is no such series.
REASONS = {
    "agent.alerts.most": _NOTHING,
    "agent.inspection.body": _ONE,
    "agent.inspection.events": _RATE,
    "agent.inspection.waiting": "of one reader, who is told how many it missed",
    "agent.limits.stream_window": _STREAM,
    "agent.limits.stream_window_max": _STREAM,
    "agent.log.audit_callers": _CALLERS,
    "agent.log.burst": _RATE,
    "agent.metrics.max_failures": _WRONG,
    "agent.sse.max_event": _ONE,
    "agent.sse.replay_buffer": "of one stream, kept by the server: its figure is `replay`, of all together",
    "agent.tunnels.limits.stream_window": _STREAM,
    "agent.tunnels.limits.stream_window_max": _STREAM,
    "agent.tunnels.sse.max_event": _ONE,
    "agent.tunnels.sse.replay_buffer": "as agent.sse.replay_buffer",
    "server.admin.max_failures": _WRONG,
    "server.admin.owner_metrics": _NOTHING,
    "server.alerts.most": _NOTHING,
    "server.auth.max_failures": _WRONG,
    "server.limits.address_bytes": _RATE,
    "server.limits.address_requests": _RATE,
    "server.limits.audit_entries": "rows of the store, of which the oldest goes: an old one is always full",
    "server.limits.max_body": _ONE,
    "server.limits.max_form": _ONE,
    "server.limits.max_header": _ONE,
    "server.limits.min_rate": _RATE,
    "server.limits.stream_window": _STREAM,
    "server.limits.stream_window_max": _STREAM,
    "server.limits.tunnel_bytes": _RATE,
    "server.limits.tunnel_requests": _RATE,
    "server.limits.v2_message": _ONE,
    "server.limits.v2_queue": _STREAM,
    "server.log.audit_callers": _CALLERS,
    "server.log.burst": _RATE,
    "server.login.max_answer": _ONE,
    "server.sse.max_event": _ONE,
}
