"""Addresses that let a visitor in by themselves: a path of a tunnel, until when, and a signature over both. Pure.

The agent signs and the server checks with the same secret, for one tunnel. The agent makes it from its token, else from
32 random bytes of its process, and tells it in its hello's wishes, where the tunnel is protected. That the server knows
it is right: it is the server that lets visitors in, by this and by all else. Nobody else needs it, and of the token, or
of another tunnel's secret, it tells nothing. Who has the token can sign, whether the agent runs or not.
"""

from __future__ import annotations

import hmac
import re
from base64 import urlsafe_b64encode

__all__ = ["PARAMETER", "SignedPath", "secret_of", "sign", "split"]

PARAMETER = "tunnel_link"
_SIGNED = re.compile(r"(.*)[?&]tunnel_link=([0-9]{1,12})\.([A-Za-z0-9_-]{43})", re.DOTALL).fullmatch

#: (path with query as the service sees it, seconds since the epoch, signature)
SignedPath = tuple[str, int, str]


def secret_of(credential: bytes, name: str) -> bytes:
    """The secret for links of the tunnel `name`; nothing of the credential can be read back from it."""
    return hmac.digest(credential, b"tunneld links v1\0" + name.encode(), "sha256")


def sign(secret: bytes, name: str, path: str, until: int) -> str:
    """`path` (with its query, if any) with what lets a visitor in until then, seconds since the epoch."""
    mark = "&" if "?" in path else "?"
    return f"{path}{mark}{PARAMETER}={until}.{signature(secret, name, path, until)}"


def signature(secret: bytes, name: str, path: str, until: int) -> str:
    """Over all three; 43 characters."""
    said = f"{name}\0{until}\0{path}".encode("latin-1", "replace")
    return urlsafe_b64encode(hmac.digest(secret, said, "sha256")).decode().rstrip("=")


def split(path: str) -> SignedPath | None:
    """What a signed path is made of, not yet checked; None when it is not one."""
    if PARAMETER not in path:
        return None
    found = _SIGNED(path)
    return None if found is None else (found[1], int(found[2]), found[3])
