"""The page before what serves it is loaded: only plain requests for its files, and never past the guard."""

from collections.abc import Mapping
from typing import Any

import pytest

from tunneld.dashboard.files import FILES, early, fields, is_file

HEAD = "GET {path} HTTP/1.1\r\nHost: 127.0.0.1:8441\r\nAccept: */*\r\n\r\n"
PEER = ("127.0.0.1", 5)


def anybody(request: Mapping[str, Any]) -> int | None:
    return 200


@pytest.mark.parametrize("path", ["/dashboard", *(f"/dashboard/{name}" for name in FILES)])
def test_the_page_and_its_files(path: str) -> None:
    answer = early(HEAD.format(path=path).encode(), PEER, anybody)
    assert answer is not None
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    assert b"Content-Security-Policy: default-src 'none'" in head
    assert is_file(path)


def test_what_the_caller_has_already_is_not_sent_again() -> None:
    def status(tags: str) -> bytes:
        answer = early(HEAD.format(path="/dashboard").replace("Accept: */*", tags).encode(), PEER, anybody)
        assert answer is not None
        return answer.split(b" ")[1]

    tag = fields("index.html")["ETag"]
    assert status(f"If-None-Match: {tag}") == b"304"
    assert status(f'If-None-Match: "another", W/{tag}') == b"304"
    assert status("If-None-Match: *") == b"304"
    assert status(f"If-None-Match: {fields('app.js')['ETag']}") == b"200"
    known = early(
        HEAD.format(path="/dashboard/app.js").replace("Accept: */*", "If-None-Match: *").encode(), PEER, anybody
    )
    assert known is not None
    assert known.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    "data",
    [
        "GET /dashboard HTTP/1.1\r\nHost: x\r\n",
        "GET /dashboard HTTP/1.1\r\n\r\n",
        "GET /dashboard HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        "GET /dashboard HTTP/1.0\r\nHost: x\r\n\r\n",
        "POST /dashboard HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET /dashboard HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n",
        "GET /dashboard HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n",
        "GET /dashboard HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n",
        "GET /dashboard HTTP/1.1\r\nHost: x\r\nA: b\nC: d\r\n\r\n",
        "GET /dashboard HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\n\r\n",
        HEAD.format(path="/dashboard/feed"),
        HEAD.format(path="/dashboard/../routes.py"),
        HEAD.format(path="/dashboard?x"),
        HEAD.format(path="/metrics"),
        "\r\n\r\n",
    ],
)
def test_anything_else_waits(data: str) -> None:
    assert early(data.encode(), PEER, anybody) is None


def test_the_guard_sees_the_request_and_decides() -> None:
    seen: list[Mapping[str, Any]] = []

    def guard(request: Mapping[str, Any]) -> int | None:
        seen.append(request)
        return {"/dashboard": 401, "/dashboard/app.js": None}[request["path"]]

    head = early(HEAD.format(path="/dashboard").encode(), PEER, guard)
    assert head is not None
    assert head.startswith(b"HTTP/1.1 401 Unauthorized\r\n")
    assert b"\r\nWWW-Authenticate: Bearer\r\n" in head
    assert early(HEAD.format(path="/dashboard/app.js").encode(), "", guard) is None
    assert seen[0]["client"] == PEER
    assert seen[1]["client"] is None
    assert (b"host", b"127.0.0.1:8441") in seen[0]["headers"]
