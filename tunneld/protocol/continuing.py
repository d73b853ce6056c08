"""An event stream that goes on in another answer: what of its beginning is new (PROTOCOL.md, recovery). Pure."""

from __future__ import annotations

from collections.abc import Callable

from tunneld.protocol.sse import BLOCK, LEAD, EventSplitter, own_id

__all__ = ["Continuation"]


class Continuation:
    """Reads an answer to a request with ``Last-Event-ID`` until it has shown whether the service resumed.

    Events with exactly the last id were sent before: they are left out, from their first field on (what stands before
    that is passed on as it comes, and nobody knows yet whose it is). Events without an id of their own are new,
    whatever comes of the rest. The first other id decides: one that was sent lately means that the service began
    anew. Of an event over `max_event` what came at once decides, if it names an id; it is passed on in pieces.

    Args:
        last_id: the id that was asked for, in octets.
        sent: whether an id is one of those sent lately, before this answer.
        max_event: bytes of a block that may be held.

    Attributes:
        settled: the first other id came, or an oversize event: feed what follows, `rest` first, to whoever goes on.
        began_anew: it was one of those sent lately: what `feed` returned is nothing to pass on.
        dropped: events that were left out.
    """

    __slots__ = ("_drop_lf", "_last_id", "_sent", "_splitter", "began_anew", "dropped", "settled")

    def __init__(self, last_id: bytes, sent: Callable[[bytes], bool], max_event: int) -> None:
        self._last_id = last_id
        self._sent = sent
        self._splitter = EventSplitter(max_event)
        self._drop_lf = False  # what was left out ended in CR: an LF that follows belongs to it
        self.settled = False
        self.began_anew = False
        self.dropped = 0

    def feed(self, chunk: bytes) -> bytes:
        """Take bytes of the answer while it is not settled; returns those that are new and whole, maybe none."""
        text = self._splitter.feed(chunk)
        if text:
            if self._drop_lf:
                text = text.removeprefix(b"\n")
            self._drop_lf = False
        pieces = []
        start = end = 0
        for match in BLOCK.finditer(text):
            end = match.end()
            own = own_id(match.group())
            if own == self._last_id:
                lead = LEAD.match(text, match.start())
                pieces.append(text[start : lead.end() if lead else match.start()])
                start = end
                self.dropped += 1
            elif own and self._judge(own):
                break
        if self._splitter.mid_event and not self.settled:
            self._judge(own_id(text[end:]) or b"")
        pieces.append(text[start:])
        if start:
            self._drop_lf = start == len(text) and text[-1] == 13
        return b"".join(pieces) if not self.began_anew else b""

    def rest(self) -> bytes:
        """What is held of an event that is not whole."""
        return self._splitter.end()

    def _judge(self, event_id: bytes) -> bool:
        self.settled = True
        self.began_anew = event_id not in (b"", self._last_id) and self._sent(event_id)
        return True
