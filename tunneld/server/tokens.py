"""The text of a credential: ``tnl_``, 256 random bits, and a checksum. Pure.

The prefix and the checksum let leak scanners tell a real one from any other word; the checksum guards nothing.
"""

from __future__ import annotations

import hashlib
import secrets
import zlib

__all__ = ["PREFIX", "digest", "looks_whole", "mint"]

PREFIX = "tnl_"
_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_BODY = 43  # digits of 256 bits in base 62
_CHECK = 6  # digits of a CRC-32


def mint() -> str:
    """A new token: 53 letters and digits."""
    body = _base62(secrets.randbits(256), _BODY)
    return f"{PREFIX}{body}{_check(body)}"


def looks_whole(text: str) -> bool:
    """Whether the text has the form of a token and its checksum fits: no word of whether it opens anything."""
    body = text[len(PREFIX) : -_CHECK]
    return text.startswith(PREFIX) and len(body) == _BODY and text[-_CHECK:] == _check(body)


def digest(text: str) -> bytes:
    """What is kept of a token: its SHA-256. 256 random bits cannot be guessed, so no slow hash is needed."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _check(body: str) -> str:
    return _base62(zlib.crc32(f"{PREFIX}{body}".encode("utf-8", "surrogatepass")), _CHECK)


def _base62(number: int, width: int) -> str:
    digits = []
    for _ in range(width):
        number, digit = divmod(number, 62)
        digits.append(_DIGITS[digit])
    return "".join(reversed(digits))
