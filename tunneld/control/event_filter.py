"""Which events a reader of ``GET /v1/events`` asks for: of some types, of some tunnels.

Those of streams come in pieces that all readers share, so a filter looks at each block as it stands there, when its
reader is written to: whoever asks for all pays nothing for it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Final

from tunneld.control.models.events import Event

__all__ = ["EventFilter"]

_STREAMS: Final = frozenset({"stream_opened", "stream_upgraded", "stream_closed"})
_OF_THE_READER: Final = frozenset({"lagged", "gap"})
"""Told of the reader itself, whatever it asks for."""
_EVENT, _DATA, _TIME, _TUNNEL = b"\nevent: ", b"\ndata: ", b',"time":"', b'"tunnel":'
_BEHIND_TIME: Final = len(_TIME) + len('2026-01-01T00:00:00.000Z",')


class EventFilter:
    """What passes; not for both empty, which is no filter.

    Args:
        types: of these; none: of all.
        tunnels: that belong to one of these, or alerts whose subject it is; none: whatever they belong to.

    Attributes:
        streams: whether an event of a stream may pass.
    """

    __slots__ = ("_marks", "_raw", "_tunnels", "_types", "streams")

    def __init__(self, types: Iterable[str] = (), tunnels: Iterable[str] = ()) -> None:
        self._types = frozenset(types)
        self._tunnels = frozenset(tunnels)
        self.streams = not self._types or not self._types.isdisjoint(_STREAMS)
        self._raw = frozenset(one.encode(errors="replace") for one in self._types)
        # As it stands in an event of a stream, behind its time; a name has nothing that JSON would write otherwise.
        self._marks = tuple(_TUNNEL + b'"%b"' % one.encode(errors="replace") for one in self._tunnels)

    def passes(self, event: Event) -> bool:
        """Whether its reader gets it."""
        if event["type"] in _OF_THE_READER:
            return True
        if self._types and event["type"] not in self._types:
            return False
        return not self._tunnels or event.get("tunnel") in self._tunnels or event.get("subject") in self._tunnels

    def pick(self, encoded: bytes) -> bytes:
        """Of encoded events those that pass."""
        return b"".join([block + b"\n\n" for block in encoded.split(b"\n\n") if block and self._picks(block)])

    def _picks(self, block: bytes) -> bool:
        data = block.index(_DATA)
        kind = block[block.index(_EVENT) + len(_EVENT) : data]
        if self._raw and kind not in self._raw:
            return kind.decode() in _OF_THE_READER
        if not self._tunnels:
            return True
        behind = block.find(_TIME, data) + _BEHIND_TIME  # what visitors say comes later
        if block.startswith(_TUNNEL, behind):
            return block.startswith(self._marks, behind)
        return self.passes(json.loads(block[data + len(_DATA) :]))
