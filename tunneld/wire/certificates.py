"""The certificates of one listener: chosen by SNI, and read again when their files change.

Connections that stand, and handshakes under way, keep what they have. A pair that cannot be used changes nothing.
"""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tunneld.errors import ConfigError

__all__ = ["Certificates", "Pair", "describe"]

_ALT_NAMES = bytes.fromhex("551d11")  # the object identifier 2.5.29.17
_SEQUENCE, _OID, _OCTETS, _DNS_NAME, _EXTENSIONS, _VERSION = 0x30, 0x06, 0x04, 0x82, 0xA3, 0xA0
_UTC_TIME = 0x17


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate's files.

    Attributes:
        cert: path of the chain in PEM.
        key: path of its key.
        where: the configuration key above them.
        client_ca: path of the roots that vouch for peers' certificates; None: none is asked for.
    """

    cert: str
    key: str
    where: str
    client_ca: str | None = None


@dataclass(frozen=True, slots=True)
class _Loaded:
    context: ssl.SSLContext
    names: frozenset[str]
    until: datetime | None


class Certificates:
    """What a listener shows its peers.

    Args:
        pairs: the first for every name that no other is for.
        make: a context of (certificate, key, where); raises ConfigError.

    Raises:
        ConfigError: a pair cannot be used: one line each.

    Attributes:
        context: for the listener; it stays the same.
    """

    def __init__(self, pairs: Sequence[Pair], make: Callable[[Pair], ssl.SSLContext]) -> None:
        self._pairs = tuple(pairs)
        self._make = make
        self._seen = self._state()
        self._loaded = self._load()
        self.context = self._loaded[0].context
        self.context.sni_callback = self._choose

    @property
    def paths(self) -> list[str]:
        """Of every file."""
        found = [path for pair in self._pairs for path in (pair.cert, pair.key, pair.client_ca) if path is not None]
        return list(dict.fromkeys(found))

    @property
    def where(self) -> str:
        """The configuration key of the first pair."""
        return self._pairs[0].where

    @property
    def until(self) -> list[tuple[str, datetime]]:
        """(path, last moment of validity) of each certificate that says one."""
        return [(pair.cert, one.until) for pair, one in zip(self._pairs, self._loaded, strict=True) if one.until]

    def reload(self) -> bool:
        """Read the files again; False when they are what they were.

        Raises:
            ConfigError: they cannot be used; what was read before still holds.
        """
        state = self._state()
        if state == self._seen:
            return False
        self._seen = state  # also of files that cannot be used: what is wrong with them is said once
        self._loaded = self._load()
        return True

    def _load(self) -> list[_Loaded]:
        loaded: list[_Loaded] = []
        faults: list[str] = []
        for pair in self._pairs:
            try:
                context = self._make(pair)
                names, until = describe(Path(pair.cert).read_bytes())
                loaded.append(_Loaded(context, names, until))
            except OSError as error:
                faults.append(f"{pair.where}.cert: {pair.cert} cannot be read: {error.strerror}")
            except ConfigError as error:
                faults += error.faults
        if faults:
            raise ConfigError(faults)
        return loaded

    def _state(self) -> bytes:
        """A digest of all files as they are."""
        digest = hashlib.sha256()
        for path in self.paths:
            try:
                digest.update(hashlib.sha256(Path(path).read_bytes()).digest())
            except OSError:
                digest.update(b"none")
        return digest.digest()

    def _choose(self, handshake: ssl.SSLObject | ssl.SSLSocket, name: str | None, context: ssl.SSLContext) -> None:
        """Called by ``ssl`` in each handshake, with the name that the peer asks for if it asks for one."""
        chosen = self.find(name)
        if chosen is not context:
            handshake.context = chosen

    def find(self, name: str | None) -> ssl.SSLContext:
        """The context for a name: an exact one before a wildcard before the first."""
        if name and len(self._loaded) > 1:
            bare = name.lower().removesuffix(".")
            for wanted in (bare, f"*.{bare.partition('.')[2]}"):
                for one in self._loaded:
                    if wanted in one.names:
                        return one.context
        return self._loaded[0].context


def describe(pem: bytes) -> tuple[frozenset[str], datetime | None]:
    """The DNS names that a certificate (the first of the file) is for, and how long it is valid.

    Python's ``ssl`` tells neither of a certificate of one's own. Nothing is checked here: OpenSSL has taken it.
    """
    text = pem.decode("latin-1")
    begin, end = text.find("-----BEGIN CERTIFICATE-----"), text.find("-----END CERTIFICATE-----")
    try:
        der = ssl.PEM_cert_to_DER_cert(text[begin : end + len("-----END CERTIFICATE-----")])
        _, start, stop = _tlv(der, 0)
        _, start, stop = _tlv(der, start)  # tbsCertificate
        fields = [field for field in _items(der, start, stop) if field[0] != _VERSION]
        return _dns_names(der, fields), _not_after(der, fields)
    except (ValueError, IndexError):
        return frozenset(), None


def _tlv(der: bytes, at: int) -> tuple[int, int, int]:
    """(tag, where the value begins, where it ends) of what stands at `at` (X.690, 8.1)."""
    tag, length = der[at], der[at + 1]
    at += 2
    if length & 0x80:
        size = length & 0x7F
        length = int.from_bytes(der[at : at + size], "big")
        at += size
    return tag, at, at + length


def _items(der: bytes, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    while start < stop:
        item = _tlv(der, start)
        yield item
        start = item[2]


def _dns_names(der: bytes, fields: list[tuple[int, int, int]]) -> frozenset[str]:
    found: set[str] = set()
    for tag, start, _ in fields:
        if tag != _EXTENSIONS:
            continue
        _, start, stop = _tlv(der, start)
        for _, one, one_end in _items(der, start, stop):
            parts = list(_items(der, one, one_end))
            if der[parts[0][1] : parts[0][2]] != _ALT_NAMES:
                continue
            _, start, stop = _tlv(der, parts[-1][1])  # inside its OCTET STRING
            found |= {
                der[a:b].decode("latin-1").lower() for kind, a, b in _items(der, start, stop) if kind == _DNS_NAME
            }
    return frozenset(found)


def _not_after(der: bytes, fields: list[tuple[int, int, int]]) -> datetime | None:
    _, start, stop = fields[3]  # serial, algorithm, issuer, validity
    tag, start, stop = list(_items(der, start, stop))[1]
    text = der[start:stop].decode("ascii")
    if tag == _UTC_TIME:  # two digits of the year (RFC 5280, 4.1.2.5.1)
        text = ("19" if text >= "50" else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)
