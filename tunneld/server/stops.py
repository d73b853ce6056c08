"""Who is told to stop: clients whose event stream an operator ended, for a while after.

EventSource comes back after every end of a stream but an answer of 204. Pure: the time is passed in.
"""

from __future__ import annotations

from collections import OrderedDict
from hashlib import blake2b

from tunneld.protocol.headers import Headers, get_all

__all__ = ["StopList", "stop_key"]


def stop_key(tunnel: str, path: str, address: str, headers: Headers) -> bytes:
    """What makes "that client": tunnel, path with query, address, Authorization and Cookie; none can be read back.

    Args:
        headers: who it is (``X-Tunnel-User``) among them, where the tunnel asks: a sign-in is in no other by now.
    """
    digest = blake2b(digest_size=16)
    parts = [tunnel, path, address]
    for name in ("authorization", "cookie", "x-tunnel-user"):
        parts.append("\0".join(get_all(headers, name)))
    for part in parts:
        raw = part.encode("latin-1", "replace")
        digest.update(len(raw).to_bytes(4, "big"))
        digest.update(raw)
    return digest.digest()


class StopList:
    """Keys that are answered 204, each for the same time.

    Args:
        seconds: how long one is kept.
        most: keys kept at one time; the oldest goes first.
    """

    def __init__(self, *, seconds: float = 30.0, most: int = 4096) -> None:
        self._seconds = seconds
        self._most = most
        self._stops: OrderedDict[bytes, tuple[float, Headers]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._stops)

    def add(self, key: bytes, headers: Headers, now: float) -> None:
        """Stop this client, from `now` on (monotonic seconds).

        Args:
            headers: of the ended stream's answer, for the 204: ``Access-Control-*`` and ``Vary``.
        """
        self._stops.pop(key, None)
        self._stops[key] = (now + self._seconds, headers)
        if len(self._stops) > self._most:
            self._stops.popitem(last=False)

    def find(self, key: bytes, now: float) -> Headers | None:
        """The headers of the 204 that this client is answered; None when it is not to stop."""
        while self._stops:
            oldest = next(iter(self._stops))
            if self._stops[oldest][0] > now:
                break
            del self._stops[oldest]
        found = self._stops.get(key)
        return None if found is None else found[1]
