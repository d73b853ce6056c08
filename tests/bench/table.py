"""The bench's table: one row a number, one column a program, ours with its ratio to each peer and its goal."""

from __future__ import annotations

from typing import Any

__all__ = ["GOALS", "render"]

GOALS: dict[str, float] = {
    "requests.cpu_us": 220,
    "events.cpu_us": 60,
    "events.p50_ms": 1.5,
    "events.p99_ms": 5,
    "bulk.cpu_ms_mib": 4.9,
    "memory.kib": 10,
    "cancel.p50_ms": 3,
    "cancel.p99_ms": 10,
    "scale.ratio": 1.15,
    "status.ms": 250,
    "rest.agent_mib": 60,
    "rest.server_mib": 60,
    "resume_gap.max_ms": 50,
    "far_ws.max_ms": 400,
    "far_wss.max_ms": 500,
    "far_bulk.mib_s": 20,
    "resume_cost.percent": 5,
    "outage.all_ms": 1000,
    "bounded.agent_mib": 64,
    "bounded.server_mib": 64,
    "stampede.closest_s": 0.5,
    "stampede.back": 5000,
    "scrape.agent_text_ms": 50,
    "scrape.agent_text_stall_ms": 10,
    "scrape.agent_text_step_ms": 10,
    "scrape.agent_text_step_max_ms": 10,
    "scrape.agent_open_ms": 50,
    "scrape.agent_open_stall_ms": 10,
    "scrape.agent_open_step_ms": 10,
    "scrape.agent_open_step_max_ms": 10,
    "scrape.server_text_ms": 50,
    "scrape.server_text_stall_ms": 10,
    "scrape.server_text_step_ms": 10,
    "scrape.server_text_step_max_ms": 10,
    "scrape.server_open_ms": 50,
    "scrape.server_open_stall_ms": 10,
    "scrape.server_open_step_ms": 10,
    "scrape.server_open_step_max_ms": 10,
    "observed.request_percent": 5,
    "observed.event_percent": 5,
    "observed.busy_percent": 5,
}
"""The most that ours may need, or the least that it must reach."""

PEER_GOALS: dict[str, tuple[str, float]] = {
    "requests.cpu_us": ("frp http", 0.4),
    "events.cpu_us": ("chisel", 0.8),
    "bulk.cpu_ms_mib": ("frp http", 1.0),
    "bulk.mib_s": ("frp http", 1.0),
}
"""The same against a peer of the same run, which holds on a machine of any speed."""

