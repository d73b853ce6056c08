"""What a dial that failed means: whose fault, what to do, and never a secret."""

from __future__ import annotations

import errno
import os
import socket
import ssl

import pytest

from tunneld.agent.dialer import DIAL_ERRORS, of_dial
from tunneld.agent.reconnect import Failed, Retry
from tunneld.config.proxies import parse_proxy
from tunneld.wire.proxy import Kind, ProxyFailed
from tunneld.wire.ws_connect import ConnectTimeout, SubprotocolRemoved, UpgradeFailed, UpgradeRefused

SECRET = "hunter2"


def tls_error(reason: str) -> ssl.SSLError:
    error = ssl.SSLError(1, f"[SSL: {reason}] words (_ssl.c:1)")
    error.reason = reason
    return error


def certificate_error(code: int, words: str) -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, f"certificate verify failed: {words}")
    error.verify_code, error.verify_message = code, words
    return error


@pytest.mark.parametrize(
    ("error", "kind", "why", "advice"),
    [
        (TimeoutError(), Retry, "no connection within 10 s (connecting)", "firewall"),
        (ConnectTimeout("the TLS handshake"), Retry, "no connection within 10 s (the TLS handshake)", "firewall"),
        (TimeoutError(errno.ETIMEDOUT, "x"), Retry, f"the server: {os.strerror(errno.ETIMEDOUT)}", "firewall"),
        (ConnectionRefusedError(111, "asyncio's words"), Retry, "Connection refused", "Nothing listens there"),
        (ConnectionResetError("the server closed"), Retry, "the server closed", "wss:// with TLS"),
        (OSError(errno.ENETUNREACH, "x"), Retry, os.strerror(errno.ENETUNREACH), "network and routes"),
        (OSError("several"), Retry, "cannot reach the server: several", ""),
        (socket.gaierror(socket.EAI_NONAME, "Name not known"), Retry, "Name not known", "does not resolve"),
        (socket.gaierror(socket.EAI_AGAIN, "Try again"), Retry, "Try again", "resolver does not answer"),
        (certificate_error(10, "certificate has expired"), Failed, "it has expired", "renew it"),
        (certificate_error(9, "not yet valid"), Failed, "not valid yet", "clock"),
        (certificate_error(18, "self-signed"), Failed, "self-signed", "server.ca_file"),
        (certificate_error(19, "self-signed in chain"), Failed, "unknown here signed it", "server.ca_file"),
        (certificate_error(20, "no local issuer"), Failed, "unknown here signed it", "server.ca_file"),
        (certificate_error(62, "Hostname mismatch"), Failed, "Hostname mismatch", "server.url a name"),
        (certificate_error(64, "IP address mismatch"), Failed, "IP address mismatch", "server.url a name"),
        (certificate_error(26, "unsuitable purpose"), Failed, "unsuitable purpose", "server.ca_file"),
        (tls_error("WRONG_VERSION_NUMBER"), Failed, "does not speak TLS", "ws://"),
        (tls_error("TLSV13_ALERT_CERTIFICATE_REQUIRED"), Failed, "certificate required", "server.client_cert"),
        (tls_error("TLSV1_ALERT_UNKNOWN_CA"), Failed, "unknown ca", "server.client_cert"),
        (tls_error("UNEXPECTED_EOF"), Retry, "TLS failed", "server.url"),
        (SubprotocolRemoved("gone"), Failed, "gone", "Sec-WebSocket-Protocol"),
        (ValueError("not a URL"), Failed, "not a URL", "server.url"),
    ],
)
def test_each_failure_has_its_words_and_its_advice(
    error: Exception, kind: type[Retry | Failed], why: str, advice: str
) -> None:
    assert isinstance(error, DIAL_ERRORS)
    verdict = of_dial(error)
    assert isinstance(verdict, kind)
    assert why in verdict.why
    assert advice in verdict.advice
    assert bool(advice) == bool(verdict.advice)
    assert "\n" not in verdict.why + verdict.advice


@pytest.mark.parametrize(
    "error", [UpgradeRefused(404, [], b""), UpgradeRefused(301, [], b""), UpgradeFailed("no HTTP")]
)
def test_what_stands_before_a_server_that_was_met_passes_by_itself(error: Exception) -> None:
    assert isinstance(of_dial(error), Failed)
    verdict = of_dial(error, known=True)
    assert isinstance(verdict, Retry)
    assert "what stands before the server" in verdict.advice


@pytest.mark.parametrize("status", [401, 403])
def test_who_refuses_the_credential_is_believed_whoever_it_is(status: int) -> None:
    assert isinstance(of_dial(UpgradeRefused(status, [], b""), known=True), Failed)


@pytest.mark.parametrize(
    ("reason", "kind", "address", "advice"),
    [
        ("credentials", Failed, "http://u:hunter2@p:3128", "Correct the user name"),
        ("credentials", Failed, "http://p:3128", "USER:PASSWORD"),
        ("forbidden", Failed, "http://p:3128", "allow the server"),
        ("no_proxy", Failed, "socks5://p:3128", "its scheme"),
        ("unreachable", Retry, "http://u:hunter2@p:3128", "server.proxy"),
        ("failed", Retry, "http://u:hunter2@p:3128", "the server behind it"),
    ],
)
def test_a_proxys_failure_names_the_proxy_without_its_password(
    reason: Kind, kind: type[Retry | Failed], address: str, advice: str
) -> None:
    verdict = of_dial(ProxyFailed(parse_proxy(address), reason, "words"))
    assert isinstance(verdict, kind)
    assert advice in verdict.advice
    assert "p:3128 (server.proxy): words" in verdict.why
    assert SECRET not in verdict.why + verdict.advice + repr(parse_proxy(address))
