"""Who owns a tunnel's name."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from tunneld.errors import VisitorError
from tunneld.server.names import StoredNames
from tunneld.server.principals import OPEN, Principal
from tunneld.server.store.records import Name, Owner, Token
from tunneld.server.store.service import SqlStore

REST = 100.0
A = Principal("a", "first", ("*",))
B = Principal("b", "second", ("*",))
B_BY_NAME = replace(B, tunnels=("app",))


@pytest.fixture
async def store() -> AsyncIterator[SqlStore]:
    made = SqlStore("memory:")
    yield made
    await made.close()


@pytest.fixture
def tokens() -> dict[str, Token]:
    return {name: Token(name, name, ("*",), 0.0) for name in "ab"}


@pytest.fixture
def names(store: SqlStore, tokens: dict[str, Token]) -> StoredNames:
    return StoredNames(store, tokens.get, rest=REST, most=3)


async def taken(names: StoredNames, name: str, who: Principal, now: float) -> bool:
    try:
        names.check(name, who, now)
    except VisitorError:
        with pytest.raises(VisitorError) as caught:
            await names.claim(name, who, now)
        assert (caught.value.code, caught.value.status) == ("name_taken", 409)
        return True
    return False


async def test_the_first_who_opens_it_owns_it(names: StoredNames, store: SqlStore) -> None:
    assert not await taken(names, "app", A, 0)
    assert not names.owns("app", A)
    await names.claim("app", A, 0)
    await names.claim("app", A, 1)
    assert names.owns("app", A)
    assert await taken(names, "app", B, 1)
    assert await taken(names, "app", B_BY_NAME, 1)
    again = StoredNames(store, lambda token: None, rest=REST, most=3)
    await again.refresh()
    assert again.owns("app", A)


@pytest.mark.parametrize("end", ["revoked", "expires"])
async def test_a_name_of_a_token_that_is_gone_rests(names: StoredNames, tokens: dict[str, Token], end: str) -> None:
    await names.claim("app", A, 0)
    tokens["a"] = replace(tokens["a"], **{end: 50.0})
    assert await taken(names, "app", B, 49)
    assert await taken(names, "app", B, 149)
    names.check("app", B_BY_NAME, 50)  # an operator wrote it down for them
    names.check("app", B, 150)
    await names.claim("app", B, 150)
    assert names.owns("app", B)
    assert await taken(names, "app", A, 151)


async def test_reserved_names(names: StoredNames, tokens: dict[str, Token]) -> None:
    await names.reserve(Name("adm", None, 0, True))
    await names.reserve(Name("www", "a", 0, True))
    for name, who, refused in (("adm", A, True), ("adm", OPEN, True), ("www", A, False), ("www", B, True)):
        assert await taken(names, name, who, 1e9) is refused
    tokens["a"] = replace(tokens["a"], revoked=1.0)
    assert await taken(names, "www", B, 1e9)
    assert await names.release("www")
    assert not await names.release("www")
    assert not await taken(names, "www", B, 1e9)


async def test_where_nobody_needs_a_credential_nobody_owns(names: StoredNames, store: SqlStore) -> None:
    assert names.owns("app", OPEN)
    await names.claim("app", OPEN, 0)
    assert await store.names() == []
    await names.claim("old", A, 0)
    names.check("old", OPEN, 1)


async def test_one_owner_has_only_so_many(names: StoredNames) -> None:
    for name in ("one", "two", "three"):
        await names.claim(name, A, 0)
    with pytest.raises(VisitorError) as caught:
        await names.claim("four", A, 0)
    assert caught.value.code == "too_many_names"
    await names.claim("three", A, 1)
    await names.claim("four", B, 0)


async def test_how_close_owners_are_to_the_bound_is_of_those_who_live_and_share_it(store: SqlStore) -> None:
    holders: dict[str, Token | Owner] = {
        "a": Token("a", "first", ("*",), 0.0),
        "b": Owner("b", "second", 0.0),
        "quota": Owner("quota", "one of their own", 0.0, tunnels=1),
        "revoked": Token("revoked", "third", ("*",), 0.0, revoked=5.0),
        "expired": Token("expired", "fourth", ("*",), 0.0, expires=5.0),
        "removed": Owner("removed", "fifth", 0.0, removed=5.0),
    }
    names = StoredNames(store, holders.get, rest=REST, most=3)
    assert names.fullest(0.0) == (0, 3)
    await names.reserve(Name("nobody", None, 0.0, reserved=True))
    await names.claim("theirs", Principal("quota", "one of their own", max_names=1), 0)
    with pytest.raises(VisitorError):
        await names.claim("more", Principal("quota", "one of their own", max_names=1), 0)
    for owner in ("deleted", "revoked", "expired", "removed"):
        for name in ("one", "two", "three"):
            await names.claim(f"{owner}-{name}", Principal(owner, owner), 0)
    assert names.fullest(4.9) == (3, 3), "the credentials are good until then"
    assert names.fullest(5.0) == (0, 3)
    await names.claim("app", A, 5)
    assert names.fullest(5.0) == (1, 3)
    await names.claim("its", B, 5)
    await names.claim("other", B, 5)
    assert names.fullest(5.0) == (2, 3), "an owner without a quota shares the bound with tokens"


async def test_the_store_has_the_last_word(names: StoredNames, store: SqlStore) -> None:
    await store.claim_name(Name("app", "b", 0), instead_of=None, most=9)  # another server was quicker
    names.check("app", A, 1)
    with pytest.raises(VisitorError) as caught:
        await names.claim("app", A, 1)
    assert caught.value.code == "name_taken"
