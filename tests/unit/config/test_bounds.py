"""Every bound that the configuration names has a figure that says how close it is, or a reason why there is none.

Found by code in the models: a new bound fails here until somebody thought of its figure. That daemons tell each of
these figures, `tests/integration/test_usage.py` shows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import pytest
from pydantic import BaseModel, BeforeValidator

from tests.support.bounds import FIGURES, REASONS
from tunneld.config.agent import AgentConfig
from tunneld.config.alerts import CommandTarget, EmailTarget, WebhookTarget
from tunneld.config.common import Port, Rate
from tunneld.config.server import ServerConfig
from tunneld.config.units import Size, Whole

_RATE, _PORT = (next(one.func for one in kind.__metadata__) for kind in (Rate, Port))
_TARGETS = (WebhookTarget, CommandTarget, EmailTarget)  # which the models take by a validator


def is_bound(metadata: list[Any]) -> bool:
    """Whether a key is a count, a size or a rate."""
    found = [one.func for one in metadata if isinstance(one, BeforeValidator)]
    return any(func is not _PORT and (isinstance(func, Whole | Size) or func is _RATE) for func in found)


def sections(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from sections(inner)


def bounds(model: type[BaseModel], path: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        if is_bound([*field.metadata, *(one for kind in get_args(field.annotation) for one in metadata_of(kind))]):
            yield f"{path}.{name}"
        for inner in sections(field.annotation):
            yield from bounds(inner, f"{path}.{name}")
        if name == "to":
            for target in _TARGETS:
                yield from bounds(target, f"{path}.{name}")


def metadata_of(kind: Any) -> tuple[Any, ...]:
    return getattr(kind, "__metadata__", ())


@pytest.mark.parametrize("model", [AgentConfig, ServerConfig])
def test_each_bound_has_a_figure_or_a_reason(model: type[BaseModel]) -> None:
    role = "agent" if model is AgentConfig else "server"
    found = set(bounds(model, role))
    told = {key for key in (*FIGURES, *REASONS) if key.startswith(role)}
    assert found - told == set(), "a bound without a figure, and without a reason why there is none"
    assert told - found == set(), "no such bound any more"
    assert not FIGURES.keys() & REASONS.keys()


def test_bounds_are_found_where_they_stand() -> None:
    """Else the test above would show nothing."""
    found = set(bounds(ServerConfig, "server"))
    assert {"server.limits.max_tunnels", "server.limits.address_requests", "server.login.remembered"} <= found
    assert {"server.alerts.to.queue", "server.resume.buffer", "server.dashboard.viewers"} <= found
    assert not {"server.listen.port", "server.limits.stall", "server.listen.mode", "server.quality.good.loss"} & found
