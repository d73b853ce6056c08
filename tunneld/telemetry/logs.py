"""What the daemons say, as text for people, JSON for collectors or native records for the journal.

Everyone logs with the standard library: ``log.info("text %s", x, extra={"tunnel": …, "request_id": …})``.
Every field of ``extra`` comes out beside the message in each format. `setup` is called once by a program,
`set_level` by a reload.

A line never stalls its caller (see `Outlet`), and nothing that goes wrong in logging reaches the one who
logs.
"""

from __future__ import annotations

import atexit
import io
import logging
import os
import sys
import time
from typing import Final, Literal, TextIO, get_args

from tunneld.telemetry.formats import PRIORITY, Encoder, Json, Text, native
from tunneld.telemetry.outlet import Channel, JournalChannel, Outlet, stream_channel

__all__ = ["BURST", "JOURNAL_SOCKET", "Format", "Level", "close", "complain", "set_burst", "set_level", "setup"]

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["auto", "text", "json", "journal"]

JOURNAL_SOCKET: Final = "/run/systemd/journal/socket"
BURST: Final = 5000
"""Lines that the journal gets in `BURST_SPAN` unless the configuration says otherwise: half of what journald takes of
a service before it drops lines by itself, of which this program would never hear."""
BURST_SPAN: Final = 30.0
"""Seconds."""

_LIBRARIES: Final = (
    "asyncio",
    "fastapi",
    "httpcore",
    "httpx",
    "uvicorn",
    "uvicorn.access",
    "uvicorn.error",
    "websockets",
)


def setup(
    level: Level = "info",
    format: Format = "auto",
    *,
    stream: TextIO | None = None,
    journal: str = JOURNAL_SOCKET,
) -> None:
    """Send every record of the process, from `level` on, to one place in one format. A second call replaces
    the first.

    Args:
        level: the least that is written.
        format: ``auto`` is journal where stderr is the journal's stream, text on a terminal, json elsewhere.
        stream: where text and json go; None is stderr.
        journal: the journal's socket. Where none listens, text goes to `stream`, each line with its priority.

    Raises:
        ValueError: no such level or format.
    """
    number = _number(level)
    if format not in get_args(Format):
        raise ValueError(f"no such log format: {format!r}")
    close()
    # What no format shows need not be looked up for each record.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    root = logging.getLogger()
    root.addHandler(_handler(format, stream if stream is not None else sys.stderr, journal))
    _apply(number)
    atexit.register(close)


def set_level(level: Level) -> None:
    """Change the least level that is written, at once and for every logger.

    Raises:
        ValueError: no such level.
    """
    _apply(_number(level))


def close(timeout: float = 1.0) -> None:
    """Write what waits, for at most `timeout` seconds, and take the handler of `setup` away."""
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, _Handler)]:
        root.removeHandler(handler)
        handler.finish(timeout)
    atexit.unregister(close)


def set_burst(lines: int) -> None:
    """Bound what the journal gets: at most `lines` in `BURST_SPAN` seconds, and the count of what was dropped; 0: all.

    Other formats are not bounded: a terminal or a collector takes what comes.
    """
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _Handler) and handler.burst is not None:
            handler.burst.lines = lines


def complain(text: str) -> None:
    """Say on stderr why the program ends; in the journal each line is an error (``<3>``, sd-daemon(3))."""
    mark = f"<{PRIORITY[logging.ERROR]}>" if _natural(sys.stderr) == "journal" else ""
    print("\n".join(mark + line for line in text.split("\n")), file=sys.stderr)


def _number(level: str) -> int:
    if level not in get_args(Level):
        raise ValueError(f"no such log level: {level!r}")
    number: int = getattr(logging, level.upper())
    return number


def _apply(number: int) -> None:
    logging.getLogger().setLevel(number)
    for name in _LIBRARIES:
        # Libraries speak about their own inside; below a warning it is not for the operator of a tunnel.
        logger = logging.getLogger(name)
        logger.setLevel(max(number, logging.WARNING))
        logger.handlers.clear()
        logger.propagate = True


def _handler(format: Format, stream: TextIO, journal: str) -> _Handler:
    if format == "auto":
        format = _natural(stream)
    if format == "journal":
        try:
            return _Handler(native, _outlet(JournalChannel(journal), native), _Burst(BURST))
        except OSError:
            encoder: Encoder = Text(colour=False, clock=False, priority=True)
    elif format == "json":
        encoder = Json()
    else:
        terminal = stream.isatty()
        plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
        encoder = Text(colour=terminal and not plain, clock=terminal)
    fd = _descriptor(stream)
    if fd is None:
        return _Handler(encoder, _Plain(stream))
    return _Handler(encoder, _outlet(stream_channel(fd), encoder))


