"""What an agent may be answered before the upgrade, and what ends or refuses a session after it."""

from __future__ import annotations

from tunneld.codes.code import table

__all__ = ["TUNNELS"]

TUNNELS = table(
    # Before the upgrade, and to who registers or grants by the older dialect.
    (
        "unauthorized",
        401,
        "The token is missing, wrong, expired or revoked.",
        "Create one with `tunneld server token create NAME` and set server.token_file in the agent's file.",
    ),
    (
        "name_not_allowed",
        403,
        "The token does not open a tunnel of that name.",
        "Create a token with --tunnels that names it.",
    ),
    (
        "bad_name",
        400,
        "The tunnel's name is not a DNS label.",
        "Use a-z, 0-9 and '-', at most 63 characters, with no '-' at either end.",
    ),
    (
        "name_taken",
        409,
        "Another owner holds that name.",
        "Choose another name; the server's operator sees whose it is with `tunneld server names`.",
    ),
    (
        "too_many_names",
        403,
        "The token owns as many names as it may.",
        "Release some with `tunneld server names release NAME`, or raise auth.max_names.",
    ),
    (
        "store_failed",
        503,
        "The server's store could not do it now.",
        "Try again after Retry-After; the server's log has the reason.",
    ),
    (
        "key_taken",
        409,
        "The server_key of this registration belongs to somebody else.",
        "Register with another server_key, or with the token that it was first registered with.",
    ),
    (
        "no_such_server",
        404,
        "No server of yours is registered with that server_key, and no tunnel of yours has that name.",
        "Register first, and call with the token of the same owner.",
    ),
    (
        "no_such_permission",
        404,
        "You gave no permission with that id.",
        "Look at GET /permissions/SERVER_KEY, or `tunnelctl access list NAME`.",
    ),
    (
        "too_many_permissions",
        409,
        "The tunnel has as many permissions as it may, and all of them hold.",
        "Revoke some, or raise limits.permissions in the server's configuration.",
    ),
    (
        "v2_refused",
        403,
        "This server does not serve clients of the older dialect.",
        "Use `tunneld agent`, or set auth.v2 in the server's configuration.",
    ),
    (
        "too_many_tunnels",
        503,
        "The server holds as many tunnels as it may.",
        "Try again later, or raise limits.max_tunnels.",
    ),
    # Of the tunnel's own protocol: no status.
    (
        "hello_timeout",
        0,
        "No hello came within limits.hello_timeout.",
        "Look for a proxy that holds WebSocket messages back.",
    ),
    ("bad_hello", 0, "The hello was not valid.", "Update the agent; the message names the fault."),
    (
        "stale_hello",
        0,
        "A newer dial of the same agent process stands.",
        "Nothing: the newer connection serves.",
    ),
    (
        "protocol_error",
        0,
        "The peer broke the tunnel's protocol.",
        "Update both sides; report it with both logs.",
    ),
    (
        "unknown_stream",
        0,
        "A frame named a stream that was never opened.",
        "Update both sides; report it with both logs.",
    ),
    (
        "flow_control",
        0,
        "The peer sent more than it had credit for.",
        "Update both sides; report it with both logs.",
    ),
    (
        "too_large",
        0,
        "A message was larger than the connection allows.",
        "Set the same limits.max_header on both sides, or report it.",
    ),
    (
        "replaced",
        0,
        "A newer connection took this tunnel over.",
        "If that was not you, another machine uses the same token and name: give each its own.",
    ),
    (
        "conflict",
        0,
        "Two agents replace each other under one name.",
        "Stop one of them, or give each its own name.",
    ),
    (
        "access_unsupported",
        0,
        "The server does not know the tunnel's access, and would let everybody in.",
        "Update the server, or take `access` out of the tunnel's section.",
    ),
    ("revoked", 0, "The token was revoked.", "Create a new one with `tunneld server token create NAME`."),
    ("going_away", 0, "The server is going away.", "Nothing: the agent dials again."),
    ("overloaded", 0, "The server has no room for this tunnel now.", "Nothing: the agent dials again later."),
    (
        "subprotocol_removed",
        0,
        "The server's upgrade answer lacks tunneld.v3.",
        "Something on the way removed Sec-WebSocket-Protocol: let the proxy pass it on.",
    ),
    (
        "silent",
        0,
        "The peer was silent for longer than interval + timeout.",
        "Look at the network between agent and server.",
    ),
)
