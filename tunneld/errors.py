"""The one tree of errors, and the one table of codes.

A class carries its place in the program; a code carries its meaning for people: the HTTP status that a
visitor or an agent is answered with, a title, and what to do. ``tunneld explain CODE`` and the table in the
README read `CODES`.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "CODES",
    "Code",
    "ConfigError",
    "LocalError",
    "ProtocolError",
    "RemoteError",
    "ResourceError",
    "TunneldError",
    "UsageError",
    "VisitorError",
]


@dataclass(frozen=True, slots=True)
class Code:
    """What one stable code means.

    Attributes:
        code: the stable word, as in ``X-Tunnel-Error``.
        status: HTTP status of the answer that carries it; 0 for a code of the tunnel's own protocol.
        title: one line that says what happened.
        advice: one line or two that say what to do about it.
    """

    code: str
    status: int
    title: str
    advice: str


def _table(*rows: tuple[str, int, str, str]) -> dict[str, Code]:
    return {row[0]: Code(*row) for row in rows}


CODES: dict[str, Code] = _table(
    # -- what a visitor may be answered ------------------------------------------------------------------
    (
        "bad_request",
        400,
        "The request is not valid HTTP.",
        "Send a well-formed HTTP/1.1 request; the detail names the fault.",
    ),
    (
        "bad_upgrade",
        400,
        "The request asks for a WebSocket, and not as RFC 6455 says.",
        "Use a WebSocket library for it; the detail names the fault.",
    ),
    ("bad_host", 400, "The request has no usable Host header.", "Send exactly one valid Host header."),
    (
        "bad_path",
        400,
        "The path has a dot segment or an octet that no path may have.",
        "Resolve '.' and '..' before sending, plain or percent-encoded; send an origin-form target.",
    ),
    (
        "not_found",
        404,
        "This server has nothing at that address.",
        "Tunnels live under /t/NAME/ or at NAME.DOMAIN.",
    ),
    (
        "no_such_tunnel",
        404,
        "No tunnel of that name is known here.",
        "Check the name; `tunnelctl status` on the agent's machine shows the public address.",
    ),
    (
        "method_not_allowed",
        405,
        "This address of the server does not take that method.",
        "See the Allow header.",
    ),
    (
        "request_timeout",
        408,
        "The request did not come in time.",
        "Send the head within limits.header_timeout, a body without pauses over body_timeout and at min_rate or more.",
    ),
    (
        "body_too_large",
        413,
        "The request body is over the server's limit.",
        "Send less, or raise limits.max_body in the server's configuration.",
    ),
    (
        "body_not_text",
        415,
        "The tunnel's client speaks a dialect that carries text only, and the request's body is not UTF-8.",
        "Send UTF-8 text, or let the client be replaced by `tunneld agent`, which carries any body.",
    ),
    (
        "expectation_failed",
        417,
        "The Expect header asks for something other than 100-continue.",
        "Leave it out.",
    ),
    (
        "upgrade_required",
        426,
        "The peer offers no subprotocol that this server speaks.",
        "Update the agent: it must offer tunneld.v3.",
    ),
    (
        "websocket_version",
        426,
        "The request asks for a version of WebSocket other than 13.",
        "Speak version 13 (RFC 6455); no other has ever been a standard.",
    ),
    (
        "login_required",
        401,
        "This tunnel lets in only who shows something, and the request shows nothing.",
        "WWW-Authenticate says what: the owner's key, password or shared address, or a token of the issuer it names.",
    ),
    (
        "login_failed",
        401,
        "What the request shows lets nobody in to this tunnel, or does no longer.",
        "Ask the tunnel's owner for a key, a password or a shared address that is good now.",
    ),
    (
        "login_denied",
        403,
        "The visitor is signed in, and the tunnel's owner has not let in that address.",
        "Sign in with another address, or ask the owner for access: access.emails, access.domains, or a permission.",
    ),
    (
        "login_begin_again",
        400,
        "This sign-in is over, was used before, or was begun in another browser.",
        "Open the tunnel's address and sign in again.",
    ),
    (
        "login_refused",
        403,
        "The issuer did not sign the visitor in, or what it said of them cannot be taken.",
        "Try again; if it stays, the server's log says what was wrong.",
    ),
    (
        "login_unavailable",
        503,
        "The issuer that visitors sign in at cannot be used at present.",
        "Try again as Retry-After says. Who is signed in already goes on; the server's log says what is wrong.",
    ),
    (
        "address_denied",
        403,
        "The tunnel's owner lets in no visitor from that address.",
        "Come from another network, or ask the owner to change access.allow and access.deny.",
    ),
    (
        "read_only",
        403,
        "This visitor may look and change nothing: GET, HEAD and OPTIONS alone, and no WebSocket.",
        "Ask the tunnel's owner for the access level read_write.",
    ),
    (
        "needs_host",
        403,
        "This tunnel can be signed in to only under a host name of its own.",
        "Use the tunnel's address by host; the server needs `domain` for it.",
    ),
    (
        "too_many_checks",
        503,
        "Too many passwords or sign-ins wait to be checked.",
        "Try again as Retry-After says, or raise the server's limits.password_checks or login.waiting.",
    ),
    ("rate_limited", 429, "A rate limit was hit.", "Wait as long as Retry-After says."),
    (
        "too_many_from_address",
        429,
        "One address holds as many connections or requests as it may.",
        "Close some, or raise limits.address_connections and limits.address_streams in the server's configuration.",
    ),
    (
        "head_too_large",
        431,
        "The request's head is over the limit.",
        "Send smaller headers, or raise limits.max_header in the server's configuration.",
    ),
    (
        "internal",
        500,
        "The server met a fault of its own.",
        "Look for the request id in the server's log and report it.",
    ),
    (
        "no_websocket",
        501,
        "The client behind this tunnel speaks the older dialect, which carries no WebSockets.",
        "Serve the tunnel with `tunneld agent`, or use SSE or plain HTTP.",
    ),
    (
        "unsupported_coding",
        501,
        "The request body uses a transfer coding other than chunked.",
        "Send it chunked or with a length.",
    ),
    (
        "version_not_supported",
        505,
        "The request's HTTP version is not 1.0 or 1.1.",
        "Speak HTTP/1.1, or put an HTTP/2 proxy in front.",
    ),
    (
        "service_unreachable",
        502,
        "The agent could not connect to the service.",
        "Start the service, or correct `service:` of that tunnel; the agent's log has the reason.",
    ),
    (
        "service_broke",
        502,
        "The service closed its connection before it answered.",
        "Look into the service's own log.",
    ),
    (
        "bad_answer",
        502,
        "The service's answer is not valid HTTP.",
        "Look into the service; the agent's log names the fault.",
    ),
    (
        "answer_too_large",
        502,
        "The head of the service's answer is over the limit.",
        "Make the service send smaller headers, or raise limits.max_header in the server's configuration.",
    ),
    (
        "peer_lost",
        502,
        "The tunnel's connection was lost before the service answered.",
        "Try again; the agent reconnects by itself.",
    ),
    (
        "service_timeout",
        504,
        "The service did not answer in time.",
        "Make it answer sooner, or raise limits.response_timeout in the agent's configuration.",
    ),
    ("cancelled", 503, "An operator cancelled this request.", "Ask the operator, or try again later."),
    (
        "refused",
        503,
        "The agent takes no new requests at present.",
        "Try again after Retry-After; nothing reached the service.",
    ),
    (
        "tunnel_offline",
        503,
        "The tunnel is known, but its agent is not connected.",
        "Try again after Retry-After; if it stays, look at `tunnelctl status` on the agent's machine.",
    ),
    (
        "too_many_streams",
        503,
        "The tunnel carries as many streams as it may.",
        "Try again after Retry-After, or raise limits.max_streams on both sides.",
    ),
    (
        "too_many_waiting",
        503,
        "Too many requests wait for this tunnel to come back.",
        "Try again after Retry-After.",
    ),
    (
        "over_memory",
        503,
        "The process holds as many bytes for slow readers as it may.",
        "Try again after Retry-After, or raise limits.memory.",
    ),
    ("shutdown", 503, "The server or the agent is stopping.", "Try again after Retry-After."),
    # -- what an agent may be answered before the upgrade ------------------------------------------------
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
        "tunnel_exists",
        409,
        "This agent has a tunnel of that name already.",
        "Choose another name, or close that one first: `tunnelctl close NAME`.",
    ),
    (
        "tunnel_configured",
        409,
        "The tunnel stands in the agent's configuration file.",
        "Take it out of the file, then `tunnelctl reload`.",
    ),
    (
        "not_saved",
        409,
        "The tunnel could not be saved in tunnels.d.",
        "Do what the detail says, or open it without --save: then it goes with the agent.",
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
    # -- what the agent's control API may answer ---------------------------------------------------------
    (
        "not_protected",
        409,
        "Nothing is shared of a tunnel that everybody may visit.",
        "Give its public address as it is, or set access.mode in its section.",
    ),
    (
        "bad_argument",
        422,
        "The call's body or query has a fault.",
        "The detail names it; /openapi.json on the control socket documents every call.",
    ),
    (
        "empty_filter",
        422,
        "The filter names nothing.",
        'Give at least one of tunnel, kind, path, older_than_s and idle_s, or "all": true.',
    ),
    (
        "bad_config",
        422,
        "The configuration file cannot be used; nothing has changed.",
        "Correct the faults that the detail names; `tunneld check` shows the same ones.",
    ),
    (
        "no_such_stream",
        404,
        "No stream with that id is under way.",
        "It has ended, or the id is mistyped; `tunnelctl streams` lists those under way.",
    ),
    (
        "no_such_request",
        404,
        "That request is not kept.",
        "The last ones of tunnels with `inspect: true` are listed by `tunnelctl requests`.",
    ),
    (
        "not_inspected",
        403,
        "The tunnel's streams may not be looked into.",
        "Set `inspect: true` for that tunnel, then `tunnelctl reload`; streams that begin after it can be seen.",
    ),
    (
        "not_replayable",
        409,
        "The request cannot be sent again.",
        "Its body was not kept whole (`inspection.body`), or it is a WebSocket.",
    ),
    (
        "no_such_alert",
        404,
        "No rule of that name stands in `alerts`.",
        "The rules are listed by `tunnelctl alerts --json`.",
    ),
    (
        "web_page_refused",
        403,
        "The control and admin APIs do not answer requests of web pages.",
        "Use tunnelctl, or a client that sends neither Origin nor Sec-Fetch-Site; a change carries X-Tunneld-Request.",
    ),
    (
        "read_only",
        403,
        "This socket only shows; it changes nothing.",
        "Use control.socket, or ask someone of its group.",
    ),
    (
        "misdirected",
        421,
        "The Host of a request to the control or admin API is not this machine.",
        "Send `Host: localhost`, or set admin.token_file for the admin API.",
    ),
    # -- what the server's admin API may answer ----------------------------------------------------------
    (
        "not_permitted",
        403,
        "The token does not allow this call.",
        "Use admin.token_file, or a token made with `tunneld server token create NAME --scope read` (or write).",
    ),
    (
        "local_only",
        403,
        "The admin API answers only this machine, and no proxy on it.",
        "Set admin.token_file to reach it from elsewhere, and send its content as a bearer token.",
    ),
    (
        "no_such_token",
        404,
        "There is no token with that id that is not revoked.",
        "Look at `tunneld server token list`.",
    ),
    (
        "no_such_owner",
        404,
        "There is no owner of that id or name.",
        "Look at `tunneld server owner list`.",
    ),
    (
        "owner_exists",
        409,
        "There is an owner of that name already, or was one.",
        "Choose another name.",
    ),
    (
        "no_such_name",
        404,
        "That name belongs to nobody.",
        "Look at `tunneld server names`.",
    ),
    (
        "too_many_subscribers",
        503,
        "As many readers follow the events, or look into streams, as may; or the agent is stopping.",
        "End a `tunnelctl events` or `tail` that runs, or raise `control.event_readers` or `inspection.readers`.",
    ),
    # -- errors of the tunnel's protocol -----------------------------------------------------------------
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


class TunneldError(Exception):
    """The root. `str()` of any of these is a whole sentence for people.

    Attributes:
        exit_status: what a program ends with when this reaches its top.
    """

    exit_status = 1


class UsageError(TunneldError):
    """The command line asks for something that is not there."""

    exit_status = 2


class ConfigError(TunneldError):
    """A configuration file or an environment that cannot be used.

    Args:
        faults: one line a fault, each complete in itself (file, line, key, what was expected).
    """

    exit_status = 2

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class ResourceError(ConfigError):
    """The machine lacks something now that it may have in a moment (room on a disk): worth another start."""

    exit_status = 1


class LocalError(TunneldError):
    """This side's own caller did what the protocol does not allow (a defect of ours, never of the peer)."""


class ProtocolError(TunneldError):
    """The common root of faults of the wire.

    Args:
        code: a key of `CODES`.
        detail: what was seen, for the log.
    """

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail


class RemoteError(ProtocolError):
    """The peer broke the protocol: the session ends with this code."""


class VisitorError(TunneldError):
    """A request that is answered with a problem document.

    Args:
        code: a key of `CODES` whose status is not 0.
        detail: one sentence of this very case, shown to the visitor.
        retry_after: seconds for ``Retry-After``; None sends none.
        limit: the key below `limits` that was hit, where the code does not tell.
    """

    def __init__(self, code: str, detail: str = "", *, retry_after: int | None = None, limit: str = "") -> None:
        super().__init__(detail or CODES[code].title)
        self.code = code
        self.status = CODES[code].status
        self.detail = detail
        self.retry_after = retry_after
        self.limit = limit
