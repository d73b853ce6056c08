"""The package in a real systemd: installed, upgraded and downgraded with streams open, removed, purged."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.packages.building import before, build
from tests.support.box import Box, missing
from tests.support.processes import ROOT, eventually
from tests.systemd.conftest import PORT, agent_file, server_file
from tests.systemd.service import Visitor, serving

pytestmark = pytest.mark.timeout(400)
AGENT = "/etc/tunneld/tunneld.yaml"
SERVER = "/etc/tunneld/server.yaml"
PLACES = "/etc /run /var/lib /var/log /usr/lib /opt"


class Bare(Box):
    """A box without any of us; packages come and go in it."""

    def _install(self) -> None:
        """Nothing: that is the package's part here. An image's policy-rc.d would let nothing restart."""
        self.run("rm", "-f", "/usr/sbin/policy-rc.d")

    def dpkg(self, *args: str) -> str:
        """Run dpkg as a script does: no question is asked, changed settings are kept."""
        argv = ("env", "DEBIAN_FRONTEND=noninteractive", "dpkg", "--force-confold", "--force-unsafe-io", *args)
        done = self.run(*argv, timeout=200)
        return done.stdout + done.stderr

    def put(self, file: Path) -> str:
        """A file of this machine, copied to where it can be seen inside; its path there."""
        with file.open("rb") as source:
            command = [str(ROOT / "tests/support/systemd-box"), "exec", "sh", "-c", f"cat >/root/{file.name}"]
            subprocess.run(command, stdin=source, env=self._environment, check=True, timeout=60)
        return f"/root/{file.name}"

    def version(self) -> str:
        """Of the package that is installed."""
        return self.run("dpkg-query", "--show", "--showformat=${Version}", "tunneld").stdout

    def state(self, unit: str) -> tuple[str, str]:
        """Whether it runs, and whether it is enabled."""
        told = self.show(unit, "ActiveState", "UnitFileState")
        return told["ActiveState"], told["UnitFileState"]


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`before`: the release before this one. `this`: this tree's. `next`: this one again, numbered higher."""
    folder = tmp_path_factory.mktemp("packages")
    this = next(iter((ROOT / "dist").glob("tunneld_*.deb")), None)
    assert this is not None, "run `make deb` first"
    _, tree = before(folder)
    made = {"this": this, "next": folder / "tunneld_99.0.0.deb"}
    made["before"] = build(folder / "before-deb", source=tree, version="0.0.0+before")
    again = folder / "next"
    subprocess.run(["dpkg-deb", "--raw-extract", this, again], check=True)
    control = again / "DEBIAN/control"
    control.write_text(re.sub(r"(?m)^Version: .*", "Version: 99.0.0", control.read_text()))
    subprocess.run(["dpkg-deb", "--root-owner-group", "-Znone", "--build", again, made["next"]], check=True)
    shutil.rmtree(again)
    return made


@pytest.fixture
def bare() -> Iterator[Bare]:
    lacks = missing()
    if lacks is not None:
        pytest.fail(f"no systemd can be booted here: {lacks}")
    box = Bare(f"package-{os.getpid()}")
    try:
        yield box
        for visitor in list(Visitor.here):
            visitor.close()
    finally:
        box.close()


def online(box: Box) -> None:
    """Wait until the agent's tunnel stands."""
    eventually(lambda: "online" in box.run("tunnelctl", "status", check=False).stdout, timeout=60, what="online")


def far_server(box: Bare, package: str) -> None:
    """A server as on another machine: out of the same package, laid where no other package touches it."""
    box.sh(f"mkdir /root/far && dpkg-deb --extract {package} /root/far")
    box.configure("/root/far.yaml", server_file())
    program = ["/root/far/usr/lib/tunneld/bin/python3", "-I", "-m", "tunneld"]
    box.run(
        "systemd-run", "--quiet", "--unit=far", "--property=Type=notify", *program, "server", "-c", "/root/far.yaml"
    )


