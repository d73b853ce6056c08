"""Where log lines leave the process, without ever holding up the one who logs.

A terminal that was stopped with Ctrl-S, a pipe whose reader sleeps or a journal that is behind would block a
plain ``write``, and with it the event loop and every tunnel. An `Outlet` writes at once while its channel
takes the bytes, which is nearly always; when it does not, lines wait in a bounded backlog that one thread
hands over, and what does not fit is counted and said as soon as the channel takes lines again.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
import struct
import threading
from array import array
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

__all__ = ["BACKLOG", "Channel", "JournalChannel", "Outlet", "journal_field", "stream_channel"]

BACKLOG: Final = 1024 * 1024
"""Bytes of lines that wait for a channel that takes none. More are dropped and counted."""

_PIECE: Final = 4096  # PIPE_BUF: what a pipe that polls writable takes without blocking
_RETRY: Final = 0.05  # seconds; a terminal may poll writable and still take nothing: do not spin on it


class Channel(Protocol):
    """Something with a descriptor that takes bytes and never blocks."""

    def fileno(self) -> int:
        """The descriptor to wait on until it is writable."""

    def send(self, record: bytes) -> bytes:
        """Hand over `record`; returns the part that was not taken, empty when all was.

        Raises:
            BlockingIOError: nothing is taken at present.
            OSError: nothing will be taken (reader gone, descriptor closed).
        """

    def close(self) -> None:
        """Give up the descriptors that this channel opened itself."""


class Outlet:
    """Writes whole records to a channel, in order, from any thread, and never blocks.

    Args:
        channel: where they go.
        notice: makes the record that says how many were dropped.
        bound: bytes that may wait.

    Attributes:
        dropped: records that were neither written nor yet spoken of in a notice.
    """

    def __init__(self, channel: Channel, notice: Callable[[int], bytes], *, bound: int = BACKLOG) -> None:
        self.dropped = 0
        self._channel = channel
        self._notice = notice
        self._bound = bound
        self._backlog: deque[bytes] = deque()
        self._held = 0
        self._idle = threading.Condition()  # guards all of the above; notified when the backlog is empty
        self._thread: threading.Thread | None = None
        self._closed = False

    def write(self, record: bytes) -> None:
        """Write one record now, or keep it for later, or count it as dropped."""
        with self._idle:
            if self._backlog or self._closed:
                self._keep(record)
                return
            if self._attempt(record) and self.dropped:
                self._tell()

    def flush(self, timeout: float) -> bool:
        """Wait at most `timeout` seconds for the backlog to be written; returns whether it is."""
        with self._idle:
            return self._idle.wait_for(lambda: not self._backlog, timeout)

    def close(self, timeout: float = 1.0) -> None:
        """Write what waits, for at most `timeout` seconds; then nothing more is taken."""
        self.flush(timeout)
        with self._idle:
            if self._closed:
                return
            self._closed = True
            if self._thread is None:
                self._channel.close()

    def _attempt(self, record: bytes) -> bool:
        """Send; returns whether the whole record went out. What is left over starts the thread."""
        try:
            rest = self._channel.send(record)
        except BlockingIOError:
            rest = record
        except OSError:
            self.dropped += 1
            return False
        if rest:
            self._backlog.append(rest)  # the rest of a line that was begun: kept whatever the bound says
            self._held += len(rest)
            # A daemon: a channel that never takes anything again must not keep the process from ending.
            self._thread = threading.Thread(target=self._drain, name="log-outlet", daemon=True)
            self._thread.start()
        return not rest

    def _keep(self, record: bytes) -> None:
        if self._closed or self._held + len(record) > self._bound:
            self.dropped += 1
            return
        self._backlog.append(record)
        self._held += len(record)

    def _tell(self) -> None:
        count, self.dropped = self.dropped, 0
        self._attempt(self._notice(count))
        if self.dropped:
            self.dropped = count  # the notice was not taken either

    def _drain(self) -> None:
        poll = select.poll()
        poll.register(self._channel.fileno(), select.POLLOUT)
        pause = threading.Event()
        while True:
            poll.poll()
            with self._idle:
                progress = self._drain_some()
                if not self._backlog:
                    self._thread = None
                    self._idle.notify_all()
                    if self._closed:
                        self._channel.close()
                    return
            if not progress:
                pause.wait(_RETRY)

    def _drain_some(self) -> bool:
        """Write until the channel takes no more; returns whether it took anything."""
        progress = False
        while self._backlog:
            record = self._backlog[0]
            try:
                rest = self._channel.send(record)
            except BlockingIOError:
                return progress
            except OSError:
                self.dropped += len(self._backlog)
                self._backlog.clear()
                self._held = 0
                return True
            progress = True
            self._held -= len(record) - len(rest)
            if rest:
                self._backlog[0] = rest
                continue
            self._backlog.popleft()
            if not self._backlog and self.dropped:
                notice = self._notice(self.dropped)
                self.dropped = 0
                self._backlog.append(notice)
                self._held += len(notice)
        return progress


class _OwnDescription:
    """A pipe or a terminal, through an open file description of its own that does not block.

    O_NONBLOCK on the inherited one would also bind every other process that shares it, the user's shell among
    them.
    """

    def __init__(self, fd: int) -> None:
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        self._fd = os.open(f"/proc/self/fd/{fd}", flags)

    def fileno(self) -> int:
        return self._fd

    def send(self, record: bytes) -> bytes:
        return record[os.write(self._fd, record) :]

    def close(self) -> None:
        os.close(self._fd)


class _Polled:
    """A pipe or a terminal that cannot be opened anew: asked before each piece whether it takes one."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)

    def fileno(self) -> int:
        return self._fd

    def send(self, record: bytes) -> bytes:
        while record:
            if not self._poll.poll(0):
                return record
            record = record[os.write(self._fd, record[:_PIECE]) :]
        return record

    def close(self) -> None:
        pass


