"""Who may visit which tunnel: permissions by e-mail address, and keys of the older dialect's tunnels."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0003"
down_revision: str | None = "0002"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None


def upgrade() -> None:
    """Add the tables."""
    op.create_table(
        "permissions",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("tunnel", sa.String(63), nullable=False),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("server_id", sa.Integer),
        sa.Column("email", sa.Text, nullable=False),
        sa.Column("level", sa.String(16), nullable=False),
        sa.Column("granted", sa.Float, nullable=False),
        sa.Column("address", sa.Text, nullable=False),
        sa.Column("activated", sa.Float),
        sa.Column("user", sa.Text),
        sa.Column("revoked", sa.Float),
        sa.Column("expires", sa.Float),
        sa.Column("notes", sa.Text, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("permissions_once", "permissions", ["owner", "tunnel", "email"], unique=True)
    op.create_table(
        "visitor_keys",
        sa.Column("owner", sa.Text, primary_key=True),
        sa.Column("tunnel", sa.String(63), primary_key=True),
        sa.Column("digests", sa.LargeBinary, nullable=False),
    )
