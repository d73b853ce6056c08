"""Who may open tunnels."""

from __future__ import annotations

from tunneld.config.server import ServerConfig
from tunneld.errors import ConfigError, VisitorError
from tunneld.wire.http1 import RequestHead

__all__ = ["OPEN_OWNER", "Gate"]

#: Whom every name belongs to where nobody needs a credential.
OPEN_OWNER = "open"


class Gate:
    """Decides about each dial before its upgrade.

    With `auth.mode: open` everybody on this machine may open any name. With `token` nobody may yet: there is no
    store of credentials to hold one against, and to let everybody in instead would be the worse surprise.

    Args:
        config: the server's.
    """

    def __init__(self, config: ServerConfig) -> None:
        self._config = config

    def check(self) -> None:
        """Refuse a configuration that would let strangers in; raises ConfigError."""
        if self._config.auth.mode != "open":
            return
        faults = [
            f"auth.mode: open lets everybody open tunnels, so it only goes with listeners on loopback or on a Unix "
            f"socket; {listener} is neither"
            for listener in self._config.listen
            if "tunnels" in listener.serve and not listener.loopback
        ]
        if faults:
            raise ConfigError(faults)

    def allow(self, head: RequestHead, name: str) -> None:
        """Let an agent open `name`; raises VisitorError ``unauthorized``."""
        if self._config.auth.mode == "open":
            return
        has_one = any(key.lower() == "authorization" for key, _ in head.headers)
        raise VisitorError(
            "unauthorized",
            f"This server holds no token for {name}" + (" that matches." if has_one else ", and none was sent."),
        )
