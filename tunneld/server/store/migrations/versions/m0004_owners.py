"""Owners, and whose a token is."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0004"
down_revision: str | None = "0003"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None


def upgrade() -> None:
    """Add the table and the column."""
    op.create_table(
        "owners",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("name", sa.Text, nullable=False, unique=True),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("streams", sa.Integer, nullable=False),
        sa.Column("bytes_per_s", sa.Integer, nullable=False),
        sa.Column("requests_per_s", sa.Float, nullable=False),
        sa.Column("tunnels", sa.Integer, nullable=False),
        sa.Column("removed", sa.Float),
    )
    op.add_column("tokens", sa.Column("owner", sa.String(32)))
