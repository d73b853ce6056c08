"""The error of both APIs."""

from __future__ import annotations

from typing import NotRequired

from tunneld.control.models.typed import TypedDict

__all__ = ["Problem"]


class Problem(TypedDict):
    """An error (RFC 9457); `code` is stable and also in ``X-Tunnel-Error``; `faults` one line each."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    faults: NotRequired[list[str]]
