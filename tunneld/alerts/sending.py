"""One attempt at a delivery, by each kind of target. What is loaded for it, is loaded at the first."""

from __future__ import annotations

import asyncio
import os
import ssl
from time import time
from urllib.parse import urlsplit

from tunneld.alerts import messages
from tunneld.alerts.messages import Message
from tunneld.config.alerts import CommandTarget, EmailTarget, WebhookTarget
from tunneld.config.secrets import read_secret
from tunneld.errors import ConfigError

__all__ = ["Undelivered", "send", "told"]

_MOST = 16 * 1024
"""Bytes of an answer, or of a program's words, that are looked at."""


class Undelivered(Exception):
    """It did not arrive.

    Args:
        why: for people; names no secret.
        final: trying again has no use.
    """

    def __init__(self, why: str, *, final: bool = False) -> None:
        super().__init__(why)
        self.final = final


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
                await asyncio.to_thread(_email, target, message)
    except TimeoutError:
        raise Undelivered(f"not done within {target.timeout:g} s") from None


async def _webhook(target: WebhookTarget, message: Message, lasts: float) -> None:
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
        headers["X-Tunneld-Signature"] = messages.signature(_secret(target.secret_file), body, time())
    try:
        async with (
            httpx.AsyncClient(timeout=target.timeout, follow_redirects=False) as client,
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


def _email(target: EmailTarget, message: Message) -> None:
    """In a thread: the library blocks."""
    parts = urlsplit(target.smtp)
    host, secure = parts.hostname or "", parts.scheme == "smtps"
    import smtplib  # here: most daemons send no mail, and all start sooner without it

    made = messages.email(message, sender=target.sender[0], to=target.email)
    context = ssl.create_default_context()
    try:
        client: smtplib.SMTP
        if secure:
            client = smtplib.SMTP_SSL(host, parts.port or 465, timeout=target.timeout, context=context)
        else:
            client = smtplib.SMTP(host, parts.port or 25, timeout=target.timeout)
        with client:
            client.ehlo()
            if not secure and client.has_extn("starttls"):
                client.starttls(context=context)
                client.ehlo()
                secure = True
            if target.user is not None and target.password_file is not None:
                if not secure:
                    raise Undelivered("the server offers no TLS: the password is not sent", final=True)
                client.login(target.user, _secret(target.password_file))
            refused = client.send_message(made)
    except smtplib.SMTPRecipientsRefused as error:
        codes = {code for code, _ in error.recipients.values()}
        raise Undelivered(
            f"every recipient was refused ({_codes(codes)})", final=min(codes, default=500) >= 500
        ) from None
    except smtplib.SMTPResponseException as error:
        raise Undelivered(f"the server answered {error.smtp_code}", final=error.smtp_code >= 500) from None
    except (OSError, smtplib.SMTPException) as error:
        raise Undelivered(getattr(error, "strerror", None) or str(error) or type(error).__name__) from None
    if refused:
        raise Undelivered(f"refused for {', '.join(refused)}", final=True)


def _codes(codes: set[int]) -> str:
    return ", ".join(map(str, sorted(codes)))


def _secret(path: str) -> str:
    try:
        return read_secret(path)
    except ConfigError as error:
        raise Undelivered("; ".join(error.faults), final=True) from None
