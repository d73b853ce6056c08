"""Nothing is smuggled: what the service sees is what the server, and nginx before it, took for a request of its own."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

from tests.e2e.conftest import need
from tests.e2e.smuggling import PAGE, ROWS, Outcome, measure


def wrong(found: list[dict[str, Outcome]]) -> list[str]:
    """What is not as the table says, a line each."""
    faults = []
    for row, ways in zip(ROWS, found, strict=True):
        server, nginx = ways["s"], ways["n"]
        status = [*row.status, *([200] if row.last else [])]
        seen = [*row.seen, *(["GET /last"] if row.last else [])]
        if (server.status, server.seen, server.ended) != (status, seen, True):
            faults.append(f"{row.name}: the server: {server}; wanted {status}, {seen}")
        if nginx.status.count(200) != len(nginx.seen) or not nginx.ended:
            faults.append(f"{row.name}: nginx: {nginx}: as many requests reach the service as it answered")
    return faults


def test_what_the_service_sees_is_what_was_asked(folder: Path) -> None:
    need("nginx", "apt-get install nginx")
    assert len(ROWS) >= 60
    found = asyncio.run(measure(folder))
    faults = wrong(found)
    assert not faults, "\n".join(faults)
    kept = re.findall(r"^\| (.*?) \| (.*?) \| .*? \| .*? \|$", PAGE.read_text(), re.M)[2:]
    now = [(row.name, str(ways["s"])) for row, ways in zip(ROWS, found, strict=True)]
    assert [pair for pair in kept if pair[0] in dict(now)] == now, "run python -m tests.e2e.smuggling"
