"""`tunnelctl doctor --sse` through a real nginx that buffers, or cuts what is quiet; what it advises, helps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import need
from tests.support.daemons import Pair
from tests.support.processes import Process
from tests.support.services import SampleService
from tests.support.sockets import LOOPBACK, accepts, free_port, short_dir

_NGINX = """
daemon off; user root; pid {folder}/nginx.pid; error_log stderr notice;
events {{}}
http {{
  access_log off; {temporary}
  server {{
    listen {host}:{port};
    location / {{
      proxy_pass http://{host}:{upstream};
      proxy_http_version 1.1;
      {how}
    }}
  }}
}}
"""
BUFFERS = (
    "proxy_buffering on; proxy_ignore_headers X-Accel-Buffering; proxy_buffers 8 64k; proxy_busy_buffers_size 64k;"
)
CUTS = "proxy_buffering off; proxy_read_timeout 3s;"


class Way:
    """A tunnel, and an nginx before its server that does as it is told."""

    def __init__(self, ends: ExitStack) -> None:
        self._ends = ends
        self.folder = ends.enter_context(short_dir())
        service = SampleService()
        ends.callback(service.stop)
        self.pair = Pair(self.folder, {"demo": service.url}, agent={"sse": {"keepalive": "30s"}})
        ends.callback(self.pair.discard)

    def through(self, how: str) -> str:
        """The address of one that runs so."""
        place = Path(self.folder, f"nginx{free_port()}")
        place.mkdir()
        port = free_port()
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        text = _NGINX.format(
            folder=place,
            temporary="".join(f"{kind}_temp_path {place}/{kind};" for kind in kinds),
            host=LOOPBACK,
            port=port,
            upstream=self.pair.server.port,
            how=how,
        )
        (place / "nginx.conf").write_text(text)
        program = need("nginx", "apt-get install nginx")
        process = Process([program, "-e", "stderr", "-c", str(place / "nginx.conf")], name="nginx")
        self._ends.callback(process.discard)
        process.wait_until(lambda: accepts(port), timeout=20, what="listening")
        return f"http://{LOOPBACK}:{port}/t/demo"

    def doctor(self, url: str, seconds: str) -> tuple[int, dict[str, dict[str, Any]]]:
        """Its exit status and findings."""
        done = self.pair.agent.tunnelctl("doctor", "--json", "--sse", url, "--for", seconds, timeout=60)
        assert done.stderr == ""
        return done.returncode, {one["id"]: one for one in json.loads(done.stdout)["findings"]}


@pytest.fixture(scope="module")
def way() -> Iterator[Way]:
    with ExitStack() as ends:
        yield Way(ends)


def test_an_nginx_that_buffers_is_told_and_one_that_does_not_is_well(way: Way) -> None:
    status, found = way.doctor(f"{way.through(BUFFERS)}/events?id=b&gap=0.02", "3s")
    assert status == 1
    assert found["sse-buffering"]["status"] == "fail"
    assert "something between buffers" in found["sse-buffering"]["detail"]
    assert "proxy_buffering off" in found["sse-buffering"]["advice"]
    assert "nginx" in found["sse-way"]["detail"]
    status, found = way.doctor(f"{way.through(BUFFERS.replace('on;', 'off;', 1))}/events?id=c&gap=0.02", "3s")
    assert (status, found["sse-buffering"]["status"]) == (0, "ok"), found
    honoured = BUFFERS.replace("proxy_ignore_headers X-Accel-Buffering;", "")
    status, found = way.doctor(f"{way.through(honoured)}/events?id=d&gap=0.02", "3s")
    assert (status, found["sse-buffering"]["status"]) == (0, "ok"), "our own X-Accel-Buffering: no turns it off"


def test_an_nginx_that_cuts_what_is_quiet_is_told_and_the_keepalive_that_is_advised_saves_it(way: Way) -> None:
    url = f"{way.through(CUTS)}/quiet"
    status, found = way.doctor(url, "9s")
    assert status == 1
    idle = found["sse-idle"]
    assert idle["status"] == "fail"
    assert "after 3." in idle["detail"]
    assert "`sse: {keepalive: 1s}` for this tunnel" in idle["advice"]
    way.pair.agent.rewrite({"sse": {"keepalive": "1s"}})
    assert way.pair.agent.tunnelctl("reload").returncode == 0
    status, found = way.doctor(url, "7s")
    assert (status, found["sse-idle"]["status"]) == (0, "ok"), found
    assert " keepalive comments came" in found["sse-idle"]["detail"]


def test_an_nginx_that_packs_what_browsers_ask_for_is_told(way: Way) -> None:
    packs = "proxy_buffering off; gzip on; gzip_types text/event-stream; gzip_proxied any; gzip_min_length 0;"
    status, found = way.doctor(f"{way.through(packs)}/events?id=z&gap=0.02", "3s")
    encoding = found["sse-encoding"]
    assert encoding["status"] == "warn"
    assert encoding["detail"] == "It is encoded by gzip: whoever does that gathers events."
    assert "gzip_types without it" in encoding["advice"]
    assert "sse" not in found, "it is unpacked, and what comes is measured: nginx may pass it on, or gather it"
    assert status == (1 if found["sse-buffering"]["status"] == "fail" else 0)
