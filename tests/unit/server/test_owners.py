"""Owners in the store and in memory: what their tokens share, and their end."""

from __future__ import annotations

import pytest

from tunneld.errors import VisitorError
from tunneld.server.credentials import Credentials
from tunneld.server.keys import find_owner, new_owner, new_token
from tunneld.server.names import StoredNames
from tunneld.server.principals import Limits, Principal
from tunneld.server.store.service import SqlStore

NOW = 1000.0


async def test_tokens_of_one_owner_share_names_and_quota_until_the_owner_is_removed() -> None:
    store = SqlStore("memory:")
    await store.open()
    ann = new_owner("ann", now=NOW, limits=Limits(streams=5), tunnels=2)
    assert await store.add_owner(ann)
    assert not await store.add_owner(new_owner("ann", now=NOW))
    secrets = []
    for owner in (ann.id, ann.id, None):
        token, secret = new_token("app", now=NOW, tunnels=["*"], owner=owner)
        await store.add_token(token)
        secrets.append(str(secret))
    credentials = Credentials()

    async def refreshed() -> None:
        credentials.replace(await store.tokens(), await store.owners())

    def who(secret: str) -> Principal:
        principal, why = credentials.by_secret(secret, NOW)
        assert principal is not None, why
        return principal

    await refreshed()
    one, two, other = map(who, secrets)
    assert one.id == two.id == ann.id != other.id
    assert (one.owned, one.owner_name, one.quota, one.max_names) == (True, "ann", Limits(streams=5), 2)
    assert (other.owned, other.owner_name, other.id) == (False, None, other.token)
    assert one.token != two.token
    assert not credentials.one_owner(NOW)
    names = StoredNames(store, credentials.holder, rest=60, most=100)
    await names.claim("a", one, NOW)
    assert names.owns("a", two)
    names.check("a", two, NOW)
    with pytest.raises(VisitorError):
        names.check("a", other, NOW)
    await names.claim("b", two, NOW)
    with pytest.raises(VisitorError) as caught:
        await names.claim("c", one, NOW)
    assert caught.value.code == "too_many_names"
    assert await store.revoke_token(one.token, NOW)
    await refreshed()
    assert not credentials.alive(one, NOW)
    assert credentials.alive(two, NOW)
    assert await store.remove_owner(ann.id, NOW)
    assert not await store.remove_owner(ann.id, NOW)
    await refreshed()
    assert not credentials.alive(two, NOW)
    assert credentials.by_secret(secrets[1], NOW) == (None, "revoked")
    with pytest.raises(VisitorError):
        names.check("a", other, NOW + 59)
    names.check("a", other, NOW + 61)  # they rested long enough
    assert credentials.one_owner(NOW)
    with pytest.raises(ValueError, match="no owner"):
        find_owner(await store.owners(), "ann")
    await store.close()


@pytest.mark.parametrize("name", ["", " a", "a\n", "x" * 65])
def test_what_is_no_owners_name(name: str) -> None:
    with pytest.raises(ValueError, match="printable"):
        new_owner(name, now=NOW)


def test_an_owner_is_found_by_id_before_by_name() -> None:
    ann = new_owner("ann", now=NOW)
    trickster = new_owner(ann.id, now=NOW)
    assert find_owner([trickster, ann], ann.id) is ann
    assert find_owner([trickster, ann], "ann") is ann
