"""Who may visit one tunnel, and as whom. Pure: the time is passed in.

`Rules` are an agent's `AccessSettings`, made ready for one look-up a request. What lets a visitor in is a `Grant`; a
password is a `Claim` first, since checking its hash takes long (passwords.py).
"""

from __future__ import annotations

import binascii
from base64 import b64decode
from dataclasses import dataclass, field, replace
from functools import lru_cache
from hashlib import blake2b, sha256
from hmac import compare_digest
from ipaddress import ip_address, ip_network

from tunneld.errors import VisitorError
from tunneld.protocol.fields import lower
from tunneld.protocol.links import PARAMETER, signature, split
from tunneld.protocol.messages import AccessSettings, Headers

__all__ = ["OPEN_RULES", "READ_METHODS", "Claim", "Grant", "Rules", "granted"]

READ_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_LEVELS = ("read_only", "read_write", "admin")  # the least first
_SEEN = 512  # headers with good keys, as they were sent, that need not be hashed again
_ADDRESSES = 1024  # whose place in the ranges is remembered
#: Checked in place of the hash of a user that there is not, so that both take as long. Of no password.
_NOBODY = "$2b$05$Hk6hCYKjyiLisRzpcemTpOjR65RCMbi2KVEDYA/F26/eG9zvdbnTS"


@dataclass(frozen=True, slots=True)
class Grant:
    """What let a visitor in.

    Attributes:
        user: whom the service is told of; empty: nobody in particular.
        level: ``read_only``, ``read_write`` or ``admin``, which the service may take for more.
        proof: kind and what it rests on, for `Rules.renewed`.
        expires: seconds since the epoch; None: not by itself.
        headers: that tell the service.
    """

    user: str
    level: str
    proof: tuple[str, ...] = field(repr=False)
    expires: float | None = None
    headers: Headers = field(default_factory=list, repr=False)


@dataclass(frozen=True, slots=True)
class Claim:
    """A user's name and password, whose hash is to be compared.

    Attributes:
        known: there is such a user; else the comparison only takes its time.
    """

    user: str
    password: bytes = field(repr=False)
    hash: str = field(repr=False)
    known: bool
    grant: Grant


def granted(user: str, level: str, proof: tuple[str, ...], expires: float | None = None) -> Grant:
    """What lets `user` in; see `Grant`."""
    headers: Headers = [("X-Tunnel-User", user)] if user else []
    return Grant(user, level, proof, expires, [*headers, ("X-Tunnel-Access", level)])


