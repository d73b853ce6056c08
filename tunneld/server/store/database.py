"""The SQLite file: every call here blocks, and all of them belong to one thread (`service.SqlStore`).

SQLAlchemy Core without its ORM, which would cost the server 6 MiB. Alembic is loaded only for a file that is behind:
a new one is made from `schema` and marked with the newest migration, as Alembic's cookbook has it.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Row, create_engine, delete, event, func, insert, select, update
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.pool import StaticPool

from tunneld.errors import ConfigError, VisitorError
from tunneld.server.store import owned, permitted, schema
from tunneld.server.store.files import make_private, path_of
from tunneld.server.store.records import AuditEntry, Limits, Name, Owner, Permission, Registration, Token

__all__ = ["Database"]

_BUSY = 5.0
"""Seconds that a call waits while another process writes."""
_MIGRATIONS = "tunneld.server.store:migrations"


class Database:
    """One open store.

    Args:
        url: ``sqlite:///PATH`` or ``memory:``.

    Raises:
        ConfigError: it cannot be opened, is damaged, is another program's, or was written by a newer tunneld.
    """

    def __init__(self, url: str) -> None:
        self.path = path_of(url)
        self._writes = True
        if self.path is not None:
            make_private(self.path)
        self._engine = create_engine(
            URL.create("sqlite", database=self.path),
            poolclass=StaticPool,
            connect_args={"timeout": _BUSY},
        )
        event.listen(self._engine, "connect", _connected)
        event.listen(self._engine, "begin", self._began)
        try:
            self._connection: Connection = self._engine.connect()
            try:
                self._prepare()
            except BaseException:
                self._connection.close()
                raise
        except (SQLAlchemyError, sqlite3.Error) as error:
            self._engine.dispose()
            raise self._unusable(error) from None
        except BaseException:
            self._engine.dispose()
            raise

    def close(self) -> None:
        """Close the file."""
        self._connection.close()
        self._engine.dispose()

    def version(self) -> int:
        """A number that another process's writes change, and ours do not."""
        return int(self._raw().execute("PRAGMA data_version").fetchone()[0])

    def backup(self, path: str) -> None:
        """Copy the whole to `path`, as it is at one moment; raises ConfigError."""
        target = Path(path)
        if self.path is not None and target.exists() and target.samefile(self.path):
            raise ConfigError([f"{path}: this is the store itself; name another file for the copy"])
        part = target.with_name(f".{target.name}.part-{os.getpid()}")
        try:
            os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
            try:
                with contextlib.closing(sqlite3.connect(part)) as copy:
                    self._raw().backup(copy)
                    copy.execute("PRAGMA journal_mode=DELETE")  # one file, whole by itself
                with part.open("rb") as written:
                    os.fsync(written.fileno())
                part.replace(target)
            finally:
                part.unlink(missing_ok=True)
        except (OSError, sqlite3.Error) as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise ConfigError([f"{path}: the copy cannot be written: {why.lower()}"]) from None

    # -- tokens ------------------------------------------------------------------------------------------

    def tokens(self) -> list[Token]:
        """As `interface.TokenStore`; so are all below."""
        with self._reading() as connection:
            return [_token(row) for row in connection.execute(select(schema.tokens).order_by(schema.tokens.c.created))]

    def add_token(self, token: Token) -> None:  # noqa: D102
        limits = token.limits
        with self._writing() as connection:
            connection.execute(
                insert(schema.tokens).values(
                    id=token.id,
                    name=token.name,
                    tunnels=" ".join(token.tunnels),
                    scopes=" ".join(token.scopes),
                    digest=token.digest,
                    certificate=token.certificate,
                    created=token.created,
                    expires=token.expires,
                    revoked=token.revoked,
                    streams=limits.streams,
                    bytes_per_s=limits.bytes_per_s,
                    requests_per_s=limits.requests_per_s,
                    owner=token.owner,
                )
            )

    def revoke_token(self, token_id: str, now: float) -> bool:  # noqa: D102
        return self._change_token(token_id, revoked=now)

    def rotate_token(self, token_id: str, digest: bytes, old_until: float) -> bool:  # noqa: D102
        return self._change_token(token_id, old_digest=schema.tokens.c.digest, old_until=old_until, digest=digest)

    def _change_token(self, token_id: str, **values: Any) -> bool:
        table = schema.tokens
        with self._writing() as connection:
            live = update(table).where(table.c.id == token_id, table.c.revoked.is_(None))
            return connection.execute(live.values(**values)).rowcount > 0

    # -- owners ------------------------------------------------------------------------------------------

    def owners(self) -> list[Owner]:  # noqa: D102
        with self._reading() as connection:
            return owned.read(connection)

    def add_owner(self, owner: Owner) -> bool:  # noqa: D102
        with self._writing() as connection:
            return owned.add(connection, owner)

    def remove_owner(self, owner_id: str, now: float) -> bool:  # noqa: D102
        with self._writing() as connection:
            return owned.remove(connection, owner_id, now)

    # -- names -------------------------------------------------------------------------------------------

    def names(self) -> list[Name]:  # noqa: D102
        with self._reading() as connection:
            return [_name(row) for row in connection.execute(select(schema.names).order_by(schema.names.c.name))]

    def claim_name(self, wanted: Name, instead_of: Name | None, most: int) -> Name | None:  # noqa: D102
        table = schema.names
        with self._writing() as connection:
            row = connection.execute(select(table).where(table.c.name == wanted.name)).one_or_none()
            held = None if row is None else _name(row)
            if held is not None and (held != instead_of or held.owner == wanted.owner):
                return held
            count = select(func.count()).select_from(table).where(table.c.owner == wanted.owner)
            if connection.execute(count).scalar_one() >= most:
                return None
            _put_name(connection, wanted)
            return wanted

    def reserve_name(self, name: Name) -> None:  # noqa: D102
        with self._writing() as connection:
            _put_name(connection, name)

    def release_name(self, name: str) -> bool:  # noqa: D102
        with self._writing() as connection:
            return connection.execute(delete(schema.names).where(schema.names.c.name == name)).rowcount > 0

    # -- registrations -----------------------------------------------------------------------------------

    def register(self, wanted: Registration, most: int) -> tuple[Registration, bool] | None:  # noqa: D102
        table = schema.registrations
        said = {
            "name": wanted.name,
            "description": wanted.description,
            "connection_url": wanted.connection_url,
            "updated": wanted.updated,
        }
        with self._writing() as connection:
            row = connection.execute(select(table).where(table.c.key_digest == wanted.key_digest)).one_or_none()
            if row is not None and row.owner != wanted.owner:
                return None
            if row is not None:
                connection.execute(update(table).where(table.c.id == row.id).values(**said))
            else:
                fresh = {"owner": wanted.owner, "key_digest": wanted.key_digest, "created": wanted.updated}
                connection.execute(insert(table).values(**said, **fresh))
                excess = connection.execute(select(func.count()).select_from(table)).scalar_one() - most
                if excess > 0:
                    others = select(table.c.id).where(table.c.key_digest != wanted.key_digest)
                    oldest = others.order_by(table.c.updated, table.c.id).limit(excess)
                    connection.execute(delete(table).where(table.c.id.in_(oldest)))
            kept = connection.execute(select(table).where(table.c.key_digest == wanted.key_digest)).one()
            return _registration(kept), row is not None

    def registration(self, registration_id: int) -> Registration | None:  # noqa: D102
        table = schema.registrations
        with self._reading() as connection:
            row = connection.execute(select(table).where(table.c.id == registration_id)).one_or_none()
            return None if row is None else _registration(row)

    # -- labels ------------------------------------------------------------------------------------------

    def labels(self) -> dict[str, str]:  # noqa: D102
        table = schema.labels
        with self._reading() as connection:
            rows = connection.execute(select(table).order_by(table.c.since, table.c.label))
            return {row.label: row.name for row in rows}

    def keep_label(self, label: str, name: str, now: float, most: int) -> str:  # noqa: D102
        table = schema.labels
        with self._writing() as connection:
            held = connection.execute(select(table.c.name).where(table.c.label == label)).scalar_one_or_none()
            if held is not None:
                return str(held)
            connection.execute(insert(table).values(label=label, name=name, since=now))
            excess = connection.execute(select(func.count()).select_from(table)).scalar_one() - most
            if excess > 0:
                oldest = select(table.c.label).order_by(table.c.since, table.c.label).limit(excess)
                connection.execute(delete(table).where(table.c.label.in_(oldest)))
            return name

    # -- permissions -------------------------------------------------------------------------------------

    def permissions(self) -> list[Permission]:  # noqa: D102
        with self._reading() as connection:
            return permitted.read(connection)

    def keep_permissions(self, wanted: Sequence[Permission], dropped: Sequence[int]) -> list[Permission]:  # noqa: D102
        with self._writing() as connection:
            return permitted.keep(connection, wanted, dropped)

    def visitor_keys(self) -> dict[tuple[str, str], tuple[bytes, ...]]:  # noqa: D102
        with self._reading() as connection:
            return permitted.keys(connection)

    def keep_visitor_keys(self, owner: str, tunnel: str, digests: Sequence[bytes]) -> None:  # noqa: D102
        with self._writing() as connection:
            permitted.keep_keys(connection, owner, tunnel, digests)

    def registration_of(self, key_digest: bytes) -> Registration | None:  # noqa: D102
        table = schema.registrations
        with self._reading() as connection:
            row = connection.execute(select(table).where(table.c.key_digest == key_digest)).one_or_none()
            return None if row is None else _registration(row)

    # -- audit -------------------------------------------------------------------------------------------

    def add_audit(self, entry: AuditEntry, most: int) -> None:  # noqa: D102
        table = schema.audit
        with self._writing() as connection:
            values = {"at": entry.at, "actor": entry.actor, "action": entry.action, "detail": entry.detail}
            result = connection.execute(insert(table).values(**values, ok=entry.ok))
            key = result.inserted_primary_key
            assert key is not None
            connection.execute(delete(table).where(table.c.id <= key[0] - most))

    def audit(self, limit: int, before: int | None) -> list[AuditEntry]:  # noqa: D102
        table = schema.audit
        wanted = select(table).order_by(table.c.id.desc()).limit(limit)
        if before is not None:
            wanted = wanted.where(table.c.id < before)
        with self._reading() as connection:
            return [
                AuditEntry(row.at, row.actor, row.action, row.detail, row.ok, row.id)
                for row in connection.execute(wanted)
            ]

    # -- inside ------------------------------------------------------------------------------------------

    def _raw(self) -> sqlite3.Connection:
        raw = self._connection.connection.driver_connection
        assert isinstance(raw, sqlite3.Connection)
        return raw

    def _began(self, connection: Connection) -> None:
        # A write takes the lock at once: one that first read could not wait for another writer any more.
        connection.exec_driver_sql("BEGIN IMMEDIATE" if self._writes else "BEGIN")

    @contextlib.contextmanager
    def _transaction(self, *, writes: bool) -> Iterator[Connection]:
        self._writes = writes
        try:
            with self._connection.begin():
                yield self._connection
        except SQLAlchemyError as error:
            where = self.path or "memory:"
            raise VisitorError("store_failed", f"The store {where} failed: {_reason(error)}.", retry_after=5) from error

    def _writing(self) -> contextlib.AbstractContextManager[Connection]:
        return self._transaction(writes=True)

    def _reading(self) -> contextlib.AbstractContextManager[Connection]:
        return self._transaction(writes=False)

    def _prepare(self) -> None:
        """Refuse what is not ours or damaged; bring what is behind up to date."""
        raw = self._raw()
        tables = raw.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        marked = raw.execute("PRAGMA application_id").fetchone()[0]
        if tables and marked != schema.APPLICATION_ID:
            raise self._refusal("a database of another program; name another file, which is made when it is missing")
        if tables and (found := raw.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise self._refusal(f"is damaged ({' '.join(found.split())}). {_RESTORE}")
        raw.execute("PRAGMA journal_mode=WAL")
        self._writes = False
        with self._connection.begin():
            at = self._version_of_schema()
        if at == schema.HEAD:
            return
        self._writes = True
        with self._connection.begin():
            at = self._version_of_schema()  # another process may have been quicker
            if at is None:
                schema.metadata.create_all(self._connection)
                schema.versions.create(self._connection)
                self._connection.execute(insert(schema.versions).values(version_num=schema.HEAD))
                self._connection.exec_driver_sql(f"PRAGMA application_id={schema.APPLICATION_ID}")
            elif at != schema.HEAD:
                self._upgrade(at)

    def _version_of_schema(self) -> str | None:
        """The migration that the file is at; None for a new file."""
        if not self._connection.dialect.has_table(self._connection, schema.versions.name):
            return None
        return str(self._connection.execute(select(schema.versions.c.version_num)).scalar_one())

    def _upgrade(self, at: str) -> None:
        if at not in schema.KNOWN:
            raise self._refusal(
                f"was written by a newer tunneld (schema {at}; this one knows {schema.HEAD} and older). Update "
                "tunneld, or restore a backup that was made before the update"
            )
        from alembic import command
        from alembic.config import Config

        config = Config()
        config.set_main_option("script_location", _MIGRATIONS)
        config.attributes["connection"] = self._connection
        command.upgrade(config, "head")

    def _refusal(self, what: str) -> ConfigError:
        return ConfigError([f"store: {self.path}: {what}"])

    def _unusable(self, error: SQLAlchemyError | sqlite3.Error) -> ConfigError:
        code = getattr(getattr(error, "orig", error), "sqlite_errorname", "")
        if code in ("SQLITE_NOTADB", "SQLITE_CORRUPT") or code.startswith("SQLITE_CORRUPT_"):
            return self._refusal(f"is damaged, or no SQLite database ({_reason(error)}). {_RESTORE}")
        hints = {
            "SQLITE_READONLY": "; it and its directory must be writable for the server's user",
            "SQLITE_CANTOPEN": "; it and its directory must be writable for the server's user",
            "SQLITE_BUSY": "; another process holds it: stop that one, or try again",
            "SQLITE_FULL": "; make room on that disk",
        }
        hint = next((text for name, text in hints.items() if code.startswith(name)), "")
        return self._refusal(f"cannot be opened: {_reason(error)}{hint}")


_RESTORE = (
    "Restore a copy that `tunneld server backup` made, or move the file (with its -wal and -shm) away to begin anew: "
    "every agent then needs a new token"
)


def _reason(error: Exception) -> str:
    return str(error.orig) if isinstance(error, DBAPIError) and error.orig is not None else str(error)


def _connected(raw: sqlite3.Connection, _record: object) -> None:
    raw.isolation_level = None  # transactions are ours: sqlite3 would begin them late, and none for a read
    raw.execute("PRAGMA synchronous=FULL")  # what was acknowledged outlives a power cut too


def _put_name(connection: Connection, name: Name) -> None:
    table = schema.names
    connection.execute(delete(table).where(table.c.name == name.name))
    connection.execute(insert(table).values(name=name.name, owner=name.owner, since=name.since, reserved=name.reserved))


def _name(row: Row[Any]) -> Name:
    return Name(row.name, row.owner, row.since, row.reserved)


def _registration(row: Row[Any]) -> Registration:
    return Registration(
        row.id, row.owner, row.name, row.key_digest, row.description, row.connection_url, row.created, row.updated
    )


def _token(row: Row[Any]) -> Token:
    return Token(
        row.id,
        row.name,
        tuple(row.tunnels.split()),
        row.created,
        scopes=tuple(row.scopes.split()),
        digest=row.digest,
        certificate=row.certificate,
        expires=row.expires,
        revoked=row.revoked,
        limits=Limits(row.streams, row.bytes_per_s, row.requests_per_s),
        old_digest=row.old_digest,
        old_until=row.old_until,
        owner=row.owner,
    )
