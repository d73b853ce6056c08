"""The credentials that are good now, in memory: a dial is judged without waiting for the store.

The view is replaced whole when the store says that something changed (`ServerDaemon`).
"""

from __future__ import annotations

from collections.abc import Iterable
from hmac import compare_digest

from tunneld.server.principals import AGENT, Limits, Principal
from tunneld.server.store.records import Owner, Token
from tunneld.server.tokens import digest
from tunneld.wire.tls import Certificate

__all__ = ["Credentials"]

_NOBODY = bytes(32)


class Credentials:
    """Every token of the store, found by the hash of its secret or by a certificate."""

    def __init__(self) -> None:
        self._tokens: dict[str, Token] = {}
        self._owners: dict[str, Owner] = {}
        #: first octets of a digest -> (digest, id of its token). Who tries chooses no digest, so that where one is
        #: looked up tells nothing of another; the comparison itself takes as long whichever octet differs.
        self._digests: dict[bytes, list[tuple[bytes, str]]] = {}
        self._certificates: dict[str, list[str]] = {}

    def __len__(self) -> int:
        return len(self._tokens)

    def replace(self, tokens: Iterable[Token], owners: Iterable[Owner] = ()) -> None:
        """Hold these from now on."""
        self._owners = {owner.id: owner for owner in owners}
        self._tokens = {token.id: token for token in tokens}
        self._digests = {}
        self._certificates = {}
        for token in self._tokens.values():
            for secret in (token.digest, token.old_digest):
                if secret is not None:
                    self._digests.setdefault(secret[:4], []).append((secret, token.id))
            if token.certificate is not None:
                self._certificates.setdefault(token.certificate, []).append(token.id)

    def one_owner(self, now: float) -> bool:
        """Whether all tunnels that are opened now are one owner's."""
        live = (one for one in self._tokens.values() if AGENT in one.scopes and one.state(now) == "live")
        return len({token.owner or token.id for token in live}) <= 1

    def get(self, token_id: str) -> Token | None:
        """The token of that id, good or gone."""
        return self._tokens.get(token_id)

    def owner(self, owner_id: str) -> Owner | None:
        """The owner of that id, removed ones too."""
        return self._owners.get(owner_id)

    def owners(self) -> list[Owner]:
        """Every owner, removed ones too."""
        return list(self._owners.values())

    def holder(self, holder_id: str) -> Token | Owner | None:
        """Whom a name belongs to."""
        return self._owners.get(holder_id) or self._tokens.get(holder_id)

    def all(self) -> list[Token]:
        """Every token, good or gone."""
        return list(self._tokens.values())

    def by_secret(self, secret: str, now: float) -> tuple[Principal | None, str]:
        """(who it is, "") or (None, why not: ``unknown``, ``expired``, ``revoked`` or ``rotated``)."""
        tried = digest(secret)
        found: str | None = None
        for kept, token_id in self._digests.get(tried[:4]) or [(_NOBODY, "")]:
            if compare_digest(kept, tried):
                found = token_id
        if found is None:
            return None, "unknown"
        return self._judge(self._tokens[found], tried, now)

    def by_certificate(self, certificate: Certificate, now: float) -> tuple[Principal | None, str]:
        """As `by_secret`. Of several tokens for one certificate the first good one counts."""
        why = "unknown"
        for key in (f"sha256:{certificate.fingerprint}", f"subject:{certificate.subject}"):
            for token_id in self._certificates.get(key, ()):
                principal, why = self._judge(self._tokens[token_id], key.encode(), now)
                if principal is not None:
                    return principal, ""
        return None, why

    def alive(self, principal: Principal, now: float) -> bool:
        """Whether the credential that somebody came with is still good."""
        token = self._tokens.get(principal.token)
        return token is not None and self._judge(token, principal.credential, now)[0] is not None

    def next_end(self, now: float) -> float | None:
        """When the next one ends by itself; None: none does."""
        ends = (end for token in self._tokens.values() for end in (token.expires, token.old_until))
        return min((end for end in ends if end is not None and end > now), default=None)

    def _judge(self, token: Token, credential: bytes, now: float) -> tuple[Principal | None, str]:
        state = token.state(now)
        if state != "live":
            return None, state
        known = {token.digest, token.certificate.encode() if token.certificate is not None else None}
        expires = token.expires
        if token.old_until is not None and token.old_until > now and credential == token.old_digest:
            expires = token.old_until if expires is None else min(expires, token.old_until)
        elif credential not in known:
            return None, "rotated"
        owner = self._owners.get(token.owner) if token.owner is not None else None
        if token.owner is not None and (owner is None or owner.removed is not None):
            return None, "revoked"
        principal = Principal(
            token.owner or token.id,
            token.name,
            token.tunnels,
            token.limits,
            frozenset(token.scopes),
            token=token.id,
            owner_name=owner.name if owner is not None else None,
            quota=owner.limits if owner is not None else Limits(),
            max_names=owner.tunnels if owner is not None else 0,
            credential=credential,
            expires=expires,
        )
        return principal, ""
