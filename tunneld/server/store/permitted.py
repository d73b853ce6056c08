"""Permissions and keys of visitors in the SQLite file; `database.Database` gives the transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

from sqlalchemy import Connection, delete, insert, select, update

from tunneld.server.store import schema
from tunneld.server.store.records import Permission

__all__ = ["keep", "keep_keys", "keys", "read"]

_DIGEST = 32


def read(connection: Connection) -> list[Permission]:
    """All of them, the oldest first."""
    return [Permission(**row._mapping) for row in connection.execute(select(schema.permissions).order_by("id"))]


def keep(connection: Connection, wanted: Sequence[Permission], dropped: Sequence[int]) -> list[Permission]:
    """Write those, forget these; returns what was written, with ids."""
    table = schema.permissions
    connection.execute(delete(table).where(table.c.id.in_(dropped)))
    kept = []
    for one in wanted:
        values = asdict(one)
        number = values.pop("id")
        if number and connection.execute(update(table).where(table.c.id == number).values(**values)).rowcount:
            kept.append(one)
            continue
        key = connection.execute(insert(table).values(**values)).inserted_primary_key
        assert key is not None
        kept.append(replace(one, id=key[0]))
    return kept


def keys(connection: Connection) -> dict[tuple[str, str], tuple[bytes, ...]]:
    """(owner, tunnel) -> hashes, the oldest first."""
    found = {}
    for row in connection.execute(select(schema.visitor_keys)):
        octets = range(0, len(row.digests), _DIGEST)
        found[row.owner, row.tunnel] = tuple(bytes(row.digests[at : at + _DIGEST]) for at in octets)
    return found


def keep_keys(connection: Connection, owner: str, tunnel: str, digests: Sequence[bytes]) -> None:
    """Let these be all of a tunnel's."""
    table = schema.visitor_keys
    connection.execute(delete(table).where(table.c.owner == owner, table.c.tunnel == tunnel))
    connection.execute(insert(table).values(owner=owner, tunnel=tunnel, digests=b"".join(digests)))
