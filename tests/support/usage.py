"""What the kernel says a process uses: CPU of all its threads, resident memory, descriptors."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["busy_seconds", "cpu_seconds", "descriptors", "resident_bytes", "session_members", "threads", "tree"]

_TICK = os.sysconf("SC_CLK_TCK")
_PROC = Path("/proc")


def _stat(pid: int) -> list[str] | None:
    """Fields of /proc/PID/stat from the third (state) on; None when the process is gone."""
    try:
        text = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    return text[text.rindex(")") + 2 :].split()  # the name in brackets may hold blanks


def _all() -> dict[int, list[str]]:
    found = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))) is not None:
            found[int(entry.name)] = fields
    return found


def tree(*roots: int) -> list[int]:
    """The pids of `roots` and all their living descendants."""
    parents = {pid: int(fields[1]) for pid, fields in _all().items()}
    found = [pid for pid in roots if pid in parents]
    for pid in found:  # grows while it is walked
        found.extend(child for child, parent in parents.items() if parent == pid and child not in found)
    return found


def session_members(session: int) -> list[int]:
    """The pids of living processes (zombies left out) in the session that the process `session` leads."""
    return [pid for pid, fields in _all().items() if int(fields[3]) == session and fields[0] not in "ZX"]


def _run_nanoseconds(pid: int) -> int | None:
    """Time on a CPU of the process's living threads, exact; None where the kernel does not tell."""
    total = 0
    try:
        for task in (_PROC / str(pid) / "task").iterdir():
            total += int((task / "schedstat").read_text().split()[0])
    except OSError:
        return None
    return total


def cpu_seconds(*pids: int) -> float:
    """CPU time of `pids`, all threads; gone ones count 0. Exact, or in ticks of 10 ms on a kernel that is coarse."""
    total = 0.0
    for pid in pids:
        exact = _run_nanoseconds(pid)
        if exact is not None:
            total += exact / 1e9
        elif (fields := _stat(pid)) is not None:
            total += (int(fields[11]) + int(fields[12])) / _TICK
    return total


def busy_seconds() -> float:
    """CPU time that this machine spent on anything at all, all cores together, since it started."""
    fields = [int(field) for field in (_PROC / "stat").read_text().split("\n", 1)[0].split()[1:8]]
    return (sum(fields) - fields[3] - fields[4]) / _TICK  # less idle and iowait


def resident_bytes(*pids: int) -> int:
    """Resident memory of `pids` together; gone ones count 0."""
    total = 0
    for pid in pids:
        try:
            status = (_PROC / str(pid) / "status").read_text()
        except OSError:
            continue
        for line in status.splitlines():
            if line.startswith("VmRSS:"):
                total += int(line.split()[1]) * 1024
    return total


def descriptors(pid: int) -> int:
    """How many descriptors the process holds open."""
    return sum(1 for _ in (_PROC / str(pid) / "fd").iterdir())


def threads(pid: int) -> int:
    """How many threads the process has."""
    return sum(1 for _ in (_PROC / str(pid) / "task").iterdir())
