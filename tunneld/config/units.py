"""Durations, sizes and the other plain values of the configuration: text in, numbers out.

Every scalar of a file arrives here as the text that stands in it (see `tunneld.config.document`), so that YAML's own
guesses (``on``, ``60:00``, ``0660``) never happen; a program that builds a model hands over plain Python values.
A fault is a `ValueError` whose text says what was expected and what was found.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

__all__ = [
    "MAX_SECONDS",
    "MAX_SIZE",
    "Duration",
    "Size",
    "Whole",
    "format_duration",
    "format_size",
    "parse_duration",
    "parse_flag",
    "parse_mode",
    "parse_share",
    "parse_size",
    "parse_text",
    "shown",
]

MAX_SECONDS = 3650 * 86400.0
"""Ten years: no duration of this program is longer, and no clock arithmetic overflows below it."""
MAX_SIZE = 1 << 50
"""One PiB: no size of this program is larger."""

_Number = TypeVar("_Number", int, float)
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {
    "": 1,
    "B": 1,
    "KB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
    "TB": 1000**4,
    "KIB": 1 << 10,
    "MIB": 1 << 20,
    "GIB": 1 << 30,
    "TIB": 1 << 40,
}
_QUANTITY = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)[ ]?([A-Za-z]{0,3})", re.ASCII)
_WHOLE = re.compile(r"[0-9]{1,18}", re.ASCII)
_OCTAL = re.compile(r"(?:0o?)?[0-7]{3}", re.ASCII)
_FLAGS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}

_A_DURATION = "expected a duration such as 500ms, 30s, 2m, 1h or plain seconds"
_NUMBER = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})?", re.ASCII)
_A_SHARE = "expected a share such as 5% or 0.05"
_A_SIZE = "expected a size such as 256KiB, 4MiB or plain bytes"


def shown(value: object) -> str:
    """What a fault shows of a value that was found: short, on one line, and never a whole structure."""
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, (list, tuple)):
        return "a list"
    if isinstance(value, bool):
        return "true" if value else "false"
    text = value if isinstance(value, str) else repr(value)
    text = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text[:60])
    return f'"{text}"' if isinstance(value, str) else text


def _quantity(value: object, units: dict[str, float] | dict[str, int], wanted: str, *, fold: bool) -> tuple[str, str]:
    """Split ``12.5 KiB`` into its number and its unit, both as text; the unit is a key of `units`.

    Args:
        fold: the unit's case does not matter; `units` has them in capitals.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{wanted}, not {value}")
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(f"{wanted}, not {shown(value)}")
    text = f"{value:f}" if isinstance(value, float) else str(value)
    text = text.strip()
    if text.startswith("-"):
        raise ValueError(f"{wanted}; it cannot be negative as {shown(text)} is")
    match = _QUANTITY.fullmatch(text.upper() if fold else text)
    if match is None or match[2] not in units:
        raise ValueError(f"{wanted}, not {shown(value)}")
    return match[1], match[2]


def parse_duration(value: object) -> float:
    """Seconds of ``500ms``, ``30s``, ``2m``, ``1h``, ``90d``, or of plain seconds.

    Args:
        value: the text, or a number of seconds.

    Raises:
        ValueError: not a duration, negative, not finite, or over `MAX_SECONDS`.
    """
    number, unit = _quantity(value, _SECONDS | {"": 1.0}, _A_DURATION, fold=False)
    seconds = float(number) * _SECONDS.get(unit, 1.0)
    if seconds > MAX_SECONDS:
        raise ValueError(f"expected at most {MAX_SECONDS / 86400:.0f}d, not {shown(value)}")
    return seconds


def parse_size(value: object) -> int:
    """Bytes of ``256KiB``, ``4MiB``, ``10MB`` (decimal), or of plain bytes. Units are taken in any case.

    Raises:
        ValueError: not a size, negative, not a whole number of bytes, or over `MAX_SIZE`.
    """
    number, unit = _quantity(value, _BYTES, _A_SIZE, fold=True)
    whole, _, fraction = number.partition(".")
    scale = _BYTES[unit]
    size, rest = int(whole) * scale, 0
    if fraction:
        part, rest = divmod(int(fraction) * scale, 10 ** len(fraction))
        size += part
    if rest:
        raise ValueError(f"expected a whole number of bytes, not {shown(value)}")
    if size > MAX_SIZE:
        raise ValueError(f"expected at most {format_size(MAX_SIZE)}, not {shown(value)}")
    return size


