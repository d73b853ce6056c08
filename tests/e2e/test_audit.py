"""`log.audit` of running daemons: who signs in to a dashboard, refusals without end, and a disk that is full."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.daemons import Pair
from tests.support.operators import Operator
from tests.support.processes import eventually
from tests.support.services import SampleService
from tests.support.sockets import LOOPBACK, free_port, short_dir

ADMIN, READER = "the-operators-own-secret", "the-scrapers-own-secret"
_MORE = re.compile(r"(\d+) more within")


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


@pytest.fixture
def folder(stack: ExitStack) -> Path:
    return stack.enter_context(short_dir())


def secret(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(text)
    path.chmod(0o600)
    return str(path)


def entries(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def counted(found: list[dict[str, Any]]) -> int:
    """How many refusals these lines stand for."""
    more = (_MORE.match(line["detail"]) for line in found)
    return sum(int(each[1]) if each else 1 for each in more)


def feed(url: str, token: str | None, source: str = LOOPBACK) -> int:
    """Ask for a dashboard's feed, as its page does; the answer's status."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with (
        httpx.Client(transport=httpx.HTTPTransport(local_address=source)) as client,
        client.stream("GET", f"{url}/dashboard/feed", headers=headers) as answer,
    ):
        if answer.status_code == 200:
            assert next(answer.iter_lines()) == "event: all"
        return answer.status_code


@pytest.mark.timeout(60)
def test_who_signs_in_to_a_dashboard_is_written_down_good_or_refused(stack: ExitStack, folder: Path) -> None:
    service, port = SampleService(), free_port()
    stack.callback(service.stop)
    of_agent, of_server = folder / "agent.log", folder / "server.log"
    operator = Operator(folder / "cli.yaml")
    looks = operator.do("token create looker --scope read").strip()
    opens = operator.do("token create app").strip()
    pair = Pair(
        folder,
        {"app": service.url},
        agent={
            "log": {"audit": str(of_agent)},
            "server": {"token_file": secret(folder, "app", opens)},
            "metrics": {"listen": f"{LOOPBACK}:{port}", "token_file": secret(folder, "reader", READER)},
        },
        server={
            **operator.settings,
            "log": {"audit": str(of_server)},
            "admin": {"token_file": secret(folder, "admin", ADMIN)},
        },
    )
    stack.callback(pair.discard)
    agent, server = (f"http://{LOOPBACK}:{each}" for each in (port, pair.server.admin_port))
    given = [(None, 401), ("wrong", 401), (READER, 200), (None, 401), (READER, 200)]
    assert [feed(agent, token) for token, _ in given] == [status for _, status in given]
    assert feed(agent, READER, "127.0.0.2") == 200
    given = [(None, 401), ("wrong", 401), (ADMIN, 200), (looks, 200), (opens, 403), ("wrong", 401), (ADMIN, 200)]
    assert [feed(server, token) for token, _ in given] == [status for _, status in given]
    with httpx.Client(headers={"Authorization": f"Bearer {ADMIN}"}) as client:
        assert client.get(f"{server}/api/v1/status").status_code == 200, "to look by the API is no sign-in"
    pair.close()
    here, there = f"the dashboard of metrics.listen{{}} {LOOPBACK}", f"the dashboard of admin.listen{{}} {LOOPBACK}"
    assert [(one["actor"], one["detail"], one["ok"]) for one in entries(of_agent) if one["action"] == "sign-in"] == [
        (f"somebody at {LOOPBACK}", f"refused {here.format(' to')}: unauthorized", False),
        (f"metrics.token_file from {LOOPBACK}", f"signed in to {here.format(', from')}", True),
        ("metrics.token_file from 127.0.0.2", "signed in to the dashboard of metrics.listen, from 127.0.0.2", True),
        (
            f"metrics.token_file from {LOOPBACK}",
            f"1 more within 60 s like this: signed in to {here.format(', from')}",
            True,
        ),
    ]
    told = [(one["actor"], one["detail"], one["ok"]) for one in entries(of_server) if one["action"] == "sign-in"]
    names = [actor for actor, _, _ in told]
    assert names[:2] == [f"somebody at {LOOPBACK}", "admin.token_file"]
    assert "looker" in names[2]
    assert "app" in names[3]
    said = [(detail, good) for _, detail, good in told]
    assert said[:4] == [
        (f"refused {there.format(' to')}: unauthorized", False),
        (f"signed in to {there.format(', from')}", True),
        (f"signed in to {there.format(', from')}", True),
        (f"refused {there.format(' to')}: not_permitted", False),
    ]
    assert sorted(said[4:]) == [  # written at a time, as the daemon leaves
        (f"1 more within 60 s like this: refused {there.format(' to')}: unauthorized", False),
        (f"1 more within 60 s like this: signed in to {there.format(', from')}", True),
    ]
    for path in (of_agent, of_server):
        assert not any(word in path.read_text() for word in (ADMIN, READER, looks, opens, "wrong"))
    for process in pair.processes:
        assert not process.tracebacks()


