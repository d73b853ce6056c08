"""Both daemons in two network namespaces with the relay of `tests.support.netns` between them."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
import yaml

from tests.support.netns import ADDRESS, Network
from tests.support.processes import Process, python_module
from tests.support.sockets import short_dir

__all__ = ["Ends", "ends"]


class Ends:
    """Both daemons, a service beside the agent, and the network between them."""

    def __init__(self, net: Network, folder: Path, log: Path, start: Callable[..., Process]) -> None:
        self.net, self.folder, self.log, self.start = net, folder, log, start

    def qualities(self) -> dict[str, dict[str, Any]]:
        """What each end says at this moment."""
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(self.folder / "c.sock"))) as client:
            agents = client.get("http://localhost/v1/status").json()["tunnels"]
        asked = self.net.inside("b", ["curl", "-sS", "http://127.0.0.1:8442/api/v1/tunnels"])
        servers = json.loads(subprocess.run(asked, capture_output=True, check=True).stdout)["tunnels"]
        return {"a": agents[0]["quality"], "b": servers[0]["quality"]}

    def after(self, pings: int) -> dict[str, dict[str, Any]]:
        """The same, once each end has had so many answers."""
        return self.during(pings)[-1]

    def during(self, pings: int) -> list[dict[str, dict[str, Any]]]:
        """What they said every half a second until then."""
        deadline = time.monotonic() + 90
        said = []
        while True:
            said.append(found := self.qualities())
            if all(quality["pings"] >= pings for quality in found.values()):
                return said
            assert time.monotonic() < deadline, found
            time.sleep(0.5)

    def reconnects(self) -> int:
        """Of the agent's one tunnel."""
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(self.folder / "c.sock"))) as client:
            return int(client.get("http://localhost/v1/status").json()["tunnels"][0]["reconnects"])

    def metric(self, name: str) -> float:
        """Of the agent, of its one tunnel."""
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(self.folder / "c.sock"))) as client:
            text = client.get("http://localhost/metrics").text
        return float(next(line.split()[1] for line in text.splitlines() if line.startswith(f"{name}{{")))


@contextmanager
def ends(*, interval: str = "100ms", agent: Mapping[str, Any] = MappingProxyType({}), **network: Any) -> Iterator[Ends]:
    """Both ends, connected; `agent`: more keys of its file."""
    beat = {"interval": interval, "timeout": "3s"}
    processes: list[Process] = []
    with short_dir() as folder:
        log = folder / "packets"

        def write(name: str, document: dict[str, Any]) -> str:
            path = folder / name
            path.write_text(yaml.safe_dump(document))
            path.chmod(0o600)
            return str(path)

        def start(side: str, argv: Sequence[str], name: str, line: str = "") -> Process:
            process = net.process(side, ["chrt", "-r", "5", *argv], name=name)  # else the machine is measured
            processes.append(process)
            if line:
                process.wait_line(line, timeout=20)
            return process

        listen = [
            {"host": "127.0.0.1", "port": 8440},
            {"host": ADDRESS["b"], "port": 8441, "serve": ["tunnels"]},
        ]
        server = {
            "listen": listen,
            "admin": {"listen": {"host": "127.0.0.1", "port": 8442}},
            "auth": {"mode": "open"},
            "store": "memory:",
            "heartbeat": {**beat, "min": "50ms"},
            "drain_timeout": 0,
        }
        whole = {
            "server": {"url": f"ws://{ADDRESS['b']}:8441"},
            "control": {"socket": str(folder / "c.sock")},
            "tunnels": [{"name": "t", "service": "http://127.0.0.1:9000"}],
            "heartbeat": beat,
            "drain_timeout": 0,
            **agent,
        }
        with Network(log=log, seed=7, **network) as net:
            try:
                start("a", python_module("tests.support.services", "--port", "9000"), "service", "ready")
                start("b", python_module("tunneld", "server", "--config", write("s.yaml", server)), "server", ":8441")
                start("a", python_module("tunneld", "agent", "--config", write("a.yaml", whole)), "agent", "✓ Tunnel")
                yield Ends(net, folder, log, start)
                for process in reversed(processes):
                    assert not process.tracebacks(), process.tail(80)
            finally:
                for process in reversed(processes):
                    process.discard()
