"""Each format, what a hostile value cannot do, and what a reader that does not read cannot do."""

from __future__ import annotations

import ast
import io
import json
import logging
import os
import pty
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tunneld.telemetry import logs
from tunneld.telemetry.outlet import BACKLOG

ROOT = Path(__file__).parents[3]
log = logging.getLogger("tunneld.test")


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    flags = logging.logThreads, logging.logProcesses, logging.logMultiprocessing
    level = logging.getLogger().level
    yield
    logs.close(0)
    logging.getLogger().setLevel(level)
    logging.logThreads, logging.logProcesses, logging.logMultiprocessing = flags


@pytest.fixture
def pipe() -> Iterator[tuple[int, io.TextIOWrapper]]:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream:
        yield reader, stream
        logs.close(0)
    os.close(reader)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "journal"))
        receiver.settimeout(5)
        yield receiver


def _read_lines(reader: int, until: str) -> list[str]:
    data = b""
    while until.encode() not in data or not data.endswith(b"\n"):
        data += os.read(reader, 65536)
    return data.decode().splitlines()


def _parse(record: bytes) -> dict[str, str]:
    """The native journal protocol, read as its specification says."""
    fields = {}
    while record:
        line, _, rest = record.partition(b"\n")
        if b"=" in line:
            name, _, value = line.partition(b"=")
        else:
            name, (size,) = line, struct.unpack("<Q", rest[:8])
            value, rest = rest[8 : 8 + size], rest[8 + size + 1 :]
        fields[name.decode()] = value.decode()
        record = rest
    return fields


# -- json


def test_json_has_every_field_at_the_top_and_is_not_escaped() -> None:
    stream = io.StringIO()
    logs.setup("info", "json", stream=stream)
    log.info(
        "🧹 Cleaned up stream: %s", "ab12", extra={"tunnel": "demo", "request_id": "ab12", "bytes_out": 7, "ok": True}
    )
    line = stream.getvalue()
    assert line.endswith("\n")
    assert line.count("\n") == 1
    assert "🧹" in line
    entry = json.loads(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", entry.pop("time"))
    assert entry == {
        "level": "info",
        "logger": "tunneld.test",
        "message": "🧹 Cleaned up stream: ab12",
        "tunnel": "demo",
        "request_id": "ab12",
        "bytes_out": 7,
        "ok": True,
    }


def test_json_keeps_its_own_fields_and_takes_any_value() -> None:
    stream = io.StringIO()
    logs.setup("info", "json", stream=stream)
    log.info("x\ny", extra={"level": "mine", "where": Path("/a"), "odd": "\udcff", "none": None, "list": [1, "é"]})
    entry = json.loads(stream.getvalue())
    assert entry["level"] == "info"
    assert entry["level_"] == "mine"
    assert entry["message"] == "x\ny"
    assert entry["where"] == "/a"
    assert entry["odd"] == "\\udcff"


def test_json_carries_the_traceback_in_one_line() -> None:
    stream = io.StringIO()
    logs.setup("info", "json", stream=stream)
    try:
        raise ValueError("inner")
    except ValueError:
        log.exception("went wrong")
    assert stream.getvalue().count("\n") == 1
    assert "ValueError: inner" in json.loads(stream.getvalue())["exception"]


# -- text


def test_text_is_time_level_message_fields() -> None:
    stream = io.StringIO()
    logs.setup("debug", "text", stream=stream)
    log.warning("✗ Tunnel disconnected: %s", "demo", extra={"tunnel": "demo", "why": "no route", "empty": "", "n": 3})
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z WARNING ✗ Tunnel disconnected: demo"
        r' tunnel=demo why="no route" empty="" n=3\n',
        stream.getvalue(),
    )


