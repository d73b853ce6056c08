"""What access by key costs a request over `open`, at the server: `python -m tests.bench.access`.

Both ways are taken in turns in one process (paired), and the difference of each pair is told, in CPU time: the median,
and the quarter points. The goal is at most 3 µs.
"""

from __future__ import annotations

import statistics
from hashlib import sha256
from time import thread_time_ns
from types import SimpleNamespace
from typing import Any, cast

from tunneld.config.server import ServerConfig
from tunneld.protocol.messages import AccessKey, AccessSettings, Headers
from tunneld.server.visitors.desk import Desk
from tunneld.server.visitors.rules import OPEN_RULES, Rules

__all__ = ["measure"]

_KEY = "k-0123456789abcdef"
_HEADERS: Headers = [
    ("Host", "tunnel.example"),
    ("User-Agent", "Mozilla/5.0 (X11; Linux x86_64) Gecko/20100101 Firefox/140.0"),
    ("Accept", "*/*"),
    ("Accept-Language", "en"),
    ("Accept-Encoding", "gzip, deflate, br"),
    ("Referer", "https://tunnel.example/"),
    ("Authorization", f"Bearer {_KEY}"),
    ("Connection", "keep-alive"),
]


def measure(*, pairs: int = 200, requests: int = 500) -> list[float]:
    """The differences, in µs a request, sorted."""
    keys = [AccessKey(f"other-{n}", sha256(str(n).encode()).hexdigest()) for n in range(20)]
    keys.append(AccessKey("bob", sha256(_KEY.encode()).hexdigest()))
    closed = Rules("demo", AccessSettings(mode="key", keys=keys))
    desk = Desk(cast(Any, SimpleNamespace(exchanges={}, loop=None)), ServerConfig(auth={"mode": "open"}))  # type: ignore[arg-type]
    head = cast(Any, SimpleNamespace(method="GET", headers=_HEADERS, upgrade=""))
    tunnel = cast(Any, SimpleNamespace(name="demo", host_url=None, access=OPEN_RULES))

    def once(rules: Rules) -> float:
        tunnel.access = rules
        begun = thread_time_ns()
        for _ in range(requests):  # as `Ingress._to_tunnel` and `Ingress.forget` do it
            sent: Headers = list(_HEADERS)
            grant = None
            if not tunnel.access.free:
                admitted = desk.admit(cast(Any, None), head, tunnel, "/x", "/t/demo", "192.0.2.7")
                assert admitted is not None
                grant, _ = admitted
            if grant is not None:
                sent += grant.headers
                desk.enter("0123456789abcdef", tunnel, grant, "192.0.2.7")
            desk.leave("0123456789abcdef")
        return (thread_time_ns() - begun) / 1000 / requests

    once(closed)
    return sorted(once(closed) - once(OPEN_RULES) for _ in range(pairs))


if __name__ == "__main__":
    found = measure()
    low, middle, high = statistics.quantiles(found, n=4)
    print(f"key over open: {middle:.2f} µs a request (quarters {low:.2f} and {high:.2f})")
