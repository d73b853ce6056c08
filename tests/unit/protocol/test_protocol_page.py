"""PROTOCOL.md is true: its numbers, codes, states and limits are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import tunneld.protocol
from tunneld import link
from tunneld.agent import tunnel
from tunneld.config.agent import AgentConfig
from tunneld.config.server import ServerConfig, ServerLimits
from tunneld.errors import CODES
from tunneld.protocol import frames, labels, outgoing, replay, session, sse, streams, windows
from tunneld.protocol.directions import Direction, Event, step
from tunneld.protocol.messages import Connected, ErrorMessage, GoAway, Head, Hello, Open, Ping, StreamCancel, Wishes
from tunneld.server import conflicts, permissions, recovery
from tunneld.server import replay as visitors
from tunneld.server.legacy import keys, pulse, stream

PAGE = (Path(tunneld.protocol.__file__ or "").parent / "PROTOCOL.md").read_text("utf-8")


def _rows(heading: str) -> list[list[str]]:
    """The cells of the table that begins with this line."""
    lines = PAGE[PAGE.index(heading) :].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in _while_table(lines)]


def _while_table(lines: list[str]) -> list[str]:
    end = next((number for number, line in enumerate(lines) if not line.startswith("|")), len(lines))
    return lines[:end]


def test_frame_types() -> None:
    said = {name.strip("`"): int(number) for number, name, _ in _rows("| type | name |")}
    names = ("OPEN", "HEAD", "DATA", "END", "STOP", "WINDOW", "ACK")
    assert said == {name: getattr(frames, name) for name in names}
    assert f"Bit {frames.FIN:#x} of a type" in PAGE
    assert f"Types {frames.COUNTED_FIRST:#x}–{frames.COUNTED_LAST:#x}" in PAGE
    assert f"`{frames.HEADER.format}`" in PAGE


@pytest.mark.parametrize(("name", "shape"), [("OPEN", Open), ("HEAD", Head)])
def test_the_keys_of_json_payloads(name: str, shape: type) -> None:
    [payload] = [cells[2] for cells in _rows("| type | name |") if cells[1] == f"`{name}`"]
    assert re.findall(r"`(\w+)`", payload) == list(shape.__struct_fields__)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("hello", Hello),
        ("connected", Connected),
        ("ping", Ping),
        ("stream_cancel", StreamCancel),
        ("goaway", GoAway),
        ("error", ErrorMessage),
    ],
)
def test_the_keys_of_texts(name: str, shape: type) -> None:
    [row] = [cells for cells in _rows("| text message") if f"`{name}`" in cells[0]]
    for field in shape.__struct_fields__:  # type: ignore[attr-defined]
        assert f"`{field}`" in row[2] or f"`{field}` " in row[2], field
    if shape is Hello:
        assert all(wish in row[2] for wish in Wishes.__struct_fields__)


def test_states() -> None:
    events = (Event.INFORMATIONAL, Event.HEAD, Event.DATA, Event.END, Event.STOP)
    said = {cells[0]: [None if cell == "–" else cell for cell in cells[1:]] for cells in _rows("| state | HEAD 1xx |")}
    assert said == {
        state.name: [None if after is None else after.name for after in (step(state, event) for event in events)]
        for state in Direction
    }


def test_errors_and_their_close_codes() -> None:
    said: dict[str, int] = {}
    for codes, closes, *_ in _rows("| error code | close |"):
        groups, numbers = codes.split("·"), [int(number) for number in re.findall(r"\d+", closes)]
        assert len(groups) == len(numbers)
        for group, number in zip(groups, numbers, strict=True):
            said |= dict.fromkeys(re.findall(r"`(\w+)`", group), number)
    assert said == link.CLOSE_CODES
    assert all(CODES[code].status == 0 for code in said)


def test_every_code_that_the_page_names_is_known() -> None:
    named = set(re.findall(r"\b\d{3} `([a-z_]+)`", PAGE)) | set(re.findall(r"error ([a-z]+_[a-z_]+)`", PAGE))
    assert len(named) > 8
    assert named <= CODES.keys()
    for status, code in re.findall(r"\b([45]\d\d) `([a-z_]+)`", PAGE):
        assert CODES[code].status == int(status)


def test_nothing_that_is_built_is_said_to_be_missing() -> None:
    assert "not built" not in PAGE.lower()


def test_every_refusal_before_the_upgrade_is_told() -> None:
    [said] = [line for line in PAGE.splitlines() if line.startswith("A refusal that needs no session")]
    known = {code for code in re.findall(r"`([a-z_]+)`", said) if code in CODES}
    assert known == {
        "bad_name",
        "bad_request",
        "unauthorized",
        "name_not_allowed",
        "name_taken",
        "upgrade_required",
        "rate_limited",
        "too_many_tunnels",
        "shutdown",
    }
    for code in known:
        before = said[: said.index(f"`{code}`")]
        assert re.findall(r"\b[45]\d\d\b", before)[-1] == str(CODES[code].status), code


def test_reasons() -> None:
    said = PAGE[PAGE.index("\n`reason`:") :].split("To the visitor")[0]
    assert [word for word in re.findall(r"`(\w+)`", said) if word != "reason"] == list(streams.REASONS)


def test_limits() -> None:
    assert frames.MAX_DATA == 64 * 1024
    assert "1 byte to 64 KiB" in PAGE
    assert frames.max_message(1000) == 64 * 1024 + 2 * 1000 + 1024
    assert "64 KiB + 2 × `max_header` + 1 KiB" in PAGE
    assert frames.MESSAGE_TARGET == 64 * 1024
    assert "up to 64 KiB a message" in PAGE
    assert outgoing.TURN == 16 * 1024
    assert "turns of 16 KiB" in PAGE
    assert f"At most {outgoing.MAX_TEXTS} texts" in PAGE
    assert f"at most {streams.MAX_INFORMATIONAL} such heads" in PAGE
    assert windows.MAX_CREDIT == 2**31 - 1
    assert "more than 2³¹ − 1 of credit" in PAGE
    assert windows.MIN_WINDOW == 16 * 1024
    assert "`stream_window` is at least 16 KiB" in PAGE
    assert replay.MIN_BUFFER == 64 * 1024
    assert "`resume.buffer` at least 64 KiB" in PAGE
    assert f"at the latest {replay.ACK_DELAY * 1000:.0f} ms" in PAGE
    assert f"counts {replay._COST} bytes more" in PAGE
    assert f"{session._BACKLOG} × `max_streams` + 64 frames" in PAGE
    assert link.GATHER == 0.001
    assert "nothing for 1 ms" in PAGE
    settings = session.SessionSettings(max_streams=3, max_header=1000, grace=1.0)
    assert session.Session(settings)._reserve == 3 * (4 * 1000 + 1024) + 256 * 1024
    assert "`max_streams` × (4 × `max_header` + 1 KiB) + 256 KiB" in PAGE


@pytest.mark.parametrize(("size", "step"), [(16, 8), (256, 128), (512, 128), (1024, 128), (4096, 512)])
def test_the_step_of_credit(size: int, step: int) -> None:
    window = windows.ReceiveWindow(size * 1024, 4 * 2**20)
    assert not window.took(step * 1024 - 1)
    assert window.took(1)
    assert "half up to 256 KiB, 128 KiB up to 1 MiB, 512 KiB of 4 MiB" in PAGE


def test_the_numbers_of_resume_recovery_and_replay() -> None:
    for config in (AgentConfig, ServerConfig):
        assert config.model_fields["resume"].default.grace == 60
    assert "`resume.grace` 60 s on both sides; the smaller holds" in PAGE
    assert f"within {tunnel._DOUBT:.0f} s, or {tunnel._DOUBT_TRIPS} round trips" in PAGE
    assert f"`retry_after` {conflicts.PAUSE:.0f}, until {conflicts.PAUSE:.0f} s" in PAGE
    assert conflicts._RETURNS == 2
    assert "three replacements lie within ten minutes" in PAGE
    assert f"one of the last {sse.REMEMBERED} sent (hashes; the last {visitors._REMEMBER:,} of a recorded" in PAGE
    assert f"by hash one of its last {visitors._REMEMBER:,}" in PAGE
    delays = f"{recovery._FIRST_DELAY * 1000:.0f} ms, doubled with each attempt that failed"
    assert f"{delays}, up to {recovery._LONGEST_DELAY:.0f} s" in PAGE
    assert f"the cookie `{visitors.COOKIE}`" in PAGE
    assert f"a date from {visitors._MCP_CANCELS} on" in PAGE
    assert visitors._MOST_KEPT == 4
    assert "at most a quarter of `max_streams`" in PAGE


def test_the_numbers_of_the_older_dialect() -> None:
    limits = ServerLimits()
    assert stream.HEAD_HOLD == 1.0
    assert "a `stream_end`, a `response`, or 1 s." in PAGE
    assert f"the newest {keys.MAX_KEYS} hold, as hashes" in PAGE
    assert (
        f"At most {permissions.MAX_EMAILS} addresses a call and `limits.permissions` ({limits.permissions:,})" in PAGE
    )
    assert f"over 4 × `max_streams` + {pulse.MAX_PINGS} messages" in PAGE
    assert f"1 to {labels.MAX_NAME} printable characters" in PAGE
    assert f"`limits.v2_clients` ({limits.v2_clients:,})" in PAGE
    assert f"`limits.v2_queue` ({limits.v2_queue >> 20} MiB)" in PAGE
    assert f"`limits.v2_message` ({limits.v2_message >> 20} MiB)" in PAGE
    assert f"`limits.v2_response_timeout` ({limits.v2_response_timeout:.0f} s" in PAGE
    assert f"`limits.max_form` ({limits.max_form >> 10} KiB)" in PAGE


def test_what_is_refused_before_the_upgrade_is_built_and_has_its_status() -> None:
    assert "ot built yet" not in PAGE
    [refusals] = [line for line in PAGE.splitlines() if line.startswith("A refusal that needs no session")]
    for code in ("bad_name", "unauthorized", "name_not_allowed", "name_taken", "upgrade_required", "rate_limited"):
        assert f"{CODES[code].status} `{code}`" in refusals
