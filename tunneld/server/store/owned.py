"""The owners in the SQLite file; `database.Database` gives the transaction."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from tunneld.server.store import schema
from tunneld.server.store.records import Limits, Owner

__all__ = ["add", "read", "remove"]


def read(connection: Connection) -> list[Owner]:
    """All of them, the oldest first."""
    return [_owner(row) for row in connection.execute(select(schema.owners).order_by(schema.owners.c.created))]


def add(connection: Connection, owner: Owner) -> bool:
    """Keep a new one; False when somebody has that name, or had it."""
    table = schema.owners
    if connection.execute(select(table.c.id).where(table.c.name == owner.name)).first() is not None:
        return False
    limits = owner.limits
    connection.execute(
        insert(table).values(
            id=owner.id,
            name=owner.name,
            created=owner.created,
            streams=limits.streams,
            bytes_per_s=limits.bytes_per_s,
            requests_per_s=limits.requests_per_s,
            tunnels=owner.tunnels,
        )
    )
    return True


def remove(connection: Connection, owner_id: str, now: float) -> bool:
    """End one and their tokens; False when there is none of that id that is not removed already."""
    table, tokens = schema.owners, schema.tokens
    live = update(table).where(table.c.id == owner_id, table.c.removed.is_(None)).values(removed=now)
    if not connection.execute(live).rowcount:
        return False
    connection.execute(update(tokens).where(tokens.c.owner == owner_id, tokens.c.revoked.is_(None)).values(revoked=now))
    return True


def _owner(row: Row[Any]) -> Owner:
    limits = Limits(row.streams, row.bytes_per_s, row.requests_per_s)
    return Owner(row.id, row.name, row.created, limits, row.tunnels, row.removed)
