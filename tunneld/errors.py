"""The one tree of errors, and the one table of codes.

A class carries its place in the program; a code carries its meaning for people: the HTTP status that a
visitor or an agent is answered with, a title, and what to do. ``tunneld explain CODE`` and the table in the
README read `CODES`.
"""

from __future__ import annotations

from tunneld.codes.code import Code
from tunneld.codes.operators import OPERATORS
from tunneld.codes.tunnels import TUNNELS
from tunneld.codes.visitors import VISITORS

__all__ = [
    "CODES",
    "Code",
    "ConfigError",
    "LocalError",
    "ProtocolError",
    "RemoteError",
    "ResourceError",
    "TunneldError",
    "UsageError",
    "VisitorError",
]

#: Every code, by its word; where each may be met is what `tunneld.codes` is divided by.
CODES: dict[str, Code] = {**VISITORS, **TUNNELS, **OPERATORS}


class TunneldError(Exception):
    """The root. `str()` of any of these is a whole sentence for people.

    Attributes:
        exit_status: what a program ends with when this reaches its top.
    """

    exit_status = 1


class UsageError(TunneldError):
    """The command line asks for something that is not there."""

    exit_status = 2


class ConfigError(TunneldError):
    """A configuration file or an environment that cannot be used.

    Args:
        faults: one line a fault, each complete in itself (file, line, key, what was expected).
    """

    exit_status = 2

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class ResourceError(ConfigError):
    """The machine lacks something now that it may have in a moment (room on a disk): worth another start."""

    exit_status = 1


class LocalError(TunneldError):
    """This side's own caller did what the protocol does not allow (a defect of ours, never of the peer)."""


class ProtocolError(TunneldError):
    """The common root of faults of the wire.

    Args:
        code: a key of `CODES`.
        detail: what was seen, for the log.
    """

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail


class RemoteError(ProtocolError):
    """The peer broke the protocol: the session ends with this code."""


class VisitorError(TunneldError):
    """A request that is answered with a problem document.

    Args:
        code: a key of `CODES` whose status is not 0.
        detail: one sentence of this very case, shown to the visitor.
        retry_after: seconds for ``Retry-After``; None sends none.
        limit: the key below `limits` that was hit, where the code does not tell.
    """

    def __init__(self, code: str, detail: str = "", *, retry_after: int | None = None, limit: str = "") -> None:
        super().__init__(detail or CODES[code].title)
        self.code = code
        self.status = CODES[code].status
        self.detail = detail
        self.retry_after = retry_after
        self.limit = limit
