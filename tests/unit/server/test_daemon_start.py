"""A server that cannot start says why, and its end hides nothing of that."""

from __future__ import annotations

import socket

import pytest

from tunneld.config.server import ServerConfig
from tunneld.errors import ConfigError
from tunneld.server.daemon import ServerDaemon


async def test_a_taken_port_is_told_and_the_end_adds_no_fault() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = ServerConfig.model_validate(
            {
                "listen": {"host": "127.0.0.1", "port": port},
                "admin": False,
                "auth": {"mode": "open"},
                "store": "memory:",
            }
        )
        daemon = ServerDaemon(config, None)
        with pytest.raises(ConfigError, match=str(port)):
            await daemon.start()
        await daemon.stop()