_WATCHING = {
    "": "all that watches",
    "nothing": "nothing (how much such a figure is off)",
    "unfollowed": "all but a reader of events",
    "metrics": "metrics and a scrape each 7.5 s",
    "alerts": "alerts and service_check",
    "inspect": "inspect",
    "audit": "audit and a change each 7.5 s",
    "dashboard": "a page of both dashboards",
    "events": "a reader of events",
    "top": "tunnelctl top",
}
_LABELS = {
    "requests.cpu_us": "CPU a request, µs",
    "requests.agent_cpu_us": "  of it the agent",
    "requests.server_cpu_us": "  of it the server",
    "requests.per_s": "requests a second",
    "requests.p50_ms": "request p50, ms",
    "requests.p99_ms": "request p99, ms",
    "events.cpu_us": "CPU an event, µs (200 streams)",
    "events.agent_cpu_us": "  of it the agent",
    "events.server_cpu_us": "  of it the server",
    "events.per_s": "events a second",
    "events.p50_ms": "event p50, ms",
    "events.p99_ms": "event p99, ms",
    "bursts.cpu_us": "CPU an event, µs (bursts of 5 ms)",
    "bursts.p50_ms": "  event p50, ms",
    "bursts.p99_ms": "  event p99, ms",
    "bulk.mib_s": "download, MiB/s",
    "bulk.cpu_ms_mib": "download, CPU ms a MiB",
    "bulk.agent_cpu_ms_mib": "  of it the agent",
    "bulk.server_cpu_ms_mib": "  of it the server",
    "upload.mib_s": "upload, MiB/s",
    "upload.cpu_ms_mib": "upload, CPU ms a MiB",
    "upload.agent_cpu_ms_mib": "  of it the agent",
    "upload.server_cpu_ms_mib": "  of it the server",
    "memory.kib": "memory a quiet stream, KiB",
    "memory.agent_kib": "  of it the agent",
    "memory.server_kib": "  of it the server",
    "cancel.p50_ms": "visitor's close to service, p50 ms",
    "cancel.p99_ms": "visitor's close to service, p99 ms",
    "scale.few_cpu_us": "CPU an event, 100 streams, µs",
    "scale.many_cpu_us": "CPU an event, 5,000 streams, µs",
    "scale.ratio": "  5,000 over 100 streams",
    "scale.many_p99_ms": "event p99, 5,000 streams, ms",
    "rest.agent_mib": "agent at rest, MiB",
    "rest.server_mib": "server at rest, MiB",
    "status.ms": "tunnelctl status, ms",
    "status.cpu_ms": "  of it CPU",
    "resume_gap.p50_ms": "cut to the next event, p50 ms",
    "resume_gap.max_ms": "cut to the next event, longest ms",
    "far_ws.p50_ms": "the same, 100 ms away over ws, p50 ms",
    "far_ws.max_ms": "  longest: 3.5 round trips + 50 ms",
    "far_wss.p50_ms": "the same, 100 ms away over wss, p50 ms",
    "far_wss.max_ms": "  longest: 4.5 round trips + 50 ms",
    "far_bulk.mib_s": "download, 100 ms away, MiB/s",
    "resume_cost.on_cpu_us": "CPU an event with resume, µs",
    "resume_cost.off_cpu_us": "CPU an event without, µs",
    "resume_cost.percent": "  what resume costs, %",
    "outage.lasted_s": "an outage with 1,000 streams, s",
    "outage.all_ms": "  until all of them go on, ms",
    "outage.grown_mib": "  memory both grew by in it, MiB",
    "bounded.streams": "unread floods of all kinds in an outage of 30 s",
    "bounded.left": "  of them left at the end (over the limit the longest stalled go)",
    "bounded.agent_mib": "  the agent grew by, MiB (limits.memory: 64)",
    "bounded.server_mib": "  the server grew by, MiB (limits.memory: 64)",
    "stampede.agents": "agents that lose their server",
    "stampede.back": "  that are back",
    "stampede.peak_dials_s": "  dials a second at the peak",
    "stampede.closest_s": "  two dials of one agent at least, s",
    "stampede.last_back_s": "  the last is back after the server, s",
    "stampede.server_cpu_s": "  CPU of the server, s",
    "stampede.herd_cpu_s": "  CPU of all agents, s",
    "stampede.server_mib": "  server then, MiB",
    "scrape.quiet_max_ms": "longest request with 1,000 tunnels and no scrape, 3 s, ms",
    "scrape.other_stall_ms": "  beside a curl of something else, p50 ms",
    "scrape.other_stall_max_ms": "  of all of them, ms",
    "scrape.agent_text_ms": "scrape of the agent with 1,000 tunnels, text, p50 ms",
    "scrape.agent_text_max_ms": "  longest, ms",
    "scrape.agent_text_stall_ms": "  longest request through it meanwhile, p50 ms",
    "scrape.agent_text_stall_max_ms": "  of all scrapes, ms",
    "scrape.agent_text_step_ms": "  longest turn of its loop, p50 ms",
    "scrape.agent_text_step_max_ms": "  of all scrapes, ms",
    "scrape.agent_text_step_cpu_ms": "  most CPU of one turn, ms",
    "scrape.agent_text_kib": "  of text, KiB",
    "scrape.agent_open_ms": "scrape of the agent with 1,000 tunnels, OpenMetrics, p50 ms",
    "scrape.agent_open_max_ms": "  longest, ms",
    "scrape.agent_open_stall_ms": "  longest request through it meanwhile, p50 ms",
    "scrape.agent_open_stall_max_ms": "  of all scrapes, ms",
    "scrape.agent_open_step_ms": "  longest turn of its loop, p50 ms",
    "scrape.agent_open_step_max_ms": "  of all scrapes, ms",
    "scrape.agent_open_step_cpu_ms": "  most CPU of one turn, ms",
    "scrape.agent_open_kib": "  of text, KiB",
    "scrape.server_text_ms": "scrape of the server with 1,000 tunnels, text, p50 ms",
    "scrape.server_text_max_ms": "  longest, ms",
    "scrape.server_text_stall_ms": "  longest request through it meanwhile, p50 ms",
    "scrape.server_text_stall_max_ms": "  of all scrapes, ms",
    "scrape.server_text_step_ms": "  longest turn of its loop, p50 ms",
    "scrape.server_text_step_max_ms": "  of all scrapes, ms",
    "scrape.server_text_step_cpu_ms": "  most CPU of one turn, ms",
    "scrape.server_text_kib": "  of text, KiB",
    "scrape.server_open_ms": "scrape of the server with 1,000 tunnels, OpenMetrics, p50 ms",
    "scrape.server_open_max_ms": "  longest, ms",
    "scrape.server_open_stall_ms": "  longest request through it meanwhile, p50 ms",
    "scrape.server_open_stall_max_ms": "  of all scrapes, ms",
    "scrape.server_open_step_ms": "  longest turn of its loop, p50 ms",
    "scrape.server_open_step_max_ms": "  of all scrapes, ms",
    "scrape.server_open_step_cpu_ms": "  most CPU of one turn, ms",
    "scrape.server_open_kib": "  of text, KiB",
    **{
        f"observed{part and '_' + part}.{unit}_{key}": label.format(unit=a_unit, what=what)
        for part, what in _WATCHING.items()
        for unit, a_unit in (("request", "a request"), ("event", "an event"), ("busy", "a request of a busy machine"))
        for key, label in (
            ("on_cpu_us", "CPU {unit}, {what} on, µs"),
            ("off_cpu_us", "  all of it off, µs"),
            ("percent", "  what it costs, %"),
            ("low_percent", "  quartiles of its starts, %"),
            ("high_percent", "  and"),
            ("odd_percent", "  pairs left out, %"),
        )
    },
    "observed.look_cpu_ms": "CPU of a scrape of both daemons and a change, ms",
    "observed_otlp.request_on_cpu_us": "CPU a request, traces on, µs",
    "observed_otlp.request_off_cpu_us": "  off, µs",
    "observed_otlp.request_percent": "  what they cost, %",
    "observed_otlp.request_low_percent": "  quartiles of its starts, %",
    "observed_otlp.request_high_percent": "  and",
    "observed_otlp.request_odd_percent": "  pairs left out, %",
}
_MORE_IS_BETTER = {
    "requests.per_s",
    "bulk.mib_s",
    "upload.mib_s",
    "events.per_s",
    "far_bulk.mib_s",
    "stampede.closest_s",
    "stampede.back",
}


