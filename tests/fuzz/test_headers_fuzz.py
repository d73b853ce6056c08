"""Any text in any header: only `BadHeader` escapes, and no head says more than its pairs."""

from __future__ import annotations

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from tunneld.protocol.headers import (
    BadHeader,
    accepts_event_stream,
    client_address,
    content_length,
    encode_head,
    from_service,
    hop_by_hop,
    is_encoded,
    lower,
    normal_address,
    path_has_dot_segment,
    prefers_html,
    to_service,
    to_visitor,
    valid_host,
    valid_target,
)

NAMES = [
    "Connection",
    "TE",
    "Host",
    "Forwarded",
    "X-Forwarded-For",
    "X-Forwarded-Proto",
    "X-Forwarded-Host",
    "X-Forwarded-Port",
    "X-Forwarded-Prefix",
    "X-Real-IP",
    "Accept",
    "Content-Length",
    "Transfer-Encoding",
    "Location",
    "Refresh",
    "Set-Cookie",
    "Content-Encoding",
    "X-Mine",
]
VALUES = [
    "for=1.1.1.1",
    'for="',
    ", ",
    ";",
    "=",
    '"',
    "\\",
    "close",
    "X-Mine",
    "/",
    "//",
    "http://h",
    "[::1]",
    "127.0.0.1",
    "path=/",
]
value = st.one_of(
    st.lists(st.sampled_from(VALUES), max_size=8).map("".join),
    st.text(st.characters(max_codepoint=255), max_size=30),
)
pairs = st.lists(st.tuples(st.one_of(st.sampled_from(NAMES), st.text(max_size=6)), value), max_size=8)
HEAD = re.compile(rb"X\r\n(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+: [^\r\n\0]*\r\n)*\r\n")


@settings(deadline=None)
@given(headers=pairs, is_trusted=st.booleans(), host=value, prefix=st.sampled_from(["", "/t/n"]))
def test_requests(headers: list[tuple[str, str]], is_trusted: bool, host: str, prefix: str) -> None:
    client = client_address(headers, "127.0.0.1", lambda address: is_trusted)
    assert normal_address(client) == client
    out = to_service(
        headers,
        client=client,
        peer="127.0.0.1",
        trusted=is_trusted,
        scheme="http",
        host=host if valid_host(host) else "",
        prefix=prefix,
        identity=True,
    )
    ends = hop_by_hop(headers) - {"te"}
    said = [lower(name) for name, _ in out]  # empty: no token, which no head is made of
    ours = [name for name in said if name.startswith("x-forwarded-") or name == "forwarded"]
    assert len(ours) == len(set(ours))
    assert not {name for name in said if name not in ours and name != "x-real-ip"} & (
        ends | {"host"} | ({"accept-encoding"} if accepts_event_stream(headers) else set())
    )
    (forwarded,) = [text for name, text in out if name == "Forwarded"]
    assert forwarded.count('"') % 2 == 0 or "\\" in forwarded
    try:
        head = encode_head("X", out)
    except BadHeader:
        return
    assert HEAD.fullmatch(head)
    assert head.count(b"\r\n") == len(out) + 2


@settings(deadline=None)
@given(headers=pairs, prefix=st.sampled_from(["", "/t/n"]))
def test_answers(headers: list[tuple[str, str]], prefix: str) -> None:
    out = to_visitor(from_service(headers, authorities=["h"]), prefix=prefix, authority="h")
    assert len(out) <= len(headers)
    ends = hop_by_hop(headers)
    assert not {lower(name) for name, _ in out} & ends
    is_encoded(headers)
    accepts_event_stream(headers)
    try:
        length = content_length(headers)
    except BadHeader:
        return
    assert length is None or length >= 0


@settings(deadline=None)
@given(text=value)
def test_words(text: str) -> None:
    prefers_html(text)
    normal_address(text)
    if valid_host(text):
        assert not set(text) & set(' "\\/@,;\r\n')
    if valid_target(text):
        assert not set(text) & set(" #\r\n\0")
        encode_head(f"GET {text} HTTP/1.1", [])


def resolves(path: str) -> bool:
    """The slow way: every separator that any service may see, then every segment."""
    path = path.partition("?")[0]
    path = re.sub("%2f|%5c|\\\\", "/", path, flags=re.IGNORECASE)
    path = re.sub("%2e", ".", path, flags=re.IGNORECASE)
    path = re.sub("%3b", ";", path, flags=re.IGNORECASE)
    return any(segment.partition(";")[0] in (".", "..") for segment in path.split("/")[1:])


@settings(deadline=None)
@given(
    parts=st.lists(
        st.sampled_from(["/", ".", "%2e", "%2E", "%2f", "%5C", "\\", ";", "%3b", "a", "?", "%", "2"]), max_size=12
    )
)
def test_dot_segments(parts: list[str]) -> None:
    path = "/" + "".join(parts)
    assert path_has_dot_segment(path) == resolves(path)