class _Socket:
    """A stream socket, as stderr is under systemd."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=os.dup(fd))

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, record: bytes) -> bytes:
        return record[self._socket.send(record, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL) :]

    def close(self) -> None:
        self._socket.close()


class _File:
    """A regular file or a device such as /dev/null: takes everything."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def send(self, record: bytes) -> bytes:
        return record[os.write(self._fd, record) :]

    def close(self) -> None:
        pass


def stream_channel(fd: int) -> Channel:
    """The channel that suits what `fd` is: pipe, terminal, socket or file. `fd` itself stays as it was."""
    mode = os.fstat(fd).st_mode
    if stat.S_ISSOCK(mode):
        return _Socket(fd)
    if stat.S_ISFIFO(mode) or os.isatty(fd):
        try:
            return _OwnDescription(fd)
        except OSError:  # no /proc, or a terminal that belongs to another user
            return _Polled(fd)
    return _File(fd)


class JournalChannel:
    """journald's native socket: a datagram a record, a sealed memory file for one too large for a datagram.

    Args:
        path: of the socket.

    Raises:
        OSError: no journal listens there.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            self._connect()
        except OSError:
            self._socket.close()
            raise

    def _connect(self) -> None:
        self._socket.connect(self._path)
        self._socket.setblocking(False)

    def fileno(self) -> int:
        """The datagram socket."""
        return self._socket.fileno()

    def send(self, record: bytes) -> bytes:
        """One record, whole; dials once more when the journal was restarted."""
        try:
            self._send(record)
        except (ConnectionError, FileNotFoundError):
            self._connect()
            self._send(record)
        except OSError as error:
            if error.errno != errno.ENOTCONN:
                raise
            self._connect()
            self._send(record)
        return b""

    def _send(self, record: bytes) -> None:
        try:
            self._socket.send(record)
        except OSError as error:
            if error.errno not in (errno.EMSGSIZE, errno.ENOBUFS):
                raise
            self._send_file(record)

    def _send_file(self, record: bytes) -> None:
        # fcntl's seals have names from Python 3.8 on, memfd_create too; Linux only, as the journal is.
        import fcntl

        fd = os.memfd_create("tunneld-log", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            view = memoryview(record)
            while view:
                view = view[os.write(fd, view) :]
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
            self._socket.sendmsg([], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [fd]))])
        finally:
            os.close(fd)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def journal_field(name: str, value: str) -> bytes:
    """One field of the native protocol; a value with line breaks goes with its length before it."""
    data = value.encode("utf-8", "backslashreplace")
    if b"\n" in data:
        return name.encode("ascii") + b"\n" + struct.pack("<Q", len(data)) + data + b"\n"
    return name.encode("ascii") + b"=" + data + b"\n"
