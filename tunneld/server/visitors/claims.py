"""What an issuer has signed: ID tokens and bearer tokens (JWT), checked by its keys. Pure: the time is passed in.

Imported only where visitors can sign in: the library behind it takes megabytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from typing import Any

import jwt

__all__ = ["MAX_TOKEN", "ClockFault", "Expired", "Keys", "TokenFault", "UnknownKey", "check", "email_of", "parsed"]

MAX_TOKEN = 16 << 10
"""Characters of a token that is looked at."""
_MAX_KEYS = 64
#: With each, the kinds of key that may have signed. No `none`, and none where the verifier could sign.
_ALGORITHMS = {
    **{f"{kind}{size}": ("RSA",) for kind in ("RS", "PS") for size in (256, 384, 512)},
    **{f"ES{size}": ("EC",) for size in (256, 384, 512)},
    "EdDSA": ("OKP",),
}
_NO_CLAIMS = {f"verify_{claim}": False for claim in ("exp", "nbf", "iat", "aud", "iss", "sub", "jti")}
_EMAIL = re.compile(r"[!-?A-~]{1,64}@[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?", re.ASCII).fullmatch


class TokenFault(ValueError):
    """A token lets nobody in; the message is a sentence that holds nothing of it."""


class Expired(TokenFault):
    """It was good once."""


class UnknownKey(TokenFault):
    """It names a key that is not among the issuer's, as far as is known."""


class ClockFault(TokenFault):
    """It is of a time that has not come, or was over when it was made: a clock is off."""


class Keys:
    """An issuer's keys (RFC 7517).

    Args:
        document: as it was fetched.

    Raises:
        ValueError: it is no set of keys.
    """

    def __init__(self, document: object) -> None:
        keys = document.get("keys") if isinstance(document, dict) else None
        if not isinstance(keys, list):
            raise ValueError("its keys are no JSON Web Key Set")
        self._keys = [key for key in keys[:_MAX_KEYS] if isinstance(key, dict) and key.get("use") in (None, "sig")]
        self._ready: dict[tuple[int, str], Any] = {}

    def __len__(self) -> int:
        return len(self._keys)

    def claims(self, token: str) -> dict[str, Any]:
        """What a token says, once its signature was found good; raises TokenFault."""
        if len(token) > MAX_TOKEN:
            raise TokenFault("The token is too long.")
        try:
            header = jwt.get_unverified_header(token)
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            raise TokenFault("The token is no JWT, or was cut short.") from None
        algorithm = header.get("alg")
        if not isinstance(algorithm, str) or algorithm not in _ALGORITHMS or "crit" in header:
            raise TokenFault("The token is signed in a way that is not taken here.")
        for index in self._of(header.get("kid"), algorithm):
            try:
                said = jwt.decode(token, self._key(index, algorithm), algorithms=[algorithm], options=_NO_CLAIMS)  # type: ignore[arg-type]
            except (jwt.PyJWTError, ValueError, TypeError, AttributeError, KeyError, RecursionError):
                continue  # a signature that does not fit, or a key that is none: the issuer may have sent anything
            return dict(said)
        raise TokenFault("The token's signature is not of the issuer's key that it names.")

    def _of(self, kid: object, algorithm: str) -> list[int]:
        """The keys that may have signed."""
        found = [
            index
            for index, key in enumerate(self._keys)
            if key.get("kty") in _ALGORITHMS[algorithm]
            and key.get("alg") in (None, algorithm)
            and (kid is None or key.get("kid") == kid)
        ]
        if not found:
            raise UnknownKey("The token names a key that is not among the issuer's.")
        return found[:4]

    def _key(self, index: int, algorithm: str) -> Any:
        key = self._ready.get((index, algorithm))
        if key is None:
            key = self._ready[index, algorithm] = jwt.PyJWK(self._keys[index], algorithm).key
        return key


def check(
    claims: dict[str, Any], *, issuer: str, meant: Callable[[str], bool], now: float, skew: float
) -> dict[str, Any]:
    """The claims, of this issuer, for us, and of this time; raises TokenFault.

    Args:
        meant: whether an audience is us.
        skew: seconds by which clocks may differ.
    """
    if claims.get("iss") != issuer:
        raise TokenFault("The token is of another issuer.")
    said = claims.get("aud")
    audiences: Iterable[object] = said if isinstance(said, list) else [said]
    if not any(isinstance(one, str) and meant(one) for one in audiences):
        raise TokenFault("The token is meant for another audience.")
    expires = _moment(claims, "exp")
    if expires is None:
        raise TokenFault("The token has no end.")
    made, since = _moment(claims, "iat"), _moment(claims, "nbf")
    early = max(made or 0.0, since or 0.0) - now
    if early > skew:
        raise ClockFault(f"The token begins {early:.0f} s from now: the clock of the issuer or of this server is off.")
    if expires <= now - skew:
        raise Expired(f"The token is over since {now - expires:.0f} s.")
    return claims


def email_of(claims: dict[str, Any], *, verified: bool) -> str:
    """The address, in lower case; raises TokenFault where there is none that counts."""
    email = claims.get("email")
    if not isinstance(email, str) or not _EMAIL(email):
        raise TokenFault("The issuer names no e-mail address that can be taken.")
    if verified and claims.get("email_verified") is not True:
        raise TokenFault("The issuer does not say that the e-mail address is verified (`login.verified`).")
    return email.lower()


def parsed(data: bytes) -> dict[str, Any]:
    """A JSON object; raises ValueError."""
    try:
        found = json.loads(data)
    except RecursionError:
        raise ValueError("its answer is nested too deep") from None
    except ValueError:
        raise ValueError("its answer is no JSON") from None
    if not isinstance(found, dict):
        raise ValueError("its answer is no JSON object")
    return found


def _moment(claims: dict[str, Any], name: str) -> float | None:
    value = claims.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e12:
        raise TokenFault(f"The token's `{name}` is no time.")
    return float(value)