def format_duration(seconds: float) -> str:
    """The shortest text that `parse_duration` reads as the same number, in the largest unit that divides it."""
    if seconds == 0:
        return "0s"
    for unit in ("d", "h", "m", "s"):
        scale = _SECONDS[unit]
        if seconds >= scale and seconds % scale == 0:
            return f"{int(seconds // scale)}{unit}"
    milliseconds = round(seconds * 1000)
    if seconds < 1 and parse_duration(f"{milliseconds}ms") == seconds:
        return f"{milliseconds}ms"
    return f"{seconds:.18f}".rstrip("0").rstrip(".") + "s"


def format_size(size: int) -> str:
    """The shortest text that `parse_size` reads as the same number, in the largest binary unit that divides it."""
    for unit, text in (("TIB", "TiB"), ("GIB", "GiB"), ("MIB", "MiB"), ("KIB", "KiB")):
        if size and size % _BYTES[unit] == 0:
            return f"{size // _BYTES[unit]}{text}"
    return str(size)


def parse_flag(value: object) -> bool:
    """True or false, also written yes/no and on/off.

    Raises:
        ValueError: anything else.
    """
    if isinstance(value, bool):
        return value
    flag = _FLAGS.get(value.strip().lower()) if isinstance(value, str) else None
    if flag is None:
        raise ValueError(f"expected true or false, not {shown(value)}")
    return flag


def parse_share(value: object) -> float:
    """A share of the whole: ``5%`` or ``0.05``. Raises `ValueError` when it is none, or not from 0 to 1."""
    text = str(value).strip() if isinstance(value, (str, int, float)) and not isinstance(value, bool) else ""
    number, percent = text.removesuffix("%").strip(), text.endswith("%")
    if not _NUMBER.fullmatch(number):
        raise ValueError(f"{_A_SHARE}, not {shown(value)}")
    share = float(number) / (100 if percent else 1)
    if share > 1:
        raise ValueError(f"{_A_SHARE}; {shown(value)} is more than the whole")
    return share


def parse_text(value: object) -> str:
    """One line of text that is not empty.

    Raises:
        ValueError: empty, several lines, control characters, or not text at all.
    """
    if not isinstance(value, str):
        raise ValueError(f"expected text, not {shown(value)}")
    if not value.strip():
        raise ValueError("expected text, not an empty value")
    if not value.isprintable():
        raise ValueError(f"expected one line of plain text, not {shown(value)}")
    return value


def parse_mode(value: object) -> int:
    """A socket's permission bits: ``"0660"``, ``0660``, ``660`` and ``0o660`` are the same 0o660.

    A number that comes from a program, not from a file, is taken as it is.

    Raises:
        ValueError: not three octal digits.
    """
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 0o777:
        return value
    if isinstance(value, str) and _OCTAL.fullmatch(value.strip()):
        return int(value.strip().removeprefix("0o"), 8)
    raise ValueError(f'expected an octal mode such as "0660", not {shown(value)}')


@dataclass(frozen=True, slots=True)
class Duration:
    """Reads a duration that has to lie between two bounds.

    Attributes:
        low: the least number of seconds.
        high: the most.
        off: 0 is taken whatever `low` says: it turns the thing off.
    """

    low: float = 0.0
    high: float = MAX_SECONDS
    off: bool = False

    def __call__(self, value: object) -> float:
        """Seconds. Raises `ValueError` when `value` is no duration or out of bounds."""
        seconds = parse_duration(value)
        return _between(seconds, self.low, self.high, value, off=self.off, form=format_duration)


@dataclass(frozen=True, slots=True)
class Size:
    """Reads a size that has to lie between two bounds; `off` as in `Duration`."""

    low: int = 0
    high: int = MAX_SIZE
    off: bool = False

    def __call__(self, value: object) -> int:
        """Bytes. Raises `ValueError` when `value` is no size or out of bounds."""
        return _between(parse_size(value), self.low, self.high, value, off=self.off, form=format_size)


def _between(
    number: _Number, low: _Number, high: _Number, value: object, *, off: bool, form: Callable[[_Number], str]
) -> _Number:
    """The number that `value` says, when it lies within the bounds; raises `ValueError`."""
    if number == 0 and off:
        return number
    if number < low:
        also = ", or 0 for off" if off else ""
        raise ValueError(f"expected at least {form(low)}{also}, not {shown(value)}")
    if number > high:
        raise ValueError(f"expected at most {form(high)}, not {shown(value)}")
    return number


@dataclass(frozen=True, slots=True)
class Whole:
    """Reads a whole number that has to lie between two bounds."""

    low: int = 0
    high: int = 1_000_000

    def __call__(self, value: object) -> int:
        """The number. Raises `ValueError` when `value` is no whole number or out of bounds."""
        wanted = f"expected a whole number from {self.low} to {self.high}"
        if isinstance(value, str) and _WHOLE.fullmatch(value.strip()):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not self.low <= value <= self.high:
            raise ValueError(f"{wanted}, not {shown(value)}")
        return value
