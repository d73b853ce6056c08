"""Calls that somebody makes each second, answered before a route is looked for and arguments are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from starlette.responses import Response
    from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["OLDEST", "Quick"]

OLDEST: Final = (25, 50, 100)
"""So many streams, the oldest, `tunnelctl top` asks for, by the lines of its screen."""


class Quick:
    """ASGI middleware: to the application what it does not answer itself; what stands before it has let both pass.

    FastAPI's way to a call costs as much as all else of a short answer.

    Args:
        app: that is behind it, and has the same calls.
        answers: by path and query, to GET.
    """

    def __init__(self, app: ASGIApp, answers: Mapping[tuple[str, bytes], Callable[[], Response]]) -> None:
        self._app = app
        self._answers = answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one call (ASGI)."""
        if scope["type"] == "http" and scope["method"] == "GET":
            answer = self._answers.get((scope["path"], scope["query_string"]))
            if answer is not None:
                await answer()(scope, receive, send)
                return
        await self._app(scope, receive, send)
