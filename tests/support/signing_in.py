"""oidc-provider as a process, and somebody who signs in at its pages without a browser."""

from __future__ import annotations

import os
import re
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import httpx

from tests.support.processes import Process
from tests.support.sockets import LOOPBACK

__all__ = ["NODE", "SECRET", "Walker", "issuing", "names_of_localhost", "rotate"]

NODE = Path(__file__).parents[1] / "e2e" / "node"
SECRET = "a-secret-of-the-tests"
_FORM = re.compile(r'<form[^>]*action="([^"]+)"')
_FIELD = re.compile(r'<input[^>]*name="prompt"[^>]*value="([^"]+)"')


@contextmanager
def issuing(node: str, port: int, redirect: str, domain: str) -> Iterator[Process]:
    """A running oidc-provider at ``http://localhost:PORT`` that knows the client ``tunneld``."""
    process = Process([node, str(NODE / "issuer.mjs"), str(port), redirect, domain], name="issuer")
    try:
        process.wait_line("ready", timeout=30)
        yield process
    finally:
        process.discard()


def rotate(process: Process) -> None:
    """Other keys from now on."""
    mark = process.mark()
    os.kill(process.pid, signal.SIGUSR2)
    process.wait_line("rotated", after=mark, timeout=20)


@contextmanager
def names_of_localhost() -> Iterator[None]:
    """``NAME.localhost`` is this machine, as browsers know and Python's resolver may not."""
    before = socket.getaddrinfo

    def found(host: Any, *args: Any, **more: Any) -> Any:
        text = host.decode() if isinstance(host, bytes) else host
        return before(LOOPBACK if isinstance(text, str) and text.endswith(".localhost") else host, *args, **more)

    socket.getaddrinfo = found
    try:
        yield
    finally:
        socket.getaddrinfo = before


class Walker:
    """A visitor who follows redirects, fills in the provider's forms and keeps cookies.

    Attributes:
        seen: every address that was asked for.
    """

    def __init__(self, email: str = "ann@example.org") -> None:
        self.email = email
        self.client = httpx.Client(headers={"Accept": "text/html"}, timeout=20)
        self.seen: list[str] = []

    def __enter__(self) -> Walker:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def open(self, url: str, *, until: str = "") -> httpx.Response:
        """The page that an address leads to, signing in on the way.

        Args:
            until: an address that begins with this is not asked for: its redirect is returned.
        """
        answer = self._ask("GET", url)
        for _ in range(20):
            if answer.is_redirect:
                target = urljoin(str(answer.url), answer.headers["location"])
                if until and target.startswith(until):
                    return answer
                answer = self._ask("GET", target)
            elif "/interaction/" in str(answer.url) and (form := _FORM.search(answer.text)):
                prompt = _FIELD.search(answer.text)
                assert prompt is not None, answer.text
                said = {"prompt": prompt[1], "login": self.email, "password": "x"}
                answer = self._ask("POST", urljoin(str(answer.url), form[1]), data=said)
            else:
                return answer
        raise AssertionError(f"too many steps: {self.seen}")

    def _ask(self, method: str, url: str, **how: Any) -> httpx.Response:
        self.seen.append(url)
        return self.client.request(method, url, **how)

    def asked(self, part: str) -> str:
        """The last address that holds this."""
        return next(url for url in reversed(self.seen) if part in url)
