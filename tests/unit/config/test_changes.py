from typing import Any

from tunneld.config.agent import AgentConfig
from tunneld.config.changes import diff, until_restart
from tunneld.config.server import ServerConfig


def agent(**keys: Any) -> AgentConfig:
    return AgentConfig.model_validate({"server": {"url": "ws://h"}, **keys})


def tunnel(name: str, **keys: Any) -> dict[str, Any]:
    return {"name": name, "service": "http://h", **keys}


def test_nothing_changed() -> None:
    assert not diff(agent(tunnels=[tunnel("a")]), agent(tunnels=[tunnel("a")], heartbeat={"interval": "30s"}))
    assert not diff(ServerConfig(), ServerConfig.model_validate({"drain_timeout": 30}))


def test_tunnels_are_told_apart_by_what_they_need() -> None:
    old = agent(tunnels=[tunnel("same"), tunnel("gone"), tunnel("moved"), tunnel("tuned"), tunnel("masked")])
    new = agent(
        tunnels=[
            tunnel("same"),
            tunnel("moved", service="http://other", sse={"keepalive": 1}),
            tunnel("tuned", sse={"keepalive": "1s"}),
            tunnel("masked", headers={"Host": "x"}),
            tunnel("new"),
        ]
    )
    changes = diff(old, new)
    assert changes
    assert changes.sections == frozenset()
    assert [item.name for item in changes.added] == ["new"]
    assert changes.removed == ("gone",)
    assert [item.name for item in changes.repointed] == ["moved"]
    assert [item.name for item in changes.retuned] == ["tuned", "masked"]
    assert changes.retuned[0].sse.keepalive == 1


def test_a_default_retunes_the_tunnels_that_take_it() -> None:
    old = agent(tunnels=[tunnel("a"), tunnel("own", heartbeat={"interval": "5s"})])
    new = agent(heartbeat={"interval": "20s"}, tunnels=[tunnel("own", heartbeat={"interval": "5s"}), tunnel("a")])
    changes = diff(old, new)
    assert changes.sections == {"heartbeat"}
    assert [item.name for item in changes.retuned] == ["a"]


def test_sections_of_a_server() -> None:
    changes = diff(ServerConfig(), ServerConfig.model_validate({"limits": {"hold": "1s"}, "log": {"level": "debug"}}))
    assert changes.sections == {"limits", "log"}


def test_the_form_of_the_log_is_apart_from_its_level() -> None:
    """It waits for a restart, and what a reload tells must not be that it changed."""
    for old, new in ((agent(), agent), (ServerConfig(), lambda **keys: ServerConfig.model_validate(keys))):
        assert diff(old, new(log={"format": "json"})).sections == {"log.format"}
        both = new(log={"format": "json", "level": "debug"}, drain_timeout=1)
        assert diff(old, both).sections == {"log", "log.format", "drain_timeout"}
        now = until_restart(old, both, {"log.format", "drain_timeout"})
        assert (now.log.format, now.log.level, now.drain_timeout) == ("auto", "debug", 30)
