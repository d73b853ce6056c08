"""The agent as its dashboard sees it: the same of a stream, whichever way it is asked for."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

from tunneld.agent.record import Record
from tunneld.control.watched import WatchedAgent
from tunneld.dashboard.source import COUNTED
from tunneld.protocol.messages import Open


def test_what_moves_of_a_stream_is_what_the_api_says_of_it() -> None:
    record = Record("app", Open("r1", "GET", "/sse", [], "127.0.0.1"))
    record.bytes_in, record.bytes_out, record.state, record.kind = 3, 5, "streaming", "sse"
    record.active = time.monotonic() - 7
    daemon: Any = SimpleNamespace(exchange={"r1": record}.get)
    agent = WatchedAgent(daemon, SimpleNamespace())  # type: ignore[arg-type]
    shown, found = agent.stream("r1"), agent.counted("r1")
    assert shown is not None
    assert found is not None
    counted, idle = found
    assert counted == tuple(shown[key] for key in COUNTED)
    assert 7 <= idle < 9
    assert (agent.tunnel_of("r1"), agent.tunnel_of("r2"), agent.counted("r2")) == ("app", None, None)
