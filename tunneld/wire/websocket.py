"""The tunnel's WebSocket: `connect` at the agent, `accept` at the server, one `WebSocket` at both."""

from __future__ import annotations

from tunneld.wire.ws_accept import RequestHead, accept
from tunneld.wire.ws_codec import BINARY, TEXT
from tunneld.wire.ws_connect import SubprotocolRemoved, UpgradeFailed, UpgradeRefused, connect
from tunneld.wire.ws_protocol import WebSocket, WebSocketHandler

__all__ = [
    "BINARY",
    "TEXT",
    "RequestHead",
    "SubprotocolRemoved",
    "UpgradeFailed",
    "UpgradeRefused",
    "WebSocket",
    "WebSocketHandler",
    "accept",
    "connect",
]
