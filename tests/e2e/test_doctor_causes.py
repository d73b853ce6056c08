"""`tunnelctl doctor` beside real troubles on the way to a real server, each told as JSON and for people alike."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from websockets.sync.server import ServerConnection, serve

from tests.e2e.conftest import need
from tests.support.authority import Authority
from tests.support.commands import tunnelctl
from tests.support.daemons import Agent, Server
from tests.support.netns import ADDRESS, Network, missing
from tests.support.operators import Operator
from tests.support.processes import ROOT, Process, clean_environment, eventually, python_module
from tests.support.sockets import LOOPBACK, accepts, free_port, free_ports, short_dir

Told = dict[str, dict[str, Any]]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


def written(path: Path, document: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(document))
    path.chmod(0o600)
    return path


def findings(text: str) -> Told:
    """What ``--json`` told, by the word and the subject."""
    return {one["check"]: one for one in json.loads(text)["findings"]}


def doctor(*line: str) -> Told:
    """Its findings; what it says for people is the same, word by word, with what to do below each."""
    told = tunnelctl("doctor", "--json", *line)
    found = findings(told.stdout)
    assert told.returncode == (1 if any(one["status"] == "fail" for one in found.values()) else 0)
    people = tunnelctl("doctor", *line).stdout.splitlines()
    for name, one in found.items():
        assert bool(one["advice"]) == (one["status"] in ("warn", "fail"))
        if one["status"] in ("warn", "fail") and name != "agent":
            at = people.index(f"{'!' if one['status'] == 'warn' else '✗'} {name}: {one['detail']}")
            assert people[at + 1] == f"  → {one['advice']}"
    return found


class Place:
    """A server with a listener for each kind of certificate, and files of an agent that does not run."""

    def __init__(self, ends: ExitStack) -> None:
        self.folder = ends.enter_context(short_dir())
        self.root = Authority(self.folder / "root")
        middle = Authority(self.folder / "middle", "Middle", by=self.root)
        soon = datetime.now(UTC) + timedelta(days=5, hours=1)
        made = {
            "good": middle.issue("good", "DNS:localhost"),
            "expired": middle.issue("expired", "DNS:localhost", end="20240101000000Z"),
            "early": middle.issue("early", "DNS:localhost", start="20980101000000Z"),
            "soon": middle.issue("soon", "DNS:localhost", end=f"{soon:%Y%m%d%H%M%SZ}"),
            "gap": middle.issue("gap", "DNS:localhost"),
            "other": middle.issue("other", "DNS:other.example"),
        }
        for name, one in made.items():
            if name != "gap":
                one.cert.write_text(one.cert.read_text() + middle.cert.read_text())
        self.ports = dict(zip(("plain", *made), free_ports(len(made) + 1), strict=True))
        listen: list[dict[str, Any]] = [{"host": LOOPBACK, "port": self.ports["plain"]}]
        for name, one in made.items():
            tls = {"cert": str(one.cert), "key": str(one.key)}
            listen.append({"host": LOOPBACK, "port": self.ports[name], "tls": tls})
        self.operator = Operator(self.folder / "cli.yaml")
        self.token = self.operator.do("token create app --expires 90d").strip()
        settings = {**self.operator.settings, "listen": listen}
        self.server = Server(self.folder, settings=settings, ports=(self.ports["plain"], self.ports["plain"]))
        ends.callback(self.server.process.discard)

    def file(self, url: str, *, token: str | None = None, name: str = "app", **more: Any) -> Path:
        """An agent's file that dials there."""
        secret = self.folder / "token"
        secret.write_text(token or self.token)
        secret.chmod(0o600)
        server = {"url": url, "token_file": str(secret), "ca_file": str(self.root.cert)}
        tunnels = [{"name": name, "service": f"http://{LOOPBACK}:9", **more}]
        return written(self.folder / "agent.yaml", {"server": server, "tunnels": tunnels})

    def line(self, *args: Any, **more: Any) -> list[str]:
        return ["--socket", str(self.folder / "none.sock"), "--config", str(self.file(*args, **more))]

    def url(self, kind: str) -> str:
        return f"wss://localhost:{self.ports[kind]}"


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with ExitStack() as ends:
        yield Place(ends)


