"""What a visitor may be answered; some of it an operator too."""

from __future__ import annotations

from tunneld.codes.code import table

__all__ = ["VISITORS"]

VISITORS = table(
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
        "Who asks may look, and change nothing.",
        "A visitor: ask the tunnel's owner for the access level read_write. An operator: use control.socket.",
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
    ("rate_limited", 429, "A rate limit was hit.", "Try again as Retry-After says."),
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
)
