import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunneld.config.service import Service, parse_service


@pytest.mark.parametrize(
    ("text", "service", "written"),
    [
        ("http://127.0.0.1:9000", Service("http", "127.0.0.1", 9000, "", "127.0.0.1:9000"), "http://127.0.0.1:9000"),
        ("http://localhost/", Service("http", "localhost", 80, "", "localhost"), "http://localhost"),
        ("HTTPS://App.Example:443", Service("https", "app.example", 443, "", "app.example"), "https://app.example"),
        ("http://[::1]:9000", Service("http", "::1", 9000, "", "[::1]:9000"), "http://[::1]:9000"),
        ("https://[0::1]", Service("https", "::1", 443, "", "[::1]"), "https://[::1]"),
        ("unix:/run/app.sock", Service("unix", "", 0, "/run/app.sock", "localhost"), "unix:/run/app.sock"),
        ("unix:///run/app.sock", Service("unix", "", 0, "/run/app.sock", "localhost"), "unix:/run/app.sock"),
    ],
)
def test_services(text: str, service: Service, written: str) -> None:
    assert parse_service(text) == service
    assert str(service) == written
    assert parse_service(written) == service


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("9000", "did you mean http://127.0.0.1:9000"),
        (9000, "did you mean http://127.0.0.1:9000"),
        ("localhost:9000", "did you mean http://localhost:9000"),
        ("/run/app.sock", "did you mean unix:/run/app.sock"),
        ("unix:run/app.sock", "absolute path"),
        ("unix:" + "/x" * 60, "at most 107 bytes"),
        ("http://h:1/base", "only a scheme, a host and a port"),
        ("http://h:1?", "only a scheme, a host and a port"),
        ("http://h:0", "from 1 to 65535"),
        ("http://h:65536", "expected http://"),
        ("http://", "expected http://"),
        ("http://[::1", "expected http://"),
        ("http://[v1.x]:3", "expected"),
        ("http://a b", "expected http://"),
        ("ftp://h", "expected http://"),
        ("", "expected http://"),
        (True, "expected http://"),
        (None, "expected http://"),
        ({}, "a mapping"),
    ],
)
def test_a_wrong_service_is_told_the_right_form(text: object, advice: str) -> None:
    with pytest.raises(ValueError, match="expected") as caught:
        parse_service(text)
    assert advice in str(caught.value)


def test_a_password_is_never_shown() -> None:
    for text in ("http://me:hunter2@h:1", "ftp://me:hunter2@h", "me:hunter2@h"):
        with pytest.raises(ValueError, match="headers") as caught:
            parse_service(text)
        assert "hunter2" not in str(caught.value)


@given(st.one_of(st.text(), st.text().map("http://".__add__), st.text().map("unix:/".__add__)))
def test_any_text_is_a_service_that_reads_back_or_a_fault(text: str) -> None:
    try:
        service = parse_service(text)
    except ValueError:
        return
    assert parse_service(str(service)) == service
    assert (service.scheme == "unix") == bool(service.path)
