"""What headers pass in which direction, and what is made of addresses, paths and cookies on the way."""

from __future__ import annotations

from time import process_time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunneld.protocol.headers import (
    BadHeader,
    Headers,
    accepts_event_stream,
    client_address,
    content_length,
    encode_head,
    from_service,
    get,
    get_all,
    hop_by_hop,
    is_encoded,
    is_event_stream,
    lower,
    normal_address,
    path_has_dot_segment,
    prefers_html,
    to_service,
    to_visitor,
    valid_host,
    valid_target,
)


def request(
    headers: Headers,
    *,
    client: str = "203.0.113.9",
    peer: str = "203.0.113.9",
    trusted: bool = False,
    scheme: str = "http",
    host: str = "pub.example:8440",
    prefix: str = "/t/demo",
    identity: bool = False,
) -> Headers:
    return to_service(
        headers,
        client=client,
        peer=peer,
        trusted=trusted,
        scheme=scheme,
        host=host,
        prefix=prefix,
        identity=identity,
    )


def behind_proxy(headers: Headers, *, client: str = "198.51.100.7", prefix: str = "/t/demo") -> Headers:
    return request(headers, client=client, peer="127.0.0.1", trusted=True, prefix=prefix)


# -- heads on the wire ---------------------------------------------------------------------------------------


def test_a_head_is_encoded_as_it_stands() -> None:
    head = encode_head("GET /caf\xe9 HTTP/1.1", [("Host", "a"), ("x-Odd", ""), ("X-L", "\xff\t\x01")])
    assert head == b"GET /caf\xe9 HTTP/1.1\r\nHost: a\r\nx-Odd: \r\nX-L: \xff\t\x01\r\n\r\n"
    assert encode_head("HTTP/1.1 204 No Content", []) == b"HTTP/1.1 204 No Content\r\n\r\n"


@pytest.mark.parametrize(
    ("start", "headers"),
    [
        ("GET / HTTP/1.1\r\nX: y", []),
        ("GET /\n", []),
        ("GET /\0", []),
        ("GET /\u20ac", []),
        ("GET /", [("A", "b\r\nC: d")]),
        ("GET /", [("A", "b\n")]),
        ("GET /", [("A", "\r")]),
        ("GET /", [("A", "\0")]),
        ("GET /", [("A", "\u0100")]),
        ("GET /", [("", "x")]),
        ("GET /", [("A ", "x")]),
        ("GET /", [("A:B", "x")]),
        ("GET /", [("A\r\n", "x")]),
        ("GET /", [("\xe9", "x")]),
    ],
)
def test_a_head_that_would_say_something_else_is_refused(start: str, headers: Headers) -> None:
    with pytest.raises(BadHeader):
        encode_head(start, headers)


def test_names_are_looked_up_in_any_case() -> None:
    headers = [("SET-cookie", "a"), ("X-Q", "1"), ("set-Cookie", "b")]
    assert get(headers, "set-cookie") == "a"
    assert get_all(headers, "set-cookie") == ["a", "b"]
    assert get(headers, "x-p") is None
    assert lower("X-Q") == "x-q"
    assert lower("not a token") == lower("") == ""


def test_what_is_remembered_of_names_is_bounded() -> None:
    for n in range(3000):
        name = f"X-Strange-{n}"
        assert encode_head("GET /", [(name, "")]) == b"GET /\r\n" + name.encode() + b": \r\n\r\n"
    assert lower("X-" + "y" * 5000) == "x-" + "y" * 5000
    assert lower("Content-Type") == "content-type"


@pytest.mark.parametrize(
    "values", [["1", "1"], ["1, 1"], ["-1"], ["+1"], ["1_0"], ["0x1"], [""], ["\u0661"], ["\xb2"], ["9" * 19], ["1 1"]]
)
def test_a_length_that_could_be_read_in_two_ways_is_refused(values: list[str]) -> None:
    with pytest.raises(BadHeader):
        content_length([("Content-Length", value) for value in values])


def test_a_plain_length() -> None:
    assert content_length([]) is None
    assert content_length([("content-LENGTH", " 042\t")]) == 42


# -- what an answer is, what a request asks for --------------------------------------------------------------


