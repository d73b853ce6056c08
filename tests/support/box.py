"""A real systemd to try things in: `systemd-box` with this checkout installed, and sockets inside its network."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from tests.support.processes import ROOT, eventually

__all__ = ["Box", "missing"]

PROGRAM = Path(__file__).with_name("systemd-box")
_CLONE_NEWNET = 0x40000000
_PROGRAMS = {
    "systemd-nspawn": "systemd-container",
    "dbus-daemon": "dbus",
    "nsenter": "util-linux",
    "faketime": "faketime",
}
_T = TypeVar("_T")


def missing() -> str | None:
    """What this machine lacks to boot one; None when nothing."""
    if os.geteuid() != 0:
        return "must be root"
    lacks = [package for program, package in _PROGRAMS.items() if shutil.which(program) is None]
    if not list(Path("/usr/lib").glob("*/libnss_systemd.so.2")):
        lacks.append("libnss-systemd")
    if lacks:
        return f"apt-get install {' '.join(lacks)}"
    if "cgroup2" not in Path("/proc/self/mounts").read_text():
        return "no cgroup2 is mounted"
    try:
        _interpreter()
    except LookupError as error:
        return str(error)
    return None


def _interpreter() -> str:
    """A Python that the service's user may run, and that takes the modules of this one."""
    here = Path(sys.executable).resolve()
    if all(folder.stat().st_mode & 0o005 for folder in (here, *here.parents)):
        return str(here)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    for folder in ("/usr/bin", "/usr/local/bin"):
        if (Path(folder) / f"python{version}").exists():
            return f"{folder}/python{version}"
    raise LookupError(f"{here} is closed to other users, and there is no /usr/bin/python{version} in its place")


