"""`log.audit` of both daemons as they run: who cancelled, reloaded and drained, what was refused, and by which way."""

from __future__ import annotations

import json
import os
import pwd
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path

import httpx
import pytest

from tests.support.commands import tunnelctl
from tests.support.daemons import Pair
from tests.support.services import SampleService
from tests.support.sockets import LOOPBACK, free_port

_VISITS = count()
ADMIN, READER = "the-operators-own-secret", "the-scrapers-own-secret"


def secret(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(text)
    path.chmod(0o600)
    return str(path)


def trail(path: Path) -> list[tuple[str, str, bool]]:
    """(who, what, whether it was done) of each line."""
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    assert all(set(entry) == {"at", "actor", "action", "detail", "ok"} for entry in entries)
    return [(entry["actor"], entry["action"], entry["ok"]) for entry in entries]


@contextmanager
def visiting(pair: Pair) -> Iterator[str]:
    """A visitor with an event stream of its own: one that was cancelled is not let in again at once; its id."""
    url = pair.url("app", f"/events?id={next(_VISITS)}")
    with httpx.stream("GET", url, headers={"Accept": "text/event-stream"}, timeout=10) as answer:
        assert answer.status_code == 200
        yield answer.headers["X-Tunnel-Request-Id"]


def act(pair: Pair, line: list[str]) -> None:
    """What an operator does, by the command: two cancels, a reload, a reconnect, and a reload of a bad file."""
    with visiting(pair) as stream:
        assert tunnelctl("cancel", stream, *line).returncode == 0
    with visiting(pair):
        assert tunnelctl("cancel", "--kind", "sse", "--yes", *line).returncode == 0
    assert tunnelctl("reload", *line).returncode == 0
    assert tunnelctl("reconnect", "app", *line).returncode == 0
    file = pair.agent.file if "--socket" in line else pair.server.file
    good = file.read_text()
    file.write_text(good + "\nnonsense: 1\n")
    refused = tunnelctl("reload", *line)
    assert refused.returncode == 1
    assert "nonsense: unknown key" in refused.stderr
    file.write_text(good)


@pytest.mark.timeout(60)
def test_who_cancelled_reloaded_and_drained_is_written_down(folder: Path) -> None:
    service, port = SampleService(), free_port()
    of_agent, of_server = folder / "agent.log", folder / "server.log"
    admin, reader = secret(folder, "admin", ADMIN), secret(folder, "reader", READER)
    pair = Pair(
        folder,
        {"app": service.url},
        agent={"log": {"audit": str(of_agent)}, "metrics": {"listen": f"{LOOPBACK}:{port}", "token_file": reader}},
        server={"log": {"audit": str(of_server)}, "admin": {"token_file": admin}},
    )
    try:
        act(pair, own := ["--socket", str(pair.agent.socket)])
        act(pair, ["--server", f"http://{LOOPBACK}:{pair.server.admin_port}", "--token-file", admin])
        with httpx.Client(base_url=f"http://{LOOPBACK}:{port}") as client:
            assert client.post("/v1/tunnels/app/reconnect").status_code == 401
            assert client.get("/v1/status").status_code == 401, "to look is no change"
            bearer = {"Authorization": f"Bearer {READER}"}
            assert client.post("/v1/tunnels/app/reconnect", headers=bearer).status_code == 200
        assert tunnelctl("close", "app", *own).returncode == 1, "it stands in the file"
        with httpx.Client(base_url=f"http://{LOOPBACK}:{pair.server.admin_port}/api/v1") as client:
            assert client.delete("/streams/x").status_code == 401
            assert client.delete("/streams/x", headers={"Authorization": f"Bearer {ADMIN}"}).status_code == 404
        for process, path in ((pair.agent.process, of_agent), (pair.server.process, of_server)):
            seen = len(trail(path))
            process.signal(signal.SIGHUP)
            process.wait_until(partial(_is_longer, path, seen), what="writing of the reload")
        assert tunnelctl("drain", *own).returncode == 0
        pair.agent.process.wait()
        pair.close()
        me = f"{pwd.getpwuid(os.getuid()).pw_name} (pid {os.getpid()}, uid {os.getuid()}, gid {os.getgid()})"
        words = [("cancel", True), ("cancel", True), ("reload", True), ("reconnect", True), ("reload", False)]
        assert trail(of_agent) == [
            *((me, word, done) for word, done in words),
            (f"somebody at {LOOPBACK}", "refused", False),
            (f"metrics.token_file from {LOOPBACK}", "reconnect", True),
            (me, "refused", False),
            ("a signal", "reload", True),
            (me, "drain", True),
        ]
        theirs = {"cancel": "stream.cancel", "reconnect": "tunnel.reconnect", "reload": "reload"}
        assert trail(of_server) == [
            *(("admin.token_file", theirs[word], done) for word, done in words),
            (f"somebody at {LOOPBACK}", "refused", False),
            ("admin.token_file", "refused", False),
            ("a signal", "reload", True),
            ("a signal", "drain", True),
        ]
        refused = [json.loads(line) for line in of_agent.read_text().splitlines() if '"refused"' in line]
        assert [line["detail"] for line in refused] == [
            "refused POST '/v1/tunnels/app/reconnect': unauthorized",
            "refused DELETE '/v1/tunnels/app': tunnel_configured",
        ]
        assert READER not in of_agent.read_text()
        assert ADMIN not in of_server.read_text()
    finally:
        pair.discard()
        service.stop()


def _is_longer(path: Path, seen: int) -> bool:
    return len(trail(path)) > seen
