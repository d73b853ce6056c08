"""Whether one tunnel's service answers, looked at when the server's probe asks, and by the agent itself elsewhen;
and whether those probes come back.

The server's probes go the whole way, so where it probes often enough nothing else is needed. A server that does not
know of probes, one that is not connected, or one that allows them too seldom, leaves the looking to the agent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic

from tunneld.agent.proxy import Proxy
from tunneld.config.tunnel import TunnelConfig
from tunneld.protocol.messages import Probed, ProbeSettings

__all__ = ["ServiceCheck", "ServiceHealth"]

_MOST_WORDS = 500


class ServiceCheck:
    """Looks at one service, never twice at the same time.

    Args:
        proxy: what reaches it.
        config: of the tunnel.
        found: called with what each look found: None, or why the service is not well.
    """

    def __init__(self, proxy: Proxy, config: TunnelConfig, found: Callable[[str | None], None]) -> None:
        self._proxy = proxy
        self._config = config
        self._found = found
        self._asked: tuple[int, Callable[[Probed], None]] | None = None
        self._news = asyncio.Event()
        self._agreed: ProbeSettings | None = None
        self._due = 0.0

    @property
    def wish(self) -> ProbeSettings:
        """How the server is asked to probe."""
        return ProbeSettings(self._config.service_check.interval, self.timeout)

    @property
    def timeout(self) -> float:
        """Seconds for one look."""
        return self._config.service_check.timeout or self._config.limits.connect_timeout

    def update(self, config: TunnelConfig) -> None:
        """Look as a changed file says from now on, and once now where that is another way."""
        was, self._config = self._config, config
        if config.service_check != was.service_check:
            self._due = 0.0
            self._news.set()

    def agreed(self, probes: ProbeSettings | None) -> None:
        """How the server probes from now on; None: it does not, or is not connected."""
        self._agreed = probes
        self._news.set()

    def asked(self, seq: int, answer: Callable[[Probed], None]) -> None:
        """The server's probe is here. Of several that wait, the newest is answered."""
        self._asked = seq, answer
        self._news.set()

    async def run(self) -> None:
        """Look whenever it is time, until cancelled."""
        while True:
            await self._until_due()
            asked, self._asked = self._asked, None
            self._news.clear()
            check = self._config.service_check
            fault = await self._proxy.probe(check.path, timeout=self.timeout)
            self._due = monotonic() + check.interval
            self._found(fault)
            if asked is not None:
                seq, answer = asked
                answer(Probed(seq, None if fault is None else fault[:_MOST_WORDS]))

    async def _until_due(self) -> None:
        """Return when a probe waits, or it is time to look without one."""
        while self._asked is None and (left := self._due - monotonic()) > 0:
            self._news.clear()
            try:
                async with asyncio.timeout(None if self._others_look() else left):
                    await self._news.wait()
            except TimeoutError:
                return

    def _others_look(self) -> bool:
        return self._agreed is not None and self._agreed.interval <= self._config.service_check.interval


class ServiceHealth:
    """What one tunnel's visitors would find, by the agent's own looks and by the server's probes.

    Args:
        changed: called after each change of `fault` with what it was before.

    Attributes:
        fault: why the service does not answer, while it does not, or the server's probe does not come back; None: all
            is well, as far as is known.
        proved: a probe went the whole way and back, or this server makes none.
    """

    def __init__(self, changed: Callable[[str | None], None]) -> None:
        self.fault: str | None = None
        self.proved = False
        self._changed = changed
        self._looked: str | None = None  # what the last look at the service found
        self._way: str | None = None  # what the server says of its last probe

    def looked(self, fault: str | None) -> None:
        """What the last look at the service found; None: it answers."""
        self._looked = fault
        self._tell()

    def probed(self, said: Probed) -> None:
        """Whether the server's probe came back to it."""
        self._way = said.fault
        self.proved = self.proved or said.fault is None
        self._tell()

    def connected(self, *, resumed: bool, probing: bool) -> None:
        """The tunnel was connected: what was said of the way there before is no more true. Tells no change.

        Args:
            resumed: the session goes on.
            probing: the server says that it probes.
        """
        self._way = None
        self.fault = self._looked
        if not resumed or not probing:
            self.proved = not probing

    def _tell(self) -> None:
        fault = self._looked or self._way
        if fault != self.fault:
            before, self.fault = self.fault, fault
            self._changed(before)
