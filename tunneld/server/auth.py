"""Who may open tunnels: the one place where a credential is judged."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from time import monotonic, time

from tunneld.config.server import ServerConfig
from tunneld.errors import ConfigError, VisitorError
from tunneld.server.credentials import Credentials
from tunneld.server.principals import AGENT, OPEN, OPEN_OWNER, Principal
from tunneld.server.tokens import looks_whole
from tunneld.telemetry.failures import Failures
from tunneld.wire.http1 import RequestHead
from tunneld.wire.tls import Certificate

__all__ = ["Gate", "bearer_of", "check_listeners"]

log = logging.getLogger("tunneld.auth")

_WHY = {
    "none": "and none was sent.",
    "form": "and what was sent is no bearer token.",
    "unknown": "and the one that was sent opens nothing here.",
    "mistyped": "and the one that was sent was cut or mistyped: its checksum does not fit.",
    "expired": "and the one that was sent has expired.",
    "revoked": "and the one that was sent was revoked.",
    "rotated": "and the one that was sent was replaced by a newer one.",
    "scope": "and the one that was sent opens the admin API, not tunnels.",
    "certificate": "and the client certificate that was sent opens nothing here.",
}


def check_listeners(config: ServerConfig) -> None:
    """Refuse a configuration that would let strangers in; raises ConfigError."""
    if config.auth.mode != "open":
        return
    faults = [
        f"auth.mode: open lets everybody open tunnels, so it only goes with listeners on loopback or on a Unix "
        f"socket; {listener} is neither"
        for listener in config.listen
        if "tunnels" in listener.serve and not listener.loopback
    ]
    if faults:
        raise ConfigError(faults)


class Gate:
    """Decides about each dial before its upgrade, from memory: it never waits.

    Args:
        config: the server's; `configure` changes it.
        credentials: what is good now.
        clock: seconds since the epoch, for what expires.
    """

    def __init__(self, config: ServerConfig, credentials: Credentials, *, clock: Callable[[], float] = time) -> None:
        self.credentials = credentials
        self._clock = clock
        auth = config.auth
        self._open = auth.mode == "open"
        self._failures = Failures(most=auth.max_failures, window=auth.failure_window)

    def configure(self, config: ServerConfig) -> None:
        """Let another configuration hold from now on."""
        self._open = config.auth.mode == "open"
        self._failures.configure(most=config.auth.max_failures, window=config.auth.failure_window)

    def dial(self, head: RequestHead, name: str, *, address: str, certificate: Certificate | None = None) -> Principal:
        """Who asks for the tunnel `name`, and may have it.

        Args:
            address: of the agent, for the count of failures and the log.
            certificate: of a client that the listener's `client_ca` vouches for.

        Raises:
            VisitorError: ``unauthorized``, ``rate_limited`` or ``name_not_allowed``.
        """
        if self._open:
            return OPEN
        sent = [value for key, value in head.headers if key.lower() == "authorization"]
        if certificate is not None and not sent:
            principal, why = self.credentials.by_certificate(certificate, self._clock())
            if principal is None:
                raise self._refused(address, "certificate" if why == "unknown" else why, name)
        else:
            principal = self.bearer(bearer_of(sent), address=address, name=name)
        return self.allowed(principal, name)

    def bearer(self, secret: str | None, *, address: str, name: str) -> Principal:
        """Whose token that is; None: none was sent, "": something else was. Raises as `dial`, but for the name."""
        return OPEN if self._open else self._judge(secret, address, name)

    def legacy(self, secret: str | None, *, address: str) -> Principal:
        """Whose token stands in the base address of a client of the older dialect, whatever `auth.mode` is.

        Raises:
            VisitorError: ``unauthorized`` or ``rate_limited``.
        """
        return self._judge(secret, address, "")

    def _judge(self, secret: str | None, address: str, name: str) -> Principal:
        if not secret:
            raise self._refused(address, "none" if secret is None else "form", name)
        principal, why = self.credentials.by_secret(secret, self._clock())
        if principal is None:
            if why == "unknown" and secret.startswith("tnl_") and not looks_whole(secret):
                why = "mistyped"
            raise self._refused(address, why, name)
        if AGENT not in principal.scopes:
            raise self._refused(address, "scope", name)
        return principal

    def allowed(self, principal: Principal, name: str) -> Principal:
        """The same, when it may have that name; raises VisitorError ``name_not_allowed``."""
        if not principal.opens(name):
            raise VisitorError("name_not_allowed", f"The token {principal.name} opens no tunnel named {name}.")
        return principal

    def alive(self, principal: Principal) -> bool:
        """Whether somebody who was let in would be let in still."""
        if principal.id == OPEN_OWNER:
            return self._open
        return self.credentials.alive(principal, self._clock())

    def _refused(self, address: str, why: str, name: str) -> VisitorError:
        """Count and log a failure; the line is what packaging/fail2ban reads."""
        wait = self._failures.note(address, monotonic())
        if wait is not None:
            return VisitorError(
                "rate_limited", "Too many wrong credentials came from this address.", retry_after=math.ceil(wait)
            )
        log.warning(
            "Refused a credential from %s: %s",
            address,
            why,
            extra={"peer": address, "reason": why, "tunnel": name},
        )
        needs = f"The tunnel {name} needs a token" if name else "A base address /v2/TOKEN is needed"
        return VisitorError("unauthorized", f"{needs}, {_WHY[why]}")


def bearer_of(values: list[str]) -> str | None:
    """The secret of an ``Authorization: Bearer …``; "" for any other that was sent, None when none was."""
    if not values:
        return None
    scheme, _, secret = values[0].strip(" \t").partition(" ")
    secret = secret.strip(" \t")
    return secret if len(values) == 1 and scheme.lower() == "bearer" and " " not in secret else ""
