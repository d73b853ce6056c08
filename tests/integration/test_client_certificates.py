"""Mutual TLS as a second way in: a client's certificate stands for a token."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from websockets.exceptions import InvalidMessage, InvalidStatus

from tests.support.operators import Operator
from tests.support.peers import peer
from tests.support.running import book, port_of, running_server, settled
from tests.support.sockets import LOOPBACK, Certificate, certificate
from tunneld.errors import ConfigError


@dataclass(frozen=True)
class Authority:
    """A CA of the test's own."""

    folder: Path

    def make(self) -> Authority:
        self._run(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=agents "
            "-keyout ca.key -out ca.pem -addext basicConstraints=critical,CA:TRUE"
        )
        return self

    def issue(self, name: str) -> Certificate:
        self._run(
            "req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes "
            f"-subj /CN={name} -keyout {name}.key -out {name}.csr"
        )
        self._run(f"x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -out {name}.pem")
        return Certificate(self.folder / f"{name}.pem", self.folder / f"{name}.key")

    def _run(self, line: str) -> None:
        subprocess.run(["openssl", *line.split()], check=True, capture_output=True, cwd=self.folder)


def shown(server: Certificate, client: Certificate | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(server.cert))
    if client is not None:
        context.load_cert_chain(str(client.cert), str(client.key))
    return context


async def test_a_certificate_opens_what_its_token_says(folder: Path) -> None:
    ours, strangers = folder / "ours", folder / "strangers"
    for place in (ours, strangers):
        place.mkdir()
    authority, stranger = Authority(ours).make(), Authority(strangers).make()
    pinned, named, unknown = (authority.issue(name) for name in ("pinned", "agent-7", "unknown"))
    forged = stranger.issue("agent-7")
    own = certificate(folder)
    operator = Operator(folder / "server.yaml")
    status, fingerprint, _ = operator.run(f"token create app --certificate {pinned.cert}")
    assert status == 0
    assert fingerprint.startswith("sha256:")
    operator.do("token create web --tunnels web-* --subject agent-7")
    _, secret = operator.create("plain")
    tls = {"cert": str(own.cert), "key": str(own.key), "client_ca": str(ours / "ca.pem")}
    async with running_server(**operator.settings, tls=tls) as server:
        url = f"wss://{LOOPBACK}:{port_of(server)}"

        async def opens(client: Certificate | None, name: str, **options: Any) -> int:
            try:
                async with peer(url, name, ssl=shown(own, client), **options) as agent:
                    await agent.hello(instance=name)
                    return 101
            except InvalidStatus as error:
                return error.response.status_code

        bearer = {"additional_headers": {"Authorization": f"Bearer {secret}"}}
        assert await opens(pinned, "app") == 101
        assert await opens(named, "web-1") == 101
        assert await opens(named, "app") == 403
        assert await opens(unknown, "app") == 401
        assert await opens(None, "app") == 401
        assert await opens(None, "plain", **bearer) == 101
        assert await opens(pinned, "plain", **bearer) == 101  # the token that is sent is what counts
        with pytest.raises((OSError, InvalidMessage)):  # another's CA: refused in the handshake
            await opens(forged, "web-1")
        async with httpx.AsyncClient(verify=shown(own, None)) as visitor:  # visitors need none
            answer = await visitor.get(f"https://{LOOPBACK}:{port_of(server)}/healthz")
            assert answer.status_code == 200
        token = operator.do("token list").split()[0]
        async with peer(url, "app", ssl=shown(own, pinned)) as agent:
            await agent.hello(instance="again")
            operator.do(f"token revoke {token}")
            assert await agent.over() == ("revoked", 4003, "revoked")
        await settled(lambda: not server.connections)
        assert await opens(pinned, "app") == 401


async def test_a_reload_changes_whom_agents_certificates_are_believed_of_and_no_tunnel_falls(folder: Path) -> None:
    first_place, second_place = folder / "first", folder / "second"
    for place in (first_place, second_place):
        place.mkdir()
    first, second = Authority(first_place).make(), Authority(second_place).make()
    here, there = first.issue("agent"), second.issue("agent")
    own, renewed = certificate(folder), certificate(second_place)
    live = Certificate(folder / "live.pem", folder / "live.key")
    roots = folder / "roots.pem"
    for source, target in ((own.cert, live.cert), (own.key, live.key), (first_place / "ca.pem", roots)):
        shutil.copy(source, target)
    operator = Operator(folder / "server.yaml")
    operator.do("token create app --tunnels app-* --subject agent")
    file = folder / "reloaded.yaml"
    tls = {"cert": str(live.cert), "key": str(live.key), "client_ca": str(roots)}
    with book() as lines:
        async with running_server(**operator.settings, tls=tls) as server:
            url = f"wss://{LOOPBACK}:{port_of(server)}"
            file.write_text(yaml.safe_dump(server.config.model_dump(mode="json", exclude_unset=True)))
            server.path = str(file)
            async with peer(url, "app-1", ssl=shown(own, here)) as standing:
                await standing.hello(instance="one")
                with pytest.raises((OSError, InvalidMessage)):
                    async with peer(url, "app-2", ssl=shown(own, there)):
                        pass
                for source, target in (
                    (renewed.cert, live.cert),
                    (renewed.key, live.key),
                    (second_place / "ca.pem", roots),
                ):
                    shutil.copy(source, target)
                await server.reload()  # what a SIGHUP does; the files' change alone is noticed too
                await lines.wait("Certificate read again: tls")
                async with peer(url, "app-2", ssl=shown(renewed, there)) as newer:
                    await newer.hello(instance="two")
                with pytest.raises((OSError, InvalidMessage)):  # of the roots that are gone
                    async with peer(url, "app-3", ssl=shown(renewed, here)):
                        pass
                assert server.registry.find("app-1").online
                await standing.say({"type": "ping", "timestamp": "2026-01-01T00:00:00Z", "seq": 7})
                assert (await standing.want("pong"))["seq"] == 7
        assert not lines.find("✗ Tunnel error")


async def test_a_client_ca_that_cannot_be_read(folder: Path) -> None:
    own = certificate(folder)
    empty = folder / "empty.pem"
    empty.write_text("nothing")
    for path, words in (("/no/such.pem", "cannot be read"), (str(empty), "holds no certificate")):
        with pytest.raises(ConfigError, match=words) as caught:
            async with running_server(tls={"cert": str(own.cert), "key": str(own.key), "client_ca": path}):
                pass
        assert caught.value.faults[0].startswith("tls.client_ca: ")
