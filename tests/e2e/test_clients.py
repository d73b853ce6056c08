"""Real clients through the tunnel: curl, wrk, httpx, aiohttp."""

import asyncio
import hashlib
import io
import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import httpx

from tests.e2e.conftest import need
from tests.support.daemons import Pair
from tests.support.processes import eventually
from tests.support.services import SampleService, pattern
from tests.support.visitors import Curl, request_id

APT_CURL = "apt-get install curl"


def test_curl_sees_events_as_they_are_made_and_its_end_reaches_the_service(pair: Pair, service: SampleService) -> None:
    need("curl", APT_CURL)
    marks = [process.mark() for process in pair.processes]
    curl = Curl(pair.url("app", "/events?id=curl-n&gap=0.1"), "-H", "Accept: text/event-stream")
    try:
        head = curl.head().lower()
        assert head.startswith("http/1.1 200")
        assert "content-type: text/event-stream" in head
        assert "x-accel-buffering: no" in head
        one = request_id(curl.head())
        # each event is there before the next one is made: none is held back
        for number in range(1, 6):
            line = curl.wait_line(f"data: event {number}")
            assert not curl.matching(f"data: event {number + 1}"), "events came together"
            assert line.at
        (stream,) = pair.agent.streams(request_id=one)
        assert stream["kind"] == "sse"
        assert stream["tunnel"] == "app"
        assert stream["path"] == "/events?id=curl-n&gap=0.1"
        assert stream["events"] >= 5
        assert stream["last_event_id"] == str(stream["events"])
        left = time.monotonic_ns()
    finally:
        curl.stop()
    took = (service.wait_closed("curl-n") - left) / 1e6
    assert took < 1000, f"the service saw the close after {took} ms"
    pair.assert_left(one, marks)


def test_curl_uploads_64_mib_whole(pair: Pair, folder: Path) -> None:
    need("curl", APT_CURL)
    source = folder / "source"
    digest = hashlib.sha256()
    with source.open("wb") as file:
        for _ in range(64):
            piece = os.urandom(1024 * 1024)
            digest.update(piece)
            file.write(piece)
    done = subprocess.run(
        ["curl", "-sS", "-f", "-T", str(source), pair.url("app", "/upload")],
        capture_output=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"bytes": 64 * 1024 * 1024, "sha256": digest.hexdigest()}


def test_curl_downloads_64_mib_whole(pair: Pair) -> None:
    need("curl", APT_CURL)
    size = 64 * 1024 * 1024
    want = hashlib.sha256(pattern(size)).hexdigest()
    for query in (f"n={size}", f"n={size}&chunked=1"):
        got = subprocess.run(["curl", "-sS", "-f", pair.url("app", f"/bytes?{query}")], capture_output=True, check=True)
        assert hashlib.sha256(got.stdout).hexdigest() == want


def test_curl_speaks_http_1_0(pair: Pair) -> None:
    need("curl", APT_CURL)
    done = subprocess.run(
        ["curl", "-sS", "-i", "--http1.0", pair.url("app", "/bytes?n=1000&chunked=1")],
        capture_output=True,
        timeout=20,
        check=True,
    )
    head, _, body = done.stdout.partition(b"\r\n\r\n")
    assert body == pattern(1000)
    assert b"transfer-encoding" not in head.lower()


def test_wrk_gets_no_error(pair: Pair) -> None:
    need("wrk", "apt-get install wrk")
    done = subprocess.run(
        ["wrk", "-t1", "-c32", "-d2s", pair.url("app", "/small")],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert "Socket errors" not in done.stdout, done.stdout
    assert "Non-2xx" not in done.stdout, done.stdout
    found = re.search(r"(\d+) requests in", done.stdout)
    assert found
    assert int(found[1]) > 100
    eventually(lambda: pair.agent.streams() == [], what="free of streams")


def test_httpx_as_a_visitor(pair: Pair) -> None:
    with httpx.Client(timeout=10) as client:
        for _ in range(3):
            assert client.get(pair.url("app", "/small")).content == pattern(0) + b"x" * 99 + b"\n"
        echo = client.get(pair.url("app", "/echo?q=%2F%20a&&b"), headers=[(b"X-Own", "ü".encode())]).json()
        assert echo["target"] == "/echo?q=%2F%20a&&b"
        sent = {name.lower(): value for name, value in echo["headers"]}
        assert sent["x-own"].encode("latin-1") == "ü".encode()
        assert sent["x-forwarded-for"] == "127.0.0.1"
        assert sent["x-forwarded-prefix"] == "/t/app"
        assert sent["x-forwarded-proto"] == "http"
        assert client.head(pair.url("app", "/small")).headers["content-length"] == "100"
        assert client.get(pair.url("app", "/status?code=204")).status_code == 204
        assert client.get(pair.url("app", "/status?code=304")).status_code == 304
        assert client.get(pair.url("app", "/nothing")).status_code == 404

        def pieces() -> Iterator[bytes]:
            for _ in range(100):
                yield b"a" * 10_000

        done = client.post(pair.url("app", "/upload"), content=pieces()).json()
        assert done == {"bytes": 1_000_000, "sha256": hashlib.sha256(b"a" * 1_000_000).hexdigest()}
        with client.stream("GET", pair.url("app", "/events?n=5&gap=0.01&id=httpx")) as answer:
            text = "".join(answer.iter_text())
        assert re.findall(r"data: event (\d)", text) == ["1", "2", "3", "4", "5"]


async def test_aiohttp_as_a_visitor(pair: Pair, service: SampleService) -> None:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as session:

        async def one(number: int) -> str:
            async with session.get(pair.url("app", f"/echo?n={number}")) as answer:
                return str((await answer.json())["target"])

        got = await asyncio.gather(*(one(number) for number in range(100)))
        assert got == [f"/echo?n={number}" for number in range(100)]
        async with session.post(pair.url("app", "/upload"), data=io.BytesIO(b"b" * 3_000_000)) as answer:
            assert (await answer.json())["bytes"] == 3_000_000
        async with session.get(pair.url("app", "/events?id=aiohttp&gap=0.02")) as answer:
            assert answer.headers["Content-Type"].startswith("text/event-stream")
            lines = []
            async for line in answer.content:
                lines.append(line)
                if len(lines) == 9:
                    break
            assert lines[:3] == [b"id: 1\n", b"data: event 1\n", b"\n"]
    await asyncio.to_thread(service.wait_closed, "aiohttp")
