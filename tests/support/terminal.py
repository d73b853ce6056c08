"""A terminal for tests of what our programs do on one."""

from __future__ import annotations

import asyncio
import codecs
import os
import pty
import struct
import sys
from fcntl import ioctl
from termios import TIOCSCTTY, TIOCSWINSZ

__all__ = ["Terminal"]


class Terminal:
    """A pseudo-terminal with one of our programs on it, whose controlling terminal it is."""

    def __init__(self, columns: int = 80) -> None:
        self._ours, self._theirs = pty.openpty()
        ioctl(self._theirs, TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
        self._columns = columns
        self.shown = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._more = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._ours, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._ours, 65536)
        except OSError:  # how Linux tells that the other side is closed
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self._ours)
        self.shown += self._decoder.decode(data)
        self._more.set()

    async def run(self, module: str, *words: str, **env: str) -> asyncio.subprocess.Process:
        """Start `python -m MODULE WORDS…`."""
        keep = {key: os.environ[key] for key in ("PATH", "HOME", "LANG") if key in os.environ}
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            module,
            *words,
            stdin=self._theirs,
            stdout=self._theirs,
            stderr=self._theirs,
            env=keep | {"TERM": "xterm"} | env,
            start_new_session=True,
            preexec_fn=lambda: ioctl(0, TIOCSCTTY, 0),  # so that Ctrl-C and a hangup reach it
        )
        os.close(self._theirs)
        return process

    async def until(self, text: str) -> None:
        """Return when the text was shown."""
        while text not in self.shown:
            self._more.clear()
            await self._more.wait()

    def type(self, text: str) -> None:
        """Press these keys."""
        os.write(self._ours, text.encode())

    def close(self) -> None:
        """Close the window. Idempotent."""
        if self._ours >= 0:
            asyncio.get_running_loop().remove_reader(self._ours)
            os.close(self._ours)
            self._ours = -1
