"""What is measured: ours, and every peer that this machine has, each as two daemons on loopback."""

from __future__ import annotations

import abc
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from tests.bench.load import Where
from tests.support import usage
from tests.support.daemons import Pair
from tests.support.processes import ROOT, Process
from tests.support.sockets import LOOPBACK, certificate, free_ports

__all__ = ["PEERS", "Chisel", "Direct", "Frp", "FrpHttp", "Ours", "Ssh", "Target"]

BUILT = ROOT / ".bench" / "peers"


def _program(name: str) -> str | None:
    built = BUILT / name
    return str(built) if built.exists() else shutil.which(name)


class Target(abc.ABC):
    """One tunnel program; `start` brings both its daemons up in front of a service on loopback."""

    name: str
    where: Where

    @staticmethod
    @abc.abstractmethod
    def missing() -> str | None:
        """What has to be got before this one can be measured; None when it is there."""

    @abc.abstractmethod
    def start(self, folder: Path, service_port: int) -> None:
        """Start both daemons and wait until visitors are served."""

    @abc.abstractmethod
    def daemons(self) -> dict[str, Process]:
        """The two daemons: `agent` beside the service, `server` in public."""

    def cpu_each(self) -> dict[str, float]:
        """CPU seconds of each daemon so far."""
        return {name: usage.cpu_seconds(*process.family()) for name, process in self.daemons().items()}

    def stop(self) -> None:
        """End both."""
        for process in self.daemons().values():
            process.discard()


class Ours(Target):
    """tunneld: the tunnel over wss:// on a listener of its own, visitors over plain HTTP on another."""

    name = "tunneld"

    @staticmethod
    def missing() -> str | None:
        ready = all((ROOT / "tunneld" / role / "daemon.py").exists() for role in ("agent", "server"))
        return None if ready else "the daemons are not built yet"

    def start(self, folder: Path, service_port: int) -> None:
        limits: dict[str, Any] = {"limits": {"max_streams": 8000}, "log": {"level": "info", "format": "json"}}
        service = f"http://{LOOPBACK}:{service_port}"
        self.pair = Pair(folder, {"bench": service}, tls=certificate(folder), server=limits, agent=limits)
        self.where = Where(self.pair.server.port, "/t/bench")

    def daemons(self) -> dict[str, Process]:
        return {"agent": self.pair.agent.process, "server": self.pair.server.process}


class Direct(Target):
    """No tunnel at all: what the service and the load alone do here."""

    name = "direct"

    @staticmethod
    def missing() -> str | None:
        return None

    def start(self, folder: Path, service_port: int) -> None:
        self.where = Where(service_port)

    def daemons(self) -> dict[str, Process]:
        return {}


class _TwoPrograms(Target):
    _agent: Process
    _server: Process

    def daemons(self) -> dict[str, Process]:
        return {"agent": self._agent, "server": self._server}

    def _up(self, name: str, argv: list[str], *, port: int | None = None, line: str | None = None) -> Process:
        process = Process(argv, name=f"{self.name} {name}", keep=True)
        try:
            if line is not None:
                process.wait_line(line, timeout=15)
            if port is not None:
                process.wait_until(lambda: _listens(port), timeout=15, what=f"listening on {port}")
        except BaseException:
            process.discard()
            raise
        return process


def _listens(port: int) -> bool:
    """Whether someone listens, without connecting: a connection would already go through the tunnel."""
    wanted = f"{port:04X}"
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[1].endswith(":" + wanted):
                return True
    return False


class Chisel(_TwoPrograms):
    """chisel, a reverse TCP tunnel over SSH in a WebSocket."""

    name = "chisel"

    @staticmethod
    def missing() -> str | None:
        return None if _program("chisel") else "chisel: tests/bench/peers.sh builds it (needs Go)"

    def start(self, folder: Path, service_port: int) -> None:
        program = _program("chisel")
        assert program is not None
        port, public = free_ports(2)
        self.where = Where(public)
        argv = [program, "server", "--host", LOOPBACK, "--port", str(port), "--reverse"]
        self._server = self._up("server", argv, port=port)
        remote = f"R:{LOOPBACK}:{public}:{LOOPBACK}:{service_port}"
        self._agent = self._up("client", [program, "client", f"http://{LOOPBACK}:{port}", remote], line="Connected")
        self._server.wait_until(lambda: _listens(public), what=f"listening on {public}")