def test_an_agent_is_upgraded_and_downgraded_with_streams_open_removed_and_purged(
    bare: Bare, packages: dict[str, Path]
) -> None:
    files = {name: bare.put(path) for name, path in packages.items()}
    passwords = bare.run("getent", "passwd").stdout
    with serving(bare) as service:
        far_server(bare, files["this"])
        bare.dpkg("--install", files["before"])
        assert bare.state("tunneld.service") == ("inactive", "disabled"), "the installation starts nothing"
        bare.configure(AGENT, agent_file(service.port, drain_timeout="1s"))
        bare.systemctl("enable", "--now", "tunneld")
        online(bare)
        for name in ("this", "next", "before"):
            numbered, plain = Visitor(bare, PORT, "/t/demo/events"), Visitor(bare, PORT, "/t/demo/plain")
            numbered.wait(b"id: 3\n")
            plain.wait(b"data: tick")
            pid = bare.pid("tunneld")
            bare.dpkg("--install", files[name])
            assert bare.state("tunneld.service") == ("active", "enabled")
            assert bare.pid("tunneld") != pid, "what runs is not what is installed"
            online(bare)
            # the stream with ids goes on; where the version before takes part it may end, for its visitor to see
            if name == "next" or not numbered.over.is_set():
                numbered.wait(f"id: {len(numbered.numbers) + 5}\n".encode())
            else:
                assert not numbered.ended_clean
            assert numbered.numbers == list(range(1, len(numbered.numbers) + 1))
            assert plain.over.wait(20), "a stream that cannot go on ends"
            assert not plain.ended_clean
            for visitor in (numbered, plain):
                visitor.close()
        assert bare.version() == "0.0.0+before"
        visitor = Visitor(bare, PORT, "/t/demo/plain")
        visitor.wait(b"data: tick")
        bare.dpkg("--install", files["this"])
        bare.dpkg("--remove", "tunneld")
        assert visitor.over.wait(20)
    assert bare.run("sh", "-c", "systemctl is-active tunneld || true").stdout.strip() in ("inactive", "unknown")
    assert "demo" in bare.run("cat", AGENT).stdout, "remove takes no settings"
    bare.systemctl("stop", "far")
    bare.write("/etc/credstore/tunneld.token", "a-token\n", mode=0o600)
    bare.dpkg("--purge", "tunneld")
    left = f"find {PLACES} -name '*tunneld*' -not -path '/run/host/*'"
    assert bare.sh(left).split() == []
    assert bare.run("getent", "passwd").stdout == passwords


def test_instances_are_restarted_and_stopped_too(bare: Bare, packages: dict[str, Path]) -> None:
    files = {name: bare.put(packages[name]) for name in ("this", "next")}
    bare.dpkg("--install", files["this"])
    bare.configure("/etc/tunneld/other.yaml", agent_file(drain_timeout="1s"))
    bare.systemctl("enable", "--now", "tunneld@other")
    pid = bare.pid("tunneld@other")
    bare.dpkg("--install", files["next"])
    assert bare.state("tunneld@other") == ("active", "enabled")
    assert bare.pid("tunneld@other") != pid
    assert bare.state("tunneld") == ("inactive", "disabled"), "an upgrade starts what did not run"
    bare.dpkg("--purge", "tunneld")
    assert bare.sh(f"find {PLACES} -name '*tunneld*' -not -path '/run/host/*'").split() == []


def test_no_dial_is_refused_while_the_server_is_upgraded(bare: Bare, packages: dict[str, Path]) -> None:
    files = {name: bare.put(packages[name]) for name in ("this", "next")}
    bare.dpkg("--install", files["this"])
    bare.configure(SERVER, server_file(drain_timeout="1s"))
    bare.systemctl("enable", "--now", "tunneld-server")
    assert bare.state("tunneld-server.socket") == ("active", "enabled")
    over = threading.Event()
    counts = {"taken": 0, "refused": 0, "cut": 0}

    def dial() -> None:
        while not over.is_set():
            try:
                with bare.connect(PORT) as visitor:
                    visitor.settimeout(30)
                    visitor.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                    got = visitor.recv(64)
                counts["taken" if got.startswith(b"HTTP/1.1 ") else "cut"] += 1
            except (TimeoutError, ConnectionRefusedError):
                counts["refused"] += 1
            except ConnectionResetError:
                counts["cut"] += 1

    thread = threading.Thread(target=dial, name="dials")
    thread.start()
    try:
        pid = bare.pid("tunneld-server")
        eventually(lambda: counts["taken"] > 5, what="answered")
        for name in ("next", "this"):
            bare.dpkg("--install", files[name])
            assert bare.state("tunneld-server.service") == ("active", "enabled")
            assert bare.pid("tunneld-server") != pid
            pid = bare.pid("tunneld-server")
        before_end = counts["taken"]
        eventually(lambda: counts["taken"] > before_end + 5, what="answered again")
    finally:
        over.set()
        thread.join(60)
    # one that the leaving server had taken already may be cut, one for each upgrade at most: it was dialled
    assert counts["refused"] == 0, counts
    assert counts["cut"] <= 2, counts