def test_event_streams() -> None:
    assert is_event_stream([("content-type", "Text/Event-Stream ; charset=utf-8")])
    assert not is_event_stream([("content-type", "text/event-streams")])
    assert not is_event_stream([])
    assert is_encoded([("Content-Encoding", "gzip")])
    assert not is_encoded([("Content-Encoding", "Identity"), ("content-encoding", "")])


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ("text/event-stream", True),
        ("application/json, Text/Event-Stream;q=0.5", True),
        ("text/event-stream;q=0", False),
        ("text/event-stream;q=nonsense", False),
        ("*/*", False),
        ("text/*", False),
        ("", False),
    ],
)
def test_accepts_event_stream(accept: str, wanted: bool) -> None:
    assert accepts_event_stream([("Accept", accept)]) is wanted


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", True),
        ("*/*", False),
        ("application/json", False),
        ("application/json, text/html", False),
        ("text/html, application/json", True),
        ("application/json;q=0.5, text/html", True),
        ("text/html;q=0", False),
        ("", False),
    ],
)
def test_prefers_html(accept: str, wanted: bool) -> None:
    assert prefers_html(accept) is wanted


# -- targets and hosts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/.",
        "/..",
        "/./",
        "/../",
        "/a/..",
        "/a/../b",
        "/a/..?q",
        "/%2e",
        "/%2E%2e/",
        "/.%2e/x",
        "/a/..%2fb",
        "/a%2f..%2Fb",
        "/a%2f..",
        "/a\\..\\b",
        "/a/..\\b",
        "/a%5c..%5Cb",
        "/..;/x",
        "/..;a=b/x",
        "/.;x",
        "/..%3bx",
    ],
)
def test_dot_segments(path: str) -> None:
    assert path_has_dot_segment(path)


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/.well-known/x",
        "/a.b",
        "/a..b/..c",
        "/...",
        "/a.",
        "/a..",
        "/%2e%2e%2e",
        "/x?/../..",
        "/x?a=%2e%2e%2f",
        "/%2Fa%20b",
        "/a%252e%252e",
        "/.%20/",
    ],
)
def test_no_dot_segments(path: str) -> None:
    assert not path_has_dot_segment(path)


def test_targets() -> None:
    for good in ("/", "/a?b=c&d", "/%zz", "/caf\xe9", "//x", '/a|b{}"<>^`\\'):
        assert valid_target(good)
    for bad in ("", "a", "*", "http://h/", "/a b", "/a#b", "/a\tb", "/a\r\n", "/a\n", "/\x7f", "/\0", "/\u20ac"):
        assert not valid_target(bad)


def test_hosts() -> None:
    for good in ("a", "a.b-c_d.example:80", "1.2.3.4:8440", "[::1]", "[2001:db8::1]:443", "host:"):
        assert valid_host(good)
    for bad in (
        "",
        "a b",
        "a/b",
        "a@b",
        "a:b",
        "a:65536",
        "::1",
        "[1.2.3.4]",
        "[::g]",
        "a,b",
        'a"b',
        "a" * 300,
        "a\n",
        "[::1]x",
    ):
        assert not valid_host(bad)


# -- the visitor's request -----------------------------------------------------------------------------------


def test_hop_by_hop_names() -> None:
    ends = hop_by_hop([("Connection", "close, X-Mine"), ("connection", "X-Other , Content-Length, Host")])
    assert {"x-mine", "x-other", "connection", "te", "upgrade", "transfer-encoding", "proxy-authorization"} <= ends
    assert not {"content-length", "host", "trailer"} & ends


def test_what_ends_at_this_hop_does_not_reach_the_service() -> None:
    sent = [
        ("Host", "pub.example"),
        ("Connection", "keep-alive, X-Mine"),
        ("X-Mine", "1"),
        ("Keep-Alive", "1"),
        ("Upgrade", "h2c"),
        ("HTTP2-Settings", "x"),
        ("Proxy-Authorization", "x"),
        ("Transfer-Encoding", "chunked"),
        ("X-Tunnel-Request-Id", "x"),
        ("TE", "gzip"),
        ("Expect", "100-continue"),
        ("Trailer", "X-Sum"),
        ("Cookie", "a=b"),
        ("x-ODD", "kept"),
    ]
    got = request(sent)
    assert got[:4] == [("Expect", "100-continue"), ("Trailer", "X-Sum"), ("Cookie", "a=b"), ("x-ODD", "kept")]
    assert {name for name, _ in got[4:]} == {
        "X-Forwarded-For",
        "X-Forwarded-Proto",
        "X-Forwarded-Host",
        "X-Forwarded-Port",
        "X-Forwarded-Prefix",
        "Forwarded",
    }


