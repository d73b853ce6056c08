"""`tunneld server` and `tunneld agent` as users start them: own processes, generated files, loopback ports."""

from __future__ import annotations

import functools
import json
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.support.held import handed
from tests.support.processes import ROOT, Process, clean_environment, python_module
from tests.support.sockets import LOOPBACK, Certificate, accepts, free_ports

__all__ = ["Agent", "Pair", "Server", "merged"]

START = 20.0  # seconds; a shared machine imports slowly


def merged(base: Mapping[str, Any], over: Mapping[str, Any] | None) -> dict[str, Any]:
    """`base` with `over` laid on it, mappings key by key."""
    result = dict(base)
    for key, value in (over or {}).items():
        if isinstance(value, Mapping) and isinstance(result.get(key), Mapping):
            result[key] = merged(result[key], value)
        else:
            result[key] = value
    return result


def _write(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(yaml.safe_dump(dict(document), sort_keys=False, allow_unicode=True))
    path.chmod(0o600)


class Server:
    """A running tunnel server: visitors over plain HTTP on `port`, tunnels on `tunnel_port`.

    Without a certificate the two are one listener. `settings` is laid over the generated file; where it brings
    its own `listen`, `ports` says the two ports that stand there. `held` are listening sockets that the caller keeps,
    as systemd does, and that every process of the server gets.
    """

    #: What `python -m` runs; a test may put a program around it.
    module = "tunneld"

    def __init__(
        self,
        folder: Path,
        *,
        tls: Certificate | None = None,
        settings: Mapping[str, Any] | None = None,
        ports: tuple[int, int] | None = None,
        held: Sequence[socket.socket] = (),
    ) -> None:
        self.folder = folder
        self.tls = tls
        self.held = held
        self.port, second, self.admin_port = free_ports(3)
        self.tunnel_port = second if tls else self.port
        if ports is not None:
            self.port, self.tunnel_port = ports
        self.file = folder / "server.yaml"
        self.settings = merged(self._base(), settings)
        self.process = self._start()

    def _base(self) -> dict[str, Any]:
        listen: list[dict[str, Any]] = [{"host": LOOPBACK, "port": self.port}]
        if self.tls is not None:
            listen[0]["serve"] = ["visitors"]
            tls = {"cert": str(self.tls.cert), "key": str(self.tls.key)}
            listen.append({"host": LOOPBACK, "port": self.tunnel_port, "tls": tls, "serve": ["tunnels"]})
        return {
            "listen": listen,
            "admin": {"listen": {"host": LOOPBACK, "port": self.admin_port}},
            "public_url": f"http://{LOOPBACK}:{self.port}",
            "domain": "localhost",
            "auth": {"mode": "open"},
            "store": "memory:",
            "log": {"level": "debug", "format": "json"},
        }

    def command(self, *args: str) -> list[str]:
        """What is run; a test of another version runs that one's program."""
        return python_module(self.module, *args)

    def _start(self) -> Process:
        _write(self.file, self.settings)
        command = self.command("server", "--config", str(self.file))
        process = handed(self.held, command, name="server") if self.held else Process(command, name="server")
        try:
            if self.held:  # a port that is held takes connections before anybody serves
                process.wait_line("Listening on", timeout=START)
            for port in {self.port, self.tunnel_port}:
                process.wait_until(functools.partial(accepts, port), timeout=START, what=f"listening on {port}")
        except BaseException:
            process.discard()
            raise
        return process

    def restart(self) -> None:
        """A new process on the same ports with the same file, after the old one has ended."""
        assert not self.process.running
        self.process = self._start()

    def rewrite(self, settings: Mapping[str, Any]) -> None:
        """Lay `settings` over the file; the daemon is not told."""
        self.settings = merged(self.settings, settings)
        _write(self.file, self.settings)

    @property
    def tunnel_url(self) -> str:
        """What agents dial."""
        return f"{'wss' if self.tls else 'ws'}://{LOOPBACK}:{self.tunnel_port}"

    def url(self, tunnel: str, path: str = "/") -> str:
        """The public address of a path of a tunnel."""
        return f"http://{LOOPBACK}:{self.port}/t/{tunnel}{path}"


class Agent:
    """A running agent; `tunnels` maps names to services' addresses or to whole tunnel sections."""

    module = "tunneld"

    def __init__(
        self,
        folder: Path,
        server: Server,
        tunnels: Mapping[str, str | Mapping[str, Any]],
        *,
        settings: Mapping[str, Any] | None = None,
        online: bool = True,
        name: str = "agent",
    ) -> None:
        self.folder = folder
        self.name = name
        self.file = folder / f"{name}.yaml"
        self.socket = folder / f"{name}.sock"
        self.tunnels = [
            {"name": key, **({"service": value} if isinstance(value, str) else value)} for key, value in tunnels.items()
        ]
        base: dict[str, Any] = {
            "server": {"url": server.tunnel_url},
            "tunnels": self.tunnels,
            "reconnect": {"initial": "100ms", "max": "2s"},
            "control": {"socket": str(self.socket)},
            "log": {"level": "debug", "format": "json"},
        }
        if server.tls is not None:
            base["server"]["ca_file"] = str(server.tls.cert)
        self.settings = merged(base, settings)
        self.online = online
        self.process = self._start()

    def command(self, *args: str) -> list[str]:
        """What is run; a test of another version runs that one's program."""
        return python_module(self.module, *args)

    def _start(self) -> Process:
        _write(self.file, self.settings)
        process = Process(self.command("agent", "--config", str(self.file)), name=self.name)
        try:
            if self.online:
                for tunnel in self.tunnels:
                    process.wait_line(f"✓ Tunnel established: {tunnel['name']}", timeout=START)
            process.wait_until(self._answers, timeout=START, what="answering on its control socket")
        except BaseException:
            process.discard()
            raise
        return process

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1)
            return probe.connect_ex(str(self.socket)) == 0

    def restart(self) -> None:
        """A new process with the same file, after the old one has ended."""
        assert not self.process.running
        self.process = self._start()

    def rewrite(self, settings: Mapping[str, Any]) -> None:
        """Lay `settings` over the file; the daemon is not told."""
        self.settings = merged(self.settings, settings)
        _write(self.file, self.settings)

    def tunnelctl(self, *args: str, timeout: float = 15.0) -> subprocess.CompletedProcess[str]:
        """Run `tunnelctl --socket … ARGS` to its end."""
        return subprocess.run(
            python_module("tunnelctl", "--socket", str(self.socket), *args),
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=ROOT,
            env=clean_environment({"NO_COLOR": "1"}),
            stdin=subprocess.DEVNULL,
            check=False,
        )

    def ask(self, *args: str) -> Any:
        """`tunnelctl ARGS --json`, parsed; an exit status other than 0 is an AssertionError."""
        done = self.tunnelctl(*args, "--json")
        assert done.returncode == 0, f"tunnelctl {args}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return json.loads(done.stdout)

    def streams(self, **filters: str) -> list[dict[str, Any]]:
        """The live streams that the agent knows, those whose fields equal `filters`."""
        found = self.ask("streams")["streams"]
        return [one for one in found if all(one[key] == value for key, value in filters.items())]


