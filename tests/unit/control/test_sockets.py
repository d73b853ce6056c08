import errno
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tunneld.errors import ConfigError
from tunneld.wire.unix import Credentials, bind, credentials

LISTEN = """
import socket, sys, signal
sock = socket.socket(socket.AF_UNIX); sock.bind(sys.argv[1]); sock.listen(); print("ready", flush=True); signal.pause()
"""
BIND = """
import sys, signal, pathlib
from tunneld.wire.unix import bind
bound = bind(pathlib.Path(sys.argv[1]), mode=0o660, group=None); print("ready", flush=True); signal.pause()
"""


def fault(path: Path, **more: object) -> str:
    with pytest.raises(ConfigError) as caught:
        bind(path, **({"mode": 0o660, "group": None} | more))  # type: ignore[arg-type]
    assert len(caught.value.faults) == 1
    assert "\n" not in caught.value.faults[0]
    return caught.value.faults[0]


@pytest.fixture
def owner(folder: Path):
    started = []

    def start(script: str, path: Path) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def test_mode_and_directory_whatever_the_umask(folder: Path) -> None:
    before = os.umask(0o000)
    try:
        open_umask = bind(folder / "a" / "b" / "c.sock", mode=0o660, group=None)
        os.umask(0o077)
        tight_umask = bind(folder / "d" / "c.sock", mode=0o640, group=None)
    finally:
        os.umask(before)
    for bound, mode in ((open_umask, 0o660), (tight_umask, 0o640)):
        assert stat.S_IMODE(bound.path.lstat().st_mode) == mode
        assert stat.S_IMODE(bound.path.parent.stat().st_mode) == 0o755
        bound.remove()
        bound.sock.close()
    assert list((folder / "a" / "b").iterdir()) == []
    assert list((folder / "d").iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file to any group")
def test_group_by_name_and_number(folder: Path) -> None:
    import grp

    other = next(entry for entry in grp.getgrall() if entry.gr_gid not in (0, os.getegid()))
    for name in (other.gr_name, str(other.gr_gid)):
        bound = bind(folder / "c.sock", mode=0o660, group=name)
        assert bound.path.lstat().st_gid == other.gr_gid
        bound.remove()
        bound.sock.close()


def test_missing_group_is_an_error(folder: Path) -> None:
    assert "no group 'no-such-group'" in fault(folder / "c.sock", group="no-such-group")
    assert list(folder.iterdir()) == []


def test_stale_socket_is_replaced(folder: Path, owner) -> None:
    path = folder / "c.sock"
    process = owner(BIND, path)
    process.kill()
    process.wait()
    assert path.is_socket()
    bound = bind(path, mode=0o660, group=None)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    bound.remove()
    bound.sock.close()
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("script", [LISTEN, BIND])
def test_live_socket_is_an_error_that_names_its_owner(folder: Path, owner, script: str) -> None:
    path = folder / "c.sock"
    process = owner(script, path)
    assert f"already running as pid {process.pid}" in fault(path)
    process.send_signal(signal.SIGSTOP)  # one that hangs is live all the same
    assert f"already running as pid {process.pid}" in fault(path)
    assert path.is_socket()


def test_live_socket_with_a_full_backlog(folder: Path) -> None:
    path = folder / "c.sock"
    with socket.socket(socket.AF_UNIX) as busy:
        busy.bind(str(path))
        busy.listen(0)
        clients = [socket.socket(socket.AF_UNIX) for _ in range(3)]
        try:
            codes = []
            for client in clients:
                client.setblocking(False)
                codes.append(client.connect_ex(str(path)))
            assert codes[-1] == errno.EAGAIN
            assert "already running" in fault(path)
        finally:
            for client in clients:
                client.close()


def test_of_many_that_start_at_once_over_a_stale_socket_one_wins(folder: Path) -> None:
    path = folder / "c.sock"
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(path))
    outcomes: list[object] = []
    barrier = threading.Barrier(8)

    def start() -> None:
        barrier.wait()
        try:
            outcomes.append(bind(path, mode=0o660, group=None))
        except ConfigError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [one for one in outcomes if not isinstance(one, ConfigError)]
    assert len(winners) == 1
    winners[0].remove()  # type: ignore[attr-defined]
    winners[0].sock.close()  # type: ignore[attr-defined]


def test_what_is_no_socket_is_left_alone(folder: Path) -> None:
    plain = folder / "plain"
    plain.write_text("mine")
    assert "not a socket" in fault(plain)
    assert plain.read_text() == "mine"
    (folder / "dir").mkdir()
    assert "not a socket" in fault(folder / "dir")


def test_symbolic_link_is_not_followed(folder: Path) -> None:
    link = folder / "c.sock"
    link.symlink_to(folder / "elsewhere")
    assert "symbolic link" in fault(link)
    assert link.is_symlink()
    assert not (folder / "elsewhere").exists()


def test_path_too_long(folder: Path) -> None:
    assert "longer than the 107 bytes" in fault(folder / ("x" * 100))
    longest = folder / ("x" * (107 - len(str(folder)) - 1))
    bound = bind(longest, mode=0o600, group=None)
    bound.remove()
    bound.sock.close()


def test_directory_that_is_a_file(folder: Path) -> None:
    (folder / "file").write_text("")
    assert "not a directory" in fault(folder / "file" / "c.sock")


@pytest.mark.skipif(os.geteuid() != 0, reason="changes its own user")
def test_unwritable_directory_and_foreign_group(folder: Path) -> None:
    (folder / "locked").mkdir(mode=0o755)
    script = """
import os, sys, pathlib
from tunneld.wire.unix import bind
from tunneld.errors import ConfigError
os.setgroups([]); os.setgid(65534); os.setuid(65534)
for name, group in (("locked", None), ("no", None), ("o", "root")):
    try:
        bind(pathlib.Path(sys.argv[1], name, "c.sock"), mode=0o660, group=group)
    except ConfigError as error:
        print(error)
"""
    (folder / "o").mkdir()
    os.chmod(folder, 0o755)
    os.chown(folder / "o", 65534, 65534)
    done = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=True)
    first, second, third = done.stdout.splitlines()
    assert "cannot write beside it: permission denied" in first
    assert "cannot make the directory: permission denied" in second
    assert "uid 65534 may not give" in third
    assert list((folder / "o").iterdir()) == []


def test_removed_only_if_still_ours(folder: Path) -> None:
    path = folder / "c.sock"
    bound = bind(path, mode=0o660, group=None)
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        bound.remove()
        bound.remove()
        assert path.is_socket()
    bound.sock.close()


def test_credentials_of_the_peer(folder: Path) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        assert credentials(ours) == Credentials(os.getpid(), os.geteuid(), os.getegid())