@pytest.mark.parametrize(
    "char", ["\n", "\r", "\x00", "\x1b", "\x7f", "\x85", "\x9b", "\u2028", "\u202e", "\udc80"], ids=ascii
)
def test_no_value_forges_a_line_or_drives_the_terminal(char: str) -> None:
    stream = io.StringIO()
    logs.setup("info", "text", stream=stream)
    evil = f"a{char}2026-01-01 INFO ✓ Tunnel established: mine"
    log.info("path %s", evil, extra={"path": evil, f"k{char}": 1})
    line = stream.getvalue()
    assert line.count("\n") == 1
    assert char not in line[:-1]
    assert "\\" in line


def test_a_traceback_cannot_forge_a_line_either() -> None:
    stream = io.StringIO()
    logs.setup("info", "text", stream=stream)
    try:
        raise ValueError("x\n2026-01-01 INFO ✓ Tunnel established: mine\x1b[2J")
    except ValueError:
        log.error("failed", exc_info=True)
    first, *others = stream.getvalue().splitlines()
    assert first.endswith("ERROR   failed")
    assert others
    assert all(line.startswith("    | ") for line in others)
    assert "\x1b" not in stream.getvalue()


def test_colour_is_for_terminals_without_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for no_color, coloured in (("", True), ("1", False)):
        monkeypatch.setenv("NO_COLOR", no_color)
        primary, secondary = pty.openpty()
        with os.fdopen(secondary, "w") as stream:
            logs.setup("info", "auto", stream=stream)
            log.info("hello", extra={"tunnel": "demo"})
            line = os.read(primary, 4096).decode()
            logs.close(0)
        os.close(primary)
        assert ("\x1b[" in line) is coloured
        assert re.match(r"\d\d:\d\d:\d\d\.\d{3} ", line)


# -- journal


def test_journal_gets_native_fields(journal: socket.socket) -> None:
    logs.setup("info", "journal", journal=journal.getsockname())
    log.warning("two\nlines", extra={"tunnel": "demo", "request_id": "r1", "9lives": 1, "message_": "m", "priority": 0})
    fields = _parse(journal.recv(65536))
    assert fields["MESSAGE"] == "two\nlines"
    assert fields["PRIORITY"] == "4"
    assert fields["TUNNEL"] == "demo"
    assert fields["REQUEST_ID"] == "r1"
    assert fields["SYSLOG_IDENTIFIER"] == "tunneld"
    assert fields["LOGGER"] == "tunneld.test"
    assert fields["CODE_FILE"] == __file__
    assert int(fields["CODE_LINE"]) > 0
    assert fields["CODE_FUNC"] == "test_journal_gets_native_fields"
    assert fields["F_9LIVES"] == "1"
    assert fields["F_PRIORITY"] == "0"


def test_a_record_too_large_for_a_datagram_goes_as_a_sealed_file(journal: socket.socket) -> None:
    logs.setup("info", "journal", journal=journal.getsockname())
    log.info("x" * 1_000_000, extra={"tunnel": "demo"})
    data, fds, _, _ = socket.recv_fds(journal, 16, 1)
    assert data == b""
    with os.fdopen(fds[0], "rb") as file:
        file.seek(0)
        fields = _parse(file.read())
        with pytest.raises(PermissionError):
            os.ftruncate(fds[0], 0)
    assert len(fields["MESSAGE"]) == 1_000_000
    assert fields["TUNNEL"] == "demo"


def test_a_restarted_journal_is_found_again(journal: socket.socket, tmp_path: Path) -> None:
    path = journal.getsockname()
    logs.setup("info", "journal", journal=path)
    journal.close()
    log.info("lost")
    Path(path).unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as second:
        second.bind(path)
        second.settimeout(5)
        log.info("found")
        assert _parse(second.recv(65536))["MESSAGE"] == "found"
        assert _parse(second.recv(65536))["DROPPED"] == "1"


def test_no_journal_means_text_with_priorities(tmp_path: Path) -> None:
    stream = io.StringIO()
    logs.setup("debug", "journal", stream=stream, journal=str(tmp_path / "none"))
    log.debug("d")
    log.info("i", extra={"tunnel": "demo"})
    try:
        raise ValueError("v")
    except ValueError:
        log.exception("e")
    lines = stream.getvalue().splitlines()
    assert lines[:3] == ["<7>d", "<6>i tunnel=demo", "<3>e"]
    assert all(line.startswith("<3>    | ") for line in lines[3:])


