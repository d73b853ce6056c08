"""Where visitors sign in: the server's `login` section, an OpenID Connect issuer."""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import BeforeValidator, PrivateAttr, field_validator

from tunneld.config.common import Count, FilePath, Flag, HeaderBytes, Interval, Model, Span, Text
from tunneld.config.secrets import read_secret
from tunneld.config.units import shown
from tunneld.errors import ConfigError

__all__ = ["LoginConfig", "is_protected", "with_secret"]

_WORD = re.compile(r"[!#-\[\]-~]{1,256}")


def is_protected(url: str) -> bool:
    """Whether nobody on the way can change what this address answers: ``https://``, or this machine."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        return False
    if parts.scheme == "https":
        return bool(host)
    if parts.scheme != "http" or not host:
        return False
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _issuer(value: object) -> str:
    text = value.strip() if isinstance(value, str) else ""
    if "@" in text:
        raise ValueError("expected no user or password in the address")
    if not re.fullmatch(r"https?://[!-~]+", text) or "?" in text or "#" in text or not is_protected(text):
        raise ValueError(
            "expected the issuer's address, as its discovery document says it, such as https://accounts.example.org "
            f"(http:// only on this machine), not {shown(value)}"
        )
    return text


def _words(value: object) -> Any:
    return value.split() if isinstance(value, str) else value


def _word(value: object) -> str:
    if isinstance(value, str) and _WORD.fullmatch(value):
        return value
    raise ValueError(f"expected one word, not {shown(value)}")


_Words = Annotated[tuple[Annotated[str, BeforeValidator(_word)], ...], BeforeValidator(_words)]


class LoginConfig(Model):
    """An issuer, and how visitors' sign-ins are kept.

    Attributes:
        issuer: exactly as its discovery document says it.
        client_id: of this server, registered there with the one redirect address ``PUBLIC_URL/login/callback``.
        client_secret_file: None: a public client, whom PKCE alone protects.
        scopes: that are asked for; ``openid`` among them.
        audience: what a bearer token may be meant for, besides the tunnel's own address.
        verified: an e-mail address counts only when the issuer says that it is verified.
        session: seconds that a sign-in lasts.
        begin: seconds that a visitor has for it.
        skew: seconds by which the clocks of issuer and server may differ.
        timeout: seconds for one answer of the issuer's, whole.
        max_answer: bytes of one.
        refresh: seconds after which its keys are fetched anew.
        rest: seconds between two fetches at least: when it is down, and when a token names a key that is not known.
        waiting: sign-ins and tokens that may wait for the issuer at a time.
        remembered: cookies and tokens whose signature was checked, sign-ins that are nearly done, and sign-outs; of
            each the oldest is forgotten.
    """

    issuer: Annotated[str, BeforeValidator(_issuer)]
    client_id: Text
    client_secret_file: FilePath | None = None
    scopes: _Words = ("openid", "email")
    audience: _Words = ()
    verified: Flag = True
    session: Interval = 12 * 3600.0
    begin: Interval = 600.0
    skew: Span = 60.0
    timeout: Interval = 10.0
    max_answer: HeaderBytes = 256 << 10
    refresh: Interval = 3600.0
    rest: Interval = 10.0
    waiting: Count = 100
    remembered: Count = 4096

    _secret: str | None = PrivateAttr(default=None)

    @property
    def secret(self) -> str | None:
        """Of the client; None: it has none."""
        return self._secret

    @field_validator("scopes", mode="after")
    @classmethod
    def _openid(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "openid" not in value:
            raise ValueError("expected `openid` among the scopes: without it there is no sign-in")
        return value


def with_secret(login: LoginConfig) -> tuple[LoginConfig, list[str]]:
    """The section with its file read, and what is wrong with that."""
    if login.client_secret_file is None:
        return login, []
    try:
        secret = read_secret(login.client_secret_file)
    except ConfigError as error:
        return login, error.faults
    login = login.model_copy()
    login._secret = secret
    return login, []
