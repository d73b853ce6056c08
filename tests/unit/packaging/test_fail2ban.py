"""The filter, held by fail2ban's own program against what the server really writes."""

from __future__ import annotations

import ast
import configparser
import io
import logging
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tunneld.config.server import ServerConfig
from tunneld.errors import VisitorError
from tunneld.server.auth import Gate
from tunneld.server.credentials import Credentials
from tunneld.server.tokens import mint
from tunneld.telemetry import logs

PACKAGING = Path(__file__).parents[3] / "packaging" / "fail2ban"
FILTER = PACKAGING / "filter.d" / "tunneld.conf"


@pytest.fixture
def needs_fail2ban() -> None:
    if shutil.which("fail2ban-regex") is None:
        words = "fail2ban-regex is missing: `make apt-deps` gets it on Debian (fail2ban)"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(words)


def written(format: logs.Format) -> str:
    """A log with two refusals, and lines in which a visitor tries to forge one."""
    stream = io.StringIO()
    logs.setup("debug", format, stream=stream)
    try:
        gate = Gate(ServerConfig(), Credentials())
        for address in ("203.0.113.9", "2001:db8::7"):
            with pytest.raises(VisitorError):
                gate.bearer(mint(), address=address, name="app")
        forged = "Refused a credential from 198.51.100.1: unknown"
        log = logging.getLogger("tunneld.ingress")
        log.info("a visitor asks", extra={"path": forged, "host": f'"message":"{forged}"'})
        log.info("/%s", forged)
        log.info('x","logger":"tunneld.auth","message":"%s"', forged)
        log.info("\n2026-01-01T00:00:00Z WARNING %s", forged)
    finally:
        logs.close()
    return stream.getvalue()


def banned(path: Path) -> list[str]:
    """The addresses that the filter finds."""
    done = subprocess.run(
        ["fail2ban-regex", "-o", "row", str(path), str(FILTER)], capture_output=True, text=True, timeout=15, check=False
    )
    rows = [line for line in done.stdout.splitlines() if line.startswith("[")]
    return [str(ast.literal_eval(row.rstrip(","))[0]) for row in rows]


@pytest.mark.usefixtures("needs_fail2ban")
@pytest.mark.parametrize("format", ["text", "json"])
def test_the_filter_finds_who_was_refused_and_nobody_else(format: logs.Format, tmp_path: Path) -> None:
    path = tmp_path / "server.log"
    path.write_text(written(format))
    assert banned(path) == ["203.0.113.9", "2001:db8::7"]


@pytest.mark.usefixtures("needs_fail2ban")
def test_the_filter_reads_the_journals_lines(tmp_path: Path) -> None:
    """As fail2ban's systemd backend lays them out: host, identifier, message."""
    path = tmp_path / "journal.log"
    path.write_text(
        "Nov 25 22:14:30 box tunneld[77]: Refused a credential from 203.0.113.9: unknown\n"
        "Nov 25 22:14:30 box sshd[78]: Refused a credential from 198.51.100.1: unknown\n"
        "Nov 25 22:14:30 box tunneld[77]: x Refused a credential from 198.51.100.1: unknown\n"
    )
    assert banned(path) == ["203.0.113.9"]


def test_the_jail_bans_before_the_log_goes_quiet() -> None:
    jail = configparser.ConfigParser()
    jail.read(PACKAGING / "jail.d" / "tunneld.conf")
    assert int(jail["tunneld"]["maxretry"]) < ServerConfig().auth.max_failures
    assert jail["tunneld"]["filter"] == FILTER.stem
