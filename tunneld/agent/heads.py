"""The heads that one tunnel's service is sent and sends: the agent's share of the header rules."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from tunneld.config.service import Service
from tunneld.errors import CODES
from tunneld.protocol.headers import (
    BadHeader,
    encode_head,
    from_service,
    hop_by_hop,
    lower,
    lower_names,
    one_length,
    valid_target,
    without_named,
)
from tunneld.protocol.messages import Headers, Open
from tunneld.wire.ws_upgrade import upgrade_fields

__all__ = ["CHUNKED", "REQUEST_ID", "TUNNEL_ERROR", "Heads", "problem"]

#: Says which stream a request belongs to: visitor, service and both logs see the same id.
REQUEST_ID = "X-Tunnel-Request-Id"
#: Says that an answer is the agent's own and not the service's, and names its code. A service's headers of
#: this kind (``X-Tunnel-*``) never pass, so the server can believe it.
TUNNEL_ERROR = "X-Tunnel-Error"
#: A length that stands for: the body is sent in chunks.
CHUNKED = -1

#: Methods whose empty body is said, since servers ask for a length (RFC 9110, 8.6).
_WITH_CONTENT = frozenset(("POST", "PUT", "PATCH"))
#: What may not come after a body (RFC 9110, 6.5.1): framing, routing, and what is acted on before the body.
_NO_TRAILER = frozenset(
    {"authorization", "cache-control", "content-encoding", "content-length", "content-range", "content-type"}
    | {"cookie", "expect", "host", "location", "max-forwards", "pragma", "range", "set-cookie", "te", "trailer"}
    | {"www-authenticate"}
)
_RETRY_AFTER = {"service_unreachable": "2"}  # s


class Heads:
    """Writes a service's request heads and cleans its answers'.

    Args:
        service: whose own authority ``Host`` is, unless `headers` sets another.
        headers: name to value; each replaces what the visitor sent under that name.
    """

    __slots__ = ("_authorities", "_fixed", "_left_out")

    def __init__(self, service: Service, headers: Mapping[str, str]) -> None:
        configured = {name.lower(): value for name, value in headers.items()}
        host = configured.get("host", service.authority)
        self._authorities = {host, service.authority}
        self._fixed = [("Host", host)]
        self._fixed += [(name, value) for name, value in headers.items() if name.lower() != "host"]
        self._left_out = frozenset(configured) | {"host", REQUEST_ID.lower()} | hop_by_hop(())

    def request(self, request: Open, *, ended: bool, key: str = "") -> tuple[bytes, int]:
        """The request's head, and the length of the body that follows it (0: none), or `CHUNKED`.

        Args:
            request: as the session gave it.
            ended: no body follows.
            key: it asks for a WebSocket, with this Sec-WebSocket-Key; empty: it does not.

        Raises:
            BadHeader: it cannot be said in HTTP/1.1, or could be read in two ways.
        """
        if not lower(request.method) or request.method == "CONNECT":
            raise BadHeader("its method is not one that can be passed on")
        if not valid_target(request.path):
            raise BadHeader("its path has an octet that no path may have")
        names, left_out = lower_names(), self._left_out
        passed: Headers = []
        lengths: list[str] = []
        connection: list[str] = []
        trailers_wanted = False
        for pair in request.headers:
            name = names[pair[0]]
            if name not in left_out:
                passed.append(pair)
                if name == "content-length":
                    lengths.append(pair[1])
            elif name == "te":
                trailers_wanted = True  # the server lets nothing else through
            elif name == "connection":
                connection.append(pair[1])
        length = one_length(lengths)
        if ended and length:
            raise BadHeader("it promises a body and has none")
        if connection:
            passed = without_named(passed, connection)
        headers = [*self._fixed, *passed, (REQUEST_ID, request.request_id)]
        if key:
            headers = upgrade_fields(headers, key)
        elif trailers_wanted:
            headers += [("TE", "trailers"), ("Connection", "TE")]
        if length is None:
            if not ended:
                length = CHUNKED
                headers.append(("Transfer-Encoding", "chunked"))
            elif request.method in _WITH_CONTENT:
                headers.append(("Content-Length", "0"))
        return encode_head(f"{request.method} {request.path} HTTP/1.1", headers), length or 0

    def last_chunk(self, trailers: Headers) -> bytes:
        """The end of a body in chunks; trailers that cannot be said are left out."""
        try:
            return encode_head("0", self.trailers(trailers)) if trailers else b"0\r\n\r\n"
        except BadHeader:
            return b"0\r\n\r\n"

    def answer(self, headers: Iterable[tuple[str, str]]) -> Headers:
        """An answer's headers as they go to the server."""
        return from_service(headers, authorities=self._authorities)

    def trailers(self, trailers: Headers) -> Headers:
        """Trailers of either direction without those that may not be trailers."""
        if not trailers:
            return trailers
        ends_here = hop_by_hop(())
        return [
            (name, value)
            for name, value in trailers
            if (low := lower(name)) not in ends_here and low not in _NO_TRAILER and not low.startswith("x-tunnel-")
        ]


def problem(code: str, detail: str, request_id: str) -> tuple[Headers, bytes]:
    """An answer of the agent's own (RFC 9457): its headers and its body.

    Args:
        code: a key of `CODES`.
        detail: one sentence of this very case, fit for a visitor's eyes.
        request_id: of the stream.
    """
    meaning = CODES[code]
    document = json.dumps(
        {
            "type": f"urn:tunneld:error:{code}",
            "title": meaning.title,
            "status": meaning.status,
            "detail": detail,
            "code": code,
            "advice": meaning.advice,
            "request_id": request_id,
        },
        ensure_ascii=False,
    ).encode()
    headers = [
        ("Content-Type", "application/problem+json"),
        ("Content-Length", str(len(document))),
        ("Cache-Control", "no-store"),
        (TUNNEL_ERROR, code),
    ]
    if code in _RETRY_AFTER:
        headers.append(("Retry-After", _RETRY_AFTER[code]))
    return headers, document
