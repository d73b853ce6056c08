"""What both daemons do around their work: logs, signals, the service manager, the descriptor limit, the end."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
import signal
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable, Coroutine
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

from tunneld.config.advice import otlp_missing
from tunneld.config.common import TelemetryConfig
from tunneld.errors import ConfigError
from tunneld.telemetry import logs
from tunneld.telemetry.systemd import Notifier
from tunneld.wire.lookups import event_loop

if TYPE_CHECKING:
    from tunneld.telemetry.traces import Tracer

__all__ = ["Daemon", "die", "main", "raise_descriptor_limit", "run", "serve", "tracer", "warn_about_descriptors"]

log = logging.getLogger("tunneld.daemon")
_T = TypeVar("_T")

#: Seconds between two status lines to the service manager while nothing else happens.
_STATUS_EVERY = 10.0
#: Seconds between two requests for more time while the daemon stops, and how much each asks for: a loop that hangs
#: asks for nothing, and is killed.
_MORE_EVERY, _MORE = 5.0, 15.0
#: Seconds that a loop may take to close once its work is over.
_CLOSE = 5.0


class Daemon(Protocol):
    """A role, as its life is driven from here."""

    @property
    def drain_timeout(self) -> float:
        """Seconds that open streams have to end by themselves after SIGTERM."""

    async def start(self) -> None:
        """Return when the daemon serves; raises ConfigError when it cannot."""

    async def drain(self) -> None:
        """Take no new streams and return when the open ones have ended; cancelled when the time is over."""

    async def stop(self) -> None:
        """End what is left, visibly, and let go of everything."""

    async def reload(self) -> object:
        """Apply the changed file; raises ConfigError and changes nothing when it is bad."""

    def status_line(self) -> str:
        """One line for an operator."""

    def on_leave(self, leave: Callable[[], None]) -> None:
        """Call `leave` when an operator asks the daemon to drain and go: then all is as after SIGTERM."""


def raise_descriptor_limit() -> int:
    """Raise the soft limit of open files to the hard one; returns what holds."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (OSError, ValueError):  # not ours to raise: the warning below tells
            pass
    return soft


def warn_about_descriptors(available: int, wanted: int, what: str) -> None:
    """Say at start when the configured limits could need more descriptors than there are."""
    if wanted > available:
        log.warning(
            "The limits allow %s, which may need %d descriptors; this process may open %d. "
            "Raise LimitNOFILE= (or ulimit -n), or lower the limits.",
            what,
            wanted,
            available,
        )


def tracer(telemetry: TelemetryConfig, *, role: str) -> Tracer | None:
    """What makes this daemon's traces; None, which costs nothing: there are none. On the loop."""
    if telemetry.otlp is None:
        return None
    if (missing := otlp_missing(telemetry)) is not None:
        log.warning("telemetry.otlp: %s", missing, extra={"key": "telemetry.otlp"})
        return None
    from tunneld.telemetry.traces import Tracer

    return Tracer(telemetry.otlp, role=role, queue=telemetry.queue, timeout=telemetry.timeout, sample=telemetry.sample)


