"""A program that is told of alerts, without a shell. Whatever it does, it holds nobody up and fills no memory."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from typing import IO, cast

from tunneld.alerts import messages
from tunneld.alerts.faults import Undelivered
from tunneld.alerts.messages import Message
from tunneld.config.alerts import CommandTarget

__all__ = ["run_command"]

_MOST = 16 * 1024
"""Bytes of its last words that are kept."""
_PACE = 0.05
"""Seconds between two reads of what it says: one that never stops talking waits for us, not we for it."""
_LAST_WORDS = 0.5
"""Seconds that they have to come once it is over: what it started may hold its stderr for ever."""


async def run_command(target: CommandTarget, message: Message) -> None:
    """Run it once, the message on its stdin; raises Undelivered. Cancelled it ends it, and what it started."""
    environment = {
        **{name: os.environ[name] for name in ("PATH", "HOME", "LANG", "LC_ALL", "TZ") if name in os.environ},
        "TUNNELD_ALERT": message.alert,
        "TUNNELD_ALERT_STATE": message.state,
        "TUNNELD_ALERT_TITLE": message.title,
    }
    loop = asyncio.get_running_loop()
    program = _Program(loop)
    try:
        with _as_file(messages.encoded(messages.plain(message))) as told:
            transport, _ = await loop.subprocess_exec(
                lambda: program,
                *target.command,
                stdin=told,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                env=environment,
                start_new_session=True,
            )
    except OSError as error:
        raise Undelivered(f"it cannot be started: {error.strerror or error}", final=True) from None
    try:
        await program.over
        await asyncio.wait([program.silent], timeout=_LAST_WORDS)
    except BaseException:
        _kill(transport.get_pid())
        await program.over
        raise
    finally:
        transport.close()
        await asyncio.wait([program.gone], timeout=_LAST_WORDS)
    if code := transport.get_returncode():
        words = program.said.decode(errors="replace").strip().splitlines()
        raise Undelivered(f"it ended with {code}{f': {words[-1][:200]}' if words else ''}")


def _as_file(data: bytes) -> IO[bytes]:
    """A file that holds this, to be read from its begin: nobody waits until a program has read it."""
    file: IO[bytes]
    if hasattr(os, "memfd_create"):  # noqa: SIM108 - not in one line with what else there is
        file = os.fdopen(os.memfd_create("alert"), "w+b")
    else:
        file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    file.write(data)
    file.seek(0)
    return file


class _Program(asyncio.SubprocessProtocol):
    """One run.

    Attributes:
        over: settled when it has ended.
        silent: settled when nobody can say anything any more, its children neither.
        gone: settled when its pipes are closed.
        said: the last of its words.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.over: asyncio.Future[None] = loop.create_future()
        self.silent: asyncio.Future[None] = loop.create_future()
        self.gone: asyncio.Future[None] = loop.create_future()
        self.said = bytearray()
        self._loop = loop
        self._transport: asyncio.SubprocessTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.SubprocessTransport, transport)

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self.said += data
        del self.said[:-_MOST]
        assert self._transport is not None
        stderr = cast(asyncio.ReadTransport, self._transport.get_pipe_transport(fd))
        stderr.pause_reading()
        self._loop.call_later(_PACE, _read_on, stderr)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        if fd == 2 and not self.silent.done():
            self.silent.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.gone.done():
            self.gone.set_result(None)

    def process_exited(self) -> None:
        if not self.over.done():
            self.over.set_result(None)


def _read_on(stderr: asyncio.ReadTransport) -> None:
    if not stderr.is_closing():
        stderr.resume_reading()


def _kill(pid: int) -> None:
    """It, and what it started."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
