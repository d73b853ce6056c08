"""A small OpenID Connect issuer in the test's own loop, which signs for real and misbehaves when it is told to.

The real one of tests/e2e is oidc-provider; this one is for what no good provider does.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from time import time
from typing import Any
from urllib.parse import parse_qs

import jwt
from cryptography.hazmat.primitives.asymmetric import ec

from tests.support.sockets import LOOPBACK

__all__ = ["CLIENT", "FakeIssuer", "issuer"]

CLIENT = "tunneld-client"


def key_id(number: int) -> str:
    return f"key-{number}"


class FakeIssuer:
    """What it answers; the test changes it.

    Attributes:
        claims: of whoever signs in, over those that are made.
        bodies: path -> raw answer in place of its own.
        hanging: paths that are never answered.
        asked: paths of the requests that came.
        clock: seconds added to the clock that tokens are made by.
    """

    def __init__(self) -> None:
        self.url = ""
        self.claims: dict[str, Any] = {}
        self.bodies: dict[str, bytes] = {}
        self.hanging: set[str] = set()
        self.asked: list[str] = []
        self.clock = 0.0
        self.codes: dict[str, dict[str, str]] = {}
        self.status = 200
        self.secrets: list[str | None] = []
        self._number = 0
        self._keys: dict[str, ec.EllipticCurvePrivateKey] = {}
        self.rotate()

    def rotate(self, *, keep: bool = False) -> None:
        """Sign with a new key from now on."""
        self._number += 1
        kept = self._keys if keep else {}
        self._keys = {**kept, key_id(self._number): ec.generate_private_key(ec.SECP256R1())}

    def sign(self, claims: dict[str, Any], **header: Any) -> str:
        """A JWT of the newest key."""
        kid = key_id(self._number)
        return jwt.encode(claims, self._keys[kid], "ES256", headers={"kid": kid, **header})

    def token(self, audience: str, **more: Any) -> str:
        """A bearer token of whoever may come."""
        now = time() + self.clock
        said = {"iss": self.url, "aud": audience, "sub": "1", "iat": int(now), "exp": int(now) + 600}
        return self.sign({**said, "email": "ann@example.org", "email_verified": True, **more})

    def code(self, address: str, **claims: Any) -> str:
        """Sign somebody in who was sent to this authorization address: a code for the callback."""
        query = {name: values[0] for name, values in parse_qs(address.partition("?")[2]).items()}
        made = f"code-{len(self.codes)}-{self._number}"
        self.codes[made] = {**query, **claims}
        self.claims = {**self.claims, **claims}
        return made

    # -- inside ------------------------------------------------------------------------------------------

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                first, *lines = head.split("\r\n")
                fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
                body = await reader.readexactly(int(fields.get("content-length", 0)))
                path = first.split(" ")[1]
                self.asked.append(path)
                if path in self.hanging:
                    await asyncio.Event().wait()
                status, answer = self._answer(path, parse_qs(body.decode()), fields)
                answer = self.bodies.get(path, answer)
                writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: {len(answer)}\r\n\r\n".encode() + answer)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def _answer(self, path: str, form: dict[str, list[str]], fields: dict[str, str]) -> tuple[int, bytes]:
        if path == "/.well-known/openid-configuration":
            said: dict[str, Any] = {"issuer": self.url} | {
                key: self.url + where
                for key, where in {
                    "authorization_endpoint": "/auth",
                    "token_endpoint": "/token",
                    "jwks_uri": "/jwks",
                    "end_session_endpoint": "/out",
                }.items()
            }
        elif path == "/jwks":
            keys = [
                (kid, json.loads(jwt.algorithms.ECAlgorithm.to_jwk(k.public_key()))) for kid, k in self._keys.items()
            ]
            said = {"keys": [{**public, "kid": kid, "use": "sig", "alg": "ES256"} for kid, public in keys]}
        elif path == "/token":
            return self._redeem({name: values[0] for name, values in form.items()}, fields)
        else:
            return 404, b"{}"
        return self.status, json.dumps(said).encode()

    def _redeem(self, form: dict[str, str], fields: dict[str, str]) -> tuple[int, bytes]:
        self.secrets.append(fields.get("authorization"))
        begun = self.codes.pop(form.get("code", ""), None)
        proof = sha256(form.get("code_verifier", "").encode()).digest()
        if begun is None or jwt.utils.base64url_encode(proof).decode() != begun["code_challenge"]:
            return 400, b'{"error": "invalid_grant"}'
        if begun["redirect_uri"] != form["redirect_uri"]:
            return 400, b'{"error": "invalid_grant"}'
        now = int(time() + self.clock)
        said = {"iss": self.url, "aud": CLIENT, "sub": "1", "iat": now, "exp": now + 300, "nonce": begun["nonce"]}
        email = {"email": "ann@example.org", "email_verified": True}
        token = self.sign({**said, **email, **self.claims})
        return self.status, json.dumps({"id_token": token, "access_token": "a", "token_type": "Bearer"}).encode()


@asynccontextmanager
async def issuer() -> AsyncIterator[FakeIssuer]:
    """A running one."""
    made = FakeIssuer()
    running: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(made.serve(reader, writer))
        running.add(task)
        task.add_done_callback(running.discard)

    server = await asyncio.start_server(connected, LOOPBACK, 0)
    made.url = f"http://{LOOPBACK}:{server.sockets[0].getsockname()[1]}"
    try:
        yield made
    finally:
        server.close()
        for task in list(running):
            task.cancel()
        if running:
            await asyncio.wait(running)
