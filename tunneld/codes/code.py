"""What stands of each code."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Code", "table"]


@dataclass(frozen=True, slots=True)
class Code:
    """What one stable code means.

    Attributes:
        code: the stable word, as in ``X-Tunnel-Error``.
        status: HTTP status of the answer that carries it; 0 for a code of the tunnel's own protocol.
        title: one line that says what happened.
        advice: one line or two that say what to do about it.
    """

    code: str
    status: int
    title: str
    advice: str


def table(*rows: tuple[str, int, str, str]) -> dict[str, Code]:
    """Codes by their word; no word stands twice."""
    codes = {row[0]: Code(*row) for row in rows}
    assert len(codes) == len(rows)
    return codes