class Rules:
    """The access of one tunnel.

    Args:
        name: of the tunnel.
        said: found good by `protocol.handshake.check_access`.

    Attributes:
        free: everybody may do everything: nothing is to be judged.
    """

    __slots__ = (
        "_allow",
        "_deny",
        "_domains",
        "_emails",
        "_keys",
        "_links",
        "_name",
        "_open",
        "_places",
        "_seen",
        "_users",
        "free",
        "level",
        "mode",
        "within",
    )

    def __init__(self, name: str, said: AccessSettings) -> None:
        self._name = name
        self.mode = said.mode
        self.level = said.level
        self._keys = {
            bytes.fromhex(key.hash): granted(key.name, key.level or said.level, ("key", key.hash), key.expires)
            for key in said.keys
        }
        self._users = {user: granted(user, said.level, ("basic", user, hashed)) for user, hashed in said.users.items()}
        #: Known to nobody who does not know the hashes: which of them stands for a name that there is not.
        self._places = sha256("\0".join(said.users.values()).encode()).digest()
        self._seen: dict[str, dict[str, Grant]] = {"authorization": {}, "x-api-key": {}}
        self._links = bytes.fromhex(said.links)
        self._emails, self._domains = frozenset(said.emails), frozenset(said.domains)
        self._open = granted("", said.level, ("open",)) if said.mode == "open" else None
        self._allow = [ip_network(text) for text in said.allow]
        self._deny = [ip_network(text) for text in said.deny]
        self.free = said.mode == "open" and not (said.allow or said.deny) and said.level == "read_write"
        #: Whether an address may come.
        self.within = lru_cache(_ADDRESSES)(self._within)

    def person(self, email: str) -> str | None:
        """The level of whoever signed in with this address, in lower case; None: they may not come."""
        known = email in self._emails or email.rpartition("@")[2] in self._domains or "*" in self._domains
        return self.level if known else None

    def judge(self, path: str, headers: Headers, now: float) -> tuple[Grant | Claim | None, str]:
        """Who comes, and the path without what let them in; None: that is for who signs in.

        Raises:
            VisitorError: ``login_required``.
        """
        if self._open is not None:
            return self._open, path
        if PARAMETER in path and (link := split(path)) is not None:
            return self._by_link(*link, now), link[0]
        if self.mode == "key":
            return self._by_key(headers, now), path
        if self.mode == "login":
            return (self._by_key_too(headers, now) if self._keys else None), path
        return self._by_password(headers), path

    def renewed(self, grant: Grant, client: str, now: float, signed_in: Grant | None = None) -> Grant | None:
        """What a grant of before is worth by these rules; None: nothing any more, or less than it was.

        Args:
            signed_in: what it is worth by what is known of whoever signed in.
        """
        kind = grant.proof[0]
        found: Grant | None = None
        if kind == "open":
            found = self._open
        elif kind == "key" and self.mode in ("key", "login"):
            found = self._keys.get(bytes.fromhex(grant.proof[1]))
        elif kind == "basic" and self.mode == "basic":
            found = self._users.get(grant.proof[1])
            if found is not None and found.proof != grant.proof:
                found = None  # the password was changed
        elif kind == "login" and self.mode == "login":
            found = signed_in
        elif kind == "link" and self._links and grant.proof[1] == self._links.hex():
            found = replace(grant, level=self.level)
        if found is None or not self.within(client) or (found.expires is not None and found.expires <= now):
            return None
        return None if _LEVELS.index(found.level) < _LEVELS.index(grant.level) else found

    def challenge(self, *, tried: bool) -> Headers:
        """How a visitor is asked for what is missing."""
        if self.mode == "basic":
            return [("WWW-Authenticate", f'Basic realm="{self._name}", charset="UTF-8"')]
        wrong = ', error="invalid_token"' if tried else ""
        return [("WWW-Authenticate", f'Bearer realm="{self._name}"{wrong}')]

    # -- inside ------------------------------------------------------------------------------------------

    def _by_key(self, headers: Headers, now: float) -> Grant:
        tried = False
        for name, value in headers:
            if len(name) != 13 and len(name) != 9:  # quicker told than the name: this runs for every request
                continue
            kind = lower(name)
            seen = self._seen.get(kind)
            if seen is None:
                continue
            grant = seen.get(value)
            if grant is None:
                key = value
                if kind == "authorization":
                    if value[:7].lower() != "bearer ":
                        continue
                    key = value[7:].strip()
                tried = True
                grant = self._keys.get(sha256(key.encode("latin-1", "replace")).digest())
                if grant is None:
                    continue
                if len(seen) >= _SEEN:
                    seen.clear()
                seen[value] = grant
            if grant.expires is None or grant.expires > now:
                return grant
            raise VisitorError("login_failed", f"The key {grant.user} has expired.")
        if tried:
            raise VisitorError("login_failed", "That key is none of this tunnel's.")
        raise VisitorError("login_required", "It wants a key: `Authorization: Bearer KEY` or `X-API-Key: KEY`.")

    def _by_key_too(self, headers: Headers, now: float) -> Grant | None:
        """Where people sign in, programs may have keys; what is none may be a token."""
        try:
            return self._by_key(headers, now)
        except VisitorError:
            return None

    def _by_password(self, headers: Headers) -> Claim:
        for name, value in headers:
            if lower(name) == "authorization" and value[:6].lower() == "basic ":
                break
        else:
            raise VisitorError("login_required", "It wants a user name and a password.")
        try:
            user, colon, password = b64decode(value[6:].strip(), validate=True).partition(b":")
            name = user.decode()
        except (binascii.Error, ValueError):
            colon = b""
        if not colon:
            raise VisitorError("login_failed", "The Authorization header is not as RFC 7617 says.")
        grant = self._users.get(name)
        if grant is not None:
            return Claim(name, password, grant.proof[2], True, grant)
        like = self._like(name)
        return Claim(name, password, like, False, granted("", "read_only", ("nobody",)))

    def _like(self, name: str) -> str:
        """The hash that is compared for a name that there is not: some user's, always the same one for that name.

        So an unknown name costs what a user's costs, also where the costs of the users' hashes differ.
        """
        if not self._users:
            return _NOBODY
        hashes = [grant.proof[2] for grant in self._users.values()]
        place = blake2b(name.encode(), key=self._places, digest_size=8).digest()
        return hashes[int.from_bytes(place) % len(hashes)]

    def _by_link(self, path: str, until: int, signed: str, now: float) -> Grant:
        if not self._links or not compare_digest(signature(self._links, self._name, path, until), signed):
            raise VisitorError("login_failed", "The address's signature does not fit: it was shared for another path.")
        if until <= now:
            raise VisitorError("login_failed", "The time of this shared address is over.")
        return granted("link", self.level, ("link", self._links.hex()), float(until))

    def _within(self, client: str) -> bool:
        try:
            address = ip_address(client.partition("%")[0])
        except ValueError:  # a Unix socket's peer has none: no range takes it in
            return not self._allow
        address = getattr(address, "ipv4_mapped", None) or address
        if any(address in network for network in self._deny):
            return False
        return not self._allow or any(address in network for network in self._allow)


OPEN_RULES = Rules("", AccessSettings())
"""Everybody may do everything."""
