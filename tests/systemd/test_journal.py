"""What is said in a real journal, and what is not."""

from __future__ import annotations

import re

from tests.support.box import Box
from tests.support.processes import eventually
from tests.systemd.conftest import PORT, agent_file, server_file, started
from tests.systemd.service import Visitor, serving

SECRET = "secret-of-a-visitor"


def test_a_stream_is_found_by_its_fields(box: Box) -> None:
    with serving(box) as service:
        box.configure("/etc/tunneld/server.yaml", server_file())
        box.configure("/etc/tunneld/tunneld.yaml", agent_file(service.port))
        since = box.now()
        started(box)
        visitor = Visitor(box, PORT, f"/t/demo/events?token={SECRET}")
        visitor.wait(b"id: 3\n")
        request_id = re.search(rb"(?i)x-tunnel-request-id: (\S+)", bytes(visitor.got))
        assert request_id is not None
        name = request_id[1].decode()
        visitor.close()
        matches = ("--unit=tunneld", "TUNNEL=demo", f"REQUEST_ID={name}")
        eventually(lambda: len(box.journal(*matches)) >= 2, what="told in the journal")
        cancelled, cleaned = box.journal(*matches)
        assert cancelled["MESSAGE"] == f"🛑 Cancelling stream: {name}"
        assert cleaned["MESSAGE"] == f"🧹 Cleaned up stream: {name}"
        for record in (cancelled, cleaned):
            assert record["STREAM_KIND"] == "sse"
            assert record["CLIENT"] == "127.0.0.1"
            assert record["REASON"] == "visitor"
            assert record["PRIORITY"] == "6"
            assert record["SYSLOG_IDENTIFIER"] == "tunneld"
            assert record["CODE_FILE"].endswith("/tunneld/agent/proxy.py")
            assert int(record["CODE_LINE"]) > 0
            assert record["_SYSTEMD_UNIT"] == "tunneld.service"
            assert record["_TRANSPORT"] == "journal"
        told = box.journal("--unit=tunneld-server", f"REQUEST_ID={name}")
        assert {record["STREAM_KIND"] for record in told if "STREAM_KIND" in record} == {"sse"}
        everything = box.run("journalctl", "--output=export", since, "--all").stdout
        assert SECRET not in everything


def test_queries_are_written_where_they_are_wanted(box: Box) -> None:
    with serving(box) as service:
        box.configure("/etc/tunneld/server.yaml", server_file(log={"queries": True}))
        box.configure("/etc/tunneld/tunneld.yaml", agent_file(service.port))
        since = box.now()
        started(box)
        visitor = Visitor(box, PORT, "/t/demo/events?shown=1")
        visitor.wait(b"id: 1\n")
        visitor.close()
        eventually(lambda: "shown=1" in box.run("journalctl", "-o", "export", "-u", "tunneld-server", since).stdout)
        assert "shown=1" not in box.run("journalctl", "-o", "export", "-u", "tunneld", since).stdout


def test_a_burst_is_cut_and_counted(box: Box) -> None:
    with serving(box) as service:
        box.configure("/etc/tunneld/server.yaml", server_file())
        box.configure("/etc/tunneld/tunneld.yaml", agent_file(service.port, log={"level": "debug", "burst": 20}))
        since = box.now()
        started(box)
        for _ in range(30):
            visitor = Visitor(box, PORT, "/t/demo/hello")
            visitor.wait(b"hello")
            visitor.close()
        box.systemctl("stop", "tunneld")
        said = [record for record in box.journal(since, "--unit=tunneld", "_TRANSPORT=journal") if "LOGGER" in record]
        notices = [record for record in said if record["LOGGER"] == "tunneld.telemetry"]
        assert len(said) - len(notices) == 20
        assert notices[0]["MESSAGE"] == "the log is bounded to 20 lines in 30 s: lines are dropped until then"
        assert int(notices[-1]["DROPPED"]) >= 10
        assert notices[-1]["PRIORITY"] == "4"
