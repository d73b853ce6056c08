"""A QR code on a terminal: two rows of its modules in each line of text."""

from __future__ import annotations

__all__ = ["drawn"]

_QUIET = 2
"""Modules of light around it; the terminal's own margin does the rest."""
_HALVES = {(False, False): "█", (False, True): "▀", (True, False): "▄", (True, True): " "}  # the light ones are drawn


def drawn(text: str, *, colour: bool) -> list[str]:
    """The lines of the code for a text.

    Args:
        text: at most some hundred characters.
        colour: paint light modules white and dark ones black, whatever the terminal's own colours are; else the
            terminal's foreground stands for light, as on a dark one.
    """
    import segno

    code = segno.make(text, error="l", micro=False, boost_error=False)
    rows = [[bool(module) for module in row] for row in code.matrix_iter(border=_QUIET)]
    if len(rows) % 2:
        rows.append([False] * len(rows[0]))
    lines = ["".join(_HALVES[pair] for pair in zip(*rows[at : at + 2], strict=True)) for at in range(0, len(rows), 2)]
    return [f"\x1b[97;40m{line}\x1b[0m" for line in lines] if colour else lines
