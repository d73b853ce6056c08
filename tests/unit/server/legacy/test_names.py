"""Labels: one for each name, for good; none that another has, or that whoever asks may not have."""

from __future__ import annotations

import asyncio
import re

import pytest

from tunneld.errors import VisitorError
from tunneld.server.legacy.names import Labels


class Store:
    """Labels in a dict, each call in a later turn of the loop."""

    def __init__(self) -> None:
        self.kept: dict[str, str] = {}
        self.calls = 0

    async def labels(self) -> dict[str, str]:
        return dict(self.kept)

    async def keep_label(self, label: str, name: str, now: float, *, most: int) -> str:
        self.calls += 1
        await asyncio.sleep(0)
        return self.kept.setdefault(label, name)


def anybody(label: str) -> None:
    pass


async def test_a_name_keeps_its_label() -> None:
    store = Store()
    labels = Labels(store, taken=lambda label: False, most=10)
    assert labels.find("My Server") is None
    assert await labels.claim("My Server", anybody) == "my-server"
    assert await labels.claim("My Server", anybody) == "my-server"
    assert store.calls == 1
    second = await labels.claim("my server", anybody)
    assert re.fullmatch(r"my-server-[0-9a-f]{8}", second)
    again = Labels(store, taken=lambda label: True, most=10)
    await again.refresh()
    assert again.find("my server") == second
    assert await again.claim("My Server", anybody) == "my-server"


async def test_two_at_once_get_two_labels_and_one_twice_gets_one() -> None:
    labels = Labels(Store(), taken=lambda label: False, most=10)
    names = ["My Server", "my server", "My Server"]
    found = await asyncio.gather(*(labels.claim(name, anybody) for name in names))
    assert found[0] == found[2] == "my-server"
    assert re.fullmatch(r"my-server-[0-9a-f]{8}", found[1])
    assert [labels.find(name) for name in names] == found


async def test_the_label_of_another_dialects_tunnel_goes_to_its_own_name_only() -> None:
    labels = Labels(Store(), taken=lambda label: label == "app", most=10)
    assert await labels.claim("app", anybody) == "app"
    other = Labels(Store(), taken=lambda label: label == "app", most=10)
    assert re.fullmatch(r"app-[0-9a-f]{8}", await other.claim("App", anybody))


async def test_what_may_not_be_had_is_not_kept() -> None:
    def nobody(label: str) -> None:
        raise VisitorError("name_not_allowed", label)

    store = Store()
    labels = Labels(store, taken=lambda label: False, most=10)
    with pytest.raises(VisitorError):
        await labels.claim("My Server", nobody)
    assert store.kept == {}
    await labels.claim("My Server", anybody)
    with pytest.raises(VisitorError):
        await labels.claim("My Server", nobody)


async def test_when_every_label_is_taken() -> None:
    labels = Labels(Store(), taken=lambda label: True, most=10)
    with pytest.raises(VisitorError) as caught:
        await labels.claim("My Server", anybody)
    assert caught.value.code == "name_taken"


async def test_only_so_many_are_remembered() -> None:
    labels = Labels(Store(), taken=lambda label: False, most=3)
    for number in range(5):
        await labels.claim(f"n {number}", anybody)
    assert [labels.find(f"n {number}") for number in range(5)] == [None, None, "n-2", "n-3", "n-4"]
