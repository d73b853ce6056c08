"""`tunnelctl` in this process: a start of an interpreter for each line takes too long on a busy machine."""

from __future__ import annotations

import asyncio
import contextlib
import io
from dataclasses import dataclass

from tunnelctl.cli import main

__all__ = ["Ran", "tunnelctl", "tunnelctl_beside"]


@dataclass(frozen=True)
class Ran:
    """What a command left."""

    returncode: int
    stdout: str
    stderr: str


def tunnelctl(*line: str) -> Ran:
    """`tunnelctl LINE`; its streams are what the command sees as the process's own."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(list(line))
    out.flush()
    err.flush()
    said = [stream.buffer.getvalue().decode() for stream in (out, err)]  # type: ignore[attr-defined]
    return Ran(status, *said)


async def tunnelctl_beside(*line: str) -> Ran:
    """The same in a thread, while this loop serves what it asks. One at a time."""
    return await asyncio.to_thread(tunnelctl, *line)
