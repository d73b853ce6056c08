"""What OpenAPI says of events is what the agent sends."""

import pytest
from pydantic import TypeAdapter

from tests.support.running import book, running_agent, running_server, settled, url_of
from tunneld.control.event_shapes import BY_TYPE, TypedEvent, schema
from tunneld.control.models.events import EVENT_TYPES, Event


def test_every_type_has_its_shape() -> None:
    assert set(BY_TYPE) == set(EVENT_TYPES)
    shown = schema()["oneOf"]
    assert all("id" in one["properties"] and "$defs" not in one for one in shown)


async def test_what_a_real_agent_tells_has_these_shapes() -> None:
    told: list[Event] = []
    with book():
        async with running_server() as server, running_agent(url_of(server)) as (agent, tunnel):
            agent.subscribe(told.append)
            await settled(lambda: any(one["type"] == "heartbeat" for one in told))
            await settled(lambda: tunnel.state == "degraded")
            agent.begin_drain()
    read = TypeAdapter(TypedEvent)
    for event in told:
        read.validate_python(event, strict=True)
    assert {"tunnel", "heartbeat", "drain"} <= {event["type"] for event in told}
    assert [event["id"] for event in told] == sorted(event["id"] for event in told)


def test_a_shape_that_is_not_so_is_found() -> None:
    with pytest.raises(ValueError, match="state"):
        TypeAdapter(TypedEvent).validate_python(
            {"id": 1, "time": "", "type": "tunnel", "tunnel": "a", "state": "up", "was": "online", "error": None}
        )
