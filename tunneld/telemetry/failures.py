"""Failed tries of credentials, counted by address. Pure: the time is passed in."""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address

__all__ = ["Failures", "network"]


class Failures:
    """How often each address failed of late: a bucket that a failure fills and time empties.

    A good credential is always let in: 256 bits are not guessed, and an address may be that of many.

    Args:
        most: failures at once; beyond it the answer is 429.
        window: seconds in which a full bucket empties.
        addresses: how many are remembered; the one that has been quiet longest is forgotten for a new one.
    """

    def __init__(self, *, most: int, window: float, addresses: int = 4096) -> None:
        self._most = most
        self._window = window
        self._addresses = addresses
        #: address -> (failures, when that was), the quiet longest first.
        self._seen: dict[str, tuple[float, float]] = {}

    def __len__(self) -> int:
        return len(self._seen)

    def configure(self, *, most: int, window: float) -> None:
        """Let other bounds hold from now on."""
        self._most = most
        self._window = window

    def full(self, address: str, now: float) -> float | None:
        """Seconds until one more try is worth it; None: it is now. Counts nothing."""
        level, then = self._seen.get(network(address), (0.0, now))
        rate = self._most / self._window
        over = level - (now - then) * rate + 1 - self._most
        return over / rate if over > 0 else None

    def note(self, address: str, now: float) -> float | None:
        """Count one more; returns seconds until the next is worth a try when there were too many, else None.

        Tries beyond the bound are not added: who goes on trying waits as long as the answer says.
        """
        key = network(address)
        level, then = self._seen.pop(key, (0.0, now))
        rate = self._most / self._window
        level = max(0.0, level - (now - then) * rate)
        over = level + 1 > self._most
        self._seen[key] = (level if over else level + 1, now)
        if len(self._seen) > self._addresses:
            del self._seen[next(iter(self._seen))]
        return (level + 1 - self._most) / rate if over else None


def network(address: str) -> str:
    """An IPv6 peer has a /64 to try from."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address[:64]
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is None:
        return str(IPv6Address(int(parsed) >> 64 << 64))
    return str(parsed)
