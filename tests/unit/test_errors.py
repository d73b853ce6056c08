import http
import re

import pytest

from tunneld.codes.operators import OPERATORS
from tunneld.codes.tunnels import TUNNELS
from tunneld.codes.visitors import VISITORS
from tunneld.errors import (
    CODES,
    ConfigError,
    LocalError,
    ProtocolError,
    RemoteError,
    TunneldError,
    UsageError,
    VisitorError,
)


def test_each_code_is_a_stable_word_with_a_status_a_title_and_advice() -> None:
    for word, code in CODES.items():
        assert word == code.code
        assert re.fullmatch(r"[a-z][a-z0-9_]*", word)
        assert code.status == 0 or (code.status >= 400 and http.HTTPStatus(code.status))
        for text in (code.title, code.advice):
            assert text.endswith(".")
            assert text[0].isupper()
            assert text.isprintable()
            assert len(text) < 140


def test_no_table_hides_a_code_of_another() -> None:
    assert len(CODES) == len(VISITORS) + len(TUNNELS) + len(OPERATORS)


def test_the_answers_of_the_contract_have_their_codes() -> None:
    statuses = {code.status for code in CODES.values()}
    assert {400, 401, 403, 404, 408, 409, 413, 426, 429, 431, 501, 502, 503, 504} <= statuses
    wire = {word for word, code in CODES.items() if code.status == 0}
    assert {
        "hello_timeout",
        "bad_hello",
        "stale_hello",
        "protocol_error",
        "unknown_stream",
        "flow_control",
        "too_large",
        "replaced",
        "conflict",
        "revoked",
        "going_away",
        "overloaded",
    } <= wire


def test_the_tree() -> None:
    for kind in (UsageError, ConfigError, LocalError, ProtocolError, VisitorError):
        assert issubclass(kind, TunneldError)
    assert issubclass(RemoteError, ProtocolError)
    assert (TunneldError.exit_status, UsageError.exit_status, ConfigError.exit_status) == (1, 2, 2)


def test_each_error_is_a_sentence() -> None:
    assert str(ConfigError(["f:1: a", "f:2: b"])) == "f:1: a\nf:2: b"
    assert str(RemoteError("bad_hello", "no instance")) == "bad_hello: no instance"
    assert str(VisitorError("bad_path")) == CODES["bad_path"].title
    error = VisitorError("tunnel_offline", "demo is away.", retry_after=3)
    assert (str(error), error.status, error.retry_after) == ("demo is away.", 503, 3)


def test_a_code_that_is_in_no_table_is_a_defect() -> None:
    with pytest.raises(KeyError):
        VisitorError("no_such_code")
