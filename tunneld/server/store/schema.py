"""The tables, as the newest migration leaves them; a test holds the two against each other."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Boolean, Column, Float, Index, Integer, LargeBinary, MetaData, String, Table, Text

__all__ = [
    "APPLICATION_ID",
    "HEAD",
    "KNOWN",
    "audit",
    "labels",
    "metadata",
    "names",
    "owners",
    "permissions",
    "registrations",
    "tokens",
    "versions",
    "visitor_keys",
]

HEAD: Final = "0004"
"""The newest migration."""
KNOWN: Final = frozenset({"0001", "0002", "0003", "0004"})
"""Every migration: a file that names another one was written by a newer program."""
APPLICATION_ID: Final = 0x746E6C64
"""Marks a SQLite file as ours (``PRAGMA application_id``): "tnld"."""

metadata = MetaData()

tokens = Table(
    "tokens",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("name", Text, nullable=False),
    Column("tunnels", Text, nullable=False),  # separated by blanks, which no glob holds
    Column("scopes", Text, nullable=False),
    Column("digest", LargeBinary(32), unique=True),
    Column("certificate", Text),
    Column("created", Float, nullable=False),
    Column("expires", Float),
    Column("revoked", Float),
    Column("streams", Integer, nullable=False),
    Column("bytes_per_s", Integer, nullable=False),
    Column("requests_per_s", Float, nullable=False),
    Column("old_digest", LargeBinary(32)),
    Column("old_until", Float),
    Column("owner", String(32)),
)

owners = Table(
    "owners",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("created", Float, nullable=False),
    Column("streams", Integer, nullable=False),
    Column("bytes_per_s", Integer, nullable=False),
    Column("requests_per_s", Float, nullable=False),
    Column("tunnels", Integer, nullable=False),
    Column("removed", Float),
)

names = Table(
    "names",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("owner", String(32)),
    Column("since", Float, nullable=False),
    Column("reserved", Boolean, nullable=False),
    Index("names_of_owner", "owner"),
)

registrations = Table(
    "registrations",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("owner", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("key_digest", LargeBinary(32), nullable=False, unique=True),
    Column("description", Text, nullable=False),
    Column("connection_url", Text, nullable=False),
    Column("created", Float, nullable=False),
    Column("updated", Float, nullable=False),
    Index("registrations_by_age", "updated"),
    sqlite_autoincrement=True,
)

#: Of the names of the older dialect's tunnels, which are free text.
labels = Table(
    "labels",
    metadata,
    Column("label", String(63), primary_key=True),
    Column("name", Text, nullable=False),
    Column("since", Float, nullable=False),
    Index("labels_by_age", "since"),
)

#: Who may visit which tunnel, by e-mail address.
permissions = Table(
    "permissions",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("tunnel", String(63), nullable=False),
    Column("owner", Text, nullable=False),
    Column("server_id", Integer),
    Column("email", Text, nullable=False),
    Column("level", String(16), nullable=False),
    Column("granted", Float, nullable=False),
    Column("address", Text, nullable=False),
    Column("activated", Float),
    Column("user", Text),
    Column("revoked", Float),
    Column("expires", Float),
    Column("notes", Text, nullable=False),
    Index("permissions_once", "owner", "tunnel", "email", unique=True),
    sqlite_autoincrement=True,
)

#: Of tunnels of the older dialect: hashes of what lets visitors in.
visitor_keys = Table(
    "visitor_keys",
    metadata,
    Column("owner", Text, primary_key=True),
    Column("tunnel", String(63), primary_key=True),
    Column("digests", LargeBinary, nullable=False),  # of 32 octets each, the oldest first
)

audit = Table(
    "audit",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("at", Float, nullable=False),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("detail", Text, nullable=False),
    Column("ok", Boolean, nullable=False),
    sqlite_autoincrement=True,
)

#: Alembic's own, in which it notes the migration that a file is at. Not part of `metadata`, as Alembic wants it.
versions = Table("alembic_version", MetaData(), Column("version_num", String(32), primary_key=True))
