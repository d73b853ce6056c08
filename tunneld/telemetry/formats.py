"""A log record as bytes: text for people, JSON for collectors, a native record for the journal.

No value of a field, whoever it came from, can forge a line or drive a terminal.
"""

from __future__ import annotations

import logging
import re
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from tunneld.telemetry.outlet import journal_field

__all__ = ["PRIORITY", "Encoder", "Json", "Text", "native"]

Encoder = Callable[[logging.LogRecord], bytes]

PRIORITY: Final = {10: 7, 20: 6, 30: 4, 40: 3, 50: 2}
"""Of syslog, by the level of `logging`."""

_STANDARD: Final = frozenset(logging.LogRecord("", 0, "", 0, "", None, None).__dict__) | {
    "message",
    "asctime",
    "taskName",
}


def _fields(record: logging.LogRecord) -> Iterator[tuple[str, object]]:
    for name, value in record.__dict__.items():
        if name not in _STANDARD:
            yield name, value


def _trace(record: logging.LogRecord) -> str:
    """Traceback and stack of a record, empty for nearly every one."""
    parts = []
    if record.exc_info and record.exc_info[0] is not None:
        parts.append("".join(traceback.format_exception(*record.exc_info)).rstrip("\n"))
    if record.stack_info:
        parts.append(record.stack_info)
    return "\n".join(parts)


# -- text ------------------------------------------------------------------------------------------------

# Controls of C0 and C1, line and paragraph separators, and what turns the direction of writing round: any of
# them in a visitor's path could forge a line or hide a part of one.
_UNSAFE: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
_QUOTED: Final = re.compile(r'[\s="\\]')
_SHORT: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_LEVELS: Final = {
    10: ("DEBUG", "\x1b[2m"),
    20: ("INFO", "\x1b[32m"),
    30: ("WARNING", "\x1b[33m"),
    40: ("ERROR", "\x1b[31m"),
}


def _escape(match: re.Match[str]) -> str:
    char = match.group()
    number = ord(char)
    return _SHORT.get(char) or (f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}")


def _visible(text: str) -> str:
    return _UNSAFE.sub(_escape, text)


def _value(value: object) -> str:
    text = str(value)
    if not text:
        return '""'
    if _QUOTED.search(text):
        text = text.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{_visible(text)}"'
    return _visible(text)


def _rows(record: logging.LogRecord) -> list[str]:
    trace = _trace(record)
    return [f"    | {_visible(row)}" for row in trace.split("\n")] if trace else []


class Text:
    """``time level message key=value …``; what follows of a traceback is indented, so that no text in it
    makes a line.

    Args:
        colour: level and fields in colour.
        clock: local time of day, for someone who watches; else ISO 8601 in UTC.
        priority: each line begins with systemd's ``<N>`` in place of time and level.
    """

    def __init__(self, *, colour: bool, clock: bool, priority: bool = False) -> None:
        self._colour = colour
        self._clock = clock
        self._priority = priority
        self._second = -1
        self._prefix = ""

    def __call__(self, record: logging.LogRecord) -> bytes:
        """The record's line, and the rows of its traceback."""
        message = _visible(record.getMessage())
        fields = "".join([f" {_visible(name)}={_value(value)}" for name, value in _fields(record)])
        if not record.name.startswith("tunneld"):
            fields = f" logger={_value(record.name)}{fields}"
        if self._priority:
            rows = [f"{message}{fields}", *_rows(record)]
            mark = f"<{PRIORITY.get(record.levelno, 6)}>"
            return "".join([f"{mark}{row}\n" for row in rows]).encode()
        level, ink = _LEVELS.get(record.levelno) or (record.levelname, "")
        if self._colour:
            line = f"{self._time(record)} {ink}{level:<7}\x1b[0m {message}\x1b[2m{fields}\x1b[0m\n"
        else:
            line = f"{self._time(record)} {level:<7} {message}{fields}\n"
        if record.exc_info or record.stack_info:
            line += "".join([f"{row}\n" for row in _rows(record)])
        return line.encode()

    def _time(self, record: logging.LogRecord) -> str:
        second = int(record.created)
        if second != self._second:
            self._second = second
            if self._clock:
                self._prefix = time.strftime("%H:%M:%S", time.localtime(second))
            else:
                self._prefix = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._prefix}.{int(record.created * 1000) % 1000:03d}{'' if self._clock else 'Z'}"


# -- json ------------------------------------------------------------------------------------------------

_OWN: Final = frozenset({"time", "level", "logger", "message", "exception"})
_to_json: Final = msgspec.json.Encoder(enc_hook=str).encode


def _clean(text: str) -> str:
    """`text` without lone surrogates, which UTF-8 cannot hold."""
    return text.encode("utf-8", "backslashreplace").decode()


class Json:
    """One object, one line: time, level, logger, message, then the fields, then ``exception``."""

    def __init__(self) -> None:
        self._second = -1
        self._prefix = ""

    def __call__(self, record: logging.LogRecord) -> bytes:
        """The record's line."""
        line: dict[str, object] = {
            "time": self._time(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name, value in _fields(record):
            line[f"{name}_" if name in _OWN else name] = value
        if record.exc_info or record.stack_info:
            line["exception"] = _trace(record)
        try:
            return _to_json(line) + b"\n"
        except UnicodeEncodeError:
            return _to_json({_clean(name): _clean(str(value)) for name, value in line.items()}) + b"\n"

    def _time(self, created: float) -> str:
        second = int(created)
        if second != self._second:
            self._second = second
            self._prefix = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._prefix}.{int(created * 1_000_000) % 1_000_000:06d}Z"


# -- journal ---------------------------------------------------------------------------------------------

_FIELD: Final = re.compile(r"[^A-Z0-9_]")
#: Fields that the journal calls otherwise: a plain KIND says nothing beside those of other programs.
_JOURNAL_NAMES: Final = {"kind": "STREAM_KIND"}
_JOURNAL_OWN: Final = frozenset(
    {"MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER", "LOGGER", "CODE_FILE", "CODE_LINE", "CODE_FUNC"}
)


def _journal_name(name: str) -> str:
    """A field name as the journal takes it: A-Z, 0-9 and _, a letter first, at most 64."""
    if name in _JOURNAL_NAMES:
        return _JOURNAL_NAMES[name]
    upper = _FIELD.sub("_", name.upper()).lstrip("_")
    if not upper or upper[0].isdigit() or upper in _JOURNAL_OWN:
        upper = f"F_{upper}"
    return upper[:64]


def native(record: logging.LogRecord) -> bytes:
    """One native record; ``MESSAGE`` is the plain message, with the traceback below it where there is one."""
    message = record.getMessage()
    if record.exc_info or record.stack_info:
        message = f"{message}\n{_trace(record)}"
    parts = [
        journal_field("MESSAGE", message),
        b"PRIORITY=%d\nSYSLOG_IDENTIFIER=tunneld\n" % PRIORITY.get(record.levelno, 6),
        journal_field("LOGGER", record.name),
        journal_field("CODE_FILE", record.pathname),
        b"CODE_LINE=%d\n" % record.lineno,
        journal_field("CODE_FUNC", record.funcName or ""),
    ]
    parts += [journal_field(_journal_name(name), str(value)) for name, value in _fields(record)]
    return b"".join(parts)