class Pair:
    """A server and an agent with their tunnels, and what they are asked at the end."""

    #: What each is; a bench may put programs around them.
    server_kind, agent_kind = Server, Agent

    def __init__(
        self,
        folder: Path,
        tunnels: Mapping[str, str | Mapping[str, Any]],
        *,
        tls: Certificate | None = None,
        server: Mapping[str, Any] | None = None,
        agent: Mapping[str, Any] | None = None,
    ) -> None:
        self.server = self.server_kind(folder, tls=tls, settings=server)
        try:
            self.agent = self.agent_kind(folder, self.server, tunnels, settings=agent)
        except BaseException:
            self.server.process.discard()
            raise

    @property
    def processes(self) -> Sequence[Process]:
        """The agent's process, then the server's."""
        return (self.agent.process, self.server.process)

    def url(self, tunnel: str, path: str = "/") -> str:
        """The public address of a path of a tunnel."""
        return self.server.url(tunnel, path)

    def assert_left(self, request_id: str, marks: Sequence[int]) -> None:
        """Both logs say, behind their marks, that the visitor of an event stream left, and nothing of it is kept."""
        agent, server = self.processes
        server.wait_line(f"🔌 SSE client disconnected: {request_id}", after=marks[1])
        agent.wait_line(f"🛑 Cancelling stream: {request_id}", after=marks[0])
        for process, mark in zip(self.processes, marks, strict=True):
            process.wait_line(f"🧹 Cleaned up stream: {request_id}", after=mark)
        assert self.agent.streams(request_id=request_id) == []

    def close(self) -> None:
        """Stop both as systemd would and judge how they ended. A process killed by the test may stay so."""
        killed = [process for process in self.processes if process.returncode == -9]
        try:
            for process in self.processes:
                if process.running:
                    process.stop()
            for process in self.processes:
                process.assert_clean(codes=(-9,) if process in killed else (0,))
        finally:
            self.discard()

    def discard(self) -> None:
        """End both without judging."""
        for process in self.processes:
            process.discard()
