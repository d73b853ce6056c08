"""Who may visit a tunnel: the `access` section, and the files that it names, read.

Secrets become hashes here, when the file is loaded: what is kept, compared at a reload and sent is a hash.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from hashlib import sha256
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, PrivateAttr, field_validator, model_validator

from tunneld.config.common import Faults, FilePath, Model
from tunneld.config.secrets import read_secret
from tunneld.config.units import shown
from tunneld.errors import ConfigError

__all__ = ["MAX_ENTRIES", "AccessConfig", "KeyConfig", "LoadedAccess", "resolve"]

MAX_ENTRIES = 256
"""Keys, users and address ranges, of each: what a `hello` carries has a bound."""
_MIN_KEY = 16  # characters: a hash without salt protects only what cannot be guessed
_MAX_COST = 12  # of bcrypt: about a quarter of a second of the server's time for one password
_MAX_FILE = 1 << 20
_NAME = re.compile(r"[!-9;-~]{1,64}")  # visible ASCII, no colon: it goes into a header, and comes out of Basic
_HASH = re.compile(r"(?:sha256:)?([0-9a-f]{64})", re.IGNORECASE)
_EMAIL = re.compile(r"[!-?A-~]{1,64}@[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?", re.ASCII)
_BCRYPT = re.compile(r"\$2[aby]\$([0-9]{2})\$[./A-Za-z0-9]{53}")

_Fault = tuple[tuple[str | int, ...], str]
Level = Literal["read_only", "read_write"]


def _name(value: object) -> str:
    if isinstance(value, str) and _NAME.fullmatch(value):
        return value
    raise ValueError(f"expected a name of 1 to 64 visible ASCII characters without ':', not {shown(value)}")


def _hash(value: object) -> str:
    found = _HASH.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise ValueError("expected `sha256:` and 64 hex digits, as `printf %s KEY | sha256sum` prints them")
    return found[1].lower()


def _until(value: object) -> float:
    """A date or a time in UTC -> seconds since the epoch."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    try:
        parsed = datetime.fromisoformat(str(value))
        return (parsed if parsed.tzinfo is not None else parsed.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError, OSError):
        raise ValueError(f"expected a date such as 2030-12-31 or 2030-12-31T18:00:00Z, not {shown(value)}") from None


def _range(value: object) -> str:
    try:
        return str(ip_network(str(value), strict=False))
    except ValueError:
        raise ValueError(
            f"expected an address or a range such as 192.0.2.0/24 or 2001:db8::/32, not {shown(value)}"
        ) from None


def _email(value: object) -> str:
    if isinstance(value, str) and _EMAIL.fullmatch(value.strip()):
        return value.strip().lower()
    raise ValueError(f"expected an e-mail address such as ann@example.org, not {shown(value)}")


def _email_domain(value: object) -> str:
    text = value.strip().lower().removeprefix("@") if isinstance(value, str) else ""
    if text == "*" or _EMAIL.fullmatch(f"x@{text}"):
        return text
    raise ValueError(f'expected what stands behind the @, such as example.org, or "*", not {shown(value)}')


_Range = Annotated[str, BeforeValidator(_range)]
_Email = Annotated[str, BeforeValidator(_email)]
_Domain = Annotated[str, BeforeValidator(_email_domain)]


class KeyConfig(Model):
    """One key of visitors. Once loaded, `hash` alone stands.

    Attributes:
        name: whom the service is told of, in ``X-Tunnel-User``.
        hash: of the key, SHA-256.
        key_file: file that holds the key, of which nobody else can read.
        expires: seconds since the epoch; None: never.
        level: None: that of the tunnel.
    """

    name: Annotated[str, BeforeValidator(_name)]
    hash: Annotated[str, BeforeValidator(_hash)] | None = Field(default=None, repr=False)
    key_file: FilePath | None = None
    expires: Annotated[float, BeforeValidator(_until)] | None = None
    level: Level | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.hash is None) == (self.key_file is None):
            raise ValueError("give the key as `hash: sha256:…` or as `key_file: FILE`, one of them")
        return self


