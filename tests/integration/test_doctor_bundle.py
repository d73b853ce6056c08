"""`tunnelctl doctor --bundle`: all that a report needs, and none of the many secrets that stood in reach of it."""

from __future__ import annotations

import io
import json
import os
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import bcrypt
import httpx
import pytest
import yaml

from tests.support.daemons import Pair
from tests.support.planted import PREFIX, found_in, planted, put
from tests.support.processes import ROOT, clean_environment, eventually, python_module
from tests.support.services import SampleService
from tests.support.sockets import LOOPBACK, free_port, short_dir
from tests.support.visitors import Curl, request_id
from tests.unit.tunnelctl.test_masking import PUBLIC, word
from tunnelctl.doctor.bundle import MOST, _without_visitors
from tunneld.config.agent import AgentConfig

FILES = {"doctor.json", "versions.json", "config.json", "status.json", "health.json", "streams.json", "metrics.txt"}


def secret(name: str) -> str:
    """A secret for a place; at least 16 characters long, as keys have to be."""
    return f"{PREFIX}{name}Secret1Xq9"


class Planted:
    """Daemons whose every key that may hold a secret holds one, and visitors who bring theirs."""

    def __init__(self, stack: ExitStack) -> None:
        self.folder = stack.enter_context(short_dir())
        self.service = SampleService()
        stack.callback(self.service.stop)
        hook = free_port()
        metrics = free_port()
        agent = {
            "server": {"token_file": self.file("ServerToken")},
            "metrics": {"listen": f"{LOOPBACK}:{metrics}", "token_file": self.file("MetricsToken")},
            "log": {"queries": True},
            "alerts": [
                {
                    "when": "service_failing",
                    "for": "0s",
                    "to": [
                        {
                            "webhook": f"http://{LOOPBACK}:{hook}/services/{secret('HookPath')}?sig={secret('HookQuery')}",
                            "secret_file": self.file("HookHmac"),
                            "headers": {"Authorization": f"Bearer {secret('HookHeader')}"},
                        },
                        {
                            "email": f"{secret('Mail')}@example.org",
                            "smtp": f"smtp://{LOOPBACK}:{hook}",
                            "user": secret("SmtpUser"),
                            "password_file": self.file("SmtpPassword"),
                        },
                        {"command": ["/bin/false", f"--token={secret('Argument')}", secret("Bare")]},
                    ],
                }
            ],
        }
        users = bcrypt.hashpw(secret("Basic").encode(), bcrypt.gensalt(4)).decode()
        there = self.service.url
        tunnels: dict[str, Any] = {
            "demo": {"service": there, "inspect": True, "headers": {"X-Service-Key": secret("ServiceHeader")}},
            "keyed": {
                "service": there,
                "access": {"mode": "key", "keys": [{"name": "ann", "key_file": self.file("VisitorKey")}]},
            },
            "basic": {
                "service": there,
                "access": {"mode": "basic", "users_file": self.file("Users", f"ann:{users}")},
            },
            "gone": {
                "service": f"http://{LOOPBACK}:9",
                "service_check": {"path": f"/{secret('CheckPath')}?k={secret('CheckQuery')}"},
            },
        }
        self.hash = users
        dropped = {"name": "dropped", "service": there, "headers": {"X-Plain": secret("Dropped")}}
        (self.folder / "tunnels.d").mkdir()
        self.dropin = self.folder / "tunnels.d/dropped.yaml"
        self.dropin.write_text(yaml.safe_dump({"tunnels": [dropped]}))
        self.dropin.chmod(0o600)
        self.pair = Pair(self.folder, tunnels, agent=agent)
        stack.callback(self.pair.discard)

    def file(self, name: str, text: str | None = None) -> str:
        path = self.folder / name
        path.write_text(f"{text or secret(name)}\n")
        path.chmod(0o600)
        return str(path)

    def visit(self) -> Curl:
        """Visitors with credentials in every place; one of them stays."""
        brought = {
            "Authorization": f"Bearer {secret('VisitorBearer')}",
            "Cookie": f"sid={secret('VisitorCookie')}",
            "X-Api-Key": secret("VisitorApiKey"),
        }
        url = self.pair.url
        for path in (f"/echo?access_token={secret('Query')}", f"/{secret('Path')}/x", f"/gone?x={secret('Other')}"):
            httpx.post(url("demo", path), headers=brought, content=secret("Body"))
        assert httpx.get(url("keyed", "/small"), headers={"X-API-Key": secret("VisitorKey")}).status_code == 200
        assert httpx.get(url("basic", "/small"), auth=("ann", secret("Basic"))).status_code == 200
        httpx.get(url("basic", "/small"), auth=("ann", secret("WrongPassword")))
        share = self.pair.agent.tunnelctl("share", "keyed", "/small", "--for", "1h").stdout
        self.signature = share.rpartition("=")[2].strip()
        httpx.get(share.split()[-1])
        curl = Curl(
            url("demo", f"/events?id=a&gap=0.05&key={secret('StreamQuery')}"),
            "-H",
            f"Cookie: k={secret('StreamCookie')}",
        )
        curl.wait_line("data: event 3")
        return curl