# -- auto


def test_auto_is_json_on_a_pipe(pipe: tuple[int, io.TextIOWrapper]) -> None:
    reader, stream = pipe
    logs.setup("info", "auto", stream=stream)
    log.info("hello")
    assert json.loads(os.read(reader, 4096))["message"] == "hello"


def test_auto_is_the_journal_where_stderr_is_its_stream(
    pipe: tuple[int, io.TextIOWrapper], journal: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, stream = pipe
    status = os.fstat(stream.fileno())
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    logs.setup("info", "auto", stream=stream, journal=journal.getsockname())
    log.info("hello")
    assert _parse(journal.recv(65536))["MESSAGE"] == "hello"


def test_auto_does_not_trust_an_inherited_journal_stream(
    pipe: tuple[int, io.TextIOWrapper], journal: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, stream = pipe
    monkeypatch.setenv("JOURNAL_STREAM", "1:1")
    logs.setup("info", "auto", stream=stream, journal=journal.getsockname())
    log.info("hello")
    assert json.loads(os.read(reader, 4096))["message"] == "hello"


# -- levels


def test_levels_hold_for_all_and_change_at_once() -> None:
    stream = io.StringIO()
    logs.setup("info", "text", stream=stream)
    access = logging.getLogger("uvicorn.access")
    log.debug("no")
    access.info("no")
    logs.set_level("debug")
    log.debug("yes-1")
    access.info("no")
    access.warning("yes-2")
    logs.set_level("error")
    log.warning("no")
    access.warning("no")
    log.error("yes-3")
    text = stream.getvalue()
    assert " no" not in text
    assert [f"yes-{n}" in text for n in (1, 2, 3)] == [True] * 3
    assert "logger=uvicorn.access" in text


def test_unknown_words_are_refused() -> None:
    with pytest.raises(ValueError, match="loud"):
        logs.setup("loud")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="xml"):
        logs.setup("info", "xml")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="loud"):
        logs.set_level("loud")  # type: ignore[arg-type]


def test_a_second_setup_replaces_the_first() -> None:
    first, second = io.StringIO(), io.StringIO()
    logs.setup("info", "text", stream=first)
    logs.setup("info", "text", stream=second)
    log.info("once")
    assert first.getvalue() == ""
    assert second.getvalue().count("once") == 1


# -- nothing reaches the caller


class _Broken:
    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize("format", ["text", "json"])
def test_a_faulty_line_becomes_a_line_of_its_own(format: logs.Format, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's own raise at such a line
    stream = io.StringIO()
    logs.setup("info", format, stream=stream)
    log.info("%d", "not a number")
    log.info(_Broken())
    log.info("field", extra={"tunnel": _Broken()})
    text = stream.getvalue()
    assert text.count("could not be written") == 3
    assert "%d" in text
    assert "test_logs.py" in text


def test_a_closed_stream_is_silent() -> None:
    stream = io.StringIO()
    logs.setup("info", "text", stream=stream)
    stream.close()
    log.info("nobody")


def test_a_reader_that_is_gone_is_silent(pipe: tuple[int, io.TextIOWrapper]) -> None:
    reader, stream = pipe
    logs.setup("info", "text", stream=stream)
    quiet = os.dup(reader)
    os.close(reader)
    os.close(quiet)
    log.info("nobody")
    log.info("nobody")
    os.dup2(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC), reader)  # the fixture closes it


# -- a reader that does not read


def _blocked(stream_kind: str) -> tuple[int, int]:
    if stream_kind == "pipe":
        return os.pipe()
    if stream_kind == "pty":
        return pty.openpty()
    ours, theirs = socket.socketpair()
    return ours.detach(), theirs.detach()


