"""Whether a call comes from this machine, straight, and from no page of another site (CONTRACT, `admin.token_file`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from ipaddress import ip_address
from time import monotonic
from typing import Any

from tunneld.dashboard.files import PAGE
from tunneld.errors import VisitorError
from tunneld.telemetry.failures import Failures

__all__ = ["check_local", "check_page", "count_failure", "page_status"]


def check_local(scope: Mapping[str, Any], key: str) -> None:
    """Raise VisitorError unless the call is one of this machine's own.

    A proxy on the same host makes every visitor loopback, and a web page can reach loopback by DNS rebinding.

    Args:
        scope: of the call (ASGI).
        key: the configuration's, whose secret would let others in too.
    """
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    client = scope.get("client")
    if client and not _is_loopback(client[0]):
        raise VisitorError("local_only", f"Without {key} only this machine is answered.")
    if any(name == b"forwarded" or name.startswith(b"x-forwarded-") for name, _ in headers):
        raise VisitorError("local_only", f"Without {key} nobody behind a proxy is answered.")
    check_page(scope)
    hosts = [value.decode("latin-1") for name, value in headers if name == b"host"]
    if len(hosts) != 1 or not _is_local_host(hosts[0]):
        raise VisitorError("misdirected", f"Without {key} the Host must be localhost or a loopback address.")


def check_page(scope: Mapping[str, Any]) -> None:
    """Raise VisitorError ``web_page_refused`` where a browser says that a page of another site asks."""
    sites = {value for name, value in scope["headers"] if name == b"sec-fetch-site"}
    if not sites <= {b"none", b"same-origin"}:
        raise VisitorError("web_page_refused", "A page of another site asks.")


def count_failure(failures: Failures, address: str) -> None:
    """Note a wrong credential; raises VisitorError ``rate_limited`` when too many came from that address of late."""
    wait = failures.note(address, monotonic())
    if wait is not None:
        raise VisitorError(
            "rate_limited", "Too many wrong credentials came from this address.", retry_after=math.ceil(wait)
        )


def _is_loopback(address: str) -> bool:
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return False
    return (getattr(parsed, "ipv4_mapped", None) or parsed).is_loopback


def _is_local_host(host: str) -> bool:
    bare = host.lower()
    if bare.startswith("["):
        bare, _, rest = bare[1:].partition("]")
        if rest and not rest.startswith(":"):
            return False
    else:
        bare = bare.rpartition(":")[0] or bare
    return bare in ("localhost", "localhost.") or _is_loopback(bare)


def page_status(request: Mapping[str, Any], key: str, *, token: bool) -> int | None:
    """The status of a request for the dashboard's page or files that brings no credential.

    Args:
        request: what of an ASGI scope a guard reads.
        key: of the configuration, as for `check_local`.
        token: a bearer token is asked for; then the page alone says so.

    Returns:
        None: it is to be judged at length.
    """
    if any(name == b"authorization" for name, _ in request["headers"]):
        return None
    try:
        if token:
            check_page(request)
            return 401 if request["path"] == PAGE else 200
        check_local(request, key)
    except VisitorError:
        return None
    return 200
