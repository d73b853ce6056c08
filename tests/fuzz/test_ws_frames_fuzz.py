"""Frames that pass through: however the input is cut and held, the same frames come out, or the same fault."""

from __future__ import annotations

from itertools import pairwise

import hypothesis.strategies as st
from hypothesis import example, given, settings

from tests.support.ws_raw import frame
from tunneld.wire.ws_codec import ClientEncoder, encode_plain
from tunneld.wire.ws_frames import WHOLE, FrameReader

FIN = 0x80


def _merged(parts: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """Control frames, and data frames with the pieces of one frame put together again."""
    found: list[tuple[int, bytes]] = []
    for first, payload in parts:
        if first & 0x0F == 0 and found and not found[-1][0] & 0x88:
            before, said = found.pop()
            found.append((before | first & FIN, said + payload))
        else:
            found.append((first, payload))
    return found


def _read(
    data: bytes, cuts: list[int], holds: list[bool], *, masked: bool
) -> tuple[list[tuple[int, bytes]], tuple[int, str] | None, bool]:
    """(what came out, the fault, a close frame came)"""
    out: list[tuple[int, bytes]] = []
    wants = iter(holds)

    def take(first: int, payload: bytes) -> bool:
        out.append((first, bytes(payload)))
        return not next(wants, False)

    reader = FrameReader(masked=masked, frame=take)
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    for start, end in pairwise(edges):
        reader.feed(data[start:end])
        while reader.held:
            reader.go_on()
        if reader.fault is not None or reader.closed:
            break
    return out, reader.fault, reader.closed and reader.fault is None


_CUTS = st.lists(st.integers(0, 1 << 20), max_size=30)
_HOLDS = st.lists(st.booleans(), max_size=30)
_PAYLOADS = st.one_of(
    st.binary(max_size=200),
    st.sampled_from([125, 126, 127, 65_535, WHOLE, WHOLE + 1, 100_000, 200_003]).map(
        lambda size: b"ab\x00" * (size // 3)
    ),
)
_GOOD = st.lists(
    st.one_of(
        st.tuples(st.sampled_from([FIN | 1, FIN | 2]), _PAYLOADS),
        st.tuples(st.sampled_from([FIN | 9, FIN | 10]), st.binary(max_size=125)),
    ),
    max_size=6,
)


@given(frames=_GOOD, cuts=_CUTS, holds=_HOLDS, masked=st.booleans())
@settings(max_examples=200, deadline=None)
def test_good_frames_come_out_as_they_went_in(
    frames: list[tuple[int, bytes]], cuts: list[int], holds: list[bool], masked: bool
) -> None:
    data = b"".join(frame(first, payload, mask=masked) for first, payload in frames)
    out, fault, _ = _read(data, cuts, holds, masked=masked)
    assert fault is None
    assert _merged(out) == frames
    encoder = ClientEncoder() if masked else encode_plain
    again = b"".join(encoder(first & 0x0F, (payload,), first & FIN) for first, payload in out)
    assert _merged(_read(again, [], [], masked=masked)[0]) == frames


@given(
    data=st.one_of(
        st.binary(max_size=400),
        st.lists(
            st.builds(
                lambda first, payload, mask, form: frame(first, payload, mask=mask, form=form),
                st.integers(0, 255),
                st.binary(max_size=140),
                st.booleans(),
                st.sampled_from([0, 16, 64]),
            ),
            max_size=6,
        ).map(b"".join),
    ),
    cuts=_CUTS,
    holds=_HOLDS,
    masked=st.booleans(),
)
@settings(max_examples=400, deadline=None)
@example(data=b"\x81\xff" + b"\xff" * 8, cuts=[3], holds=[], masked=True)
@example(data=b"\x01\x00\x89\x00\x80\x00\x80\x00", cuts=[1, 3], holds=[True], masked=False)
def test_whatever_comes_the_cuts_change_nothing(data: bytes, cuts: list[int], holds: list[bool], masked: bool) -> None:
    whole, fault, closed = _read(data, [], [], masked=masked)
    cut, cut_fault, cut_closed = _read(data, cuts, holds, masked=masked)
    assert (_merged(cut), cut_fault, cut_closed) == (_merged(whole), fault, closed)
    assert fault is None or fault[0] == 1002
    assert all(not first & 0x70 and first & 0x0F in (0, 1, 2, 8, 9, 10) for first, _ in whole)


def test_what_waits_of_a_frame_is_bounded() -> None:
    reader = FrameReader(masked=False, frame=lambda first, payload: True)
    data = frame(FIN | 2, bytes(8 << 20), mask=False)
    most = 0
    for start in range(0, len(data), 1000):
        reader.feed(data[start : start + 1000])
        most = max(most, reader.waiting)
    assert most <= WHOLE + 1000
    assert reader.waiting == 0
