"""The probe that makes a tunnel `online`: server, agent, service and back, within its bound (PROTOCOL.md, probes)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

from tunneld.protocol.messages import Message, Probe, Probed, ProbeSettings
from tunneld.telemetry.metrics import Histogram

__all__ = ["Prober", "Proof"]

log = logging.getLogger("tunneld.tunnels")


@dataclass(slots=True)
class Proof:
    """What the probes of one tunnel found.

    Attributes:
        asked: its agent answers probes; without, being connected is all that is known.
        proved: one came back on the present session.
        fault: why the last one did not end well; None: it did, or none did yet.
        took: seconds of the last that came back.
    """

    asked: bool = False
    proved: bool = False
    fault: str | None = None
    took: float | None = None

    def begin(self, *, asked: bool, resumed: bool) -> None:
        """A connection stands. What was proved of a session that goes on still holds."""
        self.asked = asked
        if not resumed or not asked:
            self.proved, self.fault, self.took = False, None, None


class Prober:
    """Probes over one connection, from `start` to `stop`.

    Args:
        name: of the tunnel, for the log.
        proof: where what is found goes.
        tell: queues a message for the agent.
        patience: seconds that the way may take beside the service: the heartbeat's timeout, asked anew each time.
        times: gets the seconds of each probe that came back.
    """

    __slots__ = ("_name", "_patience", "_proof", "_sent_at", "_seq", "_settings", "_tell", "_timer", "_times")

    def __init__(
        self,
        name: str,
        proof: Proof,
        tell: Callable[[Message], None],
        *,
        patience: Callable[[], float],
        times: Histogram,
    ) -> None:
        self._name = name
        self._proof = proof
        self._tell = tell
        self._patience = patience
        self._times = times
        self._settings: ProbeSettings | None = None
        self._seq = 0
        self._sent_at: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    def start(self, settings: ProbeSettings | None) -> None:
        """Probe now and at each interval from now on; None: not at all."""
        self.stop()
        self._settings = settings
        if settings is not None:
            self._send()

    def stop(self) -> None:
        """Probe no more."""
        self._settings = self._sent_at = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def answered(self, said: Probed) -> None:
        """The agent says what it found; an answer to a probe that was given up is ignored."""
        if self._settings is None or self._sent_at is None or said.seq != self._seq:
            return
        took = monotonic() - self._sent_at
        self._sent_at = None
        self._times.observe(took)
        self._proof.proved = True
        self._proof.took = took
        self._note(said.fault)
        self._tell(Probed(self._seq))
        self._again(max(0.0, self._settings.interval - took))

    def _send(self) -> None:
        assert self._settings is not None
        self._seq += 1
        self._sent_at = monotonic()
        self._tell(Probe(self._seq))
        if self._settings is not None:  # the agent reads what it is told
            self._timer = asyncio.get_running_loop().call_later(self._settings.timeout + self._patience(), self._lost)

    def _again(self, seconds: float) -> None:
        if self._settings is None:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._send)

    def _lost(self) -> None:
        """Nothing came back within the bound."""
        assert self._settings is not None
        self._sent_at = None
        bound = self._settings.timeout + self._patience()
        fault = f"the server's probe did not come back within {bound:g} s"
        self._note(fault)
        self._tell(Probed(self._seq, fault))
        self._again(max(0.0, self._settings.interval - bound))

    def _note(self, fault: str | None) -> None:
        before, self._proof.fault = self._proof.fault, fault
        if fault == before:
            return
        fields = {"tunnel": self._name, "fault": fault}
        if fault is not None:
            log.warning("The tunnel %s is up, but degraded: %s", self._name, fault, extra=fields)
        else:
            log.info("The tunnel %s serves again.", self._name, extra=fields)