@pytest.mark.parametrize(
    ("kind", "status", "said", "advice"),
    [
        ("good", "ok", "certificate of localhost", ""),
        ("soon", "warn", "(5 days)", "Renew it"),
        ("expired", "fail", "certificate has expired", "Renew it"),
        ("early", "fail", "certificate is not yet valid", "Set this machine's clock"),
        ("gap", "fail", "unable to get local issuer certificate", "put the intermediate certificates behind its own"),
        ("other", "fail", "certificate is not valid for 'localhost'", "Give the name that the certificate has"),
    ],
)
def test_each_trouble_with_a_certificate(place: Place, kind: str, status: str, said: str, advice: str) -> None:
    found = doctor(*place.line(place.url(kind)))
    assert (found["tls"]["status"], found["mtu"]["status"]) == (status, "ok")
    assert said in found["tls"]["detail"]
    assert found["tls"]["advice"].startswith(advice) or advice in found["tls"]["advice"]
    assert found["clock"]["status"] == "ok", "also where the certificate is not good: is that the clock?"
    assert ("server" in found) == (status != "fail")
    if status != "fail":
        assert found["token"]["detail"] == "It is accepted."


def test_each_trouble_with_a_token(place: Place) -> None:
    operator = place.operator
    short = operator.do("token create short --tunnels app --expires 1s").strip()
    other = operator.do("token create other").strip()
    url = place.url("good")
    over = datetime.now(UTC) + timedelta(seconds=1.1)
    eventually(lambda: datetime.now(UTC) > over, what="past the end of the short one, which is a time of day")
    unknown = "tnl_" + "0" * (len(place.token) - 4)
    for token, said in ((short, "expired"), (unknown, "(unauthorized)")):
        found = doctor(*place.line(url, token=token))["token"]
        assert found["status"] == "fail"
        assert said in found["detail"]
        assert "tunneld server token create" in found["advice"]
        assert token not in repr(found)
    found = doctor(*place.line(url, token=other))["token"]
    assert found["detail"] == "It does not open the name app."
    assert "--tunnels" in found["advice"]


