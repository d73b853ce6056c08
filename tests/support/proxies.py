"""nginx and Caddy before a server, each with the configuration that is shipped: only names, ports and files change."""

from __future__ import annotations

import functools
from pathlib import Path

from tests.support.processes import ROOT, Process
from tests.support.sockets import LOOPBACK, Certificate, accepts, free_port

__all__ = ["Proxy"]

SHIPPED = ROOT / "packaging/proxies"


def _replaced(text: str, changes: dict[str, str]) -> str:
    for old, new in changes.items():
        assert old in text, f"{old!r} does not stand in the shipped file any more: mend this list"
        text = text.replace(old, new)
    return text


class Proxy:
    """A running reverse proxy with TLS on `port`.

    Args:
        kind: ``nginx`` or ``caddy``.
        program: its path.
        folder: where its files go.
        upstream: the server's port; it may be started later.
        tls: for localhost.
    """

    def __init__(self, kind: str, program: str, folder: Path, upstream: int, tls: Certificate) -> None:
        self.kind = kind
        self.port = free_port()
        self.url = f"https://localhost:{self.port}"
        self._folder = folder
        command = (self._nginx if kind == "nginx" else self._caddy)(program, upstream, tls)
        home = {"HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
        self.process = Process(command, name=kind, env=home)
        try:
            ready = functools.partial(accepts, self.port)
            self.process.wait_until(ready, timeout=20, what=f"listening on {self.port}")
        except BaseException:
            self.process.discard()
            raise

    def _nginx(self, program: str, upstream: int, tls: Certificate) -> list[str]:
        site = self._folder / "tunneld.conf"
        changes = {
            "listen 443 ssl http2;": f"listen {LOOPBACK}:{self.port} ssl http2;",
            "    listen [::]:443 ssl http2;\n": "",
            "server 127.0.0.1:8440;": f"server {LOOPBACK}:{upstream};",
            "tunnel.example.org *.tunnel.example.org": "localhost",
            "/etc/ssl/tunnel.pem": str(tls.cert),
            "/var/log/nginx/access.log": str(self._folder / "access.log"),
            "/etc/ssl/tunnel.key": str(tls.key),
        }
        site.write_text(_replaced((SHIPPED / "nginx.conf").read_text(), changes))
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        temporary = "".join(f"{kind}_temp_path {self._folder}/{kind};" for kind in kinds)
        main = self._folder / "main.conf"
        main.write_text(
            f"daemon off; user root; pid {self._folder}/nginx.pid; error_log stderr notice;\n"
            f"events {{}}\nhttp {{ access_log off; {temporary} include {site}; }}\n"
        )
        return [program, "-e", "stderr", "-c", str(main)]

    def _caddy(self, program: str, upstream: int, tls: Certificate) -> list[str]:
        file = self._folder / "Caddyfile"
        here = f"https://localhost:{self.port} {{\n\ttls {tls.cert} {tls.key}"
        changes = {
            "\n{\n": "\n{\n\tadmin off\n\tauto_https disable_redirects\n",
            "\ntunnel.example.org {": f"\n{here}",
            "127.0.0.1:8440 {": f"{LOOPBACK}:{upstream} {{",
        }
        file.write_text(_replaced((SHIPPED / "Caddyfile").read_text(), changes))
        return [program, "run", "--adapter", "caddyfile", "--config", str(file)]

    def logged(self) -> str:
        """All that it has written down, of requests and of faults."""
        access = self._folder / "access.log"
        lines = "\n".join(line.text for line in self.process.lines)
        return lines + (access.read_text() if access.exists() else "")

    def close(self) -> None:
        """End it."""
        self.process.discard()
