"""schemathesis against both descriptions, the agent's control API and the server's admin API.

Whatever it makes of the schema, right and wrong: no 5xx, no answer that the description does not have, no body of
another shape.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.support.control_agent import MemoryAgent, stream_info
from tests.support.daemons import Server
from tests.support.sockets import LOOPBACK, short_dir
from tunneld.control.admin.app import create_admin_app
from tunneld.control.admin.keeper import Keeper
from tunneld.control.app import create_app
from tunneld.server.credentials import Credentials

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
FEW = settings(max_examples=8, deadline=None, database=None, suppress_health_check=list(HealthCheck), derandomize=True)
ADMIN_TOKEN = "operator"


def _control() -> Any:
    agent = MemoryAgent()
    agent.add(stream_info("aa11"), stream_info("bb22", kind="http"))
    return schemathesis.openapi.from_asgi("/openapi.json", create_app(agent), headers={"Host": "localhost"})


def _admin() -> Any:
    app = create_admin_app(None, Keeper(Credentials(), None, most=300, window=60))  # type: ignore[arg-type]  # for its description alone
    return schemathesis.openapi.from_dict(app.openapi())


@pytest.fixture(scope="module")
def admin_url() -> Iterator[str]:
    """A running server's admin listener."""
    with short_dir() as folder:
        secret = folder / "admin-token"
        secret.write_text(ADMIN_TOKEN)
        secret.chmod(0o600)
        server = Server(folder, settings={"admin": {"token_file": str(secret)}, "auth": {"mode": "token"}})
        try:
            server.process.wait_line("for the admin API")
            yield f"http://{LOOPBACK}:{server.admin_port}"
            server.process.stop()
            server.process.assert_clean()
        finally:
            server.process.discard()


control = _control().exclude(path="/v1/events")  # it has no end
admin = _admin()


@control.parametrize()
@FEW
def test_the_control_api_does_what_it_says(case: Case) -> None:
    case.call_and_validate(headers={"Host": "localhost"}, checks=CHECKS)


@admin.parametrize()
@FEW
def test_the_admin_api_does_what_it_says(case: Case, admin_url: str) -> None:
    headers = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
    case.call_and_validate(base_url=admin_url, headers=headers, checks=CHECKS)
