"""A message by SMTP, in a thread of its own: the library blocks, and a server that hangs must hold nobody else up."""

from __future__ import annotations

import asyncio
import os
import smtplib
import socket
import ssl
import threading
from contextlib import suppress
from typing import BinaryIO
from urllib.parse import urlsplit

from tunneld.alerts import messages
from tunneld.alerts.faults import Undelivered, secret, trusting
from tunneld.alerts.messages import Message
from tunneld.config.alerts import EmailTarget

__all__ = ["send_mail"]

_MOST = 64 * 1024
"""Bytes of a server's answers, up to TLS and behind it."""


async def send_mail(target: EmailTarget, message: Message) -> None:
    """Try once; raises Undelivered. Cancelled it ends the conversation where it stands."""
    talk = _Talk(target, message, asyncio.get_running_loop())
    threading.Thread(target=talk.run, name=f"mail to {urlsplit(target.smtp).hostname}", daemon=True).start()
    try:
        await talk.done
    finally:
        talk.hang_up()


class _Bounded:
    """What a server says, of which no more than `_MOST` bytes are read in all: an answer may have lines without end."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._left = _MOST

    def readline(self, most: int) -> bytes:
        line = self._file.readline(most)
        self._left -= len(line)
        if self._left < 0:
            raise Undelivered("the server says more than any mail server has to", final=True)
        return line

    def close(self) -> None:
        self._file.close()


class _Client(smtplib.SMTP):
    """The library's, which reads its answers from `file`."""

    _bounded: _Bounded | None = None

    @property
    def file(self) -> _Bounded | None:
        """What the library made of its socket."""
        return self._bounded

    @file.setter
    def file(self, made: BinaryIO | None) -> None:
        self._bounded = None if made is None else _Bounded(made)


class _Talk:
    """One conversation with a mail server.

    Attributes:
        done: settled when it is over.
    """

    def __init__(self, target: EmailTarget, message: Message, loop: asyncio.AbstractEventLoop) -> None:
        self.done: asyncio.Future[None] = loop.create_future()
        self._loop = loop
        self._target = target
        self._message = message
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None  # a second handle of the connection: TLS takes the first away
        self._over = False

    def run(self) -> None:
        """The thread."""
        fault: Exception | None = None
        try:
            self._send()
        except Exception as error:  # noqa: BLE001 - told to whoever waits
            fault = error
        finally:
            self.hang_up()
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._settle, fault)

    def _settle(self, fault: Exception | None) -> None:
        if self.done.done():
            return
        if fault is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(fault)

    def hang_up(self) -> None:
        """End it, whatever it waits for. Idempotent; of any thread."""
        with self._lock:
            self._over = True
            held, self._socket = self._socket, None
        if held is not None:
            with suppress(OSError):
                held.shutdown(socket.SHUT_RDWR)
            held.close()

    def _connected(self, host: str, port: int) -> socket.socket:
        made = socket.create_connection((host, port), self._target.timeout)
        with self._lock:
            if not self._over:
                self._socket = socket.socket(fileno=os.dup(made.fileno()))
                return made
        made.close()
        raise Undelivered("nobody waits for it any more")

    def _send(self) -> None:
        """Raises Undelivered, or what no mail server's answer explains."""
        target = self._target
        try:
            with self._greeted() as client:
                if target.user is not None and target.password_file is not None:
                    _log_in(client, target.user, secret(target.password_file))
                made = messages.email(self._message, sender=target.sender[0], to=target.email)
                refused = client.send_message(made)
        except smtplib.SMTPAuthenticationError as error:
            raise Undelivered(
                f"the login of {target.user} was refused ({error.smtp_code}): see user and password_file",
                final=error.smtp_code >= 500,
            ) from None
        except smtplib.SMTPSenderRefused as error:
            raise Undelivered(
                f"the sender {target.sender[0]} was refused ({error.smtp_code}): see `from`",
                final=error.smtp_code >= 500,
            ) from None
        except smtplib.SMTPRecipientsRefused as error:
            codes = {code for code, _ in error.recipients.values()}
            raise Undelivered(
                f"every recipient was refused ({_codes(codes)})", final=min(codes, default=500) >= 500
            ) from None
        except smtplib.SMTPResponseException as error:
            raise Undelivered(f"the server answered {error.smtp_code}", final=error.smtp_code >= 500) from None
        except ssl.SSLCertVerificationError as error:
            raise Undelivered(
                f"its certificate is not trusted: {error.verify_message}; see ca_file", final=True
            ) from None
        except (OSError, smtplib.SMTPException) as error:
            raise Undelivered(getattr(error, "strerror", None) or str(error) or type(error).__name__) from None
        if refused:
            raise Undelivered(f"refused for {', '.join(refused)}", final=True)

    def _greeted(self) -> smtplib.SMTP:
        """A client whose connection stands, over TLS wherever that can be had."""
        target = self._target
        parts = urlsplit(target.smtp)
        host, secure = parts.hostname or "", parts.scheme == "smtps"
        context = trusting(target.ca_file)
        made = self._connected(host, parts.port or (465 if secure else 25))
        # Given a host it would connect by itself, out of reach of `hang_up`.
        client = _Client(timeout=target.timeout)
        client._host = host  # type: ignore[attr-defined]  # what STARTTLS checks the certificate for
        client.sock = made
        try:
            if secure:
                client.sock = context.wrap_socket(made, server_hostname=host)
            code, said = client.getreply()
            if code != 220:
                raise smtplib.SMTPConnectError(code, said)
            client.ehlo_or_helo_if_needed()
            if not secure and client.has_extn("starttls"):
                client.starttls(context=context)
                client.ehlo()
                secure = True
            if target.user is not None and not secure:
                raise Undelivered("the server offers no TLS: the password is not sent", final=True)
        except BaseException:
            client.close()
            raise
        return client


def _log_in(client: smtplib.SMTP, user: str, password: str) -> None:
    try:
        client.login(user, password)
    except smtplib.SMTPException as error:
        if isinstance(error, smtplib.SMTPNotSupportedError) or type(error) is smtplib.SMTPException:
            raise Undelivered("the server takes no login that is known here: see user", final=True) from None
        raise


def _codes(codes: set[int]) -> str:
    return ", ".join(map(str, sorted(codes)))
