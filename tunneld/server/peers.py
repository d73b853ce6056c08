"""Who stands at the other end of a visitor's connection: trusted proxies, and the visitors they speak for."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import ip_address

from tunneld.config.server import ServerConfig
from tunneld.protocol.headers import client_address
from tunneld.server.offers import Listener
from tunneld.wire.http1 import RequestHead
from tunneld.wire.http_server import ServerConnection

__all__ = ["Peers"]


class Peers:
    """What `trusted_proxies` says, asked of each connection and each request.

    Args:
        config: what holds now; `configure` changes it.
    """

    __slots__ = ("_is_trusted", "_networks")

    def __init__(self, config: ServerConfig) -> None:
        self.configure(config)

    def configure(self, config: ServerConfig) -> None:
        """Let other proxies be trusted from now on."""
        self._networks = config.trusted_proxies
        self._is_trusted = lru_cache(1024)(self._trusts)

    def _trusts(self, address: str) -> bool:
        """A trusted proxy; a Unix peer, which has no address, is one."""
        if not address:
            return True
        try:
            parsed = ip_address(address.partition("%")[0])
        except ValueError:
            return False
        mapped = getattr(parsed, "ipv4_mapped", None)
        return any((mapped or parsed) in network for network in self._networks)

    def trusts(self, connection: ServerConnection, listener: Listener) -> bool:
        """What the peer says of visitors is believed."""
        return listener.unix or (bool(self._networks) and self._is_trusted(connection.address))

    def client(self, connection: ServerConnection, head: RequestHead, listener: Listener) -> str:
        """The visitor's address; empty when it is not known."""
        if not self.trusts(connection, listener):
            return connection.address
        return self.named(head, connection)

    def named(self, head: RequestHead, connection: ServerConnection) -> str:
        """The visitor whom a peer that is trusted names."""
        return client_address(head.headers, connection.address, self._is_trusted)