@pytest.fixture(scope="module")
def place() -> Iterator[Planted]:
    with ExitStack() as stack:
        yield Planted(stack)


#: What a journal may hold beside the agent's own lines: of other versions, and of whatever writes to its stderr.
LINES = [
    f"Authorization: Basic {secret('JournalBasic')}",
    f'{{"headers": [["Cookie", "a={secret("JournalCookie")}"]]}}',
    f"-----BEGIN EC PRIVATE KEY-----\n{secret('JournalPem')}\n-----END EC PRIVATE KEY-----",
    f"connect to http://me:{secret('JournalProxy')}@proxy:3128/ failed",
    f"GET /v2/{secret('JournalV2')}/tunnel/connect and tnl_{secret('JournalToken')}",
]


def run(
    folder: Path, *args: str, log: str = "", environ: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`tunnelctl doctor`, with a `journalctl` first in the PATH that shows what this agent wrote, and `LINES`."""
    programs = folder / "programs"
    programs.mkdir(exist_ok=True)
    (programs / "log").write_text("\n".join([log, *LINES]))
    (programs / "journalctl").write_text(f'#!/bin/sh\necho "$*" >{programs}/asked\ncat {programs}/log\n')
    (programs / "journalctl").chmod(0o755)
    env = clean_environment({"NO_COLOR": "1", **(environ or {})})
    env["PATH"] = f"{programs}:{env['PATH']}"
    return subprocess.run(
        python_module("tunnelctl", "doctor", *args),
        capture_output=True,
        text=True,
        timeout=50,
        cwd=ROOT,
        env=env,
        check=False,
    )


def opened(path: Path) -> dict[str, bytes]:
    """The files of a bundle by their names."""
    with tarfile.open(path) as archive:
        found = {}
        for member in archive.getmembers():
            assert member.name.startswith("tunneld-bundle/")
            assert (member.isfile(), member.mode, member.uid, member.uname) == (True, 0o600, 0, "")
            file = archive.extractfile(member)
            assert file is not None
            found[member.name.partition("/")[2]] = file.read()
    return found


def whole(path: Path) -> bytes:
    """Every byte of the archive, its own headers too."""
    with tarfile.open(path) as archive:
        assert isinstance(archive.fileobj, io.BufferedIOBase)
        archive.fileobj.seek(0)
        return archive.fileobj.read()


@pytest.mark.timeout(90)
def test_it_has_all_and_of_the_many_secrets_none(place: Planted, tmp_path: Path) -> None:
    path = tmp_path / "bundle.tar.gz"
    environ = {
        "TUNNELD_TOKEN": secret("EnvToken"),
        "OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer%20{secret('Otlp')}",
        "HTTPS_PROXY": f"http://me:{secret('EnvProxy')}@{LOOPBACK}:{free_port()}",
        "MY_API_KEY": secret("EnvKey"),
    }
    pair = place.pair
    curl = place.visit()
    try:
        process = pair.agent.process
        eventually(lambda: "gone" in pair.agent.tunnelctl("alerts").stdout, timeout=20, what="an alert")
        log = "\n".join([*(line.text for line in process.lines), f"the service was told {secret('Dropped')}"])
        assert found_in(pair.agent.tunnelctl("requests", "--json").stdout.encode()), "heads and bodies are kept"
        live = request_id(curl.head())
        assert found_in(pair.agent.tunnelctl("streams", "--json").stdout.encode()), "the stream's query is shown there"
        done = run(
            place.folder, "--socket", str(pair.agent.socket), "--json", "--bundle", str(path), log=log, environ=environ
        )
    finally:
        curl.stop()
    assert (done.returncode, done.stderr) == (1, ""), "one tunnel's service is gone"
    parts = opened(path)
    assert set(parts) == FILES | {"journal.txt", "tunnels.d.json"}
    for name, data in parts.items():
        assert found_in(data) == set(), name
        assert place.hash.encode() not in data
        assert place.signature.encode() not in data
        assert len(data) <= MOST
    assert found_in(whole(path)) == set()
    assert found_in(done.stdout.encode()) == set(), "nor does the report itself tell any"
    # and it is of use: what is no secret is there
    config = json.loads(parts["config.json"])
    assert config["server"]["token_file"] == str(place.folder / "ServerToken")
    assert config["server"]["url"] == pair.server.tunnel_url
    assert config["tunnels"][1]["access"]["keys"][0]["name"] == "ann"
    assert json.loads(parts["doctor.json"]) == json.loads(done.stdout)
    assert json.loads(parts["tunnels.d.json"])[str(place.dropin)]["tunnels"][0]["name"] == "dropped"
    names = [one["name"] for one in json.loads(parts["status.json"])["tunnels"]]
    assert names == ["demo", "keyed", "basic", "gone", "dropped"]
    assert live in {one["request_id"] for one in json.loads(parts["streams.json"])["streams"]}
    assert b'tunneld_tunnel_up{tunnel="demo"} 1' in parts["metrics.txt"]
    assert "✓ Tunnel established: demo" in parts["journal.txt"].decode()
    assert "--unit=tunneld.service" in (place.folder / "programs/asked").read_text()


@pytest.mark.timeout(60)
def test_a_file_with_a_secret_at_every_key_of_the_models_gives_none_away(tmp_path: Path) -> None:
    """Hardly a value in there is valid, so that what is said of each fault is read for secrets too."""
    document, values = planted(AgentConfig, lambda number: f"{PREFIX}{number}Xq{'z' * 12}")
    for path in values:
        if word(path) in PUBLIC:
            put(document, path, "plain")
    document["tokn"] = {"deep": [secret("Unknown")]}
    for shape, text in {
        "keys": yaml.safe_dump(document),
        "syntax": f"server: {{url: 'ws://u:{secret('Inline')}@h'\n  token: {secret('Broken')}\n\t- [{secret('Tab')}",
        "scalar": secret("Scalar"),
        "address": f"server: {{url: 'ws://u:{secret('User')}@h/', proxy: 'ftp://a:{secret('Proxy')}@h'}}\n",
    }.items():
        file, bundle = tmp_path / f"{shape}.yaml", tmp_path / f"{shape}.tar.gz"
        file.write_text(text)
        args = ("--socket", str(tmp_path / "none"), "--config", str(file), "--bundle", str(bundle))
        done = run(tmp_path, *args)
        assert done.returncode == 1, done.stderr
        assert "✗ config" in done.stdout
        for name, data in opened(bundle).items():
            assert found_in(data) == set(), (shape, name)
        assert found_in(whole(bundle)) == set()


@pytest.mark.timeout(60)
def test_the_file_is_its_owners_and_nothing_is_overwritten(place: Planted, tmp_path: Path) -> None:
    socket, path = str(place.pair.agent.socket), tmp_path / "bundle.tar.gz"
    before = os.umask(0)
    try:
        assert run(tmp_path, "--socket", socket, "--bundle", str(path)).returncode == 1
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    kept = path.read_bytes()
    again = run(tmp_path, "--socket", socket, "--bundle", str(path))
    assert (again.returncode, again.stderr) == (1, f"tunnelctl: --bundle: {path}: file exists\n")
    assert path.read_bytes() == kept
    link = tmp_path / "link.tar.gz"
    link.symlink_to(tmp_path / "elsewhere")
    assert run(tmp_path, "--socket", socket, "--bundle", str(link)).stderr.endswith(": file exists\n")
    assert not (tmp_path / "elsewhere").exists(), "a link is not followed"
    missing = run(tmp_path, "--socket", socket, "--bundle", str(tmp_path / "no/bundle"))
    assert missing.stderr.endswith("no/bundle: no such file or directory\n")
    if Path("/dev/full").exists():
        full = run(tmp_path, "--socket", socket, "--bundle", "/dev/full")
        assert full.stderr == "tunnelctl: --bundle: /dev/full: file exists\n"


@pytest.mark.timeout(60)
def test_its_size_has_a_bound_and_says_what_is_left_out(place: Planted, tmp_path: Path) -> None:
    path = tmp_path / "bundle.tar.gz"
    log = "\n".join(f"{number} {os.urandom(40).hex()}" for number in range(40_000))
    assert len(log) > 2 * MOST
    assert run(tmp_path, "--socket", str(place.pair.agent.socket), "--bundle", str(path), log=log).returncode == 1
    journal = opened(path)["journal.txt"]
    assert MOST - 128 < len(journal) <= MOST
    assert journal.startswith(b"0 ")
    assert b" bytes are left out " in journal
    assert path.stat().st_size < 2 * MOST


def test_of_a_tunnel_that_stands_in_no_file_the_services_host_is_shown_alone() -> None:
    told = {"tunnels": [{"service": f"https://me:{secret('User')}@h:1/{secret('Path')}?k={secret('Query')}"}]}
    assert _without_visitors(told) == {"tunnels": [{"service": "https://h:1/…"}]}
    assert _without_visitors({"service": "unix:/run/app.sock"}) == {"service": "unix:/run/app.sock"}
