"""What access by key and by session costs a request over `open`, at the server: `python -m tests.bench.access`.

Both ways are taken in turns in one process (paired), and the difference of each pair is told, in CPU time: the median,
and the quarter points. The goals are at most 3 and 10 µs.
"""

from __future__ import annotations

import statistics
from hashlib import sha256
from time import thread_time_ns, time
from types import SimpleNamespace
from typing import Any, cast

from tunneld.config.server import ServerConfig
from tunneld.protocol.messages import AccessKey, AccessSettings, Headers
from tunneld.server.visitors.cookies import Session
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
    ("Connection", "keep-alive"),
]


def _cookie(login: Any) -> str:
    return str(login._seal.sign(Session("ann@example.org", "demo", "0123456789abcdef", time() + 3600)))


def measure(kind: str, *, pairs: int = 200, requests: int = 500) -> list[float]:
    """The differences, in µs a request, sorted.

    Args:
        kind: ``key``, or ``login``: the cookie of whoever is signed in, among others.
    """
    config = ServerConfig(auth={"mode": "open"}, login={"issuer": "http://localhost", "client_id": "x"})  # type: ignore[arg-type]
    loop = SimpleNamespace(call_later=lambda *_: SimpleNamespace(cancel=lambda: None))
    desk = Desk(cast(Any, SimpleNamespace(exchanges={}, loop=loop)), config)
    headers = [*_HEADERS]
    if kind == "key":
        keys = [AccessKey(f"other-{n}", sha256(str(n).encode()).hexdigest()) for n in range(20)]
        keys.append(AccessKey("bob", sha256(_KEY.encode()).hexdigest()))
        closed = Rules("demo", AccessSettings(mode="key", keys=keys))
        headers.insert(6, ("Authorization", f"Bearer {_KEY}"))
    else:
        closed = Rules("demo", AccessSettings(mode="login", domains=["example.org"]))
        headers.insert(6, ("Cookie", f"theme=dark; tunnel-session={_cookie(desk.login)}; lang=en"))
        headers += [("Sec-Fetch-Site", "same-origin"), ("Sec-Fetch-Mode", "cors"), ("Sec-Fetch-Dest", "empty")]
    head = cast(Any, SimpleNamespace(method="GET", headers=headers, upgrade="", host="tunnel.example"))
    tunnel = cast(Any, SimpleNamespace(name="demo", public_url="http://h/t/demo", host_url=None, access=OPEN_RULES))
    exchange = cast(Any, SimpleNamespace(grant=None))

    def once(rules: Rules) -> float:
        tunnel.access = rules
        begun = thread_time_ns()
        for _ in range(requests):  # as `Ingress._to_tunnel` does it
            head.headers = headers
            grant = None
            if not tunnel.access.free:
                admitted = desk.admit(cast(Any, None), head, tunnel, "/x", "/t/demo", "192.0.2.7")
                assert admitted is not None
                grant, _ = admitted
            sent: Headers = list(head.headers)
            if grant is not None:
                sent += grant.headers
                exchange.grant = grant
                if grant.expires is not None:
                    desk.enter(grant)
        return (thread_time_ns() - begun) / 1000 / requests

    once(closed)
    return sorted(once(closed) - once(OPEN_RULES) for _ in range(pairs))


if __name__ == "__main__":
    for kind, goal in (("key", 3), ("login", 10)):
        low, middle, high = statistics.quantiles(measure(kind), n=4)
        print(f"{kind} over open: {middle:.2f} µs a request (quarters {low:.2f} and {high:.2f}), goal {goal}")
