"""Who signed in to the dashboard, and who was refused it, for the audit: its feed is what asks for the credential."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tunneld.control.guard import address_of, audit
from tunneld.dashboard.files import PAGE

if TYPE_CHECKING:
    from starlette.types import Message, Scope, Send

__all__ = ["note_refused", "noting_sign_in"]

_FEED: Final = f"{PAGE}/feed"


def noting_sign_in(scope: Scope, send: Send, door: str) -> Send:
    """A `send` that notes whom the guard let in to the dashboard, once it shows them something.

    Args:
        scope: of the request that was let pass.
        send: of the server.
        door: the listener, by its name in the configuration.
    """
    if scope["path"] != _FEED or scope["method"] != "GET":
        return send

    async def told(message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] == 200:
            text = f"signed in to the dashboard of {door}, from {address_of(scope)}"
            await audit(scope, "sign-in", text, reason=door)
        await send(message)

    return told


async def note_refused(scope: Scope, code: str, door: str) -> None:
    """Note that somebody was refused the dashboard; a page without a credential only asks whether it needs one."""
    if scope["path"] != _FEED or scope["method"] != "GET":
        return
    if code == "unauthorized" and not any(name == b"authorization" for name, _ in scope["headers"]):
        return
    text = f"refused the dashboard of {door} to {address_of(scope)}: {code}"
    await audit(scope, "sign-in", text, failed=True, reason=f"{door} {code}")
