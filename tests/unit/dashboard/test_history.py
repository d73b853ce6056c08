import sys

from tunneld.config.common import DashboardConfig
from tunneld.dashboard.history import SPANS, History, Ring
from tunneld.telemetry.outages import Outages

T0 = 1_800_000_000.0


def sample(history: History, at: float, name: str = "app", **over: object) -> None:
    given: dict[str, object] = {"state": "online", "rtt": 0.01, "loss": 0.0, "bytes_in": 0, "bytes_out": 0}
    history.sample(name, at, **(given | over))  # type: ignore[arg-type]


def test_a_ring_keeps_its_newest_points_and_forgets_the_gap() -> None:
    ring = Ring(10, 4)
    for step, value in ((0, 1.0), (1, 2.0), (2, 3.0), (3, 4.0), (4, 5.0), (7, 8.0)):
        ring.add(T0 + 10 * step, (value, 0.0, 0.0, 0.0))
    assert ring.read(T0 + 70, 4)[0] == [5.0, None, None, 8.0]
    assert ring.read(T0 + 90, 4)[0] == [None, 8.0, None, None]
    assert ring.read(T0 + 500, 4)[0] == [None] * 4


def test_a_point_keeps_the_worst_round_trip_and_the_mean_throughput() -> None:
    ring = Ring(60, 3)
    for second, rtt, rate in ((0, 5.0, 100.0), (10, 50.0, 200.0), (20, 1.0, 600.0)):
        ring.add(T0 + second, (rtt, 0.0, rate, 0.0))
    rtt, _, rate, _ = ring.read(T0, 1)
    assert (rtt, rate) == ([50.0], [300.0])


def test_a_clock_that_goes_back_harms_nothing() -> None:
    ring = Ring(10, 3)
    ring.add(T0 + 100, (1.0, 0.0, 0.0, 0.0))
    ring.add(T0, (9.0, 0.0, 0.0, 0.0))
    assert ring.read(T0 + 100, 3)[0] == [None, None, 9.0]


def test_throughput_is_made_of_sums() -> None:
    history = History()
    sample(history, T0, bytes_out=1000)
    sample(history, T0 + 10, bytes_in=500, bytes_out=3000)
    curves = history.curves("app", T0 + 10, 0)
    assert curves["out"][-2:] == [None, 200.0]
    assert curves["in"][-1] == 50.0
    assert curves["rtt"][-1] == 10.0
    assert curves["t"] + (len(curves["rtt"]) - 1) * curves["step"] == T0 + 10
    assert history.sparks(["app", "other"], T0 + 10, 2) == {"app": [[10.0, 10.0], [0.0, 0.0], [None, 250.0]]}


def test_a_day_is_kept_and_no_more() -> None:
    history = History()
    for hour in range(30):
        sample(history, T0 + 3600 * hour, rtt=hour / 1000)
    day = history.curves("app", T0 + 29 * 3600, len(SPANS) - 1)
    known = [value for value in day["rtt"] if value is not None]
    assert known == [float(hour) for hour in range(6, 30)]
    assert sum(step * points for step, points in SPANS[-1:]) == 86400


def test_states_and_outages_are_told_once() -> None:
    history, outages = History(), Outages()
    sample(history, T0, outages=outages)
    outages.begin(1.0, T0 + 3)
    outages.resumed(3.5, 100)
    sample(history, T0 + 10, outages=outages)
    sample(history, T0 + 20, state="offline", outages=outages)
    shown = [event.shown() for event in history.since(0, T0 + 20)]
    assert [one.get("state") for one in shown] == ["online", None, "offline"]
    assert shown[1] == {
        "n": 2, "t": T0 + 3, "tunnel": "app", "seconds": 2.5, "resumed": True, "replayed_bytes": 100, "streams_lost": 0
    }  # fmt: skip
    assert history.since(2, T0 + 20)[0].state == "offline"
    assert history.since(0, T0 + 2 * 86400) == []


def test_outages_from_before_the_first_sample_are_told() -> None:
    history, outages = History(), Outages()
    outages.begin(1.0, T0)
    outages.lost(2.0, 3)
    sample(history, T0 + 10, outages=outages)
    assert [event.outage.streams_lost for event in history.events if event.outage] == [3]


def test_memory_is_bounded_by_tunnels_and_events() -> None:
    history = History(DashboardConfig(tunnels=10, events=20))
    for index in range(100):
        sample(history, T0 + index, name=f"t{index % 50}", state="online" if index % 2 else "offline")
    assert len(history) == 10
    assert len(history.events) == 20
    assert set(history.sparks([f"t{index}" for index in range(50)], T0 + 100)) == {
        f"t{index}" for index in range(40, 50)
    }


def test_a_tunnel_takes_less_than_8_kib() -> None:
    rings = [Ring(step, size) for step, size in SPANS]
    octets = sum(sys.getsizeof(column) for ring in rings for column in ring._values)
    assert octets < 8 * 1024


def test_a_day_begins_with_the_state_that_each_tunnel_had_by_then() -> None:
    history = History()
    for name, state in (("down", "offline"), ("well", "online"), ("cut", "online")):
        sample(history, T0, name, state=state)
    sample(history, T0 + 20 * 3600, "cut", state="resuming")
    sample(history, T0 + 20 * 3600 + 10, "cut", state="online")
    late = T0 + 30 * 3600
    assert [(event.tunnel, event.state) for event in history.day(late, 400)] == [
        ("down", "offline"),  # all day long: it has no event of the day, and a lane all the same
        ("cut", "online"),  # before it was cut
        ("cut", "resuming"),
        ("cut", "online"),
    ]
    assert [event.tunnel for event in history.since(0, late)] == ["cut", "cut"]


def test_the_state_before_is_known_where_events_were_left_out_or_forgotten() -> None:
    history = History(DashboardConfig(tunnels=10, events=4))
    sample(history, T0, "app")
    for turn in range(1, 6):
        sample(history, T0 + 20 * turn, "app", state="resuming")
        sample(history, T0 + 20 * turn + 10, "app")
    kept = history.day(T0 + 200, 400)
    assert [event.state for event in kept] == ["online", "resuming", "online", "resuming", "online"]
    assert [event.state for event in history.day(T0 + 200, 1)] == ["resuming", "online"]
    assert [event.at for event in kept] == sorted(event.at for event in kept)
    for index in range(10):  # a tunnel that is forgotten leaves nothing behind
        sample(history, T0 + 300, f"other{index}")
    assert "app" not in {event.tunnel for event in history.day(T0 + 300, 400)}
    assert len(history._before) <= 10
