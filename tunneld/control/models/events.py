"""What ``GET /v1/events`` tells. Each type's keys: `control.event_shapes`."""

from __future__ import annotations

from typing import Any

__all__ = ["EVENT_TYPES", "Event"]

EVENT_TYPES = (
    "tunnel", "heartbeat", "stream_opened", "stream_upgraded", "stream_closed", "reload", "drain", "alert", "lagged",
    "gap",
)  # fmt: skip
"""What ``type`` of an event may be; readers ignore those they do not know.

``tunnel``: a state change (``tunnel``, ``state``, ``was``, ``error``; after an outage also ``resumed``, ``outage_s``,
``replayed_bytes``, ``streams_lost``). ``heartbeat``: a pong came or did not
(``tunnel``, ``ok``, ``rtt_ms``). ``stream_opened``: ``tunnel``, ``request_id``, ``kind``, ``method``,
``path``, ``client``. ``stream_upgraded``: the same, once it is a WebSocket. ``stream_closed``: the same and ``reason``,
``age_s``, ``bytes_in``, ``bytes_out``.
``reload``, ``drain``: what changed. ``alert``: ``message``.
``lagged``: this reader was too slow and is cut; ``dropped`` events were not told.
``gap``: this reader came back with ``Last-Event-ID`` `since`, and not all that followed is kept; the first event that
is, is ``next`` (null: none).
"""
Event = dict[str, Any]
"""An event of ``GET /v1/events``: `id` (rising int), `type`, `time` (ISO 8601 UTC), the keys of its type."""
