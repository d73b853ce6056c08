"""stdin, stdout and stderr, also where whoever started the program closed them (``tunneld … >&-``)."""

from __future__ import annotations

import os
import sys

__all__ = ["drop", "fill"]


def fill() -> None:
    """Open on ``/dev/null`` what is closed of the three, before anything else is opened.

    Python has None for a stream that was closed, which cannot be written to; and the next file or socket would get its
    number, with all that a library or a child prints.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)  # the lowest that is free: the one that is missing
            os.set_inheritable(descriptor, True)
            setattr(sys, name, os.fdopen(descriptor, mode, encoding="utf-8", errors="backslashreplace"))


def drop() -> None:
    """Let what waits for stdout go nowhere where it cannot be written: nobody reads it, or its disk is full.

    The interpreter tries again at its end, and would exit with 120.
    """
    try:
        sys.stdout.flush()
    except OSError:
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, sys.stdout.fileno())
        os.close(devnull)
