"""The Debian package: what is in it, and its life in a Debian that has no network."""

import gzip
import re
import subprocess
from pathlib import Path

import httpx

from tests.packages.building import build
from tests.support.otlp import Collector
from tests.support.processes import Process
from tests.support.roots import Root
from tests.support.services import SampleService
from tests.support.sockets import free_port

PLACES = ("/etc", "/run", "/var/lib", "/var/log", "/usr/lib", "/opt")
STATE = ("/etc/credstore/tunneld.token", "/etc/tunneld/token", "/var/lib/tunneld-server/server.db")


def install(root: Root, deb: Path) -> str:
    """Install as an operator does; there is no network in there."""
    file = root.put(deb)
    return root.run("apt-get", "install", "-y", "-o", "Dpkg::Use-Pty=0", file)


def listing(deb: Path) -> dict[str, str]:
    """Each path of the package and its mode and owner, as dpkg-deb shows them."""
    done = subprocess.run(["dpkg-deb", "--contents", deb], capture_output=True, text=True, check=True)
    rows = [line.split(maxsplit=5) for line in done.stdout.splitlines()]
    return {row[5].split(" -> ")[0].lstrip("."): f"{row[0]} {row[1]}" for row in rows}


def test_what_is_in_it(deb: Path, tmp_path: Path) -> None:
    paths = listing(deb)
    assert set(paths.values()) <= {
        f"{mode} root/root" for mode in ("drwxr-xr-x", "-rw-r--r--", "-rwxr-xr-x", "lrwxrwxrwx")
    }
    executable = {path for path, mode in paths.items() if mode.startswith("-rwx")}
    assert {"/usr/bin/tunneld", "/usr/bin/tunnelctl"} <= executable
    for unit in ("tunneld.service", "tunneld@.service", "tunneld-server.service", "tunneld-server.socket"):
        assert f"/lib/systemd/system/{unit}" in paths
    for path in ("sysusers.d/tunneld.conf", "tmpfiles.d/tunneld.conf"):
        assert f"/usr/lib/{path}" in paths
    assert not [path for path in paths if path.startswith(("/usr/local", "/tmp", "/home", "/root"))]
    sources = {path for path in paths if path.endswith(".py") and "/site-packages/" in path}
    compiled = {
        re.sub(r"__pycache__/([^/]*)\.cpython-\d+\.pyc$", r"\1.py", path) for path in paths if path.endswith("pyc")
    }
    assert sources == compiled
    subprocess.run(["dpkg-deb", "--extract", deb, tmp_path], check=True)
    fields = subprocess.run(["dpkg-deb", "--field", deb], capture_output=True, text=True, check=True).stdout
    assert "Depends: python3 (>= 3.11~), python3 (<< 3.12~), libc6 (>= 2." in fields
    for page in ("man8/tunneld.8", "man1/tunnelctl.1", "man5/tunneld.yaml.5", "man5/tunneld-server.yaml.5"):
        assert gzip.decompress((tmp_path / f"usr/share/man/{page}.gz").read_bytes()).startswith(b".TH ")
    for name in ("tunneld.yaml", "server.yaml"):
        text = (tmp_path / "etc/tunneld" / name).read_text()
        assert "token_file" not in text
    folder = tmp_path / "usr/share"
    for program in ("tunneld", "tunnelctl"):
        for path in (f"zsh/vendor-completions/_{program}", f"fish/vendor_completions.d/{program}.fish"):
            assert program in (folder / path).read_text()
        assert f"complete -F _{program} {program}" in (folder / f"bash-completion/completions/{program}").read_text()


def test_it_is_the_same_when_it_is_built_again(deb: Path, tmp_path: Path) -> None:
    """Whatever the tree, the time and the umask: only the commit's time and the files count."""
    again = build(tmp_path, umask=0o077)
    for one, other in zip(sorted(listing(deb).items()), sorted(listing(again).items()), strict=True):
        assert one == other
    sums = [
        subprocess.run(["dpkg-deb", "--ctrl-tarfile", file], capture_output=True, check=True).stdout
        for file in (deb, again)
    ]
    assert sums[0] == sums[1], "the files differ: diff their md5sums"
    assert deb.read_bytes() == again.read_bytes()


