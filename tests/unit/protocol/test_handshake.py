"""What holds on a connection: wishes against bounds."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunneld.errors import RemoteError
from tunneld.protocol.handshake import Bounds, agree, agree_live, check_connected, check_hello, live_settings
from tunneld.protocol.messages import (
    Connected,
    HeartbeatSettings,
    Hello,
    ResumeChange,
    ResumeSettings,
    Settings,
    SseChange,
    SseSettings,
    Wishes,
)
from tunneld.protocol.replay import MIN_BUFFER
from tunneld.protocol.windows import MIN_WINDOW

BOUNDS = Bounds(
    heartbeat=HeartbeatSettings(30.0, 10.0),
    heartbeat_min=1.0,
    heartbeat_max=300.0,
    sse=SseSettings(30.0, 256 * 1024),
    keepalive_min=1.0,
    keepalive_max=300.0,
    resume=ResumeSettings(60.0, 4 * 1024 * 1024),
    max_streams=1000,
    stream_window=256 * 1024,
)


def _hello(**wishes: object) -> Hello:
    return Hello("i", 1, wishes=Wishes(**wishes))  # type: ignore[arg-type]


def test_without_wishes_the_servers_values_hold() -> None:
    agreed = agree(_hello(), BOUNDS)
    assert (agreed.heartbeat, agreed.sse, agreed.resume) == (BOUNDS.heartbeat, BOUNDS.sse, BOUNDS.resume)
    assert (agreed.max_streams, agreed.stream_window) == (1000, 256 * 1024)


@pytest.mark.parametrize(
    ("wish", "holds"),
    [
        (HeartbeatSettings(10.0, 5.0), HeartbeatSettings(10.0, 5.0)),
        (HeartbeatSettings(0.1, 0.0), HeartbeatSettings(1.0, 1.0)),
        (HeartbeatSettings(9999.0, 9999.0), HeartbeatSettings(300.0, 300.0)),
    ],
)
def test_a_heartbeat_is_moved_to_the_nearer_bound(wish: HeartbeatSettings, holds: HeartbeatSettings) -> None:
    assert agree(_hello(heartbeat=wish), BOUNDS).heartbeat == holds


@pytest.mark.parametrize(("wish", "holds"), [(0.0, 0.0), (0.5, 1.0), (15.0, 15.0), (999.0, 300.0)])
def test_keepalive_zero_is_off_whatever_the_minimum_says(wish: float, holds: float) -> None:
    assert agree(_hello(sse=SseSettings(wish, 1024, False)), BOUNDS).sse == SseSettings(holds, 1024, False)
    assert agree(_hello(sse=SseSettings(wish, 2**40)), BOUNDS).sse.max_event == 256 * 1024


@pytest.mark.parametrize(
    ("streams", "window", "holds"),
    [(1, 1, (1, MIN_WINDOW)), (10**30, 10**30, (1000, 256 * 1024)), (None, 20_000, (1000, 20_000))],
)
def test_the_smaller_of_wish_and_bound_wins_down_to_the_least(
    streams: int | None, window: int, holds: tuple[int, int]
) -> None:
    agreed = agree(_hello(max_streams=streams, stream_window=window), BOUNDS)
    assert (agreed.max_streams, agreed.stream_window) == holds


def test_what_is_not_wished_is_the_servers() -> None:
    bounds = replace(BOUNDS, sse=SseSettings(20.0, 128 * 1024))
    assert agree(_hello(resume=ResumeChange(grace=5.0)), bounds).resume == ResumeSettings(5.0, 4 * 1024 * 1024)
    assert agree(_hello(resume=ResumeChange(buffer=100_000)), bounds).resume == ResumeSettings(60.0, 100_000)
    assert agree(_hello(sse=SseChange(identity=False)), bounds).sse == SseSettings(20.0, 128 * 1024, False)
    assert agree(_hello(sse=SseChange(keepalive=0.0)), bounds).sse == SseSettings(0.0, 128 * 1024)


def test_resume_is_the_smaller_and_its_buffer_at_least_64_kib() -> None:
    assert agree(_hello(resume=ResumeSettings(10.0, 1)), BOUNDS).resume == ResumeSettings(10.0, MIN_BUFFER)
    assert agree(_hello(resume=ResumeSettings(1000.0, 2**40)), BOUNDS).resume == BOUNDS.resume
    none = replace(BOUNDS, resume=ResumeSettings(0.0))
    assert agree(_hello(resume=ResumeSettings(60.0)), none).resume.grace == 0.0


@pytest.mark.parametrize(
    "hello",
    [
        Hello("", 1),
        Hello("x" * 129, 1),
        Hello("i", -1),
        Hello("i", 2**63),
        Hello("i", 1, session_id="s"),
        Hello("i", 1, session_id="s", resume_token="t"),
        Hello("i", 1, received=1),
        Hello("i", 1, session_id="s", resume_token="t", received=-1),
        _hello(heartbeat=HeartbeatSettings(0.0, 1.0)),
        _hello(heartbeat=HeartbeatSettings(-1.0, 1.0)),
        _hello(heartbeat=HeartbeatSettings(1.0, -1.0)),
        _hello(heartbeat=HeartbeatSettings(float("inf"), 1.0)),
        _hello(sse=SseChange(max_event=0)),
        _hello(sse=SseChange(replay_buffer=-1)),
        _hello(resume=ResumeChange(buffer=-1)),
        _hello(sse=SseSettings(-1.0)),
        _hello(sse=SseSettings(1.0, 0)),
        _hello(resume=ResumeSettings(-1.0)),
        _hello(resume=ResumeSettings(1.0, -1)),
        _hello(max_streams=0),
        _hello(stream_window=0),
    ],
)
def test_a_hello_that_cannot_be(hello: Hello) -> None:
    with pytest.raises(RemoteError) as caught:
        check_hello(hello)
    assert caught.value.code == "bad_hello"


def test_hellos_that_can_be() -> None:
    check_hello(Hello("i", 0))
    check_hello(Hello("i", 2**63 - 1, session_id="s", resume_token="t", received=0))


CONNECTED = Connected(
    "n", "u", "s", "t", HeartbeatSettings(30.0, 10.0), SseSettings(), ResumeSettings(), 10, 65536, 65536
)


@pytest.mark.parametrize(
    "changes",
    [
        {"stream_window": MIN_WINDOW - 1},
        {"stream_window": 2**31},
        {"max_streams": 0},
        {"max_header": 0},
        {"max_header": 2**21},
        {"resume": ResumeSettings(-1.0)},
        {"resume": ResumeSettings(60.0, MIN_BUFFER - 1)},
        {"resume": ResumeSettings(60.0, -1)},
        {"heartbeat": HeartbeatSettings(0.0, 1.0)},
        {"sse": SseSettings(1.0, 0)},
    ],
)
def test_a_connected_that_cannot_be(changes: dict[str, object]) -> None:
    check_connected(CONNECTED, most_header=2**20)
    with pytest.raises(RemoteError) as caught:
        check_connected(msgspec.structs.replace(CONNECTED, **changes), most_header=2**20)
    assert caught.value.code == "protocol_error"


def test_settings_of_a_live_agent() -> None:
    said = Settings(heartbeat=HeartbeatSettings(0.1, 1.0))
    assert live_settings(said, BOUNDS) == (HeartbeatSettings(1.0, 1.0), BOUNDS.sse)
    with pytest.raises(RemoteError) as caught:
        live_settings(Settings(heartbeat=HeartbeatSettings(0.0, 1.0)), BOUNDS)
    assert caught.value.code == "protocol_error"


_SECONDS = st.floats(0, 86400, allow_nan=False)


@given(
    st.builds(HeartbeatSettings, st.floats(0.001, 86400), _SECONDS),
    st.builds(SseSettings, _SECONDS, st.integers(1, 2**40)),
)
def test_whatever_is_wished_what_holds_is_within_bounds(heartbeat: HeartbeatSettings, sse: SseSettings) -> None:
    beat, events = agree_live(heartbeat, sse, BOUNDS)
    assert 1.0 <= beat.interval <= 300.0
    assert 1.0 <= beat.timeout <= 300.0
    assert events.keepalive == 0 or 1.0 <= events.keepalive <= 300.0
    assert 1 <= events.max_event <= BOUNDS.sse.max_event