def _outlet(channel: Channel, encoder: Encoder) -> Outlet:
    def notice(count: int) -> bytes:
        text = "%d log lines were dropped: what takes them did not keep up"
        record = logging.LogRecord("tunneld.telemetry", logging.WARNING, __file__, 0, text, (count,), None)
        record.dropped = count
        return encoder(record)

    return Outlet(channel, notice)


def _natural(stream: TextIO) -> Format:
    """The format that suits `stream`, as systemd and terminals tell it."""
    fd = _descriptor(stream)
    if fd is not None:
        device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
        status = os.fstat(fd)
        if (device, inode) == (str(status.st_dev), str(status.st_ino)):
            return "journal"
    return "text" if stream.isatty() else "json"


def _descriptor(stream: TextIO) -> int | None:
    try:
        return stream.fileno()
    except (io.UnsupportedOperation, AttributeError, ValueError):
        return None  # a stream in memory


class _Plain:
    """The outlet of a stream without a descriptor."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, record: bytes) -> None:
        self._stream.write(record.decode())

    def close(self, timeout: float = 0) -> None:
        self._stream.flush()


class _Burst:
    """How many lines may go out in each span of time, from the span's first line on.

    Attributes:
        lines: in one span; 0: any number.
        dropped: of this span.
    """

    def __init__(self, lines: int) -> None:
        self.lines = lines
        self.dropped = 0
        self._written = 0
        self._ends_at = 0.0

    def admits(self, now: float) -> bool:
        """Whether one more line may go out (monotonic seconds)."""
        if now >= self._ends_at:
            self._ends_at, self._written = now + BURST_SPAN, 0
        if self.lines and self._written >= self.lines:
            self.dropped += 1
            return False
        self._written += 1
        return True

    def over(self, now: float) -> int:
        """How many lines were dropped in a span that has ended, once."""
        if not self.dropped or now < self._ends_at:
            return 0
        count, self.dropped = self.dropped, 0
        return count


class _Handler(logging.Handler):
    def __init__(self, encoder: Encoder, outlet: Outlet | _Plain, burst: _Burst | None = None) -> None:
        super().__init__()
        self._encoder = encoder
        self._outlet = outlet
        self.burst = burst

    def emit(self, record: logging.LogRecord) -> None:
        if self.burst is not None and not self._admitted(self.burst):
            return
        # The caller was doing something that matters more than its log line: whatever is wrong with the line
        # or its fields becomes a line of its own.
        try:
            data = self._encoder(record)
        except Exception as fault:  # noqa: BLE001
            data = self._encoder(_substitute(record, fault))
        try:
            self._outlet.write(data)
        except (OSError, ValueError):
            pass  # a stream in memory that was closed

    def _admitted(self, burst: _Burst) -> bool:
        now = time.monotonic()
        self.tell_dropped(burst.over(now))
        first = not burst.dropped
        if burst.admits(now):
            return True
        if first:
            self._notice("the log is bounded to %d lines in 30 s: lines are dropped until then", burst.lines)
        return False

    def tell_dropped(self, count: int) -> None:
        """Say how many lines the bound cost."""
        if count:
            self._notice("%d log lines were dropped: more than log.burst allows in 30 s", count, dropped=count)

    def _notice(self, text: str, number: int, **fields: int) -> None:
        record = logging.LogRecord("tunneld.telemetry", logging.WARNING, __file__, 0, text, (number,), None)
        record.__dict__.update(fields)
        self._outlet.write(self._encoder(record))

    def finish(self, timeout: float) -> None:
        if self.burst is not None:
            self.tell_dropped(self.burst.dropped)
        self._outlet.close(timeout)
        self.close()


def _substitute(record: logging.LogRecord, fault: Exception) -> logging.LogRecord:
    text = "a log line could not be written: %s"
    other = logging.LogRecord(
        record.name, logging.ERROR, record.pathname, record.lineno, text, (type(fault).__name__,), None
    )
    other.template = record.msg if isinstance(record.msg, str) else type(record.msg).__name__
    other.source = f"{record.filename}:{record.lineno}"
    return other