class Frp(_TwoPrograms):
    """frp with a TCP proxy; TLS between its two ends, which is its default."""

    name = "frp tcp"

    @staticmethod
    def missing() -> str | None:
        both = _program("frps") and _program("frpc")
        return None if both else "frp: tests/bench/peers.sh builds it (needs Go)"

    def start(self, folder: Path, service_port: int) -> None:
        frps, frpc = _program("frps"), _program("frpc")
        assert frps is not None
        assert frpc is not None
        port, public = free_ports(2)
        server, agent = folder / "frps.toml", folder / "frpc.toml"
        server.write_text(
            f'bindAddr = "{LOOPBACK}"\nproxyBindAddr = "{LOOPBACK}"\nbindPort = {port}\n' + self._server_keys(public)
        )
        agent.write_text(
            f'serverAddr = "{LOOPBACK}"\nserverPort = {port}\n[[proxies]]\nname = "bench"\nlocalIP = "{LOOPBACK}"\n'
            f"localPort = {service_port}\n" + self._proxy_keys(public)
        )
        self.where = self._where(public)
        self._server = self._up("frps", [frps, "-c", str(server)], port=port)
        self._agent = self._up("frpc", [frpc, "-c", str(agent)], line="start proxy success")
        self._server.wait_until(lambda: _listens(public), what=f"listening on {public}")

    def _server_keys(self, public: int) -> str:
        return ""

    def _proxy_keys(self, public: int) -> str:
        return f'type = "tcp"\nremotePort = {public}\n'

    def _where(self, public: int) -> Where:
        return Where(public)


class FrpHttp(Frp):
    """frp with its HTTP proxy, which reads requests as ours does."""

    name = "frp http"

    def _server_keys(self, public: int) -> str:
        return f"vhostHTTPPort = {public}\n"

    def _proxy_keys(self, public: int) -> str:
        return 'type = "http"\ncustomDomains = ["bench.localhost"]\n'

    def _where(self, public: int) -> Where:
        return Where(public, "", "bench.localhost")


class Ssh(_TwoPrograms):
    """OpenSSH: `ssh -R` to an sshd of its own."""

    name = "ssh -R"

    @staticmethod
    def missing() -> str | None:
        if os.geteuid() != 0:
            return "ssh -R: the bench starts sshd as root only"
        found = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin") and shutil.which("ssh")
        return None if found else "ssh -R: apt-get install openssh-server openssh-client"

    def start(self, folder: Path, service_port: int) -> None:
        port, public = free_ports(2)
        host_key, key = folder / "host_key", folder / "key"
        for path in (host_key, key):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
        (folder / "authorized").write_text((folder / "key.pub").read_text())
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        config = folder / "sshd_config"
        config.write_text(
            f"Port {port}\nListenAddress {LOOPBACK}\nHostKey {host_key}\nAuthorizedKeysFile {folder}/authorized\n"
            f"PidFile none\nUsePAM no\nStrictModes no\nPermitRootLogin prohibit-password\nLogLevel ERROR\n"
        )
        sshd = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
        assert sshd is not None
        self._server = self._up("sshd", [sshd, "-D", "-e", "-f", str(config)], port=port)
        options = ["StrictHostKeyChecking=no", f"UserKnownHostsFile={folder}/known", "ExitOnForwardFailure=yes"]
        argv = ["ssh", "-N", "-F", "none", "-i", str(key), "-p", str(port)]
        for option in [*options, "IdentitiesOnly=yes", "LogLevel=ERROR"]:
            argv += ["-o", option]
        argv += ["-R", f"{LOOPBACK}:{public}:{LOOPBACK}:{service_port}", f"root@{LOOPBACK}"]
        self._agent = self._up("ssh", argv, port=public)
        self.where = Where(public)


PEERS: dict[str, type[Target]] = {"chisel": Chisel, "frp": Frp, "frp-http": FrpHttp, "ssh": Ssh, "direct": Direct}