def test_its_life(deb: Path, root: Root) -> None:
    """Installed with no network, used, removed, installed again over its own settings, purged."""
    before = root.run("sh", "-c", "getent passwd; getent group")
    said = install(root, deb)
    assert "rror" not in said, said
    assert root.run("tunneld", "--version").startswith("tunneld ")
    assert root.run("tunnelctl", "--version").startswith("tunnelctl ")
    assert "OK, an agent's" in root.run("tunneld", "check")
    assert "OK, a server's" in root.run("tunneld", "check", "--config", "/etc/tunneld/server.yaml")
    assert root.run("dpkg", "--verify", "tunneld") == ""
    assert "tunneld:x:" in root.run("getent", "passwd", "tunneld")
    assert root.run("find", "/etc/systemd", "-name", "*tunneld*") == "", "a unit is enabled by the installation"
    assert root.run("stat", "-c", "%U %a", "/var/lib/tunneld-server") == "tunneld 700\n"
    # a private environment: nothing of it is on the system's own path, nothing of the system's in it
    assert "No module" in root.run("/usr/bin/python3", "-c", "import tunneld", check=False)
    inside = root.run("/usr/lib/tunneld/bin/python3", "-c", "import sys; print(sys.prefix, sys.path)")
    assert inside.startswith("/usr/lib/tunneld ")
    assert "dist-packages" not in inside
    assert root.run("readlink", "-f", "/usr/lib/tunneld/bin/python3").startswith("/usr/bin/python3")
    for path in STATE:
        file = root.path / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("kept")
    with (root.path / "etc/tunneld/tunneld.yaml").open("a") as file:
        file.write("# mine\n")

    root.run("apt-get", "remove", "-y", "tunneld")
    assert not (root.path / "usr/lib/tunneld").exists()
    assert not (root.path / "usr/bin/tunneld").exists()
    for path in (*STATE, "/etc/tunneld/tunneld.yaml", "/etc/tunneld/server.yaml"):
        assert (root.path / path.lstrip("/")).exists(), f"remove took {path}"

    install(root, deb)
    assert (root.path / "etc/tunneld/tunneld.yaml").read_text().endswith("# mine\n")
    assert root.run("tunneld", "check").count("OK") == 1

    root.run("apt-get", "purge", "-y", "tunneld")
    assert root.named("tunneld", PLACES) == []
    assert root.run("sh", "-c", "getent passwd; getent group") == before


def test_a_tunnel_in_there(deb: Path, root: Root) -> None:
    """Server, agent and service out of the package, on a machine that has a loopback and nothing else."""
    install(root, deb)
    demo = Process(root.command("tunneld", "demo"), name="demo")
    try:
        demo.wait_line(lambda text: "curl -N " in text, timeout=30)
        demo.wait_line("✓ Tunnel established", timeout=30)
    finally:
        demo.discard()


def test_traces_leave_with_what_the_package_brings(deb: Path, root: Root) -> None:
    """An extra cannot be added to it: there is no pip in there. On this machine's loopback, where the collector is."""
    install(root, deb)
    assert "No module" in root.run("/usr/lib/tunneld/bin/python3", "-c", "import pip", check=False)
    collector, service, port = Collector(), SampleService(), free_port()
    telemetry = f"telemetry: {{otlp: '{collector.url}'}}\n"
    files = {
        "server": f"listen: {{port: {port}}}\nadmin: false\nauth: {{mode: open}}\nstore: 'memory:'\n{telemetry}",
        "agent": f"server: {{url: 'ws://127.0.0.1:{port}'}}\ncontrol: {{socket: /tmp/a.sock}}\n"
        f"tunnels: [{{name: demo, service: '{service.url}'}}]\n{telemetry}",
    }
    running: list[Process] = []
    try:
        for role, text in files.items():
            (root.path / "tmp" / f"{role}.yaml").write_text(text)
            checked = root.run("tunneld", "check", "--role", role, "--config", f"/tmp/{role}.yaml")
            assert "telemetry" not in checked, checked
            command = root.command("tunneld", role, "--config", f"/tmp/{role}.yaml", network=True)
            running.append(Process(command, name=role))
        running[1].wait_line("✓ Tunnel established: demo", timeout=30)
        assert httpx.get(f"http://127.0.0.1:{port}/t/demo/small", timeout=20).status_code == 200
        collector.wait(lambda: {span.service for span in collector.spans} == {"tunneld-server", "tunneld-agent"})
        (server,), (agent,) = collector.named("tunneld-server"), collector.named("tunneld-agent")
        assert (agent.trace, agent.parent) == (server.trace, server.span)
        assert agent.attributes["http.response.status_code"] == 200
    finally:
        for process in reversed(running):
            process.discard()
        service.stop()
        collector.stop()
