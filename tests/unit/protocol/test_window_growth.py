"""A receive window over a long way: a sender that only ever waits for credit must not keep it small."""

import pytest

from tunneld.protocol.windows import ReceiveWindow

KIB, MIB = 1024, 1024 * 1024


def run(window: ReceiveWindow, *, round_trip: float, rate: float, seconds: float) -> float:
    """A sender with endless bytes at `rate` bytes a second; bytes a second that arrive in the last half."""
    piece, now, arrived = 16 * KIB, 0.0, 0
    credit = window.outstanding
    grants: list[tuple[float, int]] = []  # when the sender has them
    flying: list[float] = []
    free_at = 0.0
    while now < seconds:
        while grants and grants[0][0] <= now:
            credit += grants.pop(0)[1]
        while credit >= piece and free_at <= now:
            credit -= piece
            free_at = max(free_at, now) + piece / rate
            flying.append(free_at + round_trip / 2)
        while flying and flying[0] <= now:
            flying.pop(0)
            window.received(piece)
            arrived += piece if now > seconds / 2 else 0
            if window.took(piece) and (granted := window.grant(now, round_trip)):
                grants.append((now + round_trip / 2, granted))
        now = min([now + 0.001, *flying[:1], *[at for at, _ in grants[:1]], *([free_at] if credit >= piece else [])])
        now += 1e-7
    return arrived / (seconds / 2)


@pytest.mark.parametrize("round_trip", [0.01, 0.1, 0.3])
def test_it_grows_until_it_no_longer_holds_the_sender_back(round_trip: float) -> None:
    window = ReceiveWindow(256 * KIB, 4 * MIB)
    reached = run(window, round_trip=round_trip, rate=40 * MIB, seconds=8 * round_trip + 2)
    assert reached > 0.8 * min(40 * MIB, 4 * MIB / round_trip)


def test_a_slow_sender_does_not_make_it_grow_beyond_what_is_under_way() -> None:
    window = ReceiveWindow(256 * KIB, 4 * MIB)
    run(window, round_trip=0.1, rate=1 * MIB, seconds=4)
    assert window.size <= 512 * KIB


def test_nothing_grows_while_the_round_trip_is_unknown() -> None:
    window = ReceiveWindow(256 * KIB, 4 * MIB)
    for _ in range(100):
        window.received(128 * KIB)
        assert window.took(128 * KIB)
        assert window.grant(0.0, None) == 128 * KIB
    assert window.size == 256 * KIB
