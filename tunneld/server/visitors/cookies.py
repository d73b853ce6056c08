"""What a browser carries for us: the session cookie, and the state of a sign-in under way. Pure: the time is passed in.

A session is signed and stays readable to its own browser; a state is encrypted, since the issuer sees it and the page
that it leads back to is nobody's business. Both are worth nothing for another tunnel, or once the issuer is another.
"""

from __future__ import annotations

import binascii
import hmac
import json
import os
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass, field
from hashlib import sha256
from secrets import token_urlsafe

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

__all__ = ["MAX_PATH", "Begun", "CookieFault", "Seal", "Session", "cookie_of", "names_of", "without"]

MAX_PATH = 2000
"""Of an address that a sign-in leads back to; from a longer one it leads to the tunnel's first page."""


class CookieFault(ValueError):
    """It is cut short, changed, another tunnel's, or over; the message is a sentence that holds nothing of it.

    Args:
        over: it was good once.
    """

    def __init__(self, text: str, *, over: bool = False) -> None:
        super().__init__(text)
        self.over = over


@dataclass(frozen=True, slots=True)
class Session:
    """Somebody who has signed in at one tunnel.

    Attributes:
        id: random.
        expires: seconds since the epoch.
    """

    email: str
    tunnel: str
    id: str = field(repr=False)
    expires: float


@dataclass(frozen=True, slots=True)
class Begun:
    """A sign-in that a browser was sent to the issuer with.

    Attributes:
        path: where it leads back to, as the service sees it.
        prefixed: below ``/t/NAME``.
        binding: digest of the cookie of the browser that began.
        expires: seconds since the epoch.
        nonce: that the ID token must repeat.
        verifier: PKCE's (RFC 7636).
    """

    tunnel: str
    path: str
    prefixed: bool
    binding: str
    expires: float
    nonce: str = field(repr=False)
    verifier: str = field(repr=False)

    @property
    def challenge(self) -> str:
        """The verifier's S256."""
        return _encode(sha256(self.verifier.encode()).digest())


class Seal:
    """What signs and encrypts.

    Args:
        secret: of this server; with another nothing of before holds.
        issuer: and `client`: whose word a session rests on.
    """

    def __init__(self, secret: bytes, issuer: str, client: str) -> None:
        about = f"{issuer}\0{client}".encode()
        self._sessions = hmac.digest(secret, b"tunneld session v1\0" + about, "sha256")
        self._states = AESGCM(hmac.digest(secret, b"tunneld sign-in v1\0" + about, "sha256"))

    def sign(self, session: Session) -> str:
        """The cookie's value."""
        said = [session.email, session.tunnel, session.id, int(session.expires)]
        payload = _encode(json.dumps(said, separators=(",", ":")).encode())
        return f"{payload}.{self._signature(payload)}"

    def session(self, value: str, tunnel: str, now: float) -> Session:
        """The session of a cookie's value; raises CookieFault."""
        payload, _, signature = value.partition(".")
        if not hmac.compare_digest(self._signature(payload).encode(), signature.encode("utf-8", "replace")):
            raise CookieFault("The session cookie was cut short, or is not of this server.")
        email, name, identity, expires = json.loads(_decode(payload))
        if name != tunnel:
            raise CookieFault("The session cookie is another tunnel's.")
        if expires <= now:
            raise CookieFault("The session is over: sign in again.", over=True)
        return Session(email, name, identity, float(expires))

    def begin(self, tunnel: str, path: str, *, prefixed: bool, binding: str, expires: float) -> tuple[Begun, str]:
        """A sign-in begins: what is known of it, and its state."""
        if len(path) > MAX_PATH:
            path = "/"
        begun = Begun(tunnel, path, prefixed, digest(binding), expires, token_urlsafe(16), token_urlsafe(32))
        said = [begun.tunnel, begun.path, prefixed, begun.binding, int(expires), begun.nonce, begun.verifier]
        nonce = os.urandom(12)
        return begun, _encode(nonce + self._states.encrypt(nonce, json.dumps(said).encode(), None))

    def begun(self, state: str, now: float) -> Begun:
        """The sign-in of a state; raises CookieFault."""
        try:
            sealed = _decode(state)
            said = json.loads(self._states.decrypt(sealed[:12], sealed[12:], None))
        except (InvalidTag, ValueError):
            raise CookieFault("The state of this sign-in is not of this server, or was cut short.") from None
        begun = Begun(*said)
        if begun.expires <= now:
            raise CookieFault("This sign-in took too long: begin again.", over=True)
        return begun

    def _signature(self, payload: str) -> str:
        return _encode(hmac.digest(self._sessions, payload.encode("utf-8", "replace"), "sha256"))


def digest(binding: str) -> str:
    """What a state says of the cookie of the browser that began it."""
    return _encode(sha256(binding.encode("utf-8", "replace")).digest())


def names_of(*, secure: bool, prefix: str) -> tuple[str, str, str]:
    """The names of the session's and of the begun sign-in's cookie, and the attributes of both.

    ``__Host-`` keeps a neighbouring host from setting them; it allows no Path but ``/``, so below ``/t/NAME`` the
    lesser ``__Secure-`` stands. Without TLS a browser takes neither.
    """
    mark = "" if not secure else "__Secure-" if prefix else "__Host-"
    attributes = f"Path={prefix or '/'}; HttpOnly; SameSite=Lax" + ("; Secure" if secure else "")
    return f"{mark}tunnel-session", f"{mark}tunnel-sign-in", attributes


def cookie_of(header: str, name: str) -> list[str]:
    """Every value of the cookie in a ``Cookie`` header."""
    if name not in header:
        return []
    pairs = (part.strip(" \t").partition("=") for part in header.split(";"))
    return [value for found, _, value in pairs if found == name]


def without(header: str, names: tuple[str, ...]) -> str:
    """A ``Cookie`` header without these; empty: nothing is left of it."""
    kept = (part.strip(" \t") for part in header.split(";"))
    return "; ".join(part for part in kept if part and part.partition("=")[0] not in names)


def _encode(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    try:
        return urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
    except (binascii.Error, UnicodeEncodeError):
        raise ValueError("not base64url") from None