def test_te_trailers_is_said_again_without_other_codings() -> None:
    assert get_all(request([("TE", "gzip;q=0.5, trailers")]), "te") == ["trailers"]
    assert get_all(request([("TE", "trailers"), ("te", "trailers")]), "te") == ["trailers"]


def test_names_that_cgi_takes_for_others_are_dropped() -> None:
    sent = [
        ("X_Forwarded_For", "1.1.1.1"),
        ("Content_Length", "5"),
        ("Transfer_Encoding", "chunked"),
        ("x_tunnel_a", "1"),
    ]
    assert behind_proxy([*sent, ("X_Mine", "1")])[0] == ("X_Mine", "1")


def test_accept_encoding_is_dropped_where_events_are_asked_for() -> None:
    sent = [("accept-encoding", "gzip")]
    assert get(request(sent), "accept-encoding") == "gzip"
    assert get(request(sent, identity=True), "accept-encoding") == "gzip"
    for events in ([*sent, ("Accept", "text/event-stream")], [("Accept", "text/event-stream"), *sent]):
        assert get(request(events), "accept-encoding") == "gzip"
        assert get(request(events, identity=True), "accept-encoding") is None


def test_a_visitor_of_whom_nobody_spoke() -> None:
    assert request([], scheme="https") == [
        ("X-Forwarded-For", "203.0.113.9"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", "pub.example:8440"),
        ("X-Forwarded-Port", "8440"),
        ("X-Forwarded-Prefix", "/t/demo"),
        ("Forwarded", 'for=203.0.113.9;host="pub.example:8440";proto=https'),
    ]
    assert request([], client="::1", peer="::1", host="a.example", prefix="") == [
        ("X-Forwarded-For", "::1"),
        ("X-Forwarded-Proto", "http"),
        ("X-Forwarded-Host", "a.example"),
        ("X-Forwarded-Port", "80"),
        ("Forwarded", 'for="[::1]";host=a.example;proto=http'),
    ]
    assert get(request([], client="", peer="", host=""), "forwarded") == "for=unknown;proto=http"


def test_an_ipv6_host_without_port_has_the_schemes_port() -> None:
    assert get(request([], host="[2001:db8::1]"), "x-forwarded-port") == "80"
    assert get(request([], host="[2001:db8::1]:81"), "x-forwarded-port") == "81"


def test_what_an_untrusted_peer_says_is_dropped() -> None:
    sent = [
        ("X-Forwarded-For", "1.1.1.1"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", "evil"),
        ("X-Forwarded-Port", "1"),
        ("X-Forwarded-Prefix", "/evil"),
        ("Forwarded", "for=1.1.1.1"),
        ("X-Real-IP", "1.1.1.1"),
        ("X-Forwarded-User", "root"),
    ]
    assert request(sent) == request([])


def test_what_a_trusted_proxy_says_is_continued() -> None:
    got = behind_proxy(
        [
            ("X-Forwarded-For", "198.51.100.7"),
            ("X-Forwarded-Proto", "https"),
            ("X-Forwarded-Host", "real.example"),
            ("X-Real-IP", "198.51.100.7"),
        ]
    )
    assert got == [
        ("X-Forwarded-For", "198.51.100.7, 127.0.0.1"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", "real.example"),
        ("X-Forwarded-Port", "443"),
        ("X-Forwarded-Prefix", "/t/demo"),
        ("Forwarded", "for=198.51.100.7;host=real.example;proto=https, for=127.0.0.1;host=real.example;proto=https"),
        ("X-Real-IP", "198.51.100.7"),
    ]


def test_forwarded_of_a_trusted_proxy_is_continued() -> None:
    got = behind_proxy(
        [("Forwarded", 'for="[2001:db8::7]:99";proto=https;by=_x'), ("forwarded", "FOR=10.0.0.1;Host=h.example")]
    )
    assert get(got, "forwarded") == (
        'for="[2001:db8::7]:99";proto=https;by=_x, FOR=10.0.0.1;Host=h.example, for=127.0.0.1;host=h.example;proto=http'
    )
    assert get(got, "x-forwarded-for") == "[2001:db8::7]:99, 10.0.0.1, 127.0.0.1"
    assert get(got, "x-forwarded-host") == "h.example"


def test_a_forwarded_that_the_proxy_only_let_through_is_made_anew() -> None:
    for forged in ("for=127.0.0.1", 'for="unclosed', "nonsense", 'for=a, for="b'):
        got = behind_proxy([("X-Forwarded-For", "198.51.100.7"), ("Forwarded", forged)])
        assert get(got, "forwarded") == (
            'for=198.51.100.7;host="pub.example:8440";proto=http, for=127.0.0.1;host="pub.example:8440";proto=http'
        )


def test_what_a_trusted_proxy_says_wrong_is_replaced() -> None:
    got = behind_proxy(
        [
            ("X-Forwarded-Proto", "gopher"),
            ("X-Forwarded-Host", "a b"),
            ("X-Forwarded-Port", "99999"),
            ("X-Forwarded-Prefix", "//evil"),
            ("X-Real-IP", "9.9.9.9"),
            ("X-Forwarded-For", '1", for=evil'),
        ]
    )
    assert get(got, "x-forwarded-proto") == "http"
    assert get(got, "x-forwarded-host") == "pub.example:8440"
    assert get(got, "x-forwarded-port") == "8440"
    assert get(got, "x-forwarded-prefix") == "/t/demo"
    assert get(got, "x-real-ip") is None
    assert (get(got, "forwarded") or "").startswith(r'for="1\"";')


def test_an_outer_prefix_stands_before_ours() -> None:
    sent = [("X-Forwarded-Prefix", "/outer/")]
    assert get(behind_proxy(sent), "x-forwarded-prefix") == "/outer/t/demo"
    assert get(behind_proxy(sent, prefix=""), "x-forwarded-prefix") == "/outer"


@pytest.mark.parametrize("said", ["/" + "a" * 26 + '"', "/" + "a/" * 26 + "/", "/" + "a" * 60_000 + '"'])
def test_a_prefix_that_is_none_is_found_out_at_once(said: str) -> None:
    began = process_time()
    assert get(behind_proxy([("X-Forwarded-Prefix", said)]), "x-forwarded-prefix") == "/t/demo"
    assert process_time() - began < 0.5


@pytest.mark.parametrize("said", ["/a;Domain=evil.example", "/a//evil", "/a b", "a"])
def test_a_prefix_that_could_say_more_than_a_path_is_none(said: str) -> None:
    assert get(behind_proxy([("X-Forwarded-Prefix", said)]), "x-forwarded-prefix") == "/t/demo"


@pytest.mark.parametrize("said", ["/", "/a", "/a/", "/a/b", "/a.b/~c/d%20e/"])
def test_a_prefix_of_any_depth_is_one(said: str) -> None:
    got = get(behind_proxy([("X-Forwarded-Prefix", said)]), "x-forwarded-prefix")
    assert got == said.rstrip("/") + "/t/demo"


def test_connection_cannot_take_away_what_a_proxy_said() -> None:
    got = behind_proxy([("Connection", "X-Forwarded-For, X-Forwarded-Proto"), ("X-Forwarded-For", "198.51.100.7")])
    assert get(got, "x-forwarded-for") == "198.51.100.7, 127.0.0.1"


def trusted(address: str) -> bool:
    return address.startswith(("127.", "10.", "unix"))


@pytest.mark.parametrize(
    ("headers", "peer", "wanted"),
    [
        ([], "203.0.113.9", "203.0.113.9"),
        ([], "::ffff:203.0.113.9", "203.0.113.9"),
        ([], "fe80::1%eth0", "fe80::1"),
        ([("X-Forwarded-For", "1.1.1.1")], "203.0.113.9", "203.0.113.9"),
        ([("X-Forwarded-For", "1.1.1.1, 198.51.100.7")], "127.0.0.1", "198.51.100.7"),
        ([("X-Forwarded-For", "1.1.1.1"), ("x-forwarded-for", "198.51.100.7, 10.0.0.1")], "127.0.0.1", "198.51.100.7"),
        ([("X-Forwarded-For", "[2001:db8::7]:55, 10.0.0.1:80")], "127.0.0.1", "2001:db8::7"),
        ([("X-Forwarded-For", "10.0.0.1, 10.0.0.2")], "127.0.0.1", "10.0.0.1"),
        ([("X-Forwarded-For", "1.1.1.1, garbage, 10.0.0.1")], "127.0.0.1", "10.0.0.1"),
        ([("X-Forwarded-For", "")], "127.0.0.1", "127.0.0.1"),
        ([("Forwarded", 'for="[2001:db8::7]:99", for=10.0.0.1')], "127.0.0.1", "2001:db8::7"),
        ([("Forwarded", "for=_hidden")], "127.0.0.1", "127.0.0.1"),
        ([("Forwarded", "for=1.1.1.1"), ("X-Forwarded-For", "198.51.100.7")], "127.0.0.1", "198.51.100.7"),
        ([("X-Forwarded-For", "198.51.100.7")], "unix", "198.51.100.7"),
        ([], "unix", "unix"),
    ],
)
def test_client_address(headers: Headers, peer: str, wanted: str) -> None:
    assert client_address(headers, peer, trusted) == wanted


def test_addresses() -> None:
    assert normal_address("[2001:DB8::0:1]:80") == "2001:db8::1"
    assert normal_address("192.0.2.1:80") == "192.0.2.1"
    for none in ("", "unknown", "_x", "1.2.3", "1.2.3.4.5", "[", "[]", ":", "x" * 100, "1.2.3.4, 5"):
        assert normal_address(none) is None


# -- the service's answer ------------------------------------------------------------------------------------


def test_an_answer_without_prefix_loses_only_what_ends_at_this_hop() -> None:
    sent = [
        ("Connection", "X-Hop"),
        ("X-Hop", "1"),
        ("Transfer-Encoding", "chunked"),
        ("X-Tunnel-Error", "x"),
        ("Set-Cookie", "a=b; Path=/"),
        ("set-cookie", "c=d; Domain=e"),
        ("Location", "/x"),
        ("Service-Worker-Allowed", "/"),
        ("Content-Length", "3"),
        ("Trailer", "X-Sum"),
    ]
    assert to_visitor(sent, prefix="") == sent[4:]


def test_claims_on_the_whole_origin_are_out_under_a_prefix() -> None:
    sent = [("Service-Worker-Allowed", "/"), ("Clear-Site-Data", "*"), ("Alt-Svc", "h3"), ("NEL", "{}"), ("X-A", "b")]
    assert to_visitor(sent, prefix="/t/demo") == [("X-A", "b")]


def test_the_head_of_an_event_stream() -> None:
    sent = [("Content-Length", "9"), ("x-accel-buffering", "yes"), ("Content-Type", "text/event-stream")]
    assert to_visitor(sent, prefix="", event_stream=True) == [sent[2], ("X-Accel-Buffering", "no")]


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("/", "/t/demo/"),
        ("/x?y#z", "/t/demo/x?y#z"),
        ("/t/demo/x", "/t/demo/x"),
        ("/t/demo", "/t/demo"),
        ("/t/demolition", "/t/demo/t/demolition"),
        ("x/y", "x/y"),
        ("../x", "../x"),
        ("?q", "?q"),
        ("", ""),
        ("//other/x", "//other/x"),
        ("/\\other", "/\\other"),
        ("https://other/x", "https://other/x"),
        ("http://pub.example:8440/x", "http://pub.example:8440/t/demo/x"),
        ("//pub.example:8440/x", "//pub.example:8440/t/demo/x"),
        ("HTTP://Pub.Example:8440", "HTTP://Pub.Example:8440/t/demo/"),
        ("http://pub.example:8440?q", "http://pub.example:8440/t/demo/?q"),
        ("http://pub.example:8440//x", "http://pub.example:8440/t/demo/x"),
        ("http://pub.example:8440/t/demo/x", "http://pub.example:8440/t/demo/x"),
        ("http://pub.example:8440@evil/x", "http://pub.example:8440@evil/x"),
        ("http://pub.example:84401/x", "http://pub.example:84401/x"),
    ],
)
def test_locations_get_the_prefix(value: str, wanted: str) -> None:
    for name in ("Location", "content-location"):
        assert to_visitor([(name, value)], prefix="/t/demo", authority="pub.example:8440") == [(name, wanted)]


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("a=b", "a=b"),
        ("a=b; HttpOnly", "a=b; HttpOnly"),
        ("a=b; Path=/", "a=b; Path=/t/demo/"),
        ("a=b;path=/x;Secure", "a=b;path=/t/demo/x;Secure"),
        ("a=b; PATH = /x ; Domain=.example", "a=b; PATH =/t/demo/x"),
        ("a=b; Path=/t/demo/x", "a=b; Path=/t/demo/x"),
        ("a=b; Path=/t/other", "a=b; Path=/t/demo/t/other"),
        ("a=b; Path=//x", "a=b; Path=/t/demo/x"),
        ("a=b; Path=", "a=b; Path="),
        ("a=b; Path", "a=b; Path"),
        ("a=b; Path=x", "a=b; Path=x"),
        ("path=/; Expires=Wed, 09 Jun 2027 10:18:14 GMT", "path=/; Expires=Wed, 09 Jun 2027 10:18:14 GMT"),
        ("a=b; domain=x; Path=/; path=/y", "a=b; Path=/t/demo/; path=/t/demo/y"),
    ],
)
def test_cookies_stay_under_the_prefix(value: str, wanted: str) -> None:
    assert to_visitor([("Set-Cookie", value)], prefix="/t/demo") == [("Set-Cookie", wanted)]


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("5", "5"),
        ("0; url=/x", "0; url=/t/demo/x"),
        ("0;URL='/x'", "0;URL='/t/demo/x'"),
        ("1.5, /x", "1.5, /t/demo/x"),
        ("0; url=x", "0; url=x"),
        ("0; url=https://other/", "0; url=https://other/"),
    ],
)
def test_refresh_gets_the_prefix(value: str, wanted: str) -> None:
    assert to_visitor([("Refresh", value)], prefix="/t/demo") == [("Refresh", wanted)]


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("http://127.0.0.1:9000/items/?q#f", "/items/?q#f"),
        ("https://127.0.0.1:9000", "/"),
        ("//127.0.0.1:9000/items?q", "/items?q"),
        ("//127.0.0.1:9000//evil/x", "//127.0.0.1:9000//evil/x"),
        ("http://127.0.0.1:9000?q", "/?q"),
        ("http://127.0.0.1:9000//evil/x", "http://127.0.0.1:9000//evil/x"),
        ("http://127.0.0.1:9000/\\evil", "http://127.0.0.1:9000/\\evil"),
        ("http://127.0.0.1:9001/", "http://127.0.0.1:9001/"),
        ("http://127.0.0.1:9000.evil/", "http://127.0.0.1:9000.evil/"),
        ("/x", "/x"),
        ("x", "x"),
        ("", ""),
    ],
)
def test_a_services_own_address_becomes_a_path(value: str, wanted: str) -> None:
    sent = [
        ("Location", value),
        ("Refresh", f"0; url={value}"),
        ("Connection", "close, X-Hop"),
        ("X-Hop", "1"),
        ("X-Tunnel-A", "1"),
    ]
    assert from_service(sent, authorities=["127.0.0.1:9000"]) == [("Location", wanted), ("Refresh", f"0; url={wanted}")]


