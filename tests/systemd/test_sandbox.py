"""Each directive of the units is in force: a process in the unit's own sandbox tries, and is refused."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

import pytest

from tests.support.box import Box
from tests.support.processes import ROOT

UNITS = ("tunneld.service", "tunneld@one.service", "tunneld-server.service")
#: What the units say that is no right taken away: told by other tests.
NO_RIGHTS = {
    "Type",
    "NotifyAccess",
    "ExecStart",
    "ExecReload",
    "RuntimeDirectory",
    "RuntimeDirectoryMode",
    "RuntimeDirectoryPreserve",
    "StateDirectory",
    "StateDirectoryMode",
    "LogsDirectory",
    "LogsDirectoryMode",
    "LoadCredential",
    "Restart",
    "RestartSec",
    "RestartPreventExitStatus",
    "WatchdogSec",
    "TimeoutStopSec",
    "TimeoutAbortSec",
    "KillMode",
}
C = "import ctypes, os; c = ctypes.CDLL(None, use_errno=True); "
#: Calls the C library and prints the error's name, or "done".
CALL = C + "import errno; r = c.{}; print('done' if r >= 0 else errno.errorcode[ctypes.get_errno()])"


@dataclass(frozen=True)
class Attempt:
    """What a process in the sandbox tries.

    Attributes:
        directive: that forbids it.
        code: Python; prints what came of it, or raises.
        refused: a pattern of the output where the directive holds; OTHER: it differs from that without a sandbox.
        free: a pattern of the output of the same without any sandbox, as root, to show that it is a trial; None: not
            tried, since it would do harm or says nothing.
    """

    directive: str
    code: str
    refused: str
    free: str | None = None


def writes(path: str) -> str:
    return f"import os; open({path!r} + str(os.getpid()), 'a'); print('done')"


def link(name: str) -> str:
    return f"import os; print(os.readlink('/proc/self/ns/{name}'))"


def status(*names: str) -> str:
    return f"print([line.split()[1] for line in open('/proc/self/status') if line.startswith({names!r})])"


def exists(path: str) -> str:
    return f"import os; print(os.path.exists({path!r}))"


def made(family: str, kind: int) -> str:
    return f"import socket; socket.socket(socket.{family}, {kind}); print('done')"


def sent(address: str) -> str:
    return (
        "import socket; s = socket.socket(2, 2); s.setsockopt(0, 32, socket.inet_aton('127.0.0.1'));"  # IP_MULTICAST_IF
        f"print(s.sendto(b'x', ({address!r}, 9)))"
    )


ATTEMPTS = [
    Attempt("User", "import os; print(os.getresuid())", r"^\(([1-9]\d+), \1, \1\)", r"\(0, 0, 0\)"),
    Attempt("Group", "import os; print(os.getresgid(), os.getgroups())", r"^\(([1-9]\d+), \1, \1\) \[(\1)?\]$"),
    Attempt("NoNewPrivileges", status("NoNewPrivs"), r"\['1'\]", r"\['0'\]"),
    Attempt("CapabilityBoundingSet", status("CapBnd", "CapPrm", "CapEff"), r"\['0+', '0+', '0+'\]", "[1-9a-f]"),
    Attempt("AmbientCapabilities", status("CapAmb"), r"\['0+'\]"),
    Attempt("UMask", "import os; print(oct(os.umask(0)))", "0o77", "0o22"),
    Attempt("ProtectSystem", writes("/opt/open-to-all/x"), "Read-only file system", "done"),
    Attempt("ProtectSystem", writes("/var/lib/open-to-all/x"), "Read-only file system", "done"),
    Attempt("ProtectHome", "import os; print(os.listdir('/home'))", "Permission denied", "visitor"),
    Attempt("PrivateTmp", exists("/tmp/outside"), "False", "True"),
    Attempt("PrivateMounts", link("mnt"), "OTHER", "mnt"),
    Attempt("PrivateDevices", exists("/dev/box-device"), "False", "True"),
    Attempt("PrivateIPC", link("ipc"), "OTHER", "ipc"),
    Attempt("ProtectClock", CALL.format("adjtimex(ctypes.create_string_buffer(b'\\x01', 256))"), "EPERM"),
    Attempt("ProtectHostname", CALL.format("sethostname(b'i5s', 3)"), "EPERM", "done"),
    Attempt("ProtectKernelLogs", CALL.format("klogctl(3, ctypes.create_string_buffer(9), 9)"), "EPERM"),
    Attempt("ProtectKernelModules", CALL.format("syscall(175, None, 0, b'')"), "EPERM"),
    Attempt("ProtectKernelTunables", writes("/proc/sys/kernel/x"), "No such file|Read-only|denied"),
    Attempt("ProtectControlGroups", writes("/sys/fs/cgroup/init.scope/x"), "Read-only|denied"),
    Attempt("ProtectProc", exists("/proc/1/status"), "False", "True"),
    Attempt("ProcSubset", exists("/proc/cpuinfo"), "False", "True"),
    Attempt("RestrictNamespaces", CALL.format("unshare(0x10000000)"), "EPERM", "done"),
    Attempt("RestrictNamespaces", CALL.format("unshare(0x20000)"), "EPERM", "done"),
    Attempt("RestrictSUIDSGID", "import os; os.chmod(os.environ['RUNTIME_DIRECTORY'], 0o2750)", "not permitted"),
    Attempt("RestrictAddressFamilies", made("AF_PACKET", 3), "not supported", "done"),
    Attempt("RestrictAddressFamilies", made("AF_ALG", 5), "not supported"),
    Attempt("IPAddressDeny", sent("224.0.0.99"), "not permitted", "^1$"),
    Attempt("IPAddressAllow", sent("127.0.0.1"), "^1$", "^1$"),
    Attempt("LockPersonality", CALL.format("personality(8)"), "EPERM", "done"),
    Attempt("MemoryDenyWriteExecute", "import mmap; mmap.mmap(-1, 4096, prot=7); print('done')", "ermi|denied", "done"),
    Attempt("SystemCallFilter", CALL.format("syscall(165, b'a', b'/', b'tmpfs', 0, None)"), "EPERM"),
    Attempt("SystemCallFilter", "import os; os.nice(1); print('done')", "not permitted", "done"),
    Attempt("SystemCallFilter", CALL.format("ptrace(0, 0, 0, 0)"), "EPERM"),
    Attempt("RestrictRealtime", CALL.format("sched_setscheduler(0, 1, ctypes.byref(ctypes.c_int(1)))"), "EPERM"),
    Attempt("LimitNOFILE", "import resource; print(resource.getrlimit(7))", r"\((\d+), \1\)"),
    Attempt("LimitCORE", "import resource; print(resource.getrlimit(4))", r"\(0, 0\)"),
]
#: Where a process cannot tell: what systemd says that it does.
PROPERTIES = {
    "DevicePolicy": "closed",
    "KeyringMode": "private",
    "RemoveIPC": "yes",
    "SystemCallArchitectures": "native",
    "LimitNOFILE": "524288",
    "TasksMax": "128",
    "SystemCallErrorNumber": "1",  # EPERM
}
#: In the server alone: on the agent it would turn other peers of the control socket into 65534.
USERS = "print(open('/proc/self/uid_map').read().split())"
RUNNER = """
import json, subprocess, sys
results = []
for code in json.load(open("/usr/local/lib/attempts.json")):
    done = subprocess.run([sys.executable, "-IBc", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    results.append(done.stdout.strip())
print(json.dumps(results))
"""
CODES = [*[attempt.code for attempt in ATTEMPTS], USERS]
#: What plain root may try as well: where nothing refuses it, the rest would do harm.
HARMLESS = ["" if attempt.free is None else attempt.code for attempt in ATTEMPTS] + [USERS]


def runtime(unit: str) -> str:
    return unit.removesuffix(".service").replace("@", "-")


def source(unit: str) -> str:
    return (ROOT / "packaging" / "systemd" / unit.replace("@one", "@")).read_text()


def directives(unit: str) -> set[str]:
    service = source(unit).partition("[Service]")[2].partition("[Install]")[0]
    return set(re.findall(r"(?m)^(\w+)=", service))


@pytest.fixture(scope="module")
def outcomes(booted: Box) -> dict[str, list[str]]:
    """What each attempt prints in each unit's sandbox, and as plain root (key "")."""
    booted.revert()
    booted.sh(
        "id visitor >/dev/null 2>&1 || useradd --create-home visitor; touch /tmp/outside;"
        "mkdir -p -m 1777 /opt/open-to-all /var/lib/open-to-all; touch /dev/box-device"
    )
    booted.write("/usr/local/lib/attempts.py", RUNNER)
    booted.write("/usr/local/lib/attempts.json", json.dumps(HARMLESS))
    found = {"": json.loads(booted.run("/usr/bin/python3", "-IB", "/usr/local/lib/attempts.py").stdout)}
    booted.write("/usr/local/lib/attempts.json", json.dumps(CODES))
    for unit in UNITS:
        command = "/bin/sh -c '/usr/bin/python3 -IB /usr/local/lib/attempts.py >$RUNTIME_DIRECTORY/out'"
        text = re.sub(r"(?m)^ExecStart=.*", f"ExecStart={command}", source(unit))
        text = re.sub(r"(?m)^Type=.*", "Type=oneshot", text)
        text = re.sub(r"(?m)^(Restart|WatchdogSec|Wants)=.*", "", text)
        text = re.sub(r"(?m)^RuntimeDirectoryPreserve=.*", "RuntimeDirectoryPreserve=yes", text)
        name = "attempts@" if "@" in unit else "attempts"
        booted.write(f"/etc/systemd/system/{name}.service", text)
        booted.systemctl("daemon-reload")
        booted.systemctl("start", "attempts@one" if "@" in unit else "attempts")
        found[unit] = json.loads(booted.sh(f"cat /run/{runtime(unit)}/out"))
    booted.sh("rm -rf /etc/systemd/system/attempts* /run/tunneld*; systemctl daemon-reload")
    return found


@pytest.mark.parametrize("number", range(len(ATTEMPTS)), ids=lambda number: f"{number}-{ATTEMPTS[number].directive}")
@pytest.mark.parametrize("unit", UNITS)
def test_what_a_directive_forbids_is_refused(outcomes: dict[str, list[str]], unit: str, number: int) -> None:
    attempt = ATTEMPTS[number]
    free, refused = outcomes[""][number], outcomes[unit][number].splitlines()[-1]
    if attempt.free is not None:
        assert re.search(attempt.free, free), f"without a sandbox: {free}"
    if attempt.refused == "OTHER":  # a namespace of its own
        assert refused.partition(":")[0] == free.partition(":")[0]
        assert refused != free
        return
    assert re.search(attempt.refused, refused), f"{attempt.directive} is not in force: {refused}"


@pytest.mark.parametrize("unit", UNITS)
def test_what_only_systemd_can_tell(booted: Box, unit: str) -> None:
    assert booted.show(unit, *PROPERTIES).items() >= PROPERTIES.items()


@pytest.mark.parametrize("unit", UNITS)
def test_every_directive_is_tried(unit: str) -> None:
    tried = {attempt.directive for attempt in ATTEMPTS} | PROPERTIES.keys() | {"PrivateUsers"}
    assert directives(unit) - tried - NO_RIGHTS == set()


def test_only_the_server_may_not_see_other_users(outcomes: dict[str, list[str]]) -> None:
    whole = ["0", "0", "4294967295"]
    assert [outcomes[unit][-1] == str(whole) for unit in ("", *UNITS)] == [True, True, True, False]


@pytest.mark.parametrize("unit", UNITS)
def test_the_exposure_is_next_to_nothing(booted: Box, unit: str) -> None:
    done = booted.run("systemd-analyze", "security", "--no-pager", "--threshold=12", unit, check=False)
    assert done.returncode == 0, done.stdout[-300:]
    overall = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert overall is not None
    assert float(overall[1]) <= 1.2


def test_systemd_takes_the_units(booted: Box) -> None:
    units = [f"/usr/lib/systemd/system/{unit}" for unit in (*UNITS, "tunneld-server.socket")]
    done = booted.run("systemd-analyze", "verify", "--man=no", *units)
    assert done.stdout + done.stderr == ""
