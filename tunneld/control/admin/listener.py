"""The admin API's own listener."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from tunneld.config.server import ListenConfig, ServerConfig
from tunneld.control.doors import Doors
from tunneld.errors import ConfigError
from tunneld.server.listeners import Listeners

if TYPE_CHECKING:
    from fastapi import FastAPI

__all__ = ["AdminListener", "admin_secret", "warn_if_exposed"]

log = logging.getLogger("tunneld.admin")


class AdminListener:
    """Serves an application on `admin.listen`.

    Args:
        config: the server's; `admin` is there.
        make: the application; called once, in a thread, when the first connection says something.
        early: answers what needs no application, see `Doors`.
    """

    def __init__(
        self, config: ServerConfig, make: Callable[[], FastAPI], early: Callable[[bytes, object], bytes | None]
    ) -> None:
        assert config.admin is not None
        self._listeners = Listeners(config, admin=config.admin)
        self._doors = Doors(make, what="admin API", log=log, early=early)

    @property
    def addresses(self) -> list[tuple[ListenConfig, str]]:
        """(listener, address as bound) of each socket."""
        return self._listeners.addresses

    async def start(self) -> None:
        """Bind and accept; raises ConfigError."""
        self._listeners.open()
        await self._listeners.serve(lambda listener, tls: self._doors.open)
        for _, address in self.addresses:
            log.info("Listening on %s for the admin API", address, extra={"address": address})

    def reload_certificates(self) -> None:
        """Read the certificate's files again, where they changed; a change of them is noticed by itself too."""
        self._listeners.reload_certificates()

    async def stop(self) -> None:
        """Accept no more and end what is open; calls under way have a moment. Idempotent."""
        self._listeners.close()
        await self._doors.stop()


def warn_if_exposed(config: ServerConfig) -> None:
    """Say when a bearer token would go over a network in plain text."""
    admin = config.admin
    if admin is None or admin.token_file is None or admin.listen.loopback or admin.listen.tls or config.tls:
        return
    log.warning(
        "The admin listener %s speaks plain HTTP: its bearer token can be read on the way. Set admin.listen.tls, or "
        "let it listen on loopback behind a proxy that speaks TLS.",
        admin.listen,
    )


def admin_secret(config: ServerConfig) -> str | None:
    """The content of `admin.token_file`; None without one. Raises ConfigError."""
    from tunneld.config.secrets import read_secret

    if config.admin is None or config.admin.token_file is None:
        return None
    try:
        return read_secret(config.admin.token_file)
    except ConfigError as error:
        raise ConfigError([f"admin.token_file: {fault}" for fault in error.faults]) from None
