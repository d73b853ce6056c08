"""The store: what is kept, what is refused, and that no call of it stalls the loop."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import sqlite3
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic

import pytest
import sqlalchemy
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from tunneld.errors import ConfigError, VisitorError
from tunneld.server.keys import new_token
from tunneld.server.principals import Limits
from tunneld.server.store import schema
from tunneld.server.store.records import AuditEntry, Name, Registration
from tunneld.server.store.service import SqlStore

NOW = 1_000_000.5


@asynccontextmanager
async def opened(url: str, **options: int) -> AsyncIterator[SqlStore]:
    store = SqlStore(url, **options)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "memory:" if request.param == "memory" else f"sqlite:///{tmp_path}/deep/er/server.db"


async def test_tokens_come_back_as_they_went(url: str) -> None:
    full, _ = new_token(
        "app", now=NOW, tunnels=["a*", "b"], scopes=["agent", "read"], lifetime=5, limits=Limits(1, 2, 3.5)
    )
    plain, _ = new_token("web", now=NOW + 1, certificate="subject:x y")
    async with opened(url) as store:
        assert await store.tokens() == []
        await store.add_token(full)
        await store.add_token(plain)
        assert await store.tokens() == [full, plain]
        assert await store.rotate_token(full.id, b"n" * 32, old_until=NOW + 9)
        rotated = (await store.tokens())[0]
        assert (rotated.digest, rotated.old_digest, rotated.old_until) == (b"n" * 32, full.digest, NOW + 9)
        assert await store.revoke_token(full.id, NOW + 2)
        assert not await store.revoke_token(full.id, NOW + 3)
        assert not await store.rotate_token(full.id, b"m" * 32, old_until=0)
        assert not await store.revoke_token("nobody", NOW)
        assert (await store.tokens())[0].revoked == NOW + 2
        with pytest.raises(VisitorError) as caught:
            await store.add_token(plain)
        assert caught.value.code == "store_failed"
        assert len(await store.tokens()) == 2  # the failure left nothing half done


async def test_names_are_taken_by_one(url: str) -> None:
    async with opened(url) as store:
        mine, theirs = Name("app", "a", NOW), Name("app", "b", NOW + 1)
        assert await store.claim_name(mine, instead_of=None, most=2) == mine
        assert await store.claim_name(theirs, instead_of=None, most=2) == mine
        assert await store.claim_name(theirs, instead_of=dataclasses.replace(mine, owner="c"), most=2) == mine
        assert await store.claim_name(Name("app", "a", NOW + 5), instead_of=mine, most=2) == mine
        assert await store.claim_name(theirs, instead_of=mine, most=2) == theirs
        assert await store.claim_name(Name("two", "b", NOW), instead_of=None, most=2)
        assert await store.claim_name(Name("three", "b", NOW), instead_of=None, most=2) is None
        kept = Name("adm", None, NOW, True)
        await store.reserve_name(kept)
        await store.reserve_name(kept)
        assert [name.name for name in await store.names()] == ["adm", "app", "two"]
        assert await store.release_name("adm")
        assert not await store.release_name("adm")


async def test_registrations(url: str) -> None:
    async with opened(url) as store:
        said = Registration(0, "t1", "My Server", b"k" * 32, "what it is", "http://x", updated=NOW)
        first = await store.register(said, most=3)
        assert first is not None
        kept, again = first
        assert not again
        assert (kept.owner, kept.name, kept.created) == ("t1", "My Server", NOW)
        second = await store.register(dataclasses.replace(said, name="Renamed", updated=NOW + 1), most=3)
        assert second == (dataclasses.replace(kept, name="Renamed", updated=NOW + 1), True)
        assert await store.register(dataclasses.replace(said, owner="t2"), most=3) is None
        for number in range(3):
            await store.register(dataclasses.replace(said, key_digest=bytes([number]) * 32, updated=NOW + 9), most=3)
        assert await store.registration(kept.id) is None  # pushed out by newer ones
        again_new = await store.register(said, most=3)
        assert again_new is not None
        assert again_new[0].id > kept.id + 3 - 1  # no id is given twice


async def test_labels(url: str) -> None:
    async with opened(url) as store:
        assert await store.labels() == {}
        assert await store.keep_label("my-server", "My Server", NOW, most=3) == "My Server"
        assert await store.keep_label("my-server", "my server", NOW + 1, most=3) == "My Server"
        assert await store.keep_label("my-server", "My Server", NOW + 1, most=3) == "My Server"
        for number in range(3):
            await store.keep_label(f"n{number}", f"N {number}", NOW + 2 + number, most=3)
        assert list((await store.labels()).items()) == [("n0", "N 0"), ("n1", "N 1"), ("n2", "N 2")]


async def test_a_file_of_the_first_migration_is_brought_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "server.db"
    engine = sqlalchemy.create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        command.upgrade(alembic_config(connection), "0001")
        connection.exec_driver_sql(f"PRAGMA application_id={schema.APPLICATION_ID}")
    engine.dispose()
    path.chmod(0o600)
    async with opened(f"sqlite:///{path}") as store:
        assert await store.keep_label("a", "A", NOW, most=3) == "A"


async def test_the_audit_is_bounded_and_paged(url: str) -> None:
    async with opened(url) as store:
        for number in range(12):
            await store.add_audit(AuditEntry(NOW + number, "me", "act", f"{number}", number % 2 == 0), most=10)
        newest = await store.audit(limit=4)
        assert [entry.detail for entry in newest] == ["11", "10", "9", "8"]
        assert [entry.ok for entry in newest] == [False, True, False, True]
        assert [entry.detail for entry in await store.audit(limit=99, before=newest[-1].id)] == list("765432")


async def test_what_was_kept_is_there_after_a_restart(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/server.db"
    token, _ = new_token("app", now=NOW)
    async with opened(url) as store:
        await store.add_token(token)
    async with opened(url) as store:
        assert await store.tokens() == [token]


async def test_the_file_is_its_users_alone(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    async with opened(f"sqlite:///{folder}/server.db") as store:
        await store.add_token(new_token("app", now=NOW)[0])
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()}
        assert modes == {"server.db": 0o600, "server.db-wal": 0o600, "server.db-shm": 0o600}


# -- what is refused


async def refused(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        async with opened(f"sqlite:///{path}"):
            pass
    (fault,) = caught.value.faults
    assert fault.startswith(f"store: {path}: ")
    return fault


async def test_a_damaged_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.db"
    garbage.write_bytes(b"this is no database" * 100)
    garbage.chmod(0o600)
    assert "tunneld server backup" in await refused(garbage)
    assert garbage.read_bytes() == b"this is no database" * 100

    path = tmp_path / "server.db"
    async with opened(f"sqlite:///{path}") as store:
        for _ in range(200):
            await store.add_token(new_token("app", now=NOW)[0])
    octets = bytearray(path.read_bytes())
    for page in range(2, len(octets) // 4096):
        octets[page * 4096 : page * 4096 + 64] = b"\xff" * 64
    path.write_bytes(octets)
    assert "is damaged" in await refused(path)
    assert path.read_bytes() == bytes(octets)

    octets = octets[: len(octets) // 2]
    path.write_bytes(octets)
    assert "is damaged" in await refused(path)


async def test_a_file_of_a_newer_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "server.db"
    async with opened(f"sqlite:///{path}"):
        pass
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE alembic_version SET version_num='9999'")
    raw.close()
    fault = await refused(path)
    assert "newer tunneld (schema 9999" in fault
    assert "Update tunneld" in fault


async def test_a_database_of_another_program_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as raw:
        raw.execute("CREATE TABLE cookies (x)")
    raw.close()
    path.chmod(0o600)
    before = path.read_bytes()
    assert "another program" in await refused(path)
    assert path.read_bytes() == before


async def test_places_where_no_file_can_be(tmp_path: Path) -> None:
    assert "is no regular file" in await refused(tmp_path)
    (tmp_path / "plain").write_text("x")
    assert "cannot be made" in await refused(tmp_path / "plain" / "server.db")
    open_to_all = tmp_path / "open.db"
    open_to_all.touch()
    open_to_all.chmod(0o644)
    assert f"chmod 600 {open_to_all}" in await refused(open_to_all)


# -- migrations


def alembic_config(connection: sqlalchemy.Connection | None = None) -> Config:
    made = Config()
    made.set_main_option("script_location", "tunneld.server.store:migrations")
    made.attributes["connection"] = connection
    return made


def test_the_migrations_make_what_the_schema_says(tmp_path: Path) -> None:
    engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path}/m.db")
    with engine.begin() as connection:
        command.upgrade(alembic_config(connection), "head")
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, schema.metadata) == []
        assert context.get_current_revision() == schema.HEAD
    engine.dispose()
    direct = sqlalchemy.create_engine(f"sqlite:///{tmp_path}/d.db")
    schema.metadata.create_all(direct)
    direct.dispose()
    wanted = "SELECT name, type FROM sqlite_master WHERE name NOT LIKE '%alembic%' ORDER BY 1"
    found = []
    for name in ("m.db", "d.db"):
        with contextlib.closing(sqlite3.connect(tmp_path / name)) as raw:
            found.append(raw.execute(wanted).fetchall())
    assert found[0] == found[1]


def test_every_migration_is_known() -> None:
    scripts = ScriptDirectory.from_config(alembic_config())
    assert scripts.get_current_head() == schema.HEAD
    assert {script.revision for script in scripts.walk_revisions()} == schema.KNOWN


# -- the loop


async def test_a_slow_disk_stalls_no_loop(tmp_path: Path) -> None:
    """While another process holds the file for writing, a write of ours waits on its thread, and the loop turns."""
    path = tmp_path / "server.db"
    async with opened(f"sqlite:///{path}") as store:
        with sqlite3.connect(path, isolation_level=None) as other:
            other.execute("BEGIN IMMEDIATE")
            write = asyncio.ensure_future(store.add_token(new_token("app", now=NOW)[0]))
            longest, last = 0.0, monotonic()
            for _ in range(200):
                await asyncio.sleep(0.001)
                longest, last = max(longest, monotonic() - last), monotonic()
            assert not write.done()
            assert longest < 0.5
            other.execute("COMMIT")
            await write
        other.close()
        assert len(await store.tokens()) == 1


async def test_calls_that_wait_are_bounded(url: str) -> None:
    async with opened(url, waiting=3) as store:
        entry = AuditEntry(NOW, "me", "act", "x")
        results = await asyncio.gather(*(store.add_audit(entry, most=10) for _ in range(9)), return_exceptions=True)
        failed = [one for one in results if one is not None]
        assert len(failed) == 6
        assert all(isinstance(one, VisitorError) and one.code == "store_failed" for one in failed)
        assert len(await store.audit(limit=10)) == 3


async def test_a_write_of_another_process_is_noticed_and_ones_own_is_not(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/server.db"
    async with opened(url) as store, opened(url) as other:
        told = asyncio.Event()
        times: list[float] = []
        store.watch(lambda: (times.append(monotonic()), told.set()))  # type: ignore[func-returns-value]
        await store.add_token(new_token("mine", now=NOW)[0])
        at = monotonic()
        await other.add_token(new_token("app", now=NOW)[0])
        async with asyncio.timeout(5):
            await told.wait()
        assert len(times) == 1
        assert times[0] - at < 1
        assert len(await store.tokens()) == 2


async def test_without_inotify_the_file_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunneld.server.store.watching._inotify", lambda directory: -1)
    await test_a_write_of_another_process_is_noticed_and_ones_own_is_not(tmp_path)


async def test_a_backup_is_whole_while_somebody_writes(tmp_path: Path) -> None:
    async with opened(f"sqlite:///{tmp_path}/server.db") as store:
        await store.add_token(new_token("app", now=NOW)[0])
        copy = tmp_path / "copy.db"
        copy.write_text("an older copy")
        await store.backup(str(copy))
        assert stat.S_IMODE(copy.stat().st_mode) == 0o600
        with pytest.raises(ConfigError, match="the store itself"):
            await store.backup(f"{tmp_path}/server.db")
        with pytest.raises(ConfigError, match="cannot be written"):
            await store.backup(f"{tmp_path}/no/such/copy.db")
        assert sorted(one.name for one in tmp_path.iterdir() if "part" in one.name) == []
        async with opened(f"sqlite:///{copy}") as restored:
            assert await restored.tokens() == await store.tokens()