class AccessConfig(Model):
    """Who may visit.

    Attributes:
        mode: what a visitor must show.
        keys: with ``key``.
        users_file: with ``basic``: an htpasswd file with bcrypt hashes (``htpasswd -B``).
        emails: with ``login``: who may come, besides those whom the server's permissions let in.
        domains: with ``login``: whoever has an address of one of these may come; ``*``: whoever signs in.
        allow: address ranges; where any stand, nobody else may come, whatever they show.
        deny: address ranges that may not come; before `allow`.
        level: ``read_only``: GET, HEAD and OPTIONS alone.
    """

    mode: Literal["open", "key", "basic", "login"] = "open"
    keys: tuple[KeyConfig, ...] = ()
    users_file: FilePath | None = None
    emails: tuple[_Email, ...] = ()
    domains: tuple[_Domain, ...] = ()
    allow: tuple[_Range, ...] = ()
    deny: tuple[_Range, ...] = ()
    level: Level = "read_write"

    @field_validator("keys", "emails", "domains", "allow", "deny", mode="after")
    @classmethod
    def _few(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(value) > MAX_ENTRIES:
            raise ValueError(f"expected at most {MAX_ENTRIES}, not {len(value)}")
        return value

    @field_validator("keys", mode="after")
    @classmethod
    def _told_apart(cls, value: tuple[KeyConfig, ...]) -> tuple[KeyConfig, ...]:
        names = [key.name for key in value]
        twice = [((index, "name"), "another key has that name") for index, n in enumerate(names) if n in names[:index]]
        if twice:
            raise Faults(list(twice))
        return value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        faults: list[_Fault] = []
        if self.mode != "key" and self.keys:
            faults.append((("keys",), f"keys are for `mode: key`, and the mode is {self.mode}"))
        if self.mode != "basic" and self.users_file is not None:
            faults.append((("users_file",), f"users are for `mode: basic`, and the mode is {self.mode}"))
        for key in ("emails", "domains"):
            if self.mode != "login" and getattr(self, key):
                faults.append(((key,), f"{key} are for `mode: login`, and the mode is {self.mode}"))
        if faults:
            raise Faults(faults)
        return self


class LoadedAccess(AccessConfig):
    """The section once its files were read.

    Attributes:
        users: of `users_file`, name to hash.
    """

    _users: dict[str, str] = PrivateAttr(default_factory=dict)

    @property
    def users(self) -> dict[str, str]:
        """See there."""
        return self._users


def resolve(access: AccessConfig) -> tuple[LoadedAccess, list[_Fault]]:
    """The section with every secret as a hash, and what is wrong with the files that it names."""
    faults: list[_Fault] = []
    keys: list[KeyConfig] = []
    for index, key in enumerate(access.keys):
        if key.key_file is None:
            keys.append(key)
            continue
        try:
            secret = read_secret(key.key_file)
        except ConfigError as error:
            faults += [(("keys", index, "key_file"), fault) for fault in error.faults]
            continue
        if len(secret) < _MIN_KEY:
            text = f"{key.key_file}: a key has at least {_MIN_KEY} characters; `openssl rand -hex 24` makes one"
            faults.append((("keys", index, "key_file"), text))
            continue
        keys.append(key.model_copy(update={"hash": sha256(secret.encode()).hexdigest(), "key_file": None}))
    users: dict[str, str] = {}
    if access.users_file is not None:
        try:
            users = _users(access.users_file)
        except ConfigError as error:
            faults += [(("users_file",), fault) for fault in error.faults]
    values = {key: getattr(access, key) for key in AccessConfig.model_fields} | {"keys": tuple(keys)}
    loaded = LoadedAccess.model_construct(_fields_set=set(access.model_fields_set), **values)
    loaded._users = users
    return loaded, faults


_SCHEMES = {
    "$apr1$": "MD5 (apr1)",
    "$1$": "MD5",
    "$5$": "SHA-256 (crypt)",
    "$6$": "SHA-512 (crypt)",
    "$y$": "yescrypt",
    "$argon2": "argon2",
    "{SHA}": "SHA-1 without salt",
    "{SSHA}": "SHA-1",
    "$2": "bcrypt that is damaged",
}


def _scheme(hashed: str) -> str:
    """What a hash that is none of ours is, for people; nothing of it stands there."""
    found = next((name for begin, name in _SCHEMES.items() if hashed.startswith(begin)), None)
    return found or "DES (crypt), or no hash at all"


def _users(path: str) -> dict[str, str]:
    """An htpasswd file; raises ConfigError with one line a fault. No hash stands in any."""
    try:
        with Path(path).open("rb") as handle:
            data = handle.read(_MAX_FILE + 1)
    except (OSError, ValueError) as error:
        raise ConfigError([f"{path}: {(getattr(error, 'strerror', None) or str(error)).lower()}"]) from None
    faults: list[str] = []
    users: dict[str, str] = {}
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, hashed = line.strip().partition(":")
        found = _BCRYPT.fullmatch(hashed)
        if not _NAME.fullmatch(name):
            faults.append(f"{path}:{number}: expected NAME:HASH, the name of 1 to 64 visible ASCII characters")
        elif found is None:
            faults.append(f"{path}:{number}: the hash of {name} is {_scheme(hashed)}, not bcrypt; use `htpasswd -B`")
        elif not 4 <= int(found[1]) <= _MAX_COST:
            faults.append(f"{path}:{number}: the hash of {name} costs more than {_MAX_COST}; `htpasswd -B -C 10`")
        else:
            users[name] = hashed
    if not users and not faults:
        faults.append(f"{path}: it has no user; `htpasswd -B -c {path} NAME` adds one")
    if len(users) > MAX_ENTRIES:
        faults.append(f"{path}: it has {len(users)} users; at most {MAX_ENTRIES} are taken")
    if faults:
        raise ConfigError(faults[:20])
    return users
