"""``tunnelctl access``: who may visit, from the agent's machine over its tunnel, and by the server's admin API."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.support.daemons import Pair
from tests.support.sockets import LOOPBACK, short_dir
from tunnelctl.cli import main as tunnelctl


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with short_dir() as folder:
        made = Pair(folder, {"demo": f"http://{LOOPBACK}:9"})
        try:
            yield made
            made.close()
        finally:
            made.discard()


def test_granted_listed_and_revoked_over_the_tunnel(pair: Pair) -> None:
    agent = pair.agent
    empty = agent.tunnelctl("access", "list", "demo")
    assert (empty.returncode, empty.stdout) == (0, "nobody was given access to demo\n")
    line = ("access", "grant", "demo", "Ann@example.org", "bob@example.org", "--level", "read_only", "--for", "1h")
    granted = agent.tunnelctl(*line, "--notes", "for the review")
    assert granted.returncode == 0, granted.stderr
    assert granted.stdout.splitlines()[0].startswith("ann@example.org may visit demo, read_only until 2")
    ann, bob = agent.ask("access", "list", "demo")["permissions"]
    assert (ann["allowed_email"], ann["status"], ann["notes"]) == ("ann@example.org", "pending", "for the review")
    assert (ann["server_id"], ann["granted_by_ip"]) == ("demo", LOOPBACK)
    rows = agent.tunnelctl("access", "list", "demo").stdout.splitlines()
    assert rows[0].split()[:3] == ["EMAIL", "STATUS", "LEVEL"]
    assert rows[1].split()[:3] == ["ann@example.org", "pending", "read_only"]
    revoked = agent.tunnelctl("access", "revoke", "demo", "ANN@example.org")
    assert (revoked.returncode, revoked.stdout) == (0, "ann@example.org may visit demo no longer\n")
    after = agent.ask("access", "list", "demo")["permissions"]
    assert [one["status"] for one in after] == ["revoked", "pending"]
    assert after[1] == bob


def test_a_long_list_comes_in_pages(pair: Pair) -> None:
    emails = [f"n{number}@example.org" for number in range(40)]
    assert pair.agent.tunnelctl("access", "grant", "demo", *emails, "--notes", "é" * 999).returncode == 0
    found = [one["allowed_email"] for one in pair.agent.ask("access", "list", "demo")["permissions"]]
    assert [email for email in found if email.startswith("n")] == emails


@pytest.mark.parametrize(
    ("line", "status", "words"),
    [
        ("access grant demo", 2, "at least one EMAIL"),
        ("access list demo ann@example.org", 2, "takes no EMAIL"),
        ("access revoke demo ann@example.org --level admin", 2, "go with grant"),
        ("access grant demo ann@example.org --level root", 2, "read_only"),
        ("access grant demo ann@example.org --for soon", 2, "is not a duration"),
        ("access grant demo nobody", 2, "no e-mail address"),
        ("access revoke demo nobody@example.org", 1, "no permission"),
        ("access list nowhere", 1, "nowhere"),
    ],
)
def test_what_is_refused_is_said_in_one_line(pair: Pair, line: str, status: int, words: str) -> None:
    done = pair.agent.tunnelctl(*line.split())
    assert (done.returncode, words in done.stderr) == (status, True), done.stderr
    assert "Traceback" not in done.stderr


def test_by_the_admin_api(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    server = ["--server", f"http://{LOOPBACK}:{pair.server.admin_port}"]
    assert tunnelctl(["access", "grant", "demo", "carl@example.org", *server]) == 0
    assert capsys.readouterr().out == "carl@example.org may visit demo, read_write\n"
    assert tunnelctl(["access", "list", "demo", "--json", *server]) == 0
    found = json.loads(capsys.readouterr().out)["permissions"]
    assert "carl@example.org" in [one["allowed_email"] for one in found]
    assert tunnelctl(["access", "revoke", "demo", "carl@example.org", *server]) == 0
    assert tunnelctl(["access", "list", "nowhere", *server]) == 1


def test_while_the_server_is_away(pair: Pair) -> None:
    pair.server.process.kill()
    pair.server.process.wait()
    pair.agent.process.wait_line("✗ Tunnel disconnected")
    done = pair.agent.tunnelctl("access", "list", "demo")
    assert (done.returncode, "not connected" in done.stderr) == (1, True), done.stderr
    pair.server.restart()
