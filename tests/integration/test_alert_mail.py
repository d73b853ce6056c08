"""Alerts by e-mail, told to real SMTP servers: plain, STARTTLS, TLS from the first byte, with login, and at fault."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from email import message_from_bytes
from email.policy import default as email_policy
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, LoginPassword

from tests.support.receivers import MESSAGE, delivering
from tests.support.running import Book
from tests.support.sockets import LOOPBACK, Certificate, certificate, free_port
from tunneld.alerts import delivery
from tunneld.config.alerts import EmailTarget

# aiosmtpd warns of what two tests want: a server that takes passwords without TLS.
pytestmark = pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS:UserWarning")
PASSWORD = "s3cret-of-the-mailbox"
SENDER = "t@example.org"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try again without the waits of a real life."""
    monkeypatch.setattr(delivery, "_FIRST", 0.02)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return certificate(tmp_path_factory.mktemp("mail"))


@pytest.fixture
def password(tmp_path: Path) -> str:
    return secret(tmp_path, PASSWORD)


def secret(folder: Path, text: str) -> str:
    path = folder / "password"
    path.write_text(text)
    path.chmod(0o600)
    return str(path)


class Mailbox:
    """What a server does with what it is told; everything that it took."""

    def __init__(self) -> None:
        self.taken: list[Any] = []
        self.logins: list[bytes] = []
        self.busy = 0

    async def handle_MAIL(self, server: Any, session: Any, envelope: Any, address: str, options: Any) -> str:
        if address.startswith("spam"):
            return "553 not from you"
        envelope.mail_from = address
        return "250 OK"

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, options: Any) -> str:
        if address.startswith("nobody"):
            return "550 no such user"
        if self.busy:
            self.busy -= 1
            return "451 greylisted, come again"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self.taken.append((envelope, session.ssl is not None))
        return "250 OK"

    def authenticate(self, server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
        assert isinstance(data, LoginPassword)
        self.logins.append(data.login)
        return AuthResult(success=data == LoginPassword(b"me", PASSWORD.encode()), handled=False)


@contextmanager
def mail_server(**options: Any) -> Iterator[tuple[int, Mailbox]]:
    """A real SMTP server in a thread; its port and its mailbox."""
    box = Mailbox()
    if options.get("auth_required"):
        options["authenticator"] = box.authenticate
    controller = Controller(box, hostname=LOOPBACK, port=free_port(), **options)
    controller.start()
    try:
        yield controller.port, box
    finally:
        controller.stop()


def starttls(own: Certificate, **more: Any) -> dict[str, Any]:
    """A server that takes mail over STARTTLS alone, and a login."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(own.cert, own.key)
    return {"tls_context": context, "require_starttls": True, "auth_required": True, **more}


def target(port: int, to: Any = "ops@example.org", *, scheme: str = "smtp", **more: Any) -> EmailTarget:
    return EmailTarget.model_validate(
        {"email": to, "from": SENDER, "smtp": f"{scheme}://{LOOPBACK}:{port}", "timeout": 5, **more}
    )


async def fault_of(wanted: EmailTarget) -> str | None:
    async with delivering(wanted) as (_, put):
        return (await put(MESSAGE)).fault


async def test_a_mail_arrives() -> None:
    with mail_server() as (port, box):
        assert await fault_of(target(port, ["ops@example.org", "dev@example.org"])) is None
    ((envelope, secure),) = box.taken
    assert (envelope.mail_from, envelope.rcpt_tos, secure) == (SENDER, ["ops@example.org", "dev@example.org"], False)
    mail = message_from_bytes(envelope.content, policy=email_policy)
    assert mail["Subject"] == "[tunneld] firing: tunnel_down (a) on host (agent)"
    assert "The tunnel a is offline <why>." in mail.get_content()  # type: ignore[attr-defined]
    assert mail["Message-ID"].rstrip(">").endswith("@example.org")
    assert mail["Date"].datetime.tzinfo is not None


async def test_it_logs_in_over_starttls(own: Certificate, password: str, lines: Book) -> None:
    with mail_server(**starttls(own)) as (port, box):
        assert await fault_of(target(port, user="me", password_file=password, ca_file=str(own.cert))) is None
    assert [secure for _, secure in box.taken] == [True]
    assert box.logins == [b"me"]
    assert not lines.find(PASSWORD)


async def test_it_logs_in_over_tls_from_the_first_byte(own: Certificate, password: str) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(own.cert, own.key)
    # aiosmtpd takes a login only where it knows of the TLS, which under `ssl_context` it does not.
    with mail_server(ssl_context=context, auth_required=True, auth_require_tls=False) as (port, box):
        wanted = target(port, scheme="smtps", user="me", password_file=password, ca_file=str(own.cert))
        assert await fault_of(wanted) is None
    assert (len(box.taken), box.logins) == (1, [b"me"])


async def test_a_wrong_password_is_said_once_and_not_shown(own: Certificate, tmp_path: Path, lines: Book) -> None:
    wrong = secret(tmp_path, "wrong-but-secret")
    with mail_server(**starttls(own)) as (port, box):
        wanted = target(port, user="me", password_file=wrong, ca_file=str(own.cert))
        assert await fault_of(wanted) == "the login of me was refused (535): see user and password_file"
    assert (box.taken, set(box.logins)) == ([], {b"me"})
    (line,) = lines.find("was given up")
    assert line.text.startswith("An alert to email ops@example.org was given up: the login of me was refused (535)")
    assert not lines.find("wrong-but-secret")


async def test_a_password_goes_over_tls_alone(password: str) -> None:
    with mail_server(auth_required=True, auth_require_tls=False) as (port, box):
        fault = await fault_of(target(port, user="me", password_file=password))
    assert fault == "the server offers no TLS: the password is not sent"
    assert (box.taken, box.logins) == ([], [])


async def test_a_server_that_takes_no_login_is_told_of(own: Certificate, password: str) -> None:
    options = starttls(own, auth_required=False)
    with mail_server(**options, auth_exclude_mechanism=["LOGIN", "PLAIN"]) as (port, _):
        fault = await fault_of(target(port, user="me", password_file=password, ca_file=str(own.cert)))
    assert fault == "the server takes no login that is known here: see user"


async def test_a_certificate_that_nobody_vouches_for_is_refused(own: Certificate, password: str) -> None:
    with mail_server(**starttls(own)) as (port, box):
        fault = await fault_of(target(port, user="me", password_file=password))
    assert fault is not None
    assert fault.startswith("its certificate is not trusted: self")  # self-signed or self signed, as OpenSSL writes it
    assert fault.endswith("; see ca_file")
    assert (box.taken, box.logins) == ([], [])


@pytest.mark.parametrize(
    ("to", "sender", "said"),
    [
        ("nobody@example.org", SENDER, "every recipient was refused (550)"),
        (["ops@example.org", "nobody@example.org"], SENDER, "refused for nobody@example.org"),
        ("ops@example.org", "spam@example.org", "the sender spam@example.org was refused (553): see `from`"),
    ],
)
async def test_what_a_server_refuses_is_said_and_not_tried_again(to: Any, sender: str, said: str, lines: Book) -> None:
    with mail_server() as (port, box):
        assert await fault_of(target(port, to, **{"from": sender})) == said
        assert len(box.taken) == (1 if said.startswith("refused for") else 0)
    assert len(lines.find("was given up")) == 1
    assert not lines.find("tried again")


async def test_what_is_refused_for_now_is_tried_again(lines: Book) -> None:
    with mail_server() as (port, box):
        box.busy = 2
        assert await fault_of(target(port)) is None
        assert len(box.taken) == 1
    assert len(lines.find("every recipient was refused (451); tried again")) == 2


async def test_where_nobody_listens_it_is_tried_again_and_given_up(lines: Book) -> None:
    assert await fault_of(target(free_port(), retry_for=1)) == "Connection refused"
    assert lines.find("Connection refused; tried again")


Says = Callable[[socket.socket], None]


@contextmanager
def handmade(says: Says) -> Iterator[tuple[int, threading.Event]]:
    """A server of one connection; the event is set once its peer has left: by a reset where it had not read all."""
    left = threading.Event()
    with socket.create_server((LOOPBACK, 0)) as listener:

        def serve() -> None:
            with listener.accept()[0] as talk:
                with suppress(ConnectionError):
                    says(talk)
                    while talk.recv(4096):
                        pass
                left.set()

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1], left
        thread.join(10)


def _silent(talk: socket.socket) -> None:
    """It accepts, and says nothing."""


def _stalls(talk: socket.socket) -> None:
    """It greets, and answers nothing."""
    talk.sendall(b"220 hello\r\n")


@pytest.mark.parametrize("says", [_silent, _stalls])
async def test_a_server_that_hangs_is_left_and_holds_nothing_up(says: Says, lines: Book) -> None:
    threads = threading.active_count()
    with handmade(says) as (port, left):
        async with delivering(target(port, timeout=0.4, retry_for=0)) as (_, put):
            waiting = asyncio.ensure_future(put(MESSAGE))
            turns = 0
            while not waiting.done():  # the loop turns all the while
                await asyncio.sleep(0.01)
                turns += 1
            assert (await waiting).fault == "not done within 0.4 s"
        assert turns > 10
        assert await asyncio.to_thread(left.wait, 10)
    assert lines.find("was given up: not done within 0.4 s")
    await asyncio.to_thread(_until_ended, threads)


def _until_ended(threads: int) -> None:
    """Every thread of a conversation has ended."""
    for thread in threading.enumerate():
        if thread.name.startswith("mail to "):
            thread.join(10)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("mail to ")]


async def test_a_server_that_drips_is_left_in_time(lines: Book) -> None:
    """Each byte comes within the timeout of one read, the whole never does."""
    stop = threading.Event()

    def drips(talk: socket.socket) -> None:
        try:
            while not stop.wait(0.05):
                talk.sendall(b"2")
        except OSError:
            pass

    with handmade(drips) as (port, left):
        assert await fault_of(target(port, timeout=0.5, retry_for=0)) == "not done within 0.5 s"
        stop.set()
        assert await asyncio.to_thread(left.wait, 10)


async def test_one_that_is_no_mail_server_is_told_of() -> None:
    with handmade(lambda talk: talk.sendall(b"554 go away\r\n")) as (port, _):
        assert await fault_of(target(port)) == "the server answered 554"


async def test_one_whose_answer_never_ends_is_left_before_it_fills_the_memory() -> None:
    def says(talk: socket.socket) -> None:
        try:
            while True:
                talk.sendall(b"220-and more\r\n" * 1000)
        except OSError:
            pass

    with handmade(says) as (port, _):
        assert await fault_of(target(port, timeout=10)) == "the server says more than any mail server has to"