def _figure(value: Any) -> str:
    if not isinstance(value, (int, float)) or value != value:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


def render(results: dict[str, dict[str, Any]]) -> str:
    """The table as text: a column for each program, peers with ours over theirs in brackets."""
    names = list(results)
    rows = [["", *names, "goal", ""] if "tunneld" in results else ["", *names]]
    for key, label in _LABELS.items():
        measure, _, number = key.partition(".")
        values = {name: results[name].get(measure, {}).get(number) for name in names}
        if all(value is None for value in values.values()):
            continue
        own = values.get("tunneld")
        row = [label]
        for name in names:
            text = _figure(values[name])
            if name != "tunneld" and isinstance(own, (int, float)) and values[name]:
                text += f" ({own / values[name]:.2f})"
            row.append(text)
        if "tunneld" in results:
            row += _judged(key, own, values)
        rows.append(row)
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    failed = [
        f"{name} {measure}: {numbers['error']}"
        for name, measures in results.items()
        for measure, numbers in measures.items()
        if "error" in numbers
    ]
    return "\n".join([*lines, "(in brackets: ours over theirs)" if len(names) > 1 else "", *failed]).rstrip()


def _judged(key: str, own: Any, values: dict[str, Any]) -> list[str]:
    """The goal's cell and whether it is met: the figure, and what it is of a peer that was measured beside."""
    more = key in _MORE_IS_BETTER
    sign = "≥ " if more else "≤ "
    goals: list[tuple[str, float]] = []
    if key in GOALS:
        goals.append((_figure(GOALS[key]), GOALS[key]))
    peer, share = PEER_GOALS.get(key, ("", 0.0))
    if isinstance(theirs := values.get(peer), (int, float)):
        goals.append((f"{share} of {peer}", share * theirs))
    if not goals or not isinstance(own, (int, float)):
        return ["", ""]
    met = ["met" if (own >= goal if more else own <= goal) else "MISSED" for _, goal in goals]
    return [", ".join(sign + text for text, _ in goals), ", ".join(met)]