def run(main: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
    """Run a coroutine on uvloop where it is installed, on asyncio's own loop elsewhere."""
    with _Closing() as closing, asyncio.Runner(loop_factory=event_loop) as runner:
        try:
            result = runner.run(main())
        except BaseException as error:
            closing.begins(1, error)
            raise
        closing.begins(result if isinstance(result, int) else 0, None)
        return result


class _Closing:
    """Ends the process where its loop does not: uvloop was seen to wait for ever when it was closed behind an exception
    with transports open, and a daemon that failed has to leave, so that it is started again."""

    def __init__(self) -> None:
        self._timer: threading.Timer | None = None

    def begins(self, status: int, error: BaseException | None) -> None:
        """The loop is about to be closed; with `status` the process ends where that takes longer than `_CLOSE`."""
        self._timer = threading.Timer(_CLOSE, self._leave, (status, error))
        self._timer.daemon = True
        self._timer.start()

    @staticmethod
    def _leave(status: int, error: BaseException | None) -> None:
        if error is not None:
            traceback.print_exception(error)
        print(f"The loop did not close within {_CLOSE:g} s; leaving without.", file=sys.stderr, flush=True)
        os._exit(status)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer.join()


def main(make: Callable[[], Daemon], level: logs.Level, format: logs.Format, *, burst: int = logs.BURST) -> int:
    """Be one daemon until a signal ends it; returns the exit status.

    Args:
        make: called on the running loop.
        level: of the log.
        format: of the log.
        burst: lines that the journal gets in 30 s at most; 0: no limit.
    """
    logs.setup(level, format)
    logs.set_burst(burst)
    # What was imported lives as long as the process. A full collection over it took 95 ms, in which no byte moved;
    # without it, well under one.
    gc.freeze()

    async def live() -> int:
        return await serve(make())

    try:
        return run(live)
    except ConfigError as error:
        return die(error)
    finally:
        logs.close()


async def serve(daemon: Daemon, *, announce: Callable[[], None] | None = None) -> int:
    """Start a daemon and serve until SIGTERM or SIGINT: drain, then leave. A second signal leaves at once.

    Args:
        announce: called when it serves.

    Returns:
        The exit status: 0, or 1 when a task of the daemon failed (the error is logged).
    """
    loop = asyncio.get_running_loop()
    notifier = Notifier()
    signals = _Signals(loop)
    daemon.on_leave(signals.leave)
    try:
        await daemon.start()
        notifier.ready(daemon.status_line())
        if announce is not None:
            announce()
        reports = loop.create_task(_report(daemon, notifier), name="systemd reports")
        try:
            await _until_told(daemon, notifier, signals)
            notifier.stopping()
            await _ended(reports)
            reports = loop.create_task(_ask_for_time(daemon, notifier), name="systemd reports")
            await _drain(daemon, signals)
        finally:
            try:
                await daemon.stop()
            finally:
                await _ended(reports)
    except BaseExceptionGroup as group:
        log.critical("A task of the daemon failed; leaving.", exc_info=group)
        return 1
    finally:
        signals.close()
        notifier.close()
    log.info("Stopped.")
    return 0


class _Signals:
    """SIGTERM and SIGINT as an event that counts, SIGHUP as another, an operator's wish as a third."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.stops = 0
        self.hangups = 0
        self.leaving = False
        self.changed = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        loop.add_signal_handler(signal.SIGHUP, self._hangup)

    def _stop(self) -> None:
        self.stops += 1
        self.changed.set()

    def _hangup(self) -> None:
        self.hangups += 1
        self.changed.set()

    def leave(self) -> None:
        """An operator wants the daemon to go; again is no more than once."""
        self.leaving = True
        self.changed.set()

    def close(self) -> None:
        """Give the signals back."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            self._loop.remove_signal_handler(number)


async def _until_told(daemon: Daemon, notifier: Notifier, signals: _Signals) -> None:
    """Serve until the first stop signal, or an operator's wish; reload at each SIGHUP."""
    while not (signals.stops or signals.leaving):
        await signals.changed.wait()
        signals.changed.clear()
        while signals.hangups:
            signals.hangups = 0
            await _reload(daemon, notifier)


async def _reload(daemon: Daemon, notifier: Notifier) -> None:
    notifier.reloading()
    try:
        await daemon.reload()
    except ConfigError as error:
        for fault in error.faults:
            log.error("The reload changed nothing: %s", fault)
    finally:
        notifier.ready(daemon.status_line())


async def _drain(daemon: Daemon, signals: _Signals) -> None:
    """Let open streams end for `drain_timeout`, or until the second stop signal."""
    if daemon.drain_timeout:
        log.info("Stopping: open streams have %g s to end.", daemon.drain_timeout)
    else:
        log.info("Stopping at once: drain_timeout is 0.")
    loop = asyncio.get_running_loop()
    draining = loop.create_task(_quietly(daemon.drain), name="drain")
    ends_at = monotonic() + daemon.drain_timeout
    try:
        while not draining.done() and signals.stops < 2 and monotonic() < ends_at:
            signals.changed.clear()
            told = loop.create_task(signals.changed.wait(), name="second signal")
            try:
                await asyncio.wait([draining, told], timeout=ends_at - monotonic(), return_when=asyncio.FIRST_COMPLETED)
            finally:
                told.cancel()
                await asyncio.wait([told])
    finally:
        draining.cancel()
        await asyncio.wait([draining])


async def _quietly(drain: Callable[[], Awaitable[None]]) -> None:
    try:
        await drain()
    except asyncio.CancelledError:
        raise
    except Exception:
        log.exception("Draining failed; leaving.")
        raise


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


async def _ask_for_time(daemon: Daemon, notifier: Notifier) -> None:
    """Tell the service manager, as long as this loop turns, that the daemon ends in order and when at the latest."""
    ends_at = monotonic() + daemon.drain_timeout
    while notifier.active:
        notifier.extend_timeout(_MORE)
        left = max(0.0, ends_at - monotonic())
        notifier.status(f"stopping, at most {left:.0f} s more: {daemon.status_line()}")
        await asyncio.sleep(_MORE_EVERY)


async def _report(daemon: Daemon, notifier: Notifier) -> None:
    """Tell the service manager that the very loop that moves the bytes still turns, and what it does."""
    if not notifier.active:
        return
    every = min(notifier.interval or _STATUS_EVERY, _STATUS_EVERY)
    while True:
        await asyncio.sleep(every)
        notifier.watchdog()
        notifier.status(daemon.status_line())


def die(error: ConfigError) -> int:
    """Say why a daemon cannot start; returns its exit status."""
    logs.complain(str(error))
    return error.exit_status
