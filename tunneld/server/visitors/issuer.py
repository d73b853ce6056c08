"""The OpenID Connect issuer that visitors sign in at: its addresses and keys, held, and what is asked of it.

Everything that it answers is bounded in size and time, is asked for without blocking, and by one task for all who
wait. What was found once goes on to hold while it is down.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from base64 import b64encode
from dataclasses import dataclass
from time import monotonic
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from tunneld.config.login import LoginConfig, is_protected
from tunneld.config.proxies import proxy_for
from tunneld.errors import VisitorError
from tunneld.protocol.headers import Headers
from tunneld.server.visitors.claims import Keys, parsed
from tunneld.wire.fetch import FetchFailed, fetch
from tunneld.wire.tls import client_context

__all__ = ["Issuer", "Metadata", "Refusal"]

log = logging.getLogger("tunneld.login")

_URL = re.compile(r"[!-~]{1,2048}").fullmatch
_DISCOVERY = "/.well-known/openid-configuration"


class Refusal(ValueError):
    """The issuer answered, and not with what was asked for; the message is a sentence without secrets."""


@dataclass(frozen=True, slots=True)
class Metadata:
    """What is taken of an issuer's discovery document."""

    authorize: str
    token: str
    userinfo: str | None
    sign_out: str | None
    basic: bool
    says_issuer: bool


