"""Tokens, names, registrations, audit."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0001"
down_revision: str | None = None
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None


def upgrade() -> None:
    """Make the first tables."""
    op.create_table(
        "tokens",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("tunnels", sa.Text, nullable=False),
        sa.Column("scopes", sa.Text, nullable=False),
        sa.Column("digest", sa.LargeBinary(32), unique=True),
        sa.Column("certificate", sa.Text),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("expires", sa.Float),
        sa.Column("revoked", sa.Float),
        sa.Column("streams", sa.Integer, nullable=False),
        sa.Column("bytes_per_s", sa.Integer, nullable=False),
        sa.Column("requests_per_s", sa.Float, nullable=False),
        sa.Column("old_digest", sa.LargeBinary(32)),
        sa.Column("old_until", sa.Float),
    )
    op.create_table(
        "names",
        sa.Column("name", sa.String(63), primary_key=True),
        sa.Column("owner", sa.String(32)),
        sa.Column("since", sa.Float, nullable=False),
        sa.Column("reserved", sa.Boolean, nullable=False),
    )
    op.create_index("names_of_owner", "names", ["owner"])
    op.create_table(
        "registrations",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("key_digest", sa.LargeBinary(32), nullable=False, unique=True),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("connection_url", sa.Text, nullable=False),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("updated", sa.Float, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("registrations_by_age", "registrations", ["updated"])
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("ok", sa.Boolean, nullable=False),
        sqlite_autoincrement=True,
    )
