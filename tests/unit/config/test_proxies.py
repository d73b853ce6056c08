"""Which proxy holds: the file's, else the environment's, and whom NO_PROXY excepts."""

from __future__ import annotations

import pytest

from tunneld.config.proxies import Proxy, parse_proxy, proxy_for

URL = "wss://tunnel.example.org"


@pytest.mark.parametrize(
    ("text", "shown", "username", "password"),
    [
        ("http://proxy:3128", "http://proxy:3128", None, ""),
        ("proxy:3128", "http://proxy:3128", None, ""),
        ("http://proxy", "http://proxy:80", None, ""),
        ("https://proxy", "https://proxy:443", None, ""),
        ("socks5://proxy", "socks5://proxy:1080", None, ""),
        ("socks5h://u:p@[::1]:9", "socks5h://[::1]:9", "u", "p"),
        ("socks://proxy:1", "socks5://proxy:1", None, ""),
        ("http://us%40er:p%3Aw%2F%C3%A9@proxy:1/", "http://proxy:1", "us@er", "p:w/é"),
        ("http://only@proxy:1", "http://proxy:1", "only", ""),
    ],
)
def test_addresses(text: str, shown: str, username: str | None, password: str) -> None:
    proxy = parse_proxy(text)
    assert (str(proxy), proxy.username, proxy.password) == (shown, username, password)


@pytest.mark.parametrize(
    "text",
    ["", "ftp://proxy:1", "http://", "http://proxy:0", "http://proxy:99999", "http://pr oxy:1", "socks5://:p@h:1"],
)
def test_what_is_no_proxy_is_not_shown(text: str) -> None:
    with pytest.raises(ValueError, match=r"^server\.proxy: ") as caught:
        parse_proxy(text)
    assert len(text) < 8 or text not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "environ", "found"),
    [
        (URL, {}, None),
        (URL, {"HTTPS_PROXY": "http://p:1"}, "http://p:1 HTTPS_PROXY"),
        (URL, {"HTTPS_PROXY": "http://p:1", "https_proxy": "http://q:2"}, "http://q:2 https_proxy"),
        (URL, {"HTTPS_PROXY": " ", "ALL_PROXY": "socks5://p:1"}, "socks5://p:1 ALL_PROXY"),
        (URL, {"all_proxy": "socks5h://p:1", "HTTPS_PROXY": "http://p:1"}, "http://p:1 HTTPS_PROXY"),
        (URL, {"http_proxy": "http://p:1", "HTTP_PROXY": "http://p:1"}, None),
        ("ws://h.test:8440", {"HTTPS_PROXY": "http://p:1"}, None),
        ("ws://h.test:8440", {"http_proxy": "http://p:1"}, "http://p:1 http_proxy"),
        ("ws://h.test:8440", {"HTTP_PROXY": "http://p:1"}, None),
        ("ws://h.test:8440", {"ALL_PROXY": "http://p:1"}, "http://p:1 ALL_PROXY"),
        ("ws://127.0.0.1:8440", {"ALL_PROXY": "http://p:1"}, None),
        ("wss://[::1]:8440", {"ALL_PROXY": "http://p:1"}, None),
        ("wss://a.localhost", {"ALL_PROXY": "http://p:1"}, None),
    ],
)
def test_the_environment(url: str, environ: dict[str, str], found: str | None) -> None:
    proxy = proxy_for(url, None, environ)
    assert (f"{proxy} {proxy.source}" if proxy else None) == found


def test_the_file_holds_whatever_the_environment_says() -> None:
    environ = {"HTTPS_PROXY": "http://q:1", "NO_PROXY": "*"}
    assert proxy_for(URL, "http://p:1", environ) == Proxy("http", "p", 1)
    assert proxy_for("ws://127.0.0.1:1", "http://p:1", environ) == Proxy("http", "p", 1)
    with pytest.raises(ValueError, match=r"^HTTPS_PROXY: expected a proxy"):
        proxy_for(URL, None, {"HTTPS_PROXY": "gopher://u:secret@p"})


@pytest.mark.parametrize(
    ("rules", "url", "direct"),
    [
        ("*", URL, True),
        ("example.org", URL, True),
        (".example.org", URL, True),
        ("*.example.org", URL, True),
        ("EXAMPLE.org.", "wss://tunnel.example.org.", True),
        ("tunnel.example.org", URL, True),
        ("nel.example.org", URL, False),
        ("other.org, example.org", URL, True),
        ("other.org example.org", URL, True),
        ("example.org:443", URL, True),
        ("example.org:8443", URL, False),
        ("", URL, False),
        (",", URL, False),
        (".", URL, False),
        ("10.0.0.0/8", "wss://10.1.2.3", True),
        ("10.0.0.0/8", "wss://11.1.2.3", False),
        ("10.1.2.3:8443", "wss://10.1.2.3:8443", True),
        ("10.1.2.3:8443", "wss://10.1.2.3", False),
        ("fd00::/8", "wss://[fd00::1]:1", True),
        ("[fd00::1]:1", "wss://[fd00::1]:1", True),
        ("[fd00::1]:2", "wss://[fd00::1]:1", False),
        ("fd00::1", "wss://[fd00::1]", True),
        ("1.2.3", "wss://10.1.2.3", False),
    ],
)
def test_no_proxy(rules: str, url: str, direct: bool) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        assert (proxy_for(url, None, {"ALL_PROXY": "http://p:1", name: rules}) is None) == direct
