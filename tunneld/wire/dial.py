"""A connected TCP socket to a name, on loops that race no addresses themselves (RFC 8305, Happy Eyeballs)."""

from __future__ import annotations

import asyncio
import ipaddress
import itertools
import socket
from collections.abc import Sequence
from typing import Any

__all__ = ["ATTEMPT_DELAY", "dial", "resolve"]

ATTEMPT_DELAY = 0.25
"""Seconds that an address has before the next is tried beside it (RFC 8305 section 5)."""

Address = tuple[socket.AddressFamily, Any]


async def resolve(host: str, port: int) -> list[Address]:
    """The addresses of a host in the order to try them, families in turn, the resolver's first choice first.

    ``localhost`` and every name below it are loopback (RFC 6761 section 6.3), which Python's resolver does not
    know. ``host`` may be an address, without brackets.

    Raises:
        OSError: the name does not resolve.
    """
    name = host.rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return [(socket.AF_INET, ("127.0.0.1", port)), (socket.AF_INET6, ("::1", port, 0, 0))]
    loop = asyncio.get_running_loop()
    infos = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    found: list[Address] = [(family, address) for family, _, _, _, address in infos]
    if not found:
        raise socket.gaierror(socket.EAI_NONAME, f"{host} has no address")
    lead = found[0][0]
    first = [each for each in found if each[0] == lead]
    other = [each for each in found if each[0] != lead]
    pairs = itertools.zip_longest(first, other)
    return [each for pair in pairs for each in pair if each is not None]


async def dial(host: str, port: int, *, local_addr: tuple[str, int] | None = None) -> socket.socket:
    """Connect to the first address that answers; non-blocking, the caller owns it.

    Args:
        host: a name or an address.
        port: the port.
        local_addr: an address, not a name, and a port to connect from; only its family is tried.

    Raises:
        OSError: of the only address, or one that names them all (of their common class if they have one).
    """
    addresses = await resolve(host, port)
    if local_addr is not None:
        family = socket.AF_INET if ipaddress.ip_address(local_addr[0]).version == 4 else socket.AF_INET6
        addresses = [each for each in addresses if each[0] == family]
        if not addresses:
            raise OSError(f"{host} has no address of the family of {local_addr[0]}")
    if len(addresses) == 1:
        return await _attempt(*addresses[0], local_addr)
    return await _race(addresses, local_addr)


async def _attempt(family: socket.AddressFamily, address: Any, local_addr: tuple[str, int] | None) -> socket.socket:
    # Said by its name: asyncio sets TCP_NODELAY on no other.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setblocking(False)
        if local_addr is not None:
            sock.bind(local_addr)
        await asyncio.get_running_loop().sock_connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock


async def _race(addresses: Sequence[Address], local_addr: tuple[str, int] | None) -> socket.socket:
    winners: list[socket.socket] = []
    errors: list[OSError] = []
    settled = asyncio.Event()  # the newest attempt ended, well or not

    async def attempt(address: Address) -> None:
        try:
            sock = await _attempt(*address, local_addr)
        except OSError as error:
            errors.append(error)
        else:
            winners.append(sock)
        settled.set()

    try:
        async with asyncio.TaskGroup() as group:
            tasks = []
            for address in addresses:
                settled.clear()
                tasks.append(group.create_task(attempt(address), name=f"dial {address[1][0]}"))
                try:
                    async with asyncio.timeout(ATTEMPT_DELAY):
                        await settled.wait()
                except TimeoutError:
                    pass
                if winners:
                    break
            while not winners and len(errors) < len(addresses):
                settled.clear()
                await settled.wait()
            for task in tasks:
                task.cancel()
    except BaseException:
        for sock in winners:
            sock.close()
        raise
    for sock in winners[1:]:
        sock.close()
    if not winners:
        raise _of_all(errors)
    return winners[0]


def _of_all(errors: list[OSError]) -> OSError:
    """One error that says what became of every attempt."""
    if len({error.errno for error in errors}) == 1:  # as the class of that errno: ConnectionRefusedError, ...
        return OSError(errors[0].errno, "; ".join(error.strerror or str(error) for error in errors))
    return OSError("; ".join(str(error) for error in errors))
