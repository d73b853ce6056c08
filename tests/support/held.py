"""A program whose listening sockets another holds, as systemd does: handed over at its start (sd_listen_fds(3))."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence

from tests.support.processes import Process

__all__ = ["handed"]

#: Moves the descriptors named first to 3, 4, … and becomes the rest of its command line.
_LAUNCHER = """
import os, sys
held = [os.dup(int(fd)) for fd in sys.argv[1].split(",")]
held = [os.dup2(fd, 100 + number) for number, fd in enumerate(held)]
for number, fd in enumerate(held):
    os.dup2(fd, 3 + number, inheritable=True)
    os.close(fd)
for fd in map(int, sys.argv[1].split(",")):
    if fd >= 3 + len(held):
        os.close(fd)
os.environ |= {"LISTEN_FDS": str(len(held)), "LISTEN_PID": sys.argv[2] or str(os.getpid()), "LISTEN_FDNAMES": "web"}
os.execv(sys.argv[3], sys.argv[3:])
"""


def handed(held: Sequence[socket.socket], command: Sequence[str], *, name: str, pid: str = "") -> Process:
    """Start `command`, which gets `held` and no other descriptor; they stay open here.

    Args:
        held: sockets that listen.
        command: begins with the path of a program.
        name: of the process, for messages.
        pid: whom the word that goes with them is for; empty: the process itself.
    """
    fds = [os.dup(sock.fileno()) for sock in held]
    try:
        argv = [sys.executable, "-c", _LAUNCHER, ",".join(map(str, fds)), pid, *command]
        return Process(argv, name=name, pass_fds=fds)
    finally:
        for fd in fds:
            os.close(fd)