def delete(client: socket.socket, path: str) -> bytes:
    """Ask for a change on a connection that is kept; the status line."""
    client.sendall(f"DELETE {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += client.recv(65536)
    head, _, body = answer.partition(b"\r\n\r\n")
    length = int(re.findall(rb"(?i)content-length: (\d+)", head)[0])
    while len(body) < length:
        body += client.recv(65536)
    return head.partition(b"\r\n")[0]


@pytest.mark.timeout(60)
def test_who_is_refused_without_end_has_a_line_a_time_and_none_is_lost(stack: ExitStack, folder: Path) -> None:
    """A local reader at the read-only socket, and a crowd of addresses at `metrics.listen`."""
    audit, port, reads = folder / "audit.log", free_port(), folder / "r.sock"
    pair = Pair(
        folder,
        {"app": f"http://{LOOPBACK}:9"},
        agent={
            "log": {"audit": str(audit), "audit_repeat": "500ms", "audit_callers": 4},
            "control": {"readonly_socket": str(reads)},
            "metrics": {"listen": f"{LOOPBACK}:{port}"},
        },
    )
    stack.callback(pair.discard)
    sent = 3000
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(reads))
        for index in range(sent):
            assert delete(client, f"/v1/streams/{index}").startswith(b"HTTP/1.1 403")
    pair.agent.process.wait_until(lambda: counted(entries(audit)) == sent, what="counted")
    found = entries(audit)
    assert {(line["action"], line["ok"]) for line in found} == {("refused", False)}
    began, ended = (line["at"] for line in (found[0], found[-1]))
    assert len(found) <= 2 + 2 * _seconds(began, ended), "one line in each half second"
    assert "'/v1/streams/0': read_only" in found[0]["detail"]
    assert audit.stat().st_size < 10_000

    before = len(found)
    for number in range(2, 42):
        transport = httpx.HTTPTransport(local_address=f"127.0.0.{number}")
        with httpx.Client(base_url=f"http://{LOOPBACK}:{port}", transport=transport) as crowd:
            assert crowd.delete("/v1/streams/x").status_code == 403
    pair.agent.process.wait_until(lambda: counted(entries(audit)) == sent + 40, what="counted too")
    crowd_lines = entries(audit)[before:]
    seconds = _seconds(crowd_lines[0]["at"], crowd_lines[-1]["at"])
    assert len(crowd_lines) <= (4 + 1) * 2 * (2 + 2 * seconds)
    pair.close()


def _seconds(began: str, ended: str) -> float:
    return (datetime.fromisoformat(ended) - datetime.fromisoformat(began)).total_seconds()


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of one page."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "full", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk: run it as root, as CI does")
@pytest.mark.timeout(60)
def test_a_full_disk_of_the_audit_is_said_and_everything_else_goes_on(stack: ExitStack, folder: Path) -> None:
    service = SampleService()
    stack.callback(service.stop)
    disk = stack.enter_context(small_disk(folder / "disk"))
    paths = [disk / "agent.log", disk / "server.log"]
    pair = Pair(
        folder,
        {"app": service.url},
        agent={"log": {"audit": str(paths[0])}},
        server={"log": {"audit": str(paths[1])}},
    )
    stack.callback(pair.discard)
    (disk / "ballast").write_bytes(b"x" * 4096)
    api = f"http://{LOOPBACK}:{pair.server.admin_port}/api/v1"
    for _ in range(3):
        assert pair.agent.tunnelctl("reconnect", "app").returncode == 0
        pair.agent.process.wait_until(lambda: pair.agent.ask("health")["status"] == "ok", what="online again")
        assert httpx.post(f"{api}/reload", headers={"X-Tunneld-Request": "1"}).status_code == 200
        assert httpx.get(pair.url("app", "/small")).status_code == 200
    for process, path in zip(pair.processes, paths, strict=True):
        said = f"log.audit: {path}: a change was not written: No space left on device"
        eventually(partial(lambda process, said: len(process.matching(said)) == 3, process, said), what=said)
        assert not process.tracebacks()
        assert path.read_bytes() == b""
    (disk / "ballast").unlink()
    assert pair.agent.tunnelctl("reconnect", "app").returncode == 0
    assert [line["action"] for line in entries(paths[0])] == ["reconnect"], "there is room: it is written again"
    pair.close()