@pytest.mark.parametrize("kind", ["pipe", "pty", "socket"])
def test_a_blocked_reader_stalls_nobody_and_is_told_what_was_lost(kind: str) -> None:
    reader, writer = _blocked(kind)
    with os.fdopen(writer, "w") as stream:
        logs.setup("info", "json", stream=stream)
        count = 2 * BACKLOG // 1000
        began = time.monotonic()
        for number in range(count):
            log.info("line %d %s", number, "x" * 900, extra={"number": number})
        assert time.monotonic() - began < 5
        lines = [json.loads(line) for line in _read_lines(reader, "were dropped")]
        numbers = [line["number"] for line in lines[:-1]]
        assert numbers == list(range(len(numbers)))  # in order, none torn, none twice
        assert lines[-1]["dropped"] == count - len(numbers)
        assert lines[-1]["level"] == "warning"
        log.info("again")
        assert json.loads(_read_lines(reader, "again")[-1])["message"] == "again"
        logs.close(0)
        assert os.get_blocking(writer)  # what others share was left alone
    os.close(reader)
    assert not [thread for thread in threading.enumerate() if thread.name == "log-outlet" and thread.join(5)]


def test_a_blocked_journal_stalls_nobody(journal: socket.socket) -> None:
    logs.setup("info", "journal", journal=journal.getsockname())
    for number in range(2000):
        log.info("line", extra={"number": number})
    assert [int(_parse(journal.recv(65536))["NUMBER"]) for _ in range(2000)] == list(range(2000))


def test_the_process_ends_though_nobody_reads() -> None:
    program = (
        "import logging; from tunneld.telemetry import logs; logs.setup('info', 'json')\n"
        "for _ in range(200): logging.info('x' * 1000)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, cwd=ROOT)
    assert process.wait(15) == 0
    assert process.stderr is not None
    process.stderr.close()


# -- the house's own calls


def test_no_call_of_the_house_uses_a_field_name_that_logging_refuses() -> None:
    """``extra`` with a name of LogRecord raises in the caller, and only once the level is on."""
    refused = set(logging.LogRecord("", 0, "", 0, "", None, None).__dict__) | {"message", "asctime"}
    for path in (ROOT / "tunneld").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword) and node.arg == "extra" and isinstance(node.value, ast.Dict):
                names = {key.value for key in node.value.keys if isinstance(key, ast.Constant)}
                assert not names & refused, f"{path}:{node.value.lineno}"


def _records(journal: socket.socket) -> list[dict[str, str]]:
    """What waits there now."""
    found = []
    journal.setblocking(False)
    try:
        while True:
            found.append(_parse(journal.recv(65536)))
    except BlockingIOError:
        return found


def test_a_burst_is_bounded_and_what_it_cost_is_counted(
    journal: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(logs.time, "monotonic", lambda: now[0])
    logs.setup("info", "journal", journal=journal.getsockname())
    logs.set_burst(3)
    for number in range(10):
        log.info("line %d", number)
    now[0] += 31
    log.info("later")
    said = [record["MESSAGE"] for record in _records(journal)]
    assert said == [
        "line 0",
        "line 1",
        "line 2",
        "the log is bounded to 3 lines in 30 s: lines are dropped until then",
        "7 log lines were dropped: more than log.burst allows in 30 s",
        "later",
    ]
    logs.set_burst(0)
    for number in range(10):
        log.info("line %d", number)
    assert len(_records(journal)) == 10


def test_what_a_burst_cost_is_told_at_the_end_too(journal: socket.socket) -> None:
    logs.setup("info", "journal", journal=journal.getsockname())
    logs.set_burst(1)
    log.info("one")
    log.info("two")
    logs.close()
    dropped = [record for record in _records(journal) if "DROPPED" in record]
    assert [record["DROPPED"] for record in dropped] == ["1"]
    assert dropped[0]["PRIORITY"] == "4"


def test_faults_are_errors_in_the_journal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    logs.complain("one\ntwo")
    assert capsys.readouterr().err == "one\ntwo\n"
    monkeypatch.setattr(logs, "_natural", lambda stream: "journal")
    logs.complain("one\ntwo")
    assert capsys.readouterr().err == "<3>one\n<3>two\n"
