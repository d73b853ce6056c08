"""Permissions by e-mail address: what holds when, and who is told of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest

from tests.support.running import settled
from tunneld.errors import VisitorError
from tunneld.server.permissions import Change, Permissions, clean_email
from tunneld.server.principals import Principal
from tunneld.server.store.service import SqlStore


@dataclass
class Named:
    """A tunnel, as far as permissions ask."""

    name: str
    principal: Principal


class World:
    """Permissions over a store in memory, at a time that the test sets."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.store = SqlStore("memory:")
        self.told: list[str] = []
        self.permissions = self.made()
        self.tunnel = Named("demo", Principal("t1", "app"))

    def made(self, most: int = 10) -> Permissions:
        return Permissions(self.store, most=most, changed=self.told.append, clock=lambda: self.now)

    async def grant(self, *emails: str, **change: Any) -> Any:
        return (await self.permissions.grant("t1", "demo", emails, Change(**change)))[0][0]

    def level(self, email: str = "ann@example.org") -> str | None:
        return self.permissions.permission_of(self.tunnel, email)


@asynccontextmanager
async def world() -> AsyncIterator[World]:
    it = World()
    await it.store.open()
    try:
        yield it
    finally:
        await it.permissions.close()
        await it.store.close()


@pytest.mark.parametrize(
    "text",
    ["", "ann", "@example.org", "ann@", "ann@org", "a@b@c.org", ".a@b.org", "a.@b.org", "a b@c.org", "a@-b.org",
     "a@b..org", "a\0@b.org", "x" * 65 + "@b.org", "<a@b.org>", "a,b@c.org", "a@" + "b" * 64 + ".org"],
)  # fmt: skip
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(VisitorError) as caught:
        clean_email(text)
    assert caught.value.code == "bad_argument"


def test_addresses_are_compared_in_lower_case() -> None:
    assert clean_email(" Ann.B+x@Example.ORG ") == "ann.b+x@example.org"
    assert clean_email("Jürgen@xn--mnchen-3ya.example") == "jürgen@xn--mnchen-3ya.example"


async def test_it_holds_for_its_tunnel_and_its_owner_alone() -> None:
    async with world() as it:
        await it.grant("ann@example.org", level="read_only")
        assert it.level() == it.level("ANN@Example.org") == "read_only"
        assert it.level("eve@example.org") is None
        assert it.permissions.permission_of(Named("other", it.tunnel.principal), "ann@example.org") is None
        taken_over = replace(it.tunnel, principal=Principal("t2", "another"))
        assert it.permissions.permission_of(taken_over, "ann@example.org") is None
        assert not it.permissions.given(taken_over)
        assert it.permissions.given(it.tunnel)


async def test_whoever_has_the_tunnel_is_told_of_each_change() -> None:
    async with world() as it:
        one = await it.grant("ann@example.org")
        assert it.told == ["demo"]
        await it.permissions.change("t1", one.id, Change(status="revoked"))
        assert (it.told, it.level()) == (["demo"] * 2, None)
        for change in (Change(level="root"), Change(status="gone"), Change(notes="x" * 1001), Change(expires=999.0)):
            with pytest.raises(VisitorError):
                await it.permissions.change("t1", one.id, change)
        with pytest.raises(VisitorError) as caught:
            await it.permissions.change("t2", one.id, Change(status="active"))
        assert caught.value.code == "no_such_permission"
        assert it.told == ["demo"] * 2
        assert it.permissions.given(it.tunnel), "whose last permission is revoked stays protected"


async def test_one_ends_by_its_time_and_that_is_told() -> None:
    async with world() as it:
        await it.grant("ann@example.org", expires=1000.02)
        it.told.clear()
        assert it.level() == "read_write"
        it.now = 1000.5
        assert it.level() is None
        await settled(lambda: it.told)
        assert it.told == ["demo"]


async def test_another_process_changed_the_store() -> None:
    async with world() as it:
        one = await it.grant("ann@example.org")
        await it.grant("bob@example.org")
        other = it.made()
        await other.refresh()
        await other.change("t1", one.id, Change(level="admin"))
        await other.close()
        it.told.clear()
        await it.permissions.refresh()
        assert (it.told, it.level()) == (["demo"], "admin")
        it.told.clear()
        await it.permissions.refresh()
        assert it.told == []


async def test_the_first_sign_in_is_kept_while_the_store_fails(caplog: pytest.LogCaptureFixture) -> None:
    async with world() as it:
        one = await it.grant("ann@example.org")
        keep: Callable[..., Any] = it.store.keep_permissions

        async def failing(*_: Any, **__: Any) -> Any:
            raise VisitorError("store_failed", "The disk is full.")

        it.store.keep_permissions = failing  # type: ignore[method-assign]
        it.permissions.activated(it.tunnel, "Ann@example.org", "192.0.2.1", user="subject-1")
        await settled(lambda: "was not kept yet" in caplog.text)
        active = it.permissions.standing(it.tunnel, "ann@example.org")
        assert active is not None
        assert (active.status(it.now), active.user) == ("active", "subject-1")
        it.store.keep_permissions = keep  # type: ignore[method-assign]
        await it.permissions.refresh()
        assert it.permissions.standing(it.tunnel, "ann@example.org") == active
        it.permissions.activated(it.tunnel, "bob@example.org", "192.0.2.1")
        two = await it.grant("bob@example.org")
        it.permissions.activated(it.tunnel, "bob@example.org", "192.0.2.1")
        await settled(lambda: it.permissions._writer is None)
        assert {one.id, two.id} == {kept.id for kept in await it.store.permissions() if kept.activated}


async def test_how_full_the_fullest_tunnel_is_counts_what_holds_alone() -> None:
    async with world() as it:
        it.permissions.configure(most=3)
        assert it.permissions.fullest() == (0, 3)
        one = await it.grant("ann@example.org")
        await it.grant("bob@example.org", expires=2000.0)
        await it.grant("cy@example.org")
        await it.permissions.grant("t1", "other", ["dee@example.org", "eve@example.org"], Change())
        assert it.permissions.fullest() == (3, 3)
        with pytest.raises(VisitorError):
            await it.grant("fay@example.org")
        await it.permissions.change("t1", one.id, Change(status="revoked"))
        it.now = 2000.0
        assert it.permissions.fullest() == (2, 3), "the other tunnel's: of this one's two make room"
        await it.grant("fay@example.org", "gus@example.org")
        assert it.permissions.fullest() == (3, 3)


async def test_many_grants_at_once_keep_the_bound() -> None:
    async with world() as it:
        it.permissions.configure(most=3)
        calls = [it.permissions.grant("t1", "demo", [f"n{n}@example.org"], Change()) for n in range(6)]
        done = await asyncio.gather(*calls, return_exceptions=True)
        assert sum(1 for one in done if isinstance(one, VisitorError) and one.code == "too_many_permissions") == 3
        assert len(it.permissions.all_of("t1", "demo")) == len(await it.store.permissions()) == 3
