"""The Containerfile, built without an engine: its steps run in Debian roots, its programs as the user that it names."""

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.packages.containers import Image, built, healthy, parsed
from tests.support.processes import ROOT, Process, eventually

SERVER = '{listen: {host: 0.0.0.0, port: 8440}, public_url: "http://tunnel.example.org", admin: false}\n'
AGENT = '{server: {url: "ws://127.0.0.1:8440"}, tunnels: [{name: demo, service: "http://127.0.0.1:9000"}]}\n'


@pytest.fixture(scope="module")
def images(debian: Path) -> Iterator[dict[str, Image]]:
    with tempfile.TemporaryDirectory(prefix="tunneld-image-") as folder, ExitStack() as ends:
        yield built(debian, Path(folder), ends)


def inner_pid(process: Process) -> int:
    """The process that runs in the image: the one below `unshare`."""
    done = subprocess.run(["ps", "--ppid", str(process.pid), "-o", "pid="], capture_output=True, text=True, check=False)
    return int(done.stdout.split()[0])


def test_every_file_that_is_copied_is_there() -> None:
    for instruction, value in parsed():
        if instruction == "COPY" and not value.startswith("--from="):
            for source in value.split()[:-1]:
                assert (ROOT / source).exists(), source


def test_it_is_rootless_and_checks_its_health(images: dict[str, Image]) -> None:
    for name in ("agent", "server"):
        image = images[name]
        assert image.user == "10001:10001"
        assert image.health
        assert image.entrypoint == ["/usr/local/bin/tunneld"]
        shown = subprocess.run(image.enter(*image.entrypoint, "--version"), capture_output=True, text=True, check=True)
        assert shown.stdout.startswith("tunneld ")
    assert images["server"].ports == ["8440"]


def test_the_server_runs_and_is_healthy(images: dict[str, Image]) -> None:
    image = images["server"]
    (image.root.path / "etc/tunneld/server.yaml").write_text(SERVER)
    process = Process(image.enter(*image.entrypoint, *image.command), name="server")
    try:
        process.wait_until(lambda: healthy(image, inner_pid(process)), timeout=30, what="healthy")
        status = Path(f"/proc/{inner_pid(process)}/status").read_text()
        assert "\nUid:\t10001\t10001\t10001\t10001\n" in status
        assert "\nCapEff:\t0000000000000000\n" in status
    finally:
        process.discard()


def test_the_agent_is_healthy_while_its_tunnel_is_down_and_not_when_it_hangs(images: dict[str, Image]) -> None:
    image = images["agent"]
    (image.root.path / "etc/tunneld/tunneld.yaml").write_text(AGENT)
    token = image.root.path / "run/secrets/tunneld.token"
    token.parent.mkdir()
    token.write_text("a-token\n")
    token.chmod(0o440)
    subprocess.run(["chown", "10001:10001", str(token)], check=True)
    assert not image.volumes
    process = Process(image.enter(*image.entrypoint, *image.command), name="agent")
    try:
        process.wait_until(lambda: inner_pid(process) > 0 and healthy(image, inner_pid(process)), timeout=30)
        pid = inner_pid(process)
        subprocess.run(["kill", "-STOP", str(pid)], check=True)
        eventually(lambda: not healthy(image, pid), timeout=40, what="unhealthy")
    finally:
        process.discard()
