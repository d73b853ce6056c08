"""Which proxy a connection goes through: what the file says, else what the environment says. Pure.

``server.proxy`` always holds. Without it the rules are those that curl and most other programs share: the scheme's own
variable before ``ALL_PROXY``, lower case before upper case, and ``NO_PROXY`` for hosts that are reached directly;
loopback is never sent to a proxy that only the environment names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Literal
from urllib.parse import unquote, urlsplit

__all__ = ["Proxy", "parse_proxy", "proxy_for"]

Scheme = Literal["http", "https", "socks5", "socks5h"]
_PORTS: dict[str, int] = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}


@dataclass(frozen=True, slots=True)
class Proxy:
    """A forward proxy.

    Attributes:
        scheme: ``https`` speaks TLS to the proxy itself; ``socks5`` resolves the server's name here, ``socks5h`` there.
        host: name or address, IPv6 without brackets.
        port: of it.
        username: None: no credentials are sent.
        password: "" where there is none.
        source: the key or variable that named it, for people.
    """

    scheme: Scheme
    host: str
    port: int
    username: str | None = field(default=None, repr=False)
    password: str = field(default="", repr=False)
    source: str = "server.proxy"

    def __str__(self) -> str:
        """Without credentials."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


def parse_proxy(text: str, source: str = "server.proxy") -> Proxy:
    """Read a proxy's address; without a scheme it is ``http``.

    Raises:
        ValueError: it is none; the text of it is not shown, it may hold a password.
    """
    wanted = f"{source}: expected a proxy such as http://proxy:3128 or socks5://proxy:1080"
    text = text.strip()
    if "://" not in text:
        text = f"http://{text}"
    try:
        parts = urlsplit(text)
        scheme, host, port = parts.scheme, parts.hostname, parts.port
    except ValueError:
        raise ValueError(wanted) from None
    usable = host and text.isprintable() and " " not in text and port != 0
    if scheme == "socks":  # as some desktops write it
        scheme = "socks5"
    if not usable or scheme not in _PORTS or host is None:
        raise ValueError(wanted)
    username = unquote(parts.username) if parts.username is not None else None
    password = unquote(parts.password or "")
    if scheme.startswith("socks") and username is not None:
        sizes = len(username.encode()), len(password.encode())
        if not 0 < sizes[0] < 256 or sizes[1] > 255:  # RFC 1929: a length of one byte
            raise ValueError(f"{source}: SOCKS5 takes a user name and a password of at most 255 bytes each")
    chosen: Scheme = scheme  # type: ignore[assignment]  # a key of _PORTS
    return Proxy(chosen, host, port or _PORTS[scheme], username, password, source)


def proxy_for(url: str, configured: str | None, environ: Mapping[str, str]) -> Proxy | None:
    """The proxy for a connection to `url` (``ws://`` or ``wss://``); None: none.

    Args:
        url: of the server.
        configured: ``server.proxy``.
        environ: of the process.

    Raises:
        ValueError: the variable that holds does not name a proxy.
    """
    if configured is not None:
        return parse_proxy(configured)
    parts = urlsplit(url)
    secure = parts.scheme in ("wss", "https")
    host, port = (parts.hostname or "").rstrip("."), parts.port or (443 if secure else 80)
    if _is_loopback(host) or _is_excepted(host, port, environ.get("no_proxy") or environ.get("NO_PROXY") or ""):
        return None
    # HTTP_PROXY in upper case is what a request header "Proxy:" becomes for a CGI program: it is not read.
    names = ["https_proxy", "HTTPS_PROXY"] if secure else ["http_proxy"]
    for name in [*names, "all_proxy", "ALL_PROXY"]:
        if text := environ.get(name, "").strip():
            return parse_proxy(text, name)
    return None


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _is_excepted(host: str, port: int, rules: str) -> bool:
    """Whether ``NO_PROXY`` names the host: ``*``, a name and all below it, an address, a range; maybe with a port."""
    return any(_matches(host.lower(), port, rule.strip().lower()) for rule in rules.replace(" ", ",").split(","))


def _matches(host: str, port: int, rule: str) -> bool:
    if rule in ("", "*"):
        return rule == "*"
    wanted, colon, number = rule.rpartition(":")
    if colon and number.isdigit() and (":" not in wanted or wanted.endswith("]")):
        if int(number) != port:
            return False
        rule = wanted
    rule = rule.removeprefix("[").removesuffix("]")
    try:
        address = ip_address(host)
    except ValueError:
        bare = rule.removeprefix("*").strip(".")
        return bool(bare) and (host == bare or host.endswith(f".{bare}"))
    try:
        return address in ip_network(rule, strict=False)
    except ValueError:
        return False
