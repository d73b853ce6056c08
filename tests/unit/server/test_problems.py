"""Our own errors, for programs and for people."""

from __future__ import annotations

import json

import pytest

from tunneld.errors import CODES, VisitorError
from tunneld.server.problems import problem


@pytest.mark.parametrize("code", [code for code, meaning in CODES.items() if meaning.status])
@pytest.mark.parametrize("accept", ["*/*", "text/html"])
def test_every_code_makes_an_answer(code, accept):
    status, headers, body = problem(VisitorError(code, retry_after=3), "id7", [("accept", accept)])
    fields = dict(headers)
    assert status == CODES[code].status
    assert fields["X-Tunnel-Error"] == code
    assert fields["X-Tunnel-Request-Id"] == "id7"
    assert fields["Retry-After"] == "3"
    assert int(fields["Content-Length"]) == len(body)
    if accept == "text/html":
        assert b"id7" in body
        assert b"Retry-After" not in body  # a person does not see headers
    else:
        document = json.loads(body)
        assert (document["status"], document["code"], document["request_id"]) == (status, code, "id7")
        assert document["detail"]
        assert document["title"] == CODES[code].title


@pytest.mark.parametrize(("seconds", "words"), [(5, "Try again in 5 s; if"), (None, "Try again later; if")])
def test_a_person_is_told_when_to_try_again(seconds, words):
    _, _, body = problem(VisitorError("tunnel_offline", retry_after=seconds), "i", [("accept", "text/html")])
    assert words in body.decode()


def test_more_headers_are_added():
    _, headers, _ = problem(VisitorError("method_not_allowed"), "i", [], extra=[("Allow", "GET")])
    assert ("Allow", "GET") in headers
    assert "Retry-After" not in dict(headers)
