"""One attempt at a delivery, by each kind of target. What is loaded for it, is loaded at the first."""

from __future__ import annotations

import asyncio
from time import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tunneld.alerts import messages
from tunneld.alerts.faults import Undelivered, secret, trusting
from tunneld.alerts.messages import Message
from tunneld.config.alerts import CommandTarget, EmailTarget, WebhookTarget

if TYPE_CHECKING:
    import httpx

__all__ = ["send", "told"]


def told(target: WebhookTarget | CommandTarget | EmailTarget) -> str:
    """The target for people: no path of a webhook, which may be its secret."""
    if isinstance(target, WebhookTarget):
        return f"webhook {urlsplit(target.webhook).netloc}"
    if isinstance(target, CommandTarget):
        return f"command {target.command[0]}"
    return f"email {', '.join(target.email)}"


async def send(target: WebhookTarget | CommandTarget | EmailTarget, message: Message, *, lasts: float) -> None:
    """Try once; raises Undelivered.

    Args:
        target: who is told.
        message: what.
        lasts: seconds that the message stays true without another.
    """
    try:
        async with asyncio.timeout(target.timeout):
            if isinstance(target, WebhookTarget):
                await _webhook(target, message, lasts)
            elif isinstance(target, CommandTarget):
                from tunneld.alerts.command import run_command

                await run_command(target, message)
            else:
                from tunneld.alerts.mail import send_mail  # most daemons send no mail

                await send_mail(target, message)
    except TimeoutError:
        raise Undelivered(f"not done within {target.timeout:g} s") from None


def _client(target: WebhookTarget) -> httpx.AsyncClient:
    """Made in a thread: loading the library and the system's authorities takes the loop's time for other work."""
    import httpx

    verify = trusting(target.ca_file) if target.webhook.startswith("https:") else False
    return httpx.AsyncClient(timeout=target.timeout, follow_redirects=False, verify=verify)


async def _webhook(target: WebhookTarget, message: Message, lasts: float) -> None:
    client = await asyncio.to_thread(_client, target)
    import httpx

    shape: object
    if target.shape == "slack":
        shape = messages.slack(message)
    elif target.shape == "alertmanager":
        shape = messages.alertmanager(message, lasts=lasts)
    else:
        shape = messages.plain(message)
    body = messages.encoded(shape)
    headers = {"Content-Type": "application/json", "User-Agent": "tunneld", **target.headers}
    if target.secret_file is not None:
        headers["X-Tunneld-Signature"] = messages.signature(secret(target.secret_file), body, time())
    try:
        async with (
            client,
            client.stream("POST", target.webhook, content=body, headers=headers) as answer,
        ):
            status = answer.status_code
    except httpx.HTTPError as error:
        raise Undelivered(str(error) or type(error).__name__) from None
    if status < 300:
        return
    if status < 400:
        raise Undelivered(
            f"answered {status}: a redirect is not followed; give the address that it leads to", final=True
        )
    raise Undelivered(f"answered {status}", final=status < 500 and status not in (408, 425, 429))