class Box:
    """One booted systemd. `close` takes it away."""

    def __init__(self, name: str) -> None:
        self._environment = {**os.environ, "SYSTEMD_BOX_NAME": name}
        self._console = Path("/run/systemd-box") / name / "console"
        self._boot()

    def close(self) -> None:
        """Shut it down; nothing of it is left."""
        self._call("down", timeout=60)

    def _call(self, *args: str, timeout: float) -> str:
        done = subprocess.run(
            [str(PROGRAM), *args], env=self._environment, capture_output=True, text=True, timeout=timeout, check=False
        )
        assert done.returncode == 0, f"systemd-box {args}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def _boot(self) -> None:
        self._call("up", str(ROOT), timeout=120)
        self._install()

    def _install(self) -> None:
        """What the package does: programs, units, user, directories."""
        site = next(path for path in sys.path if path.endswith("site-packages"))
        site = site.replace(str(ROOT), "/src", 1)
        for program, module in (("tunneld", "tunneld.__main__"), ("tunnelctl", "tunnelctl.cli")):
            text = (
                f"#!{_interpreter()} -B\nimport sys\nsys.path[:0] = ['/src', {site!r}]\n"
                f"from {module} import main\nsys.exit(main())\n"
            )
            self.write(f"/usr/bin/{program}", text, mode=0o755)
        self.sh(
            "cp -r /src/packaging/systemd/* /usr/lib/systemd/system/;"
            "systemd-sysusers /src/packaging/sysusers.d/tunneld.conf 2>/dev/null;"
            "systemd-tmpfiles --create /src/packaging/tmpfiles.d/tunneld.conf;"
            "mkdir -p /etc/tunneld; systemctl daemon-reload"
        )

    # -- commands inside

    def run(
        self, *argv: str, check: bool = True, text: str | None = None, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as root to its end; `text` is its stdin."""
        done = subprocess.run(
            [str(PROGRAM), "exec", *argv],
            env=self._environment,
            input=text if text is not None else "",
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check:
            assert done.returncode == 0, f"{argv}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def sh(self, script: str, *, check: bool = True, timeout: float = 60) -> str:
        """Run a script of bash; its stdout."""
        return self.run("bash", "-ec", script, check=check, timeout=timeout).stdout

    def systemctl(self, *args: str, check: bool = True, timeout: float = 60) -> str:
        """Run systemctl; its stdout."""
        return self.run("systemctl", "--no-pager", *args, check=check, timeout=timeout).stdout

    def show(self, unit: str, *names: str) -> dict[str, str]:
        """Properties of a unit."""
        lines = self.systemctl("show", unit, *[f"--property={name}" for name in names]).splitlines()
        return dict(line.split("=", 1) for line in lines)

    def pid(self, unit: str) -> int:
        """Its main process, as the box numbers it."""
        return int(self.show(unit, "MainPID")["MainPID"])

    def wait_for(self, unit: str, timeout: float = 30, **wanted: str) -> None:
        """Wait until the unit's properties are these; systemd tells nobody outside."""

        def there() -> bool:
            return self.show(unit, *wanted).items() >= wanted.items()

        try:
            eventually(there, timeout=timeout, what=f"{unit} {wanted}")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.show(unit, *wanted)}\n{self.text(unit)}") from None

    def write(self, path: str, text: str, *, mode: int = 0o644, owner: str = "root:root") -> None:
        """Make a file."""
        script = 'mkdir -p "${0%/*}"; cat >"$0"; chmod "$1" "$0"; chown "$2" "$0"'
        self.run("bash", "-ec", script, path, f"{mode:o}", owner, text=text)

    def configure(self, path: str, settings: Mapping[str, Any]) -> None:
        """Write a configuration file."""
        self.write(path, yaml.safe_dump(dict(settings)))

    def drop_in(self, unit: str, text: str) -> None:
        """Lay directives over a unit, until `revert`."""
        self.write(f"/etc/systemd/system/{unit}.d/zz-test.conf", text)
        self.systemctl("daemon-reload")

    def revert(self) -> None:
        """Stop what tests started, and take their drop-ins, files and failures away."""
        self.sh(
            "systemctl stop 'tunneld*.service' 'tunneld*.socket' 2>/dev/null || true;"
            "systemctl disable -q tunneld tunneld-server 2>/dev/null || true;"
            "rm -f /etc/systemd/system/*.d/zz-test.conf /etc/tunneld/* /etc/credstore/*; systemctl daemon-reload;"
            "systemctl reset-failed",
            timeout=120,
        )

    def journal(self, *matches: str) -> list[dict[str, Any]]:
        """Records of the journal that match, oldest first."""
        self.run("journalctl", "--sync")
        out = self.run("journalctl", "--output=json", "--all", "--no-pager", *matches).stdout
        return [json.loads(line) for line in out.splitlines()]

    def text(self, unit: str, count: int = 30) -> str:
        """The end of a unit's journal, for messages."""
        return self.run("journalctl", "--no-pager", f"--lines={count}", "--unit", unit, check=False).stdout

    def now(self) -> str:
        """This moment, as journalctl takes it. (``--after-cursor`` leaves one more out where matches are given.)"""
        return f"--since=@{time.time():.6f}"

    # -- its network, from this process

    def _inside(self, make: Callable[[], _T]) -> _T:
        """Call `make` in a thread that is in the box's network: the sockets that it makes stay there."""
        result: list[_T] = []
        fault: list[BaseException] = []
        pid = self._call("pid", timeout=10).strip()

        def work() -> None:
            try:
                with open(f"/proc/{pid}/ns/net") as namespace:
                    libc = ctypes.CDLL(None, use_errno=True)
                    if libc.setns(namespace.fileno(), _CLONE_NEWNET) != 0:
                        raise OSError(ctypes.get_errno(), "setns")
                result.append(make())
            except Exception as error:  # noqa: BLE001 - raised again below
                fault.append(error)

        thread = threading.Thread(target=work, name="in the box")
        thread.start()
        thread.join()
        if fault:
            raise fault[0]
        return result[0]

    def connect(self, port: int, timeout: float = 20) -> socket.socket:
        """A connection to a loopback port inside."""
        return self._inside(lambda: socket.create_connection(("127.0.0.1", port), timeout))

    def listen(self, port: int = 0) -> socket.socket:
        """A listening socket on a loopback port inside."""
        return self._inside(lambda: socket.create_server(("127.0.0.1", port), backlog=64))

    # -- life

    def reboot(self) -> None:
        """Boot it anew over the same files; returns when it is up.

        Raises AssertionError with what its console said where it is not; then another is there for the tests after it.
        """
        before = self._call("pid", timeout=10)
        self.run("systemctl", "reboot", check=False)

        def booted() -> bool:
            argv = [str(PROGRAM), "status"]
            try:
                done = subprocess.run(argv, env=self._environment, capture_output=True, timeout=10, check=False)
            except subprocess.TimeoutExpired:  # it asked the one that was just going down
                return False
            return done.returncode == 0 and self._call("pid", timeout=10) != before

        try:
            eventually(booted, timeout=60, what="booted again")
        except AssertionError as error:
            said = self._console.read_text(errors="replace")[-4000:]
            self.close()
            self._boot()
            raise AssertionError(f"{error}; its console:\n{said}") from None