def test_default_ports_are_the_same_authority() -> None:
    assert from_service([("Location", "http://app.internal:80/x")], authorities=["App.Internal"]) == [
        ("Location", "/x")
    ]
    assert from_service([("Location", "http://app.internal/x")], authorities=[""]) == [
        ("Location", "http://app.internal/x")
    ]


def test_each_of_a_services_addresses_becomes_a_path() -> None:
    """The Host that it is given, and where it is reached when that is another."""
    authorities = {"app.internal", "127.0.0.1:9000"}
    for sent, wanted in (
        ("http://app.internal/x", "/x"),
        ("http://127.0.0.1:9000/x?y#z", "/x?y#z"),
        ("http://127.0.0.1:9001/x", "http://127.0.0.1:9001/x"),
        ("http://127.0.0.1:9000//evil", "http://127.0.0.1:9000//evil"),
    ):
        assert from_service([("Location", sent)], authorities=authorities) == [("Location", wanted)]


references = st.text(alphabet="/\\.:?#@=;, \t\"'ahtp0", max_size=20)


@settings(deadline=None)
@given(value=references)
def test_no_answer_names_another_host_than_the_service_did(value: str) -> None:
    """Taking the service's own address off, or putting the prefix on, never makes a reference to some other host."""
    (relative,) = from_service([("Location", "http://h" + value)], authorities=["h"])
    if relative[1] != "http://h" + value:
        assert relative[1].startswith("/")
        assert relative[1][1:2] not in ("/", "\\")
    (prefixed,) = to_visitor([("Location", value)], prefix="/t/n", authority="h")
    assert prefixed[1] == value or prefixed[1].startswith(("/t/n/", "http://h/t/n/", "http://h:"))
