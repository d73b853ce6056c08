"""Both loops, and both ways of speaking."""

import asyncio
from collections.abc import Awaitable

import pytest

from tests.support.sockets import certificate
from tunneld.wire.tls import client_context, server_context


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request):
    """Run a coroutine to its end on one of the loops, debug on."""
    library = asyncio if request.param == "asyncio" else pytest.importorskip("uvloop")
    factory = library.new_event_loop

    def runner(main: Awaitable[None]) -> None:
        with asyncio.Runner(debug=True, loop_factory=factory) as loop:
            loop.run(asyncio.wait_for(main, 10))

    return runner


@pytest.fixture(params=["plain", "tls"])
def tls(request, pair):
    if request.param == "plain":
        return None, None
    return server_context(pair.cert, pair.key), client_context(ca_file=pair.cert)
