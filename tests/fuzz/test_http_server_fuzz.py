"""Any bytes on a visitor's connection: no exception, at most one answer to nonsense, nothing left behind."""

from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.front import Front, front

_PIECES = st.sampled_from(
    [
        b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET /t/demo/ HTTP/1.1\r\nHost: h\r\n\r\n",
        b"HEAD /t/demo/ HTTP/1.0\r\n\r\n",
        b"POST /t/demo/ HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc",
        b"POST /t/none/ HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc",
        b"POST /t/demo/ HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"3\r\nabc\r\n",
        b"0\r\n\r\n",
        b"0\r\nA: b\r\n\r\n",
        b"POST /t/demo/ HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n",
        b"GET /tunnel/connect HTTP/1.1\r\nHost: h\r\n\r\n",
        b"\r\n",
        b"\n",
        b"\r",
        b"\x16\x03\x01",
        b"Connection: close\r\n",
    ]
)


async def _answer_all(it: Front) -> None:
    """The service: answers everything, some of it in odd ways."""
    number = 0
    while True:
        served = await it.requests.get()
        number += 1
        if number % 4 == 0:
            served.stream.cancel("service")
        elif number % 4 == 1:
            served.answer()
        elif number % 4 == 2:
            served.events()
            served.stream.send(b"data: x\n\nrest")
            served.stream.send_end()
        else:
            served.answer(204, body=None)
            served.stream.stop()


async def _visit(it: Front, pieces: list[bytes], step: int, crash: bool) -> None:
    client = await it.client()
    raw = b"".join(pieces)
    for at in range(0, len(raw), step):
        client.send(raw[at : at + step])
        await asyncio.sleep(0)
    for _ in range(5):
        await asyncio.sleep(0)
    if crash:
        client.crash()
    else:
        try:
            client.writer.write_eof()
            await client.closed()
        except OSError:
            pass
        await client.leave()


@given(
    st.lists(_PIECES | st.binary(max_size=12), max_size=8),
    st.integers(1, 400),
    st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_any_bytes_leave_nothing_behind(pieces, step, crash):
    async def main() -> None:
        async with front() as it:
            loop = asyncio.get_running_loop()
            service = loop.create_task(_answer_all(it))
            await _visit(it, pieces, step, crash)
            for offer, _, _ in it.offers:
                if not offer.closed:
                    offer.take().abort()
            await it.settle()
            service.cancel()
            await asyncio.wait([service])

    asyncio.run(main(), debug=True)
