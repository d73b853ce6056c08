"""TLS contexts: what they allow, and the words for files that are wrong."""

import ssl
import subprocess
from pathlib import Path

import pytest

from tests.support.sockets import certificate
from tunneld.errors import ConfigError
from tunneld.wire.tls import client_context, server_context


def make_pair(folder: Path, stem: str, passphrase: str | None = None) -> tuple[Path, Path]:
    room = folder / stem
    room.mkdir()
    made = certificate(room)
    key = room / f"{stem}.key"
    cert = made.cert.rename(room / f"{stem}.pem")
    cipher = ["-aes256", "-passout", f"pass:{passphrase}"] if passphrase else []
    subprocess.run(
        ["openssl", "pkey", *cipher, "-in", str(made.key), "-out", str(key)], check=True, capture_output=True
    )
    return cert, key


def handshake(client: ssl.SSLContext, server: ssl.SSLContext, name: str = "localhost") -> ssl.SSLObject:
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = client.wrap_bio(to_client, to_server, server_hostname=name)
    two = server.wrap_bio(to_server, to_client, server_side=True)
    waiting = [one, two]
    while waiting:
        for end in list(waiting):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            waiting.remove(end)
    return one


def test_the_two_ends_meet_and_speak_http_1(tmp_path: Path) -> None:
    cert, key = make_pair(tmp_path, "a")
    end = handshake(client_context(ca_file=cert), server_context(cert, key))
    assert end.version() == "TLSv1.3"
    assert end.selected_alpn_protocol() == "http/1.1"


def test_a_certificate_of_another_name_or_root_is_refused(tmp_path: Path) -> None:
    cert, key = make_pair(tmp_path, "a")
    other, _ = make_pair(tmp_path, "b")
    server = server_context(cert, key)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(client_context(ca_file=cert), server, "example.test")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(client_context(ca_file=other), server)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(client_context(), server)


def test_old_versions_are_not_spoken(tmp_path: Path) -> None:
    cert, key = make_pair(tmp_path, "a")
    for context in (client_context(ca_file=cert), server_context(cert, key)):
        assert context.minimum_version == ssl.TLSVersion.TLSv1_2


def test_the_client_shows_its_own_certificate(tmp_path: Path) -> None:
    cert, key = make_pair(tmp_path, "a")
    mine, my_key = make_pair(tmp_path, "b")
    server = server_context(cert, key)
    server.verify_mode = ssl.CERT_REQUIRED
    server.load_verify_locations(mine)
    handshake(client_context(ca_file=cert, client_cert=mine, client_key=my_key), server)
    both = tmp_path / "both.pem"
    both.write_bytes(mine.read_bytes() + my_key.read_bytes())
    handshake(client_context(ca_file=cert, client_cert=both), server)


def test_missing_files_are_named_each_on_its_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        server_context(tmp_path / "no.pem", tmp_path / "no.key", where="listen.tls")
    assert caught.value.faults == [
        f"listen.tls.cert: {tmp_path / 'no.pem'} cannot be read: No such file or directory",
        f"listen.tls.key: {tmp_path / 'no.key'} cannot be read: No such file or directory",
    ]


def test_a_key_of_another_certificate_is_told(tmp_path: Path) -> None:
    cert, _ = make_pair(tmp_path, "a")
    _, key = make_pair(tmp_path, "b")
    with pytest.raises(ConfigError, match=r"tls\.key: .*b\.key is not the key of the certificate .*a\.pem"):
        server_context(cert, key)


def test_an_encrypted_key_is_told_and_nobody_is_asked(tmp_path: Path) -> None:
    cert, key = make_pair(tmp_path, "a", "secret")
    with pytest.raises(ConfigError, match=r"tls\.key: the private key is encrypted"):
        server_context(cert, key)


def test_the_wrong_one_of_two_files_is_named(tmp_path: Path) -> None:
    cert, key = make_pair(tmp_path, "a")
    junk = tmp_path / "junk"
    junk.write_text("not PEM at all\n")
    torn = tmp_path / "torn"
    torn.write_text(cert.read_text().replace("M", "!", 3))
    for bad in (junk, torn, key):
        with pytest.raises(ConfigError, match=r"^tls\.cert: .* holds no certificate in PEM form$"):
            server_context(bad, key)
    for bad in (junk, cert):
        with pytest.raises(ConfigError, match=r"^tls\.key: .* holds no private key in PEM form$"):
            server_context(cert, bad)


def test_roots_that_cannot_be_used(tmp_path: Path) -> None:
    cert, key = make_pair(tmp_path, "a")
    junk = tmp_path / "junk"
    junk.write_text("not PEM at all\n")
    with pytest.raises(ConfigError, match=r"^server\.ca_file: .*no\.pem cannot be read: No such file"):
        client_context(ca_file=tmp_path / "no.pem")
    for bad in (junk, key):
        with pytest.raises(ConfigError, match=r"^server\.ca_file: .* holds no certificate in PEM form$"):
            client_context(ca_file=bad)
    with pytest.raises(ConfigError, match=r"^server\.client_key: is of no use without"):
        client_context(ca_file=cert, client_key=key)
