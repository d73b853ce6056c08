"""The word of a label for every sentence that says why a service fails."""

import errno
import ssl

import pytest

from tunneld.agent import origin
from tunneld.telemetry.causes import CAUSES, cause_of


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ("no answer within 1 s", "timeout"),
        ("GET /healthz was answered 503", "status"),
        ("GET /status?code=500 was answered 500", "status"),
        ("its answer cannot be used: a bad head", "answer"),
        ("it closed its connection before it answered", "closed"),
        ("the server's probe did not come back within 11 s", "probe"),
        ("something that nobody thought of", "other"),
        ("", "other"),
        (origin.why(ConnectionRefusedError(errno.ECONNREFUSED, "")), "refused"),
        (origin.why(FileNotFoundError(errno.ENOENT, "")), "socket"),
        (origin.why(ConnectionResetError(errno.ECONNRESET, "")), "closed"),
        (origin.why(TimeoutError(errno.ETIMEDOUT, "")), "timeout"),
        (origin.why(OSError(errno.EHOSTUNREACH, "")), "route"),
        (origin.why(ssl.SSLCertVerificationError("")), "certificate"),
        (origin.why(ssl.SSLError("")), "tls"),
        (origin.why(UnicodeError()), "name"),
    ],
)
def test_each_has_its_word(fault: str, cause: str) -> None:
    assert cause_of(fault) == cause
    assert cause in CAUSES


def test_an_expired_certificate_is_a_certificate() -> None:
    fault = ssl.SSLCertVerificationError("")
    fault.verify_code = 10
    assert cause_of(origin.why(fault)) == "certificate"
