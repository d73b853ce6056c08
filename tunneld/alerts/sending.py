"""One attempt at a delivery, by each kind of target. What is loaded for it, is loaded at the first."""

from __future__ import annotations

import asyncio
import os
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

_MOST = 16 * 1024
"""Bytes of an answer, or of a program's words, that are looked at."""


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
                await _command(target, message)
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


async def _command(target: CommandTarget, message: Message) -> None:
    environment = {
        **{name: os.environ[name] for name in ("PATH", "HOME", "LANG", "LC_ALL", "TZ") if name in os.environ},
        "TUNNELD_ALERT": message.alert,
        "TUNNELD_ALERT_STATE": message.state,
        "TUNNELD_ALERT_TITLE": message.title,
    }
    try:
        process = await asyncio.create_subprocess_exec(
            *target.command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
    except OSError as error:
        raise Undelivered(f"it cannot be started: {error.strerror or error}", final=True) from None
    try:
        _, said = await process.communicate(messages.encoded(messages.plain(message)))
    except BaseException:
        _kill(process)
        await process.wait()
        raise
    if process.returncode:
        words = said[-_MOST:].decode(errors="replace").strip().splitlines()
        raise Undelivered(f"it ended with {process.returncode}{f': {words[-1][:200]}' if words else ''}")


def _kill(process: asyncio.subprocess.Process) -> None:
    """It, and what it started."""
    try:
        os.killpg(process.pid, 9)
    except ProcessLookupError:
        pass