class Issuer:
    """One issuer.

    Args:
        config: the section `login`.

    Attributes:
        metadata: None: it was not reached yet.
        keys: the same.
    """

    def __init__(self, config: LoginConfig) -> None:
        self.config = config
        self.metadata: Metadata | None = None
        self.keys: Keys | None = None
        self._fetched = self._tried = float("-inf")
        self._why = ""
        self._fetching: asyncio.Task[None] | None = None
        self._context = client_context()  # with this machine's own roots, a company's among them

    async def close(self) -> None:
        """Ask no more."""
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.wait([self._fetching])

    @property
    def stale(self) -> bool:
        """Its keys should be fetched anew."""
        now = monotonic()
        return now - self._fetched > self.config.refresh and self.may_ask(now)

    def may_ask(self, now: float) -> bool:
        """Whether it was left alone for long enough."""
        return now - self._tried >= self.config.rest

    async def refresh(self) -> None:
        """Fetch its addresses and keys, one fetch for all who wait.

        Raises:
            VisitorError: ``login_unavailable``, and nothing of it is known yet.
        """
        if self._fetching is None and self.may_ask(monotonic()):
            self._tried = monotonic()
            self._fetching = asyncio.get_running_loop().create_task(self._fetch(), name="issuer")
            self._fetching.add_done_callback(self._done)
        if self._fetching is not None:
            await asyncio.wait([self._fetching])
        if self.metadata is None:
            raise self.unavailable(self._why)

    def unavailable(self, why: str) -> VisitorError:
        """What is answered while it cannot be used."""
        wait = max(1, int(self._tried + self.config.rest - monotonic()) + 1)
        return VisitorError("login_unavailable", f"{self.config.issuer}: {why}", retry_after=wait)

    async def redeem(self, code: str, verifier: str, redirect: str) -> dict[str, Any]:
        """The tokens of an authorization code (RFC 6749, 4.1.3).

        Raises:
            Refusal: the code is none, or was used.
            VisitorError: ``login_unavailable``.
        """
        assert self.metadata is not None
        config = self.config
        form = {"grant_type": "authorization_code", "code": code, "redirect_uri": redirect, "code_verifier": verifier}
        headers: Headers = [("Content-Type", "application/x-www-form-urlencoded")]
        if config.secret is None:
            form["client_id"] = config.client_id
        elif self.metadata.basic:
            pair = f"{quote(config.client_id, safe='')}:{quote(config.secret, safe='')}".encode()
            headers.append(("Authorization", f"Basic {b64encode(pair).decode()}"))
        else:
            form |= {"client_id": config.client_id, "client_secret": config.secret}
        try:
            status, body = await self._ask("POST", self.metadata.token, headers, urlencode(form).encode())
            said = parsed(body)
        except ValueError as error:
            log.error("The issuer %s cannot be used: %s", config.issuer, error)
            raise self.unavailable(str(error)) from None
        if status == 200:
            return said
        reason = said.get("error")
        reason = reason if isinstance(reason, str) and reason.isascii() and reason.isprintable() else "no reason"
        if status >= 500 or reason in ("invalid_client", "unauthorized_client"):
            log.error("The issuer %s refuses this server: %d %s", config.issuer, status, reason[:64])
            raise self.unavailable(f"it answers {status} ({reason[:64]})")
        raise Refusal(f"The issuer does not take the sign-in's code: {reason[:64]}.")

    async def userinfo(self, token: str) -> dict[str, Any]:
        """Claims of whoever has this access token; none where the issuer does not say."""
        assert self.metadata is not None
        if self.metadata.userinfo is None:
            return {}
        try:
            status, body = await self._ask("GET", self.metadata.userinfo, [("Authorization", f"Bearer {token}")])
            return parsed(body) if status == 200 else {}
        except ValueError as error:
            raise self.unavailable(str(error)) from None

    # -- inside ------------------------------------------------------------------------------------------

    def _done(self, task: asyncio.Task[None]) -> None:
        self._fetching = None
        if not task.cancelled() and (fault := task.exception()) is not None:
            self._why = "a fault of this server's"
            log.error("The issuer cannot be asked", exc_info=fault)

    async def _fetch(self) -> None:
        issuer = self.config.issuer
        try:
            found = parsed(await self._get(issuer.rstrip("/") + _DISCOVERY))
            metadata = _metadata(found, issuer)
            keys = Keys(parsed(await self._get(str(found["jwks_uri"]))))
        except ValueError as error:
            self._why = str(error)
            held = "; what is known of it goes on to hold" if self.metadata is not None else ""
            log.error("The issuer %s cannot be used: %s%s", issuer, error, held, extra={"issuer": issuer})
            return
        self.metadata, self.keys, self._fetched = metadata, keys, monotonic()

    async def _get(self, url: str) -> bytes:
        status, body = await self._ask("GET", url)
        if status != 200:
            raise ValueError(f"{urlsplit(url).path} answers {status}")
        return body

    async def _ask(self, method: str, url: str, headers: Headers | None = None, body: bytes = b"") -> tuple[int, bytes]:
        """An answer's status and body; raises ValueError, whose message holds nothing that was sent."""
        config = self.config
        said = [("Accept", "application/json"), *(headers or ())]
        try:
            proxy = proxy_for(url, None, os.environ)
            return await fetch(
                method,
                url,
                said,
                body,
                context=self._context,
                timeout=config.timeout,
                most=config.max_answer,
                proxy=proxy,
            )
        except FetchFailed as error:
            raise ValueError(str(error)) from None


def _metadata(said: dict[str, Any], issuer: str) -> Metadata:
    if said.get("issuer") != issuer:
        raise ValueError(
            f"it calls itself {str(said.get('issuer'))[:200]!r}; login.issuer must be the same, to the letter"
        )
    urls: dict[str, str | None] = {}
    for key in ("authorization_endpoint", "token_endpoint", "jwks_uri", "userinfo_endpoint", "end_session_endpoint"):
        url = said.get(key)
        if url is not None and not (isinstance(url, str) and _URL(url) and is_protected(url)):
            raise ValueError(f"its {key} is no https:// address")
        urls[key] = url
    authorize, token = urls["authorization_endpoint"], urls["token_endpoint"]
    if authorize is None or token is None or urls["jwks_uri"] is None:
        raise ValueError("its discovery document names no authorization_endpoint, token_endpoint or jwks_uri")
    methods = said.get("token_endpoint_auth_methods_supported")
    return Metadata(
        authorize=authorize,
        token=token,
        userinfo=urls["userinfo_endpoint"],
        sign_out=urls["end_session_endpoint"],
        basic=not isinstance(methods, list) or "client_secret_basic" in methods,
        says_issuer=said.get("authorization_response_iss_parameter_supported") is True,
    )