@pytest.mark.parametrize("jump", ["+2h", "-2h", "-20y"])
def test_a_clock_that_is_wrong(place: Place, jump: str) -> None:
    """This machine's, by libfaketime; with a certificate that is not valid yet at the time that it tells, too."""
    program = need("faketime", "apt-get install faketime")
    line = ["doctor", "--json", *place.line(place.url("good"))]
    done = subprocess.run(
        [program, "-m", "-f", jump, *python_module("tunnelctl", *line)],
        env=clean_environment(),
        capture_output=True, text=True, timeout=40, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.stdout, done.stderr
    found = findings(done.stdout)
    assert found["clock"]["status"] == "warn"
    assert ("ahead of" if jump[0] == "+" else "behind") in found["clock"]["detail"]
    assert "timesyncd" in found["clock"]["advice"]
    if jump == "-20y":
        assert "not yet valid" in found["tls"]["detail"]
        assert found["tls"]["advice"].startswith("Set this machine's clock")
    else:
        seconds = int(found["clock"]["detail"].split(" s ")[0].rsplit(" ", 1)[1])
        assert abs(seconds - 7200) < 30


# -- the dialect


def test_a_server_of_the_older_dialect_alone(place: Place) -> None:
    def old(peer: ServerConnection) -> None:
        peer.send(json.dumps({"type": "connected", "tunnel_id": "app", "public_url": "http://old.example/t/app"}))
        for _ in peer:
            pass

    with serve(old, LOOPBACK, 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            found = doctor(*place.line(f"ws://{LOOPBACK}:{server.socket.getsockname()[1]}"))["server"]
        finally:
            server.shutdown()
            thread.join(10)
    assert (found["status"], found["detail"]) == (
        "fail",
        "It answers in the older dialect alone, which this agent does not speak.",
    )
    assert found["advice"].startswith("Bring server and agent to one version")


def test_an_agent_and_a_server_of_two_versions(place: Place, stack: ExitStack) -> None:
    """The server's is what it told a real agent: this program, with another number."""
    from tunneld import __version__

    folder = stack.enter_context(short_dir())
    program = folder / "other.py"
    program.write_text(
        "import sys, tunneld\ntunneld.__version__ = '9.8.7'\nimport tunneld.__main__ as one\none.main()\n"
    )

    class Other(Server):
        def command(self, *args: str) -> list[str]:
            return [python_module("tunneld")[0], str(program), *args]

    server = Other(folder)
    stack.callback(server.process.discard)
    agent = Agent(folder, server, {"app": f"http://{LOOPBACK}:9"})
    stack.callback(agent.process.discard)
    found = doctor("--socket", str(agent.socket))
    assert found["server"]["status"] == "warn"
    assert f"it is tunneld 9.8.7, this is {__version__}" in found["server"]["detail"]
    assert "bring the older one to the newer's version" in found["server"]["advice"]


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user: run it as root, as CI does")
def test_a_socket_that_is_not_ours_and_one_that_is_stale(stack: ExitStack) -> None:
    folder = stack.enter_context(short_dir())
    server = Server(folder)
    stack.callback(server.process.discard)
    agent = Agent(folder, server, {"app": f"http://{LOOPBACK}:9"})
    stack.callback(agent.process.discard)
    user = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
    folder.chmod(0o755)
    done = subprocess.run(
        [*user, *python_module("tunnelctl", "--socket", str(agent.socket), "doctor", "--json")],
        env=clean_environment({"HOME": "/nonexistent"}),
        capture_output=True, text=True, timeout=40, cwd=ROOT, check=False,
    )  # fmt: skip
    refused = findings(done.stdout)["socket"]
    assert refused["status"] == "fail", done.stderr
    assert "is not ours to use (mode 0660, group " in refused["detail"]
    assert "usermod -aG" in refused["advice"]
    agent.process.signal(signal.SIGKILL)
    agent.process.wait()
    stale = doctor("--socket", str(agent.socket), "--config", str(agent.file))["socket"]
    assert stale["status"] == "fail"
    assert "is there, but nobody answers" in stale["detail"]
    assert stale["advice"] == "The agent was killed: start it again."


# -- the service


class _Service(BaseHTTPRequestHandler):
    """`/hangs` says nothing, `/plain` speaks no SSE, `/packed` sends events that are packed."""

    def do_GET(self) -> None:
        server: Any = self.server
        if self.path == "/hangs":
            server.over.wait()
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/plain" if self.path == "/plain" else "text/event-stream")
        if self.path == "/packed":
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_each_trouble_with_a_service(place: Place, stack: ExitStack) -> None:
    server: Any = ThreadingHTTPServer((LOOPBACK, 0), _Service)
    server.daemon_threads, server.over = True, threading.Event()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    stack.callback(thread.join, 10)
    stack.callback(server.server_close)
    stack.callback(server.shutdown)
    stack.callback(server.over.set)
    address = f"http://{LOOPBACK}:{server.server_port}"
    kinds = {name: {"service": address, "service_check": {"path": f"/{name}"}} for name in ("hangs", "plain", "packed")}
    file = place.file(place.url("good"))
    document = yaml.safe_load(file.read_text())
    document["tunnels"] = [{"name": name, **one} for name, one in kinds.items()]
    document["tunnels"].append({"name": "gone", "service": f"http://{LOOPBACK}:{free_port()}"})
    written(file, document)
    found = doctor("--socket", str(place.folder / "none.sock"), "--config", str(file))
    said = {name: (one["status"], one["detail"]) for name, one in found.items() if name.startswith("service ")}
    assert said["service hangs"] == ("fail", "No head of an answer to GET /hangs within 5 s.")
    assert said["service plain"][0] == "ok"
    assert "SSE is at another path, or not spoken" in said["service plain"][1]
    assert said["service packed"][0] == "warn"
    assert "encoded by gzip: events cannot be told apart" in said["service packed"][1]
    assert said["service gone"][0] == "fail"
    assert "does not answer: Connection refused" in said["service gone"][1]


# -- packets


@pytest.mark.skipif(bool(missing()), reason=str(missing()))
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_black_hole_for_large_packets(stack: ExitStack, tls: bool) -> None:
    """Packets of over 1300 bytes vanish between two networks, and no ICMP tells of it."""
    folder = stack.enter_context(short_dir())
    root = Authority(folder / "root")
    names = [f"DNS:{'x' * 60}{number}.example" for number in range(40)]  # a certificate of more than one packet
    made = root.issue("leaf", f"IP:{ADDRESS['b']}", *names)
    listen: dict[str, Any] = {"host": ADDRESS["b"], "port": 8441}
    if tls:
        listen["tls"] = {"cert": str(made.cert), "key": str(made.key)}
    settings = {"listen": [listen], "auth": {"mode": "token"}, "admin": False, "store": "memory:"}
    url = f"{'wss' if tls else 'ws'}://{ADDRESS['b']}:8441"
    agent = {
        "server": {"url": url, "ca_file": str(root.cert)},
        "tunnels": [{"name": "t", "service": "http://127.0.0.1:9"}],
    }
    files = [str(written(folder / name, each)) for name, each in (("s.yaml", settings), ("a.yaml", agent))]
    with Network(delay=0.01) as net:
        server = net.process("b", python_module("tunneld", "server", "--config", files[0]), name="server")
        stack.callback(server.discard)
        server.wait_line(":8441", timeout=20)
        line = python_module("tunnelctl", "--socket", str(folder / "no.sock"), "doctor", "--json", "--config", files[1])

        def look() -> Told:
            done = subprocess.run(
                net.inside("a", line),
                capture_output=True, text=True, timeout=50, cwd=ROOT, env=clean_environment(), check=False,
            )  # fmt: skip
            return findings(done.stdout)

        well = look()
        assert (well["mtu"]["status"], well["server"]["status"]) == ("ok", "ok"), well
        net.change(largest=1300)
        found = look()
        assert (found["mtu"]["status"], found["mtu"]["detail"]) == (
            "fail",
            "Large packets vanish on the way: a request in segments of 1220 bytes is answered, a larger one not.",
        )
        assert "drops ICMP's 'fragmentation needed'" in found["mtu"]["advice"]
        assert "mtu 1280)" in found["mtu"]["advice"]
        assert {name: found[name]["status"] for name in ("tcp", "server", "clock")} == dict.fromkeys(
            ("tcp", "server", "clock"), "ok"
        ), "the rest is looked at all the same"
        if tls:
            assert found["tls"]["status"] == "ok"
        device = f"td{os.getpid()}a"
        subprocess.run(net.inside("a", ["ip", "link", "set", "dev", device, "mtu", "1280"]), check=True)
        mended = look()
        assert (mended["mtu"]["status"], mended["server"]["status"]) == ("ok", "ok"), "what it advises, helps"


def test_a_proxy_that_takes_the_dialect_away(place: Place, stack: ExitStack) -> None:
    """A real nginx that passes on the upgrade, but not Sec-WebSocket-Protocol."""
    program = need("nginx", "apt-get install nginx")
    folder, port = stack.enter_context(short_dir()), free_port()
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)
    server = Server(folder)
    stack.callback(server.process.discard)
    (folder / "nginx.conf").write_text(
        f"daemon off; user root; pid {folder}/nginx.pid; error_log stderr notice; events {{}}\n"
        f"http {{ access_log off; {temporary} server {{ listen {LOOPBACK}:{port}; large_client_header_buffers 4 16k;\n"
        f"location / {{ proxy_pass http://{LOOPBACK}:{server.port}; proxy_http_version 1.1;\n"
        "proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade;\n"
        'proxy_set_header Sec-WebSocket-Protocol ""; } } }\n'
    )
    process = Process([program, "-e", "stderr", "-c", str(folder / "nginx.conf")], name="nginx")
    stack.callback(process.discard)
    process.wait_until(lambda: accepts(port), timeout=20, what="listening")
    for token, said in (
        (True, "It knows no dialect that this agent speaks."),
        (False, "It answers in the older dialect"),
    ):
        file = place.file(f"ws://{LOOPBACK}:{port}")
        document = yaml.safe_load(file.read_text())
        if not token:
            del document["server"]["token_file"]
        written(file, document)
        found = doctor("--socket", str(place.folder / "none.sock"), "--config", str(file))["server"]
        assert found["status"] == "fail"
        assert found["detail"].startswith(said)
        assert "a proxy before the server must pass on Sec-WebSocket-Protocol" in found["advice"]


def test_a_stream_behind_a_certificate_that_nobody_vouches_for(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """And with its root named, as is advised, the stream is asked for."""
    line = ("doctor", "--json", "--sse", f"https://localhost:{place.ports['good']}/t/none/", "--for", "1s")
    found = findings(tunnelctl(*line).stdout)["sse"]
    assert found["status"] == "fail"
    assert found["detail"] == "Its certificate is not trusted: unable to get local issuer certificate."
    assert "SSL_CERT_FILE=FILE" in found["advice"]
    monkeypatch.setenv("SSL_CERT_FILE", str(place.root.cert))
    assert findings(tunnelctl(*line).stdout)["sse"]["detail"] == "It is answered 404 no_such_tunnel."
